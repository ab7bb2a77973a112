# SPDX-License-Identifier: Apache-2.0
"""The program at a stack process's own device: what the process sends to the app comes as if
from the NIC.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from bpf_lab import Bench, Policy, bench
from pieces import checksum
from seat_lab import ACK, SYN, Seat, Segment, mac_of, serve_nic, two_seats

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from lab.waiting import wait_for

__all__ = ["bench"]

STACK = 5


@pytest.fixture
def seats(bench: Bench) -> Iterator[list[Seat]]:
    """Two processes of stack 5 on host a's NIC, and a firewall that counts what it
    receives by mark.
    """
    serve_nic(bench.a, bench.attached)
    rules = "add table inet t; add chain inet t c { type filter hook prerouting priority -300; }; "
    for test in ("meta mark 0", "meta mark != 0"):
        rules += f'add rule inet t c iifname "{bench.a.nic.name}" tcp flags syn {test} counter; '
    bench.a.run(["nft", rules])
    with two_seats(bench.a, bench.attached, STACK) as made:
        yield made


def counted(bench: Bench) -> list[int]:
    """SYNs that came by the NIC: without a mark, with one."""
    rules = json.loads(bench.a.run(["nft", "-j", "list", "chain", "inet", "t", "c"]).stdout)[
        "nftables"
    ]
    parts = [part for one in rules if "rule" in one for part in one["rule"]["expr"]]
    return [part["counter"]["packets"] for part in parts if "counter" in part]


def syn_to(bench: Bench, family: str, port: int) -> Segment:
    """As from a client on b."""
    return Segment(getattr(bench.b, family), getattr(bench.a, family), 40000, port, seq=100)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_client_of_an_app_comes_by_a_process(
    bench: Bench, seats: list[Seat], family: str
) -> None:
    """By the NIC with no mark left, past the program there although the flow is owned; the answer
    goes back to the process, and the accepted socket's record says who carries it.
    """
    Policy().rule(1, C.DMM_DIR_LISTEN).user(STACK).apply(bench.attached)
    port = bench.agent.listen("l", "::", family=socket.AF_INET6)
    syn, mac = syn_to(bench, family, port), mac_of(bench.a)
    carried = seats[1]
    assert carried.claim(syn.answer(ACK).pair)
    carried.send(syn, mac)
    synack = carried.segment(SYN | ACK)
    assert (synack.dst, synack.dport, synack.ack) == (syn.src, syn.sport, 101)
    carried.send(synack.answer(ACK, seq=101), mac)
    bench.agent.accept("l", "x")
    flow = bench.flow(bench.agent.cookie("x"))
    assert flow is not None
    assert (flow.decision.stack, flow.decision.process, flow.decision.taken) == (STACK, 1, 1)
    assert counted(bench) == [1, 0]
    assert seats[0].segments() == []


def test_a_packet_of_anothers_flow_is_dropped(bench: Bench, seats: list[Seat]) -> None:
    port = bench.agent.listen("l", "0.0.0.0")
    syn, mac = syn_to(bench, "ip4", port), mac_of(bench.a)
    assert seats[0].claim(syn.answer(ACK).pair)
    seats[1].send(syn, mac)
    other = Segment(syn.src, syn.dst, syn.sport + 1, port)  # nobody's: it passes
    seats[1].send(other, mac)
    wait_for(lambda: counted(bench)[0], 5, "the second packet")
    assert counted(bench) == [1, 0]
    seats[0].send(syn, mac)
    seats[0].segment(SYN | ACK)
    assert counted(bench) == [2, 0]


def test_another_stacks_process_of_the_same_seat_is_another(
    bench: Bench, seats: list[Seat]
) -> None:
    """A number is used again by the next instance's stack: what is left of the former owner is
    not its own.
    """
    syn = syn_to(bench, "ip4", bench.agent.listen("l", "0.0.0.0"))
    former = abi.new("dmm_xdp_flow", stack=STACK + 1, seat=seats[0].seat)
    bench.attached.maps["xdp_flows"].update(syn.answer(ACK).pair, abi.pack(former))
    seats[0].send(syn, mac_of(bench.a))
    seats[0].disown(syn.answer(ACK).pair)
    assert bench.attached.maps["xdp_flows"].lookup(syn.answer(ACK).pair) == abi.pack(former)
    assert counted(bench) == [0, 0]


def test_what_is_no_tcp_passes(bench: Bench, seats: list[Seat]) -> None:
    """An ICMP error that a router has sent to an app's flow comes so; here a datagram
    stands for it.
    """
    bench.agent.open("u", kind=socket.SOCK_DGRAM)
    bench.agent(f"s['u'].bind(({bench.a.ip4!r}, 0)); s['u'].settimeout(10)")
    port = int(bench.agent("s['u'].getsockname()[1]"))
    frame = bytearray(Segment(bench.b.ip4, bench.a.ip4, 40000, port).pack(mac_of(bench.a)))
    frame[14 + 9] = socket.IPPROTO_UDP
    head = frame[14:24] + b"\0\0" + frame[26:34]
    frame[24:26] = checksum(bytes(head)).to_bytes(2, "big")
    frame[34 + 4 : 34 + 8] = (20).to_bytes(2, "big") + b"\0\0"  # length; no checksum
    seats[0].write(bytes(frame))
    assert bench.agent("len(s['u'].recv(100))") == 12
