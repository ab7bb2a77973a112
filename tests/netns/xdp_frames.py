# SPDX-License-Identifier: Apache-2.0
"""Frames as they come to a NIC of this host, made by hand."""

from __future__ import annotations

import ipaddress
import struct

SYN, ACK, RST, FIN, PSH = 2, 16, 4, 1, 8
US4, THEM4, US6, THEM6 = "192.0.2.1", "198.51.100.7", "2001:db8::1", "2001:db8:f::7"
PORT, THEIRS = 443, 51000


def tcp(sport: int = THEIRS, dport: int = PORT, flags: int = ACK) -> bytes:
    """A TCP header."""
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 2, 5 << 4, flags, 1000, 0, 0)


def ip4(
    payload: bytes,
    src: str = THEM4,
    dst: str = US4,
    proto: int = 6,
    frag: int = 0x4000,
    options: bytes = b"",
    version: int = 4,
) -> bytes:
    """An IPv4 packet; options in multiples of 4 bytes."""
    ihl = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | ihl,
        0,
        ihl * 4 + len(payload),
        7,
        frag,
        64,
        proto,
        0,
        ipaddress.IPv4Address(src).packed,
        ipaddress.IPv4Address(dst).packed,
    )
    return head + options + payload


def ip6(payload: bytes, src: str = THEM6, dst: str = US6, proto: int = 6) -> bytes:
    """An IPv6 packet."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), proto, 64)
    return head + ipaddress.IPv6Address(src).packed + ipaddress.IPv6Address(dst).packed + payload


def eth(payload: bytes, kind: int = 0) -> bytes:
    """A frame; kind from the IP version if not given."""
    kind = kind or (0x86DD if payload and payload[0] >> 4 == 6 else 0x0800)
    return bytes(12) + struct.pack("!H", kind) + payload


def icmp4(kind: int, quote: bytes, src: str = "203.0.113.9", dst: str = US4) -> bytes:
    """A frame with an ICMP error."""
    return eth(ip4(struct.pack("!BBHI", kind, 1, 0, 0) + quote, src, dst, 1))


def icmp6(kind: int, quote: bytes, src: str = "2001:db8:9::9", dst: str = US6) -> bytes:
    """A frame with an ICMPv6 error."""
    return eth(ip6(struct.pack("!BBHI", kind, 1, 0, 0) + quote, src, dst, 58))
