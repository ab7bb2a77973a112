# SPDX-License-Identifier: Apache-2.0
"""A TCP segment in words: from the bytes of an Ethernet frame, as much of it as there is.

What is read may be anything: a frame that holds no whole TCP header is told as what it is. Names of
flags and options are tcpdump's.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from dmm_ebpf.records.segment import Segment
from dmm_ebpf.show import units

_ETHERNET_BYTES, _VLAN_BYTES, _IP6_BYTES, _TCP_BYTES = 14, 4, 40, 20
_IP4, _IP6, _VLAN = 0x0800, 0x86DD, 0x8100
_TCP = 6
_FRAGMENT_OFFSET = 0x1FFF
# RFC 9293 section 3.1, RFC 3168, RFC 9768 (AE)
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE")
# RFC 9293, 7323, 2018, 7413, 9768
_SACK, _TIMESTAMPS = 5, 8
_NUMBERS = {(2, 2): "mss", (3, 1): "wscale"}  # kind, bytes of its number
_NAMED = {4: "sackOK", 34: "tfo", 172: "AccECN0", 174: "AccECN1"}
_PORTS = struct.Struct("!HHIIHHHH")


def read(frame: bytes) -> Segment:
    """What frame holds. Never raises."""
    if len(frame) < _ETHERNET_BYTES:
        return Segment(why="cut short")
    at, (kind,) = _ETHERNET_BYTES, struct.unpack_from("!H", frame, 12)
    if kind == _VLAN and len(frame) >= at + _VLAN_BYTES:
        (kind,) = struct.unpack_from("!H", frame, at + 2)
        at += _VLAN_BYTES
    if kind == _IP4:
        return _ip4(frame, at)
    if kind == _IP6:
        return _ip6(frame, at)
    dst, src = (frame[n : n + 6].hex(":") for n in (0, 6))
    return Segment(src, dst, why=f"type {kind:#06x}")


def _ip4(frame: bytes, at: int) -> Segment:
    if len(frame) < at + 20:
        return Segment(why="IPv4, cut short")
    header, total = (frame[at] & 15) * 4, struct.unpack_from("!H", frame, at + 2)[0]
    (fragment,) = struct.unpack_from("!H", frame, at + 6)
    src, dst = (socket.inet_ntoa(frame[n : n + 4]) for n in (at + 12, at + 16))
    if fragment & _FRAGMENT_OFFSET:
        return Segment(src, dst, why=f"IPv4 fragment at {(fragment & _FRAGMENT_OFFSET) * 8}")
    protocol, rest = frame[at + 9], total - header
    if protocol != _TCP:
        return Segment(src, dst, why=f"IP protocol {protocol}")
    return _tcp(frame, at + header, rest, src, dst)


def _ip6(frame: bytes, at: int) -> Segment:
    if len(frame) < at + _IP6_BYTES:
        return Segment(why="IPv6, cut short")
    (rest,) = struct.unpack_from("!H", frame, at + 4)
    src, dst = (socket.inet_ntop(socket.AF_INET6, frame[n : n + 16]) for n in (at + 8, at + 24))
    if frame[at + 6] != _TCP:
        return Segment(src, dst, why=f"IPv6 next header {frame[at + 6]}")
    return _tcp(frame, at + _IP6_BYTES, rest, src, dst)


def _tcp(frame: bytes, at: int, rest_bytes: int, src: str, dst: str) -> Segment:
    """rest_bytes: of the TCP header and its payload, as IP says."""
    if len(frame) < at + _TCP_BYTES:
        return Segment(src, dst, why="TCP, cut short")
    sport, dport, seq, ack, offset_flags, window, _, _ = _PORTS.unpack_from(frame, at)
    header = (offset_flags >> 12) * 4
    if header < _TCP_BYTES or header > rest_bytes:
        return Segment(src, dst, sport, dport, why=f"TCP with a header of {header} bytes")
    flags = ",".join(name for bit, name in enumerate(_FLAGS) if offset_flags >> bit & 1)
    options = list(_options(frame[at + _TCP_BYTES : at + header]))
    return Segment(
        src, dst, sport, dport, flags or "none", seq, ack, window, rest_bytes - header, options
    )


def _options(data: bytes) -> Iterator[str]:
    """Each option but padding; what cannot be read ends them."""
    at = 0
    while at < len(data) and data[at] != 0:
        if data[at] == 1:
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            yield "cut short"
            return
        yield _option(data[at], data[at + 2 : at + length])
        at += length


def _option(kind: int, body: bytes) -> str:
    if (kind, len(body)) in _NUMBERS:
        return f"{_NUMBERS[kind, len(body)]} {int.from_bytes(body, 'big')}"
    if kind == _SACK and body and len(body) % 8 == 0:
        edges = struct.unpack(f"!{len(body) // 4}I", body)
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return "sack " + " ".join(f"{left}-{right}" for left, right in pairs)
    if kind == _TIMESTAMPS and len(body) == 8:
        value, echo = struct.unpack("!II", body)
        return f"TS val {value} ecr {echo}"
    return f"{_NAMED.get(kind, f'opt-{kind}')} {body.hex()}".rstrip()


def text(segment: Segment) -> str:
    """In one line: 192.0.2.1:40000 > 203.0.113.7:443 SYN seq 1 win 64240 len 0 [mss 1460]."""
    if segment.why:
        ports = (segment.sport, segment.dport)
        if any(ports):
            ends = (units.endpoint(segment.src, ports[0]), units.endpoint(segment.dst, ports[1]))
        else:
            ends = (segment.src or units.NONE, segment.dst or units.NONE)
        return f"{ends[0]} > {ends[1]} {segment.why}"
    ack = f" ack {segment.ack}" if "ACK" in segment.flags else ""
    options = f" [{', '.join(segment.options)}]" if segment.options else ""
    return (
        f"{units.endpoint(segment.src, segment.sport)} > "
        f"{units.endpoint(segment.dst, segment.dport)} {segment.flags} seq {segment.seq}{ack} "
        f"win {segment.window} len {segment.length_bytes}{options}"
    )
