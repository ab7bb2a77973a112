# SPDX-License-Identifier: Apache-2.0
"""Records as maps, as columns and as JSON, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from cli_lab import FLOW, LISTENER, STACK, STATUS
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf.errors import DmmError
from dmm_ebpf.records.event import OtherEvent, StackEvent, event_of
from dmm_ebpf.records.flow import Flow, FlowEvent, Listener
from dmm_ebpf.records.policy import Applied
from dmm_ebpf.records.record import (
    ABSENT,
    Record,
    columns_of,
    from_columns,
    known,
    to_json,
    to_map,
)
from dmm_ebpf.records.stack import Limits, ProcessRow, StackRow
from dmm_ebpf.records.status import Nested, Status

PROCESS = ProcessRow(1, pid=7, limits=Limits("/x", None, 3, ""), full=["memory"])
ROWS: dict[str, Record] = {
    "flow": Flow.from_map(FLOW),
    "forwarded": replace(Flow.from_map(FLOW), kind="forwarded", in_interface=None),
    "listener": Listener.from_map(LISTENER),
    "stack": replace(StackRow.from_map(STACK), processes=[PROCESS], counters={"a": 1}),
    "status": replace(Status.from_map(STATUS), nested=[Nested("a", "/a", True)]),
    "close": FlowEvent("close", 1.5, Flow.from_map(FLOW), "fin"),
    "stack event": StackEvent("stack", "wan", 0, "up", 7, ABSENT, 1.5, "default"),
    "applied": Applied("default", 1, 2, 3, 4, []),
}


def packed(row: Record) -> dict[str, Any]:
    body = msgpack.packb({"row": row}, default=to_map)
    map_: dict[str, Any] = msgpack.unpackb(body)["row"]
    return map_


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_record_survives_msgpack_and_json(row: Record) -> None:
    assert type(row).from_map(packed(row)) == row
    assert type(row).from_map(json.loads(to_json(row))) == row
    assert json.loads(to_json([row])) == [packed(row)]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_record_cannot_be_changed_and_takes_no_more(row: Record) -> None:
    assert not hasattr(row, "__dict__")
    with pytest.raises((AttributeError, TypeError)):
        row.instance = "x"  # type: ignore[attr-defined]


def test_what_is_absent_is_no_key_and_false() -> None:
    row = StackRow("default", "kernel", 0, "kernel", "up")
    assert list(row.to_map()) == ["instance", "name", "id", "kind", "state"]
    assert not row.full and known(row.full) is None
    assert replace(row, pid=None).to_map()["pid"] is None


def test_what_a_newer_director_says_besides_is_left_out() -> None:
    assert Flow.from_map(FLOW | {"colour": "red"}) == Flow.from_map(FLOW)
    columns, ((_, values),) = ("a", *FLOW), [("", (0, *FLOW.values()))]
    assert list(from_columns(Flow, columns, [list(values)])) == [Flow.from_map(FLOW)]


def test_what_an_older_one_does_not_say_is_one_sentence() -> None:
    less = {key: value for key, value in FLOW.items() if key not in ("why", "state")}
    for read in (lambda: Flow.from_map(less), lambda: list(from_columns(Flow, [*less], []))):
        with pytest.raises(DmmError, match="a flow: it does not say why, state; is dmm-ebpf the"):
            read()


SHAPES = st.dictionaries(
    st.sampled_from(["in_interface", "carrier", "cwnd_bytes", "outer_state"]), st.text(), max_size=4
)


@given(st.lists(SHAPES, max_size=9))
def test_columns_keep_every_flow(shapes: list[dict[str, Any]]) -> None:
    rows = [replace(Flow.from_map(FLOW), cookie=n, **more) for n, more in enumerate(shapes)]
    found = [
        row
        for columns, values in columns_of(rows)
        for row in from_columns(Flow, columns, msgpack.unpackb(msgpack.packb(values)))
    ]
    assert sorted(found, key=lambda row: row.cookie) == rows


def test_events_of_another_version_are_handed_on_as_they_are() -> None:
    for said in (
        {"type": "weather", "time": 1.0, "instance": "x", "rain": True},
        {"type": "stack", "time": 1.0, "instance": "x", "name": "wan"},
    ):
        event = event_of(said)
        assert isinstance(event, OtherEvent)
        assert event.to_map() == said
    told = event_of(packed(ROWS["stack event"]))
    assert told == ROWS["stack event"]
