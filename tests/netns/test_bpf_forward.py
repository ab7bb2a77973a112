# SPDX-License-Identifier: Apache-2.0
"""The program where packets of others come in: what it notes of a SYN, for random rules as
the evaluator says.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_lab import Bench, Policy, bench, follow, process_full, processes_up
from seat_lab import ACK, SYN, Seat, Segment, mac_of, serve_nic

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.loader import bpf
from dmm_ebpf.loader.spec import ADAPTIVE_KEY
from dmm_ebpf.rd.director.sync import apply
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.ids import IdSpace
from lab.waiting import wait_readable

__all__ = ["bench"]

LO = 1  # what the kernel tests a program on
SOURCES = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.2/31", "10.1.2.3", "0.0.0.0/0", "2001:db8::/32", "2001:db8::/127",
           "2001:db8::1", "::/0", "2000::/3", "11.0.0.0/8"]  # fmt: skip
ASKED = [
    "10.1.2.3",
    "10.1.2.1",
    "10.2.0.1",
    "11.0.0.1",
    "2001:db8::1",
    "2001:db8::",
    "2001:db8:1::1",
    "3000::1",
]
STACK = 5


def note(bench: Bench, seq: int):
    """notes[seq]; None: nothing was noted."""
    value = bench.attached.maps["notes"].lookup(struct.pack(">I", seq))
    return None if value is None else abi.unpack("dmm_forwarded", value)


def come_in(bench: Bench, segment: Segment) -> None:
    """By lo, past the program."""
    done = bpf.prog_test(bench.attached.progs["dmm_tcfrom"], segment.pack(bytes(6)))
    assert done.retval == 0xFFFFFFFF  # TC_ACT_UNSPEC


def holds(bench: Bench, half: int, bits: int, ifindex: int = LO) -> None:
    """inside[ifindex]."""
    entry = abi.new("dmm_inside")
    entry.forwards[half] = bits
    bench.attached.maps.inside[ifindex] = entry


@pytest.mark.parametrize("seed", range(8))
def test_random_rules_are_evaluated(bench: Bench, seed: int) -> None:
    """Which of the rules hold here is random, too: those that do not are as if they
    named another device.
    """
    chance = random.Random(seed)
    text = '[stacks.u]\nkind = "user"\n[stacks.v]\nkind = "user"\n[stacks.k]\nkind = "kernel"\n'
    for _ in range(chance.randint(1, 12)):
        device = chance.choice(["", 'in_interface = "lo"\n', 'in_interface = "not*"\n'])
        listed = [f'"{source}"' for source in chance.sample(SOURCES, chance.randint(1, 4))]
        source = chance.choice(["", f"from = [{', '.join(listed)}]\n"])
        text += (
            f'[[rules]]\ndirection = "forward"\n{device}{source}table = "{chance.choice("ab")}"\n'
        )
    for table in "ab":
        for to in ("203.0.113.0/24", "2001:db8:ff::/48"):
            for ports in ('ports = "443"\n', 'ports = "400-500"\n', ""):
                if chance.random() < 0.7:
                    stack = chance.choice("uvk")
                    text += f'[[tables.{table}.routes]]\nto = "{to}"\n{ports}stack = "{stack}"\n'
    text += '[[tables.a.routes]]\nto = "192.0.2.1"\nstack = "u"\n[[tables.b.routes]]\nto = "192.0.2.1"\nstack = "v"\n'
    parsed, ids = policy.parse(text, source="random", base=Path("/")), IdSpace()
    compiled = compile_policy(parsed, ids, {}.__getitem__)
    bits = sum(1 << n for n, by in enumerate(compiled.by_device) if by in {None, ("lo",)})
    apply(
        bench.attached.maps,
        compiled,
        listener_set=bench.attached.set_listener_table,
        devices=lambda half: holds(bench, half, bits),
    )
    for number, src in enumerate(ASKED * 3):
        dst = "203.0.113.9" if "." in src else "2001:db8:ff::9"
        port = (443, 444, 80)[number // len(ASKED)]
        come_in(bench, Segment(src, dst, 40000, port, seq=1000 + number))
        wanted = route_get(
            parsed, Query(dst, port, source=src, in_interface="lo", direction=C.DMM_DIR_FORWARD)
        )
        got = note(bench, 1000 + number)
        if wanted.stack in {"kernel", "k"}:
            assert got is None, (src, port, wanted)
        else:
            assert got is not None, (src, port, wanted)
            assert (ids.stack_name(got.stack), got.rule) == (wanted.stack, wanted.rule)


def gateway(bench: Bench) -> None:
    """Whatever comes in by lo is stack 5's."""
    follow(bench.attached, C.DMM_CONTROL_FORWARD)
    bench.attached.maps.forwards[C.DMM_MAX_FORWARDS] = abi.new("dmm_forward", table=1, rule=1)
    holds(bench, 1, 1)
    rules = Policy().rule(1, C.DMM_DIR_FORWARD).user(STACK)
    rules.route(1, "0.0.0.0/0", STACK).route(1, "::/0", STACK).apply(bench.attached)


