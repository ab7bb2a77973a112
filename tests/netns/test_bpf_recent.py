# SPDX-License-Identifier: Apache-2.0
"""recent_routes: connect() finds there what it found before, and nothing else.

That it looks there at all shows when a trie changes under a generation in force, which the
RD never does.
"""

from __future__ import annotations

import socket

import pytest
from bpf_lab import Bench, Policy, bench, flip

from dmm_ebpf import abi
from dmm_ebpf.abi import C

__all__ = ["bench"]

OLD, NEW = 3, 4


def policy(stack: int, route: int) -> Policy:
    """Everything to one stack, by route of both families."""
    made = Policy().rule(1).stack(OLD, C.DMM_STACK_KERNEL).stack(NEW, C.DMM_STACK_KERNEL)
    return made.route(1, "0.0.0.0/0", stack, route=route).route(1, "::/0", stack, route=route)


def decided(bench: Bench, address: str) -> tuple[int, int, int, int]:
    """(stack, route, table, rule) of a fresh connection."""
    bench.agent.open("x", socket.AF_INET6 if ":" in address else socket.AF_INET)
    bench.agent.connect("x", address, bench.port)
    flow = bench.flow(bench.agent.cookie("x"))
    bench.agent.close("x")
    assert flow is not None
    made = flow.decision
    return made.stack, made.route, made.table, made.rule


def kept(bench: Bench) -> dict[bytes, bytes]:
    """The entries that are not empty, by key."""
    return {key: value for key, value in bench.attached.maps["recent_routes"].items() if any(value)}


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_route_is_found_again_until_the_generation_changes(bench: Bench, family: str) -> None:
    address = getattr(bench.b, family)
    policy(OLD, 70000).apply(bench.attached)
    assert decided(bench, address) == (OLD, 70000, 1, 1)
    assert len(kept(bench)) == 1
    policy(NEW, 80000).write(bench.attached, 1)
    assert decided(bench, address) == (OLD, 70000, 1, 1)
    policy(NEW, 80000).write(bench.attached, 2)
    flip(bench.attached, 2)
    assert decided(bench, address) == (NEW, 80000, 1, 1)
    assert decided(bench, address) == (NEW, 80000, 1, 1)


@pytest.mark.parametrize("word", range(5))
def test_an_entry_that_does_not_add_up_is_not_believed(bench: Bench, word: int) -> None:
    """What a reader sees of two writers at once: one word of another entry."""
    policy(OLD, 5).apply(bench.attached)
    decided(bench, bench.b.ip4)
    ((key, value),) = kept(bench).items()
    policy(NEW, 6).write(bench.attached, 1)
    for bit in (0, 7, 32, 40, 63):
        torn = bytearray(value)
        torn[8 * word + bit // 8] ^= 1 << bit % 8
        bench.attached.maps["recent_routes"].update(key, bytes(torn))
        assert decided(bench, bench.b.ip4) == (NEW, 6, 1, 1)
    bench.attached.maps["recent_routes"].update(key, value)
    assert decided(bench, bench.b.ip4) == (OLD, 5, 1, 1)


def test_ports_protocols_and_tables_are_kept_apart(bench: Bench) -> None:
    ports = Policy().rule(1, flags=C.DMM_RULE_MARK, mark=0, mark_mask=1).rule(2)
    for number in (OLD, NEW):
        ports.stack(number, C.DMM_STACK_KERNEL, flags=C.DMM_SET_PRIORITY, priority=number)
    ports.route(1, "0.0.0.0/0", 0, portset=1).route(2, "0.0.0.0/0", NEW, route=3)
    ports.ports(1, bench.port, 16, OLD, route=1).ports(1, bench.port, 16, NEW, route=2, proto=17)
    ports.apply(bench.attached)
    for _ in range(2):
        assert decided(bench, bench.b.ip4) == (OLD, 1, 1, 1)
        bench.agent.open("u", kind=socket.SOCK_DGRAM)
        bench.agent.connect("u", bench.b.ip4, bench.port)
        assert bench.agent.option("u", socket.SO_PRIORITY) == NEW
        bench.agent.open("m")
        bench.agent("s['m'].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)")
        bench.agent.connect("m", bench.b.ip4, bench.port)
        flow = bench.flow(bench.agent.cookie("m"))
        assert flow is not None and (flow.decision.table, flow.decision.route) == (2, 3)
        with pytest.raises(ConnectionRefusedError):
            bench.agent.open("o")
            bench.agent.connect("o", bench.b.ip4, 1)
    found = {
        abi.unpack("dmm_recent_route", value).policy & 0xFFFFFFFF for value in kept(bench).values()
    }
    assert found and found <= {1, 2}


def test_a_route_that_is_not_there_is_looked_for_each_time(bench: Bench) -> None:
    Policy().rule(1).stack(NEW, C.DMM_STACK_KERNEL).route(1, "203.0.113.0/24", NEW).apply(
        bench.attached
    )
    assert decided(bench, bench.b.ip4)[0] == 0 and kept(bench) == {}
    policy(NEW, 6).write(bench.attached, 1)
    assert decided(bench, bench.b.ip4) == (NEW, 6, 1, 1)
