# SPDX-License-Identifier: Apache-2.0
"""Fragments and IPv6 extension headers at a NIC's ingress and egress: what is an owned flow's goes
to its process, all of it; what is not reaches the kernel, or the wire, as it was.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from bpf_lab import Bench, bench, u32
from pieces import DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, Pieces, headers
from seat_lab import ACK, SLOT, Seat, Segment, mac_of, serve_nic

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from lab.waiting import wait_readable

__all__ = ["bench"]

STACK, PORT, THEIRS = 5, 7301, 40000
FAMILIES = ["ip4", "ip6"]
DATA = bytes(range(256)) * 5
ALL_ETHERTYPES = socket.htons(3)
NOT_SENT_HERE = 51  # an authentication header


@dataclass
class Parts:
    """Host a with a process of stack 5 on its NIC, and both ends of the wire."""

    bench: Bench
    seat: Seat
    wire: socket.socket  # of b
    mac: bytes

    def segment(self, family: str, sport: int = THEIRS) -> Segment:
        """From b to a."""
        a, b = getattr(self.bench.a, family), getattr(self.bench.b, family)
        return Segment(b, a, sport, PORT, seq=100, flags=ACK, payload=DATA)

    def packet(self, segment: Segment) -> bytes:
        """Without its Ethernet header."""
        return segment.pack(self.mac)[14:]

    def own(self, segment: Segment) -> None:
        """The process has the flow; segment is one that comes."""
        entry = abi.new("dmm_xdp_flow", stack=STACK, seat=self.seat.seat)
        flow = segment.answer(ACK).pair
        self.bench.attached.maps["xdp_flows"].update(flow, abi.pack(entry))

    def frame(self, packet: bytes) -> bytes:
        """With an Ethernet header that leads to a."""
        kind = b"\x08\0" if packet[0] >> 4 == 4 else b"\x86\xdd"
        return self.mac + b"\2\0\0\0\0\x99" + kind + packet

    def come(self, *packets: bytes) -> None:
        """From the wire to a."""
        for packet in packets:
            self.wire.send(self.frame(packet))

    def leave(self, *packets: bytes) -> None:
        """From a, as its kernel sends them."""
        v6 = packets[0][0] >> 4 == 6
        family = socket.AF_INET6 if v6 else socket.AF_INET
        with self.bench.a.call(socket.socket, family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for packet in packets:
                raw.sendto(packet, (getattr(self.bench.b, "ip6" if v6 else "ip4"), 0))

    def given(self, count: int) -> list[bytes]:
        """So many packets that the process gets, and all others that are there."""
        got: list[bytes] = []
        while len(got) < count and wait_readable(self.seat.fd, 10):
            got += [frame[14:] for frame in iter(self.seat.read, b"")]
        return got + [frame[14:] for frame in iter(self.seat.read, b"")]

    def received(self, family: str, segment: Segment) -> list[bytes]:
        """Payload of the TCP packets that a's kernel had, put together, since its raw socket was
        made; the last one is a whole one of a flow of nobody's, so nothing that was sent before it
        is still on its way.
        """
        last = Segment(segment.src, segment.dst, 1, 1, flags=ACK, payload=b"last")
        self.come(self.packet(last))
        got: list[bytes] = []
        while not got or got[-1] != b"last":
            data = self.raw[family].recv(65536)
            tcp = data[(data[0] & 15) * 4 :] if family == "ip4" else data
            got.append(tcp[(tcp[12] >> 4) * 4 :])
        return got[:-1]

    def __post_init__(self) -> None:
        self.raw = {
            name: self.bench.a.call(socket.socket, family, socket.SOCK_RAW, socket.IPPROTO_TCP)
            for name, family in (("ip4", socket.AF_INET), ("ip6", socket.AF_INET6))
        }
        for one in self.raw.values():
            one.settimeout(10)


@pytest.fixture
def parts(bench: Bench) -> Iterator[Parts]:
    serve_nic(bench.a, bench.attached)
    with ExitStack() as stack:
        seat = bench.a.call(Seat, bench.attached, bench.a.nic.name, STACK)
        stack.callback(seat.close)
        key = u32((seat.seat - 1) * C.DMM_MAX_NICS + SLOT)
        bench.attached.maps["outer_devs"].update(key, u32(seat.ifindex))
        wire = bench.b.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        stack.enter_context(wire)
        wire.bind((bench.b.nic.name, 0))
        made = Parts(bench, seat, wire, mac_of(bench.a))
        for one in made.raw.values():
            stack.enter_context(one)
        yield made


@pytest.mark.parametrize("family", FAMILIES)
def test_an_owned_flow_from_the_wire(parts: Parts, family: str) -> None:
    segment = parts.segment(family)
    parts.own(segment)
    pieces = list(Pieces()(parts.packet(segment)))
    parts.come(*pieces)
    assert parts.given(len(pieces)) == pieces
    assert parts.received(family, segment) == []
    assert parts.bench.count(C.DMM_CNT_FRAGMENT_IN) == len(pieces) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_before_the_first_is_copied_once_the_peer_is_known_for_it(
    parts: Parts, family: str
) -> None:
    """The kernel has these alone, and can make nothing of them."""
    segment = parts.segment(family)
    parts.own(segment)
    cut = Pieces()
    first = list(cut(parts.packet(segment)))
    parts.come(*first)
    assert parts.given(len(first)) == first
    turned = list(cut(parts.packet(segment)))[::-1]
    parts.come(*turned)
    assert parts.given(len(turned)) == turned
    assert parts.bench.count(C.DMM_CNT_FRAGMENT_COPIED) == len(turned) - 1
    assert parts.received(family, segment) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_other_flows_between_the_same_hosts_are_the_kernels(
    parts: Parts, family: str, known: bool, turned: bool
) -> None:
    """With the identifications of an owned flow's packets, too, which are used again."""
    owned, other = parts.segment(family), parts.segment(family, THEIRS + 1)
    parts.own(owned)
    if known:
        parts.come(*(pieces := list(Pieces()(parts.packet(owned)))))
        assert parts.given(len(pieces)) == pieces
    again = Pieces()
    made = list(again(parts.packet(other)))
    if turned:
        made = list(again(parts.packet(other)))[::-1]  # of another identification
    parts.come(*made)
    assert parts.received(family, other) == [DATA]
    copied = parts.bench.count(C.DMM_CNT_FRAGMENT_COPIED)
    assert copied == (len(made) - 1 if known and turned else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_owned_flow_of_this_host_in_fragments(parts: Parts, family: str) -> None:
    """Its numbers are not for the wire."""
    owned = parts.segment(family)
    parts.own(owned)
    ours = owned.answer(ACK)
    packet = parts.packet(
        Segment(ours.src, ours.dst, ours.sport, ours.dport, flags=ACK, payload=DATA)
    )
    pieces = list(Pieces()(packet))
    parts.leave(*pieces)
    assert [one[40:] if family == "ip6" else one[20:] for one in parts.given(len(pieces))] == [
        one[40:] if family == "ip6" else one[20:] for one in pieces
    ]
    assert parts.bench.count(C.DMM_CNT_FRAGMENT_OUT) == len(pieces)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_flow_of_this_host_in_fragments_goes_to_the_wire(parts: Parts, family: str) -> None:
    kind = socket.AF_INET if family == "ip4" else socket.AF_INET6
    other = parts.segment(family, THEIRS + 1).answer(ACK)
    packet = parts.packet(
        Segment(other.src, other.dst, other.sport, other.dport, flags=ACK, payload=DATA)
    )
    with parts.bench.b.call(socket.socket, kind, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.settimeout(10)
        parts.leave(*Pieces()(packet))
        assert raw.recv(65536).endswith(DATA)
    assert parts.seat.read() == b""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_process_sends_no_fragments_to_apps(parts: Parts, family: str) -> None:
    """Nobody could tell whose flow it speaks for."""
    segment = parts.segment(family)
    for piece in Pieces()(parts.packet(segment)):
        parts.seat.write(parts.frame(piece))
    if family == "ip6":
        for one in (HOP_BY_HOP, DESTINATION, FRAGMENT):
            parts.seat.write(parts.frame(headers(parts.packet(segment), [one])))
    parts.seat.write(segment.pack(parts.mac))  # of a flow of nobody's: it passes
    assert parts.received(family, segment) == [DATA]


@pytest.mark.parametrize(
    "kinds",
    [
        [HOP_BY_HOP],
        [DESTINATION],
        [ROUTING],
        [FRAGMENT],
        [HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, DESTINATION],
        [DESTINATION] * 40,
    ],
)
def test_an_owned_flow_behind_extension_headers(parts: Parts, kinds: list[int]) -> None:
    segment = parts.segment("ip6")
    parts.own(segment)
    short = Segment(
        segment.src, segment.dst, segment.sport, segment.dport, flags=ACK, payload=b"short"
    )
    packet = headers(parts.packet(short), kinds)
    parts.come(packet)
    assert parts.given(1) == [packet]
    assert parts.received("ip6", segment) == []


def test_what_stands_behind_other_headers_is_no_stacks(parts: Parts) -> None:
    """IPsec's; a routing header that leads on; one that is cut short."""
    segment = parts.segment("ip6")
    parts.own(segment)
    packet = parts.packet(segment)
    onward = bytearray(headers(packet, [ROUTING]))
    onward[43] = 1
    secured = packet[:4] + struct.pack(">HB", len(packet) - 40 + 8, NOT_SENT_HERE) + packet[7:40]
    secured += struct.pack(">BBHI", 6, 0, 0, 0) + packet[40:]
    cut = headers(packet, [DESTINATION])[:44]
    parts.come(bytes(onward), secured, cut, packet)
    assert parts.given(1) == [packet]