@pytest.mark.parametrize(
    "flags", [ACK, SYN | ACK, SYN | 4, SYN | 1], ids=["ack", "syn-ack", "syn-rst", "syn-fin"]
)
def test_only_a_first_segment_is_noted(bench: Bench, flags: int) -> None:
    gateway(bench)
    come_in(bench, Segment("10.0.0.1", "203.0.113.9", 1, 2, seq=9, flags=flags))
    assert note(bench, 9) is None
    come_in(
        bench, Segment("10.0.0.1", "203.0.113.9", 1, 2, seq=9, flags=SYN | 0xC0)
    )  # it asks for ECN
    assert note(bench, 9).stack == STACK


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_an_adaptive_route_gives_what_is_forwarded_to_who_serves(bench: Bench, family: str) -> None:
    """And draws no lot for it."""
    gateway(bench)
    source, peer = {
        "ip4": ("10.0.0.1", "203.0.113.9"),
        "ip6": ("2001:db8::1", "2001:db8:ff::9"),
    }[family]
    auto, other = 9 | C.DMM_STACK_ADAPTIVE, STACK + 1
    rules = Policy().rule(1, C.DMM_DIR_FORWARD).user(STACK).user(other)
    rules.route(1, "0.0.0.0/0", auto).route(1, "::/0", auto).apply(bench.attached)

    def noted(seq: int, **entry: int) -> int | None:
        length = entry.pop("length", 0)
        key = ADAPTIVE_KEY.type(32 + length, C.DMM_MAX_STACKS + 9, abi.addr16(peer))
        bench.attached.maps.adaptive[key] = abi.new("dmm_adaptive", **entry)
        come_in(bench, Segment(source, peer, 1, 2, seq=seq))
        found = note(bench, seq)
        return found and found.stack

    come_in(bench, Segment(source, peer, 1, 2, seq=1))
    assert note(bench, 1) is None  # nobody is chosen yet, so the kernel is
    assert noted(2, chosen=STACK, explores=other, share=(1 << 32) - 1) == STACK
    assert noted(3, chosen=other, length=112) == other
    assert noted(4, chosen=0, length=112) is None


def test_nothing_is_noted_unless_something_is_forwarded_at_all(bench: Bench) -> None:
    gateway(bench)
    follow(bench.attached, 0)
    come_in(bench, Segment("10.0.0.1", "203.0.113.9", 1, 2, seq=9))
    assert note(bench, 9) is None


def test_a_syn_that_was_let_go_stays_the_kernels(bench: Bench) -> None:
    """Its peer may have answered; another opener's SYN of that number is another flow."""
    gateway(bench)
    segment = Segment("10.0.0.1", "203.0.113.9", 1, 2, seq=9)
    come_in(bench, segment)
    value = note(bench, 9)
    value.state = C.DMM_FORWARDED_LET_GO
    bench.attached.maps["notes"].update(struct.pack(">I", 9), abi.pack(value))
    come_in(bench, segment)
    assert note(bench, 9).state == C.DMM_FORWARDED_LET_GO
    come_in(bench, Segment("10.0.0.2", "203.0.113.9", 1, 2, seq=9))
    assert note(bench, 9).state == C.DMM_FORWARDED_NOTED


def test_addresses_are_as_in_the_packet(bench: Bench) -> None:
    gateway(bench)
    for seq, (src, dst) in enumerate(
        [("10.0.0.1", "203.0.113.9"), ("2001:db8::1", "2001:db8:ff::9")], 20
    ):
        come_in(bench, Segment(src, dst, 40001, 443, seq=seq))
        got = note(bench, seq)
        assert ipaddress.ip_address(
            abi.addr_text(bytes(abi.ffi.buffer(got.pair.laddr)))
        ) == ipaddress.ip_address(src)
        assert ipaddress.ip_address(
            abi.addr_text(bytes(abi.ffi.buffer(got.pair.raddr)))
        ) == ipaddress.ip_address(dst)
        assert (got.pair.lport_be, got.pair.rport_be) == (socket.htons(40001), socket.htons(443))
        assert (got.ifindex, got.cookie, got.rule) == (LO, 0, 1)


SEAT = 1


