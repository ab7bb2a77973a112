# SPDX-License-Identifier: Apache-2.0
"""Every table of states: it has a line for each, and the setter keeps to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest

from dmm_ebpf import states
from dmm_ebpf.rd.director import phase, stage
from dmm_ebpf.userstack import life

TABLES: dict[str, Mapping[Any, frozenset[Any]]] = {
    "stack process": phase.FOLLOWS,
    "supervisor": life.FOLLOWS,
    "instance": stage.STAGES,
    "policy": stage.PROGRESS,
}
ALL = [
    (table, old, new)
    for table in TABLES.values()
    for old in type(next(iter(table)))
    for new in table
]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_state_has_a_line_and_can_be_reached(table: Mapping[Any, frozenset[Any]]) -> None:
    kind: type[StrEnum] = type(next(iter(table)))
    assert list(table) == list(kind)
    _, *others = kind
    assert set(others) <= set().union(*(after - {old} for old, after in table.items()))


@pytest.mark.parametrize(("table", "old", "new"), ALL)
def test_the_setter_keeps_to_the_table(
    table: Mapping[Any, frozenset[Any]], old: Any, new: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if new in table[old]:
        assert states.move("it", table, old, new, "so") is new
        assert [one.getMessage() for one in caplog.records] == (
            [] if old is new else [f"it: {old}, then {new}: so"]
        )
    else:
        with pytest.raises(states.ForbiddenError, match=f"it is {old}, and {new} may not follow"):
            states.move("it", table, old, new)
