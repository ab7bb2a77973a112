# SPDX-License-Identifier: Apache-2.0
"""Rows have the keys of docs/json.md, in its order, and its types, all the way down."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from cli_lab import ANSWERS, DEVICE, STACK, Cli
from jsonpage import PAGE, TABLES, wrong_with
from test_client import FakeRd, run_root  # noqa: F401 - run_root is a fixture

from dmm_ebpf.cli import hardwaretables
from dmm_ebpf.errors import DmmError
from dmm_ebpf.records import device
from dmm_ebpf.records.central import HostRow, RolloutRow
from dmm_ebpf.records.device import Untold
from dmm_ebpf.records.failed import Failed
from dmm_ebpf.records.fault import FaultRow
from dmm_ebpf.records.fleet import FleetCompared, FleetEvent, FleetListed
from dmm_ebpf.records.plugin import PluginRow, Simulated, Simulation
from dmm_ebpf.records.policy import (
    AsExpected,
    Change,
    Checked,
    Compared,
    Explained,
    Held,
    Imported,
    Mismatch,
    RouteAnswer,
    RouteSeen,
    RuleSeen,
    Tried,
    Unasked,
    Warned,
)
from dmm_ebpf.records.record import ABSENT, Record, columns_of, from_columns, to_json, to_map
from dmm_ebpf.records.segment import Captured, Segment, SegmentRow
from dmm_ebpf.records.stack import StackRow
from dmm_ebpf.records.status import Detached, NamedSet, Pending

DONE = {"drop": 3, "corrupt": 0, "duplicate": 0, "reorder": 0, "delay": 0}
FAULT = FaultRow("wan", 1, "outer", "out", {"drop": {"every": 100}}, 0, 7, 300, DONE, 2)
SEGMENT = Segment("192.0.2.1", "192.0.2.2", 40000, 443, "SYN", 7, 0, 1000, 0, ["mss 1460"])
FLOW = Simulated("cubic", 1.5, 0.5, 2.0, 10, 1, 0, 0.1, 0.0, 0, 1, "X.on_ack raised E")
ANSWER = RouteAnswer(
    "default", "/", {"cgroup": "/"}, "lan", "wan", "t", "r", 2, "::/0", "device",
    [Unasked("q", ["uid"])], "eth0", "refused",
)  # fmt: skip
RULES = [
    RuleSeen("q", 1, "no match", [Mismatch("uid", "7", None)], None, [], 0),
    RuleSeen("r", 2, "decides", [], "t", [RouteSeen("::/0", "wan", "p.csv:2", "decides")], 9),
]
UNTOLD = Untold("the kernel does not say")
UNTOLD_DEVICE = replace(
    DEVICE, queues=UNTOLD, rss=UNTOLD, offloads=UNTOLD, speed_mbps=UNTOLD, rdma=UNTOLD,
    xdp=replace(DEVICE.xdp, native=UNTOLD),
    in_the_way=device.InTheWay(UNTOLD, None, UNTOLD, []),
)  # fmt: skip
REFUSED = Failed("PolicyError", "accept p", "why", "", 2, "p: why", [{"what": "x"}], False)
HELD = Held(3, "203.0.113.7 -> wan", "wan", False, replace(ANSWER, instance=ABSENT))
HOST = HostRow(
    "a", "default", "applied", 2, 2, 2, 0, "", 1.5, {"role": "edge"}, "1", "6.18",
    [{"name": "wan"}], [], 7,
)  # fmt: skip
ROLLOUT = RolloutRow("etcd://h/p", "halted", 2, 1, ["a=b"], 1, "w", "me", 1.5, "", 0, 3)
CHANGE = Change("+", "route", "192.0.2.0/24 -> wan (table shop)")
PENDING = Pending("1: cgroup /a", 1, "/a", None)
WARNED = Warned("p.toml:3", "table shop has no routes")
NAMED_SET = NamedSet("nft:inet filter lossy", "unread", 3, "nft does not answer")
PLAIN: dict[str, tuple[str, Record]] = {
    "device": ("device", DEVICE),
    "device that is hardly known": ("device", UNTOLD_DEVICE),
    "compared": ("difference", Compared("default", False, [CHANGE], 3, ["/etc/a.csv"], 2)),
    "tried": (
        "tried",
        Tried("a", False, [CHANGE], 0, 1, 2, 1, [PENDING], [WARNED], 0, ["x"], [NAMED_SET], 2),
    ),
    "named set": ("named_set", NamedSet("dns:db.example", "followed", 1, "", ["192.0.2.1/32"])),
    "checked": ("checked", Checked(True, 1, 2, 3, [REFUSED], True, [WARNED], 0, REFUSED)),
    "error": ("error", REFUSED),
    "imported": ("imported", Imported("[stacks.wan]\n", ["a rule"])),
    "fleet listed": ("fleet", FleetListed(ROLLOUT, [HOST])),
    "fleet compared": ("fleet_diff", FleetCompared(2, False, [CHANGE])),
    "fleet event": ("fleet_event", FleetEvent("host", 1.5, HOST, "rolling", 2, "", "want/x")),
    "fault": ("faults", FAULT),
    "segment": ("segment", SegmentRow(1, "wan@1", "outer", "in", SEGMENT, 78)),
    "no segment": ("segment", SegmentRow(1, "wan", "inner", "out", Segment(why="cut short"), 3)),
    "captured": ("captured", Captured("default", "f.pcapng", 3)),
    "detached": ("detached", Detached("default", ["hooks"], ["whether pins are left"], REFUSED)),
    "plugin": ("control", PluginRow("x:Y", "python", "congestion", "/x.py", "Y", 3)),
    "broken": ("control", PluginRow("c:z", "c", "transport", "/z.so", error="no such symbol")),
    "simulation": ("simulation", Simulation(1e6, 0.1, 0.0, 1.0, 2.0, 1, 10, 9e5, [FLOW])),
}


@pytest.mark.parametrize(("kind", "row"), PLAIN.values(), ids=PLAIN)
def test_a_row_is_as_the_page_says(kind: str, row: Record) -> None:
    said: dict[str, Any] = json.loads(to_json(row))
    assert list(said) == list(TABLES[kind])
    assert wrong_with(said, kind, kind) == []


@pytest.mark.parametrize(("kind", "row"), PLAIN.values(), ids=PLAIN)
def test_a_row_survives_the_way(kind: str, row: Record) -> None:
    packed = msgpack.unpackb(msgpack.packb(row, default=to_map))
    assert type(row).from_map(packed) == row, kind
    assert not hasattr(row, "__dict__")


def test_an_explanation_is_as_the_page_says() -> None:
    told = Explained(ANSWER, RULES, 3)
    said: dict[str, Any] = json.loads(to_json(told))
    assert list(said) == list(TABLES["explained"])
    assert wrong_with(said, "explained", "explained") == []
    assert Explained.from_map(msgpack.unpackb(msgpack.packb(told, default=to_map))) == told


def test_expectations_have_the_keys_of_an_answer() -> None:
    told = AsExpected(False, [HELD])
    said: dict[str, Any] = json.loads(to_json(told))
    assert list(said) == list(TABLES["tested"])
    (held,) = said["expectations"]
    own = list(TABLES["expectation"])
    assert list(held)[: len(own)] == own
    assert set(held) - set(own) <= set(TABLES["route"]) - {"instance"}
    assert AsExpected.from_map(said) == told


def test_faults_of_a_stack_are_rows_too() -> None:
    stack = StackRow.from_map(STACK | {"faults": [FAULT.to_map()]})
    assert stack.faults == [FAULT]


@pytest.mark.usefixtures("run_root")
def test_faults_as_json_and_as_a_sentence(cli: Cli) -> None:
    with FakeRd("default", ANSWERS | {"faults": [FAULT.to_map()]}):
        assert cli("faults", "--json").json == [FAULT.to_map()]
        told = cli("faults").out
    assert told == (
        "wan@1 injects faults, outer leg out: drop 1/100, seed 7; of 300 packets "
        "3 dropped, 2 lost for want of room\n"
    )


def test_what_a_segment_lacks_is_one_sentence() -> None:
    with pytest.raises(DmmError, match="a segmentrow: it does not say stack, frame_bytes; is"):
        SegmentRow.from_map({"time_ns": 1, "leg": "outer", "direction": "in"})


def test_a_word_of_python_is_a_key_as_any() -> None:
    said = {"name": "a", "kind": "c", "fits": "transport", "class": "B"}
    assert PluginRow.from_map(said).class_ == "B"
    ((columns, values),) = columns_of([PluginRow.from_map(said)])
    assert "class" in columns and "class_" not in columns
    assert [one.class_ for one in from_columns(PluginRow, columns, map(list, values))] == ["B"]


def test_what_could_not_be_told_is_a_map_of_the_reason_alone() -> None:
    said = json.loads(to_json(UNTOLD_DEVICE))
    for value in (said["rss"], said["xdp"]["native"], said["in_the_way"]["xdp"]):
        assert value == {"could_not_tell": "the kernel does not say"}


def test_the_keys_within_a_device_are_those_of_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("\n## device\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| (\w+) \| map(?: or null|\[\])? \| (`.*) \|$", page, re.MULTILINE)
    said = json.loads(to_json(DEVICE))
    assert len(named) == 9
    for key, text in named:
        one = said[key][0] if isinstance(said[key], list) else said[key]
        assert list(one) == re.findall(r"`(\w+)`", text), key


def test_devices_as_a_person_sees_them(capsys: pytest.CaptureFixture[str]) -> None:
    hardwaretables.print_device(DEVICE)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "device eth0"
    assert [line[len("  RSS        ") :] for line in lines] == [
        "hardware, driver mlx5_core, on pci/0000:01:00.0, up",
        "speed 100Gbit/s, MTU 1500, NUMA node -",
        "8 to receive of at most 16, 8 to send of at most 16",
        "8 queues in 128 entries, toeplitz, a key of 40 bytes",
        "native yes, transmits yes, frags yes, in hardware no, attached native (id 9)",
        "zero-copy of packets of up to 17 buffers, metadata yes, checksums left to it no",
        "received timestamp, hash; sent -",
        "TSO",
        "mlx5_0 port 1: ACTIVE, RoCE v2, 100 Gb/sec, could carry RC, UD; "
        "no transport of dmm-ebpf uses it",
        "their_xdp (id 9)",
        "htb",
        "ingress u32",
        "tap: XDP program their_xdp is there",
        "where a policy names no devices",
    ]


def test_what_could_not_be_told_is_a_question_mark_and_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hardwaretables.print_devices([DEVICE, UNTOLD_DEVICE])
    told = capsys.readouterr().out
    assert told.endswith(
        "could not tell speed mbps, queues, rss, offloads, xdp native, rdma, in the way xdp, "
        "in the way tc filters of eth0: the kernel does not say\n"
    )
    _, known, unknown, *_ = told.splitlines()
    assert "?" not in known and unknown.count("?") == 6