class Passing:
    """Host b sends frames of others to host a, which forwards them back by the same NIC, ours
    in slot 3.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.a.sysctl("net.ipv4.ip_forward", 1)
        bench.b.sysctl("net.ipv4.ip_forward", 0)
        bench.b.sysctl("net.ipv6.conf.all.forwarding", 0)
        bench.a.sysctl("net.ipv6.conf.all.forwarding", 1)
        bench.a.sysctl("net.ipv4.conf.all.rp_filter", 0)
        bench.a.sysctl(f"net.ipv4.conf.{bench.a.nic.name}.rp_filter", 0)
        bench.a.sysctl("net.ipv4.conf.all.send_redirects", 0)
        serve_nic(bench.a, bench.attached)
        gateway(bench)
        holds(bench, 1, 1, bench.a.call(socket.if_nametoindex, bench.a.nic.name))
        self.raw = bench.b.call(self._open)

    def _open(self) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        made.bind((self.bench.b.nic.name, 0x0003))
        return made

    def comes_back(self, segment: Segment, timeout: float = 0.3) -> bool:
        """Whether a has let it pass; what a later packet shows is not waited for."""
        self.raw.send(segment.pack(mac_of(self.bench.a)))
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0 and wait_readable(self.raw.fileno(), left):
            frame, address = self.raw.recvfrom(2048)
            got = Segment.parse(frame)
            if (
                address[2] != socket.PACKET_OUTGOING
                and got is not None
                and got.pair == segment.pair
            ):
                return got.seq == segment.seq
        return False


@pytest.fixture
def passing(bench: Bench) -> Iterator[Passing]:
    made = Passing(bench)
    with made.raw:
        yield made


def known(bench: Bench, segment: Segment, state: int) -> None:
    """forwarded[]: the flow was noted as that."""
    entry = abi.new("dmm_forwarded", stack=STACK, seat=SEAT, state=state)
    bench.attached.maps["forwarded"].update(segment.pair, abi.pack(entry))


@pytest.mark.parametrize("state", [C.DMM_FORWARDED_TAKEN, C.DMM_FORWARDED_GONE])
@pytest.mark.parametrize("ip", [("10.0.0.1", "203.0.113.9"), ("2001:db8:aa::1", "2001:db8:ff::9")])
def test_what_comes_late_of_a_flow_that_was_a_process_is_dropped(
    bench: Bench, passing: Passing, state: int, ip: tuple[str, str]
) -> None:
    """The peer knows other numbers. A SYN begins another flow, which is the kernel's."""
    late = Segment(*ip, 40002, 443, seq=7, flags=ACK, payload=b"inner numbers")
    other = Segment(*ip, 40003, 443, seq=7, flags=ACK, payload=b"of a kernel's flow")
    assert passing.comes_back(late, 10)
    known(bench, late, state)
    before = bench.count(C.DMM_CNT_INNER_DROPPED)
    assert not passing.comes_back(late)
    assert passing.comes_back(other, 10)
    assert bench.count(C.DMM_CNT_INNER_DROPPED) == before + 1
    assert passing.comes_back(Segment(*ip, 40002, 443, seq=8, flags=SYN), 10)
    assert passing.comes_back(late, 10)


@pytest.mark.parametrize(
    ("up", "full"), [(0, 0), (1, 1), (1, 0)], ids=["down", "full", "no device"]
)
def test_a_noted_syn_that_no_process_can_take_goes_on(
    bench: Bench, passing: Passing, up: int, full: int
) -> None:
    processes_up(bench.attached, STACK, up, [SEAT])
    process_full(bench.attached, STACK, 0, full)
    segment = Segment("10.0.0.1", "203.0.113.9", 40004, 443, seq=77)
    assert passing.comes_back(segment, 10)
    assert bench.count(C.DMM_CNT_FORWARD_LET_GO) == 1
    assert note(bench, 77).state == C.DMM_FORWARDED_LET_GO
    # Its repetition goes the same way, even if there is room now.
    processes_up(bench.attached, STACK, 1, [SEAT])
    process_full(bench.attached, STACK, 0, 0)
    assert passing.comes_back(segment, 10)
    assert bench.count(C.DMM_CNT_FORWARD_LET_GO) == 1


def test_a_process_takes_the_syn_where_it_leaves(bench: Bench, passing: Passing) -> None:
    """One without a device for what comes in here, so that it is not taken there; and its
    claim is granted.
    """
    seat = bench.a.call(Seat, bench.attached, bench.a.nic.name, STACK)
    try:
        processes_up(bench.attached, STACK, 1, [seat.seat])
        segment = Segment("10.0.0.1", "203.0.113.9", 40006, 443, seq=79)
        assert not passing.comes_back(segment)
        assert seat.segment(SYN).seq == 79
        assert bench.count(C.DMM_CNT_FORWARD_OUT) == 1
        entry = abi.unpack("dmm_forwarded", bench.attached.maps["forwarded"].lookup(segment.pair))
        assert (entry.state, entry.stack, entry.seat) == (C.DMM_FORWARDED_TAKEN, STACK, seat.seat)
        seat.claim(segment.pair)
        assert bench.attached.maps["xdp_flows"].lookup(segment.pair) is not None
        seat.disown(segment.pair)
        entry = abi.unpack("dmm_forwarded", bench.attached.maps["forwarded"].lookup(segment.pair))
        assert entry.state == C.DMM_FORWARDED_GONE
    finally:
        seat.close()
