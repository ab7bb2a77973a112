# SPDX-License-Identifier: Apache-2.0
"""Adaptive routes in the kernel: who serves is looked up by the peer, a share of connections draws
another, and of such flows alone the end is told while nobody follows.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import pytest
from bpf_lab import Bench, Policy, bench, follow
from connecting import connected, decision

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.loader.spec import ADAPTIVE_KEY

__all__ = ["bench"]

AUTO, ONE, OTHER = 9, 3, 4
KERNEL = C.DMM_STACK_KERNEL
SYN_SENT = 2  # include/net/tcp_states.h
ALL = (1 << 32) - 1  # of the lots, but for one


def policy(route: int = AUTO | C.DMM_STACK_ADAPTIVE) -> Policy:
    """The kernel's stacks ONE and OTHER, and a route for all that names AUTO."""
    made = Policy().rule(1, C.DMM_DIR_CONNECT | C.DMM_DIR_LISTEN)
    made.stack(ONE, KERNEL, flags=C.DMM_SET_CONGESTION, congestion=b"reno")
    made.stack(OTHER, KERNEL, flags=C.DMM_SET_CONGESTION, congestion=b"cubic")
    return made.route(1, "0.0.0.0/0", route, route=5).route(1, "::/0", route, route=6)


def put(bench: Bench, chosen: int, *, address: str = "::", length: int = 0, **fields: int) -> None:
    """An entry of the half that generation 1 has."""
    key = ADAPTIVE_KEY.type(32 + length, C.DMM_MAX_STACKS + AUTO, abi.addr16(address))
    bench.attached.maps.adaptive[key] = abi.new("dmm_adaptive", chosen=chosen, **fields)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_the_longest_prefix_of_the_peer_says_who_serves(bench: Bench, family: str) -> None:
    policy().apply(bench.attached)
    address = getattr(bench.b, family)
    put(bench, ONE)
    name = connected(bench, address)
    made = decision(bench, name)
    assert (made.stack, made.wanted, made.route) == (ONE, ONE, 5 if family == "ip4" else 6)
    assert bench.agent.congestion(name) == "reno"
    put(bench, OTHER, address=address, length=120)
    name = connected(bench, address)
    assert decision(bench, name).stack == OTHER
    assert bench.agent.congestion(name) == "cubic"


def test_a_share_of_connections_draws_the_other(bench: Bench) -> None:
    policy().apply(bench.attached)
    put(bench, ONE, explores=OTHER, share=ALL)
    assert decision(bench, connected(bench, bench.b.ip4)).stack == OTHER
    put(bench, ONE, explores=OTHER, share=0)
    assert decision(bench, connected(bench, bench.b.ip4)).stack == ONE
    put(bench, ONE, explores=OTHER, share=1 << 31)
    drawn = {decision(bench, connected(bench, bench.b.ip4)).stack for _ in range(40)}
    assert drawn == {ONE, OTHER}  # but once in 5e11 runs


def test_where_nobody_is_chosen_the_kernel_serves(bench: Bench) -> None:
    policy().apply(bench.attached)
    made = decision(bench, connected(bench, bench.b.ip4))
    assert (made.stack, made.wanted, made.route) == (0, 0, 5)


def test_the_end_of_such_flows_alone_is_told_while_nobody_follows(bench: Bench) -> None:
    policy().apply(bench.attached)
    put(bench, ONE)
    follow(bench.attached, C.DMM_CONTROL_ADAPTIVE)
    assert ended(bench)[1].flow.adaptive == 1
    policy(ONE).apply(bench.attached, 2)
    fixed = connected(bench, bench.b.ip4)
    cookie = bench.agent.cookie(fixed)
    bench.agent.close(fixed)
    policy().apply(bench.attached, 3)
    last, event = ended(bench)
    assert event.flow.adaptive == 1
    cookies = {event.flow.cookie for event in bench.events}
    assert last in cookies and cookie not in cookies


def ended(bench: Bench) -> tuple[int, Any]:
    """The cookie of a connection that is closed, and what is told of its end."""
    name = connected(bench, bench.b.ip4)
    cookie = bench.agent.cookie(name)
    bench.agent.close(name)
    return cookie, bench.event(C.DMM_EVENT_CLOSE, cookie)


def test_a_connection_that_never_opens_is_told_too(bench: Bench) -> None:
    policy().apply(bench.attached)
    put(bench, ONE)
    follow(bench.attached, C.DMM_CONTROL_ADAPTIVE)
    bench.agent.open("x")
    cookie = bench.agent.cookie("x")
    with pytest.raises(ConnectionRefusedError):
        bench.agent.connect("x", bench.b.ip4, 9)
    bench.agent.close("x")
    event = bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert (event.before, event.flow.adaptive) == (SYN_SENT, 1)


def accepted(bench: Bench, family: str, ports: Sequence[int]) -> list[int]:
    """The stacks of connections that the far host opens from these ports, of any for 0."""
    agent, stacks = bench.agent, []
    kind = socket.AF_INET6 if family == "ip6" else socket.AF_INET
    source = (getattr(bench.b, family), getattr(bench.a, family))
    port = agent.listen("l", "::" if family == "ip6" else "0.0.0.0", family=kind)
    for own in ports:
        with bench.b.call(lambda: socket.socket(kind)) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.settimeout(10)
            peer.bind((source[0], own))
            peer.connect((source[1], port))
            agent.accept("l", "x")
            flow = bench.flow(agent.cookie("x"))
            assert flow is not None and flow.adaptive == 1
            stacks.append(flow.decision.stack)
            assert agent.congestion("x") == {ONE: "reno", OTHER: "cubic"}[stacks[-1]]
            agent.close("x")
    agent.close("l")
    return stacks


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_what_a_peer_opens_has_the_stack_that_serves_its_prefix(bench: Bench, family: str) -> None:
    policy().apply(bench.attached)
    put(bench, ONE)
    assert accepted(bench, family, [0]) == [ONE]
    put(bench, OTHER, address=getattr(bench.b, family), length=120)
    assert accepted(bench, family, [0]) == [OTHER]
    put(bench, OTHER, address=getattr(bench.b, family), length=120, explores=ONE, share=ALL)
    assert accepted(bench, family, [0]) == [ONE]


def test_of_what_a_peer_opens_the_5_tuple_is_the_lot(bench: Bench) -> None:
    """So every SYN of a connection finds the same candidate."""
    policy().apply(bench.attached)
    put(bench, ONE, explores=OTHER, share=1 << 31)
    ports = range(20_000, 20_032)
    listening = bench.agent.listen
    bench.agent.listen = lambda name, address, **more: listening(name, address, 7500, **more)
    first = accepted(bench, "ip4", ports)
    assert set(first) == {ONE, OTHER}  # but once in 2e9 runs
    assert accepted(bench, "ip4", ports) == first


def test_the_end_of_what_a_peer_opened_is_told(bench: Bench) -> None:
    policy().apply(bench.attached)
    put(bench, ONE)
    follow(bench.attached, C.DMM_CONTROL_ADAPTIVE)
    port = bench.agent.listen("l", "0.0.0.0")
    with bench.b.call(lambda: socket.create_connection((bench.a.ip4, port), 10)):
        bench.agent.accept("l", "x")
        cookie = bench.agent.cookie("x")
        bench.agent.close("x")
    event = bench.event(C.DMM_EVENT_CLOSE, cookie)
    assert (event.flow.adaptive, event.flow.decision.stack) == (1, ONE)
