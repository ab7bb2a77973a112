# SPDX-License-Identifier: Apache-2.0
"""Packets of the scenarios as bytes: IPv4 or IPv6 with TCP or an ICMP error, made and read with no
code of the core's.

Sequence numbers here are those of the wire. Reading checks what every packet of the core must have:
lengths that agree, a right IPv4 header checksum, and a right TCP or ICMP checksum (or, on the inner
leg, the pseudo-header sum that CHECKSUM_PARTIAL asks for).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

import scenario_agree as agree

FLAG_BITS = {"F": 1, "S": 2, "R": 4, "P": 8, ".": 16, "U": 32, "E": 64, "W": 128, "A": 256}
ACE_SHIFT = 6  # AE, CWR, ECE as one number (RFC 9768)
ACCECN = {"accecn0": 172, "accecn1": 174}  # counters of ECT(0), CE, ECT(1), and the other way round
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
PEER = {4: "198.51.100.7", 6: "2001:db8:1::7"}
ROUTER = {4: "203.0.113.1", 6: "2001:db8:2::1"}
HOST_PORT = 40000

# ICMP errors by name: (IPv4 type, code), (IPv6 type, code); RFC 792, RFC 1812, RFC 4443
ICMP_KINDS = {
    "net-unreachable": ((3, 0), (1, 0)),
    "host-unreachable": ((3, 1), (1, 3)),
    "protocol-unreachable": ((3, 2), (4, 1)),
    "port-unreachable": ((3, 3), (1, 4)),
    "too-big": ((3, 4), (2, 0)),
    "admin-prohibited": ((3, 13), (1, 1)),
    "time-exceeded": ((11, 0), (3, 0)),
    "echo-reply": ((0, 0), (129, 0)),
}


class BadPacketError(Exception):
    """A packet of the core's that no stack may send; the text says what is wrong."""


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of data."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def _pseudo(src: bytes, dst: bytes, proto: int, length: int) -> bytes:
    if len(src) == 4:
        return src + dst + struct.pack(">HH", proto, length)
    return src + dst + struct.pack(">II", length, proto)


def _ip(
    src: bytes, dst: bytes, proto: int, body: bytes, tos: int = 0, ttl: int = 64, label: int = 0
) -> bytes:
    if len(src) == 16:
        return (
            struct.pack(">IHBB", 6 << 28 | tos << 20 | label, len(body), proto, ttl)
            + src
            + dst
            + body
        )
    head = struct.pack(">BBHHHBBH", 0x45, tos, 20 + len(body), 1, 0x4000, ttl, proto, 0) + src + dst
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


@dataclass
class Tcp:
    """A TCP segment. src and dst are text; options are (name, values) in wire
    order, see options_to_bytes().
    """

    src: str
    dst: str
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    win: int = 65535
    options: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    payload: bytes = b""
    tos: int = 0
    urgent: int = 0
    total_len: int = 0  # of the IP packet; only filled by read()
    gso_size: int = 0  # ditto
    link: int = 0  # ditto
    ttl: int = 64
    label: int = 0

    def pack(self, data_offset: int | None = None) -> bytes:
        """The whole IP packet. data_offset: that number of words in the header instead of
        the right one.
        """
        options = options_to_bytes(self.options)
        words = (20 + len(options)) // 4 if data_offset is None else data_offset
        tcp = struct.pack(">HHII", self.sport, self.dport, self.seq % 2**32, self.ack % 2**32)
        tcp += struct.pack(">HHHH", (words & 15) << 12 | self.flags, self.win, 0, self.urgent)
        tcp += options + self.payload
        src, dst = _address(self.src), _address(self.dst)
        tcp = (
            tcp[:16] + struct.pack(">H", checksum(_pseudo(src, dst, 6, len(tcp)) + tcp)) + tcp[18:]
        )
        return _ip(src, dst, 6, tcp, self.tos, self.ttl, self.label)


@dataclass
class Icmp:
    """An ICMP or ICMPv6 error; the quoted packet is a TCP segment of which the ports and
    seq are known.
    """

    src: str
    dst: str
    kind: str
    mtu: int
    sport: int
    dport: int
    seq: int
    link: int = 0  # only filled by read()

    def pack(self, quoted: Tcp) -> bytes:
        """The whole IP packet; it quotes the IP header and 8 bytes more."""
        v6 = ":" in self.src
        kind, code = ICMP_KINDS[self.kind][v6]
        body = struct.pack(">BBH", kind, code, 0)
        body += struct.pack(">I", self.mtu) if v6 else struct.pack(">HH", 0, self.mtu)
        body += quoted.pack()[: 48 if v6 else 28]
        src, dst = _address(self.src), _address(self.dst)
        covered = (_pseudo(src, dst, 58, len(body)) if v6 else b"") + body
        body = body[:2] + struct.pack(">H", checksum(covered)) + body[4:]
        return _ip(src, dst, 58 if v6 else 1, body)


def options_to_bytes(options: list[tuple[str, tuple[int, ...]]]) -> bytes:
    """Options in wire order, padded with end-of-list to a whole word; "raw" holds bytes
    as they are.
    """
    out = b""
    for name, values in options:
        match name:
            case "nop":
                out += b"\x01"
            case "eol":
                out += b"\x00"
            case "mss":
                out += struct.pack(">BBH", 2, 4, values[0])
            case "wscale":
                out += struct.pack(">BBB", 3, 3, values[0])
            case "sackOK":
                out += b"\x04\x02"
            case "sack":
                out += struct.pack(
                    f">BB{len(values)}I", 5, 2 + 4 * len(values), *(v % 2**32 for v in values)
                )
            case "ts":
                out += struct.pack(">BBII", 8, 10, values[0] % 2**32, values[1] % 2**32)
            case "accecn0" | "accecn1":
                out += bytes((ACCECN[name], 2 + 3 * len(values))) + b"".join(
                    v.to_bytes(3, "big") for v in values
                )
            case "offer" | "answer" | "confirm":
                out += agree.pack(name, values[0], values[1])
            case "parity" | "repaired":
                out += agree.pack_count(name, values[0])
            case "raw":
                out += bytes(values)
            case _:
                raise ValueError(name)
    return out + b"\0" * (-len(out) % 4)


def _read_options(data: bytes) -> list[tuple[str, tuple[int, ...]]]:
    out: list[tuple[str, tuple[int, ...]]] = []
    while data and data[0] != 0:
        if data[0] == 1:
            data = data[1:]
            continue
        if len(data) < 2 or data[1] < 2 or data[1] > len(data):
            raise BadPacketError(f"its TCP options do not parse at {data.hex()}")
        kind, body, data = data[0], data[2 : data[1]], data[data[1] :]
        names = {2: ("mss", ">H"), 3: ("wscale", ">B"), 4: ("sackOK", ">"), 8: ("ts", ">II")}
        if kind == 5 and len(body) % 8 == 0:
            out.append(("sack", struct.unpack(f">{len(body) // 4}I", body)))
        elif kind in names and len(body) == struct.calcsize(names[kind][1]):
            out.append((names[kind][0], struct.unpack(names[kind][1], body)))
        elif kind in ACCECN.values() and len(body) in (0, 3, 6, 9):
            name = next(name for name, number in ACCECN.items() if number == kind)
            counters = [int.from_bytes(body[at : at + 3], "big") for at in range(0, len(body), 3)]
            out.append((name, tuple(counters)))
        elif kind == agree.KIND and (found := agree.read(body)):
            out.append(found)
        elif kind in names or kind == 5 or kind in ACCECN.values():
            raise BadPacketError(f"TCP option {kind} has length {len(body) + 2}")
        else:
            out.append(("raw", (kind, len(body) + 2, *body)))
    return out


def _read_ttl_label(data: bytes) -> tuple[int, int]:
    if data[0] >> 4 == 6:
        return data[7], struct.unpack(">I", data[:4])[0] & 0xFFFFF
    return data[8], 0


def _read_ip(data: bytes) -> tuple[bytes, bytes, int, int, bytes]:
    """(source, destination, protocol, TOS, what follows)"""
    if data[0] >> 4 == 6:
        if struct.unpack(">H", data[4:6])[0] != len(data) - 40:
            raise BadPacketError("its IPv6 payload length is not what was sent")
        return (
            data[8:24],
            data[24:40],
            data[6],
            struct.unpack(">H", data[:2])[0] >> 4 & 0xFF,
            data[40:],
        )
    if data[0] != 0x45 or struct.unpack(">H", data[2:4])[0] != len(data):
        raise BadPacketError("its IPv4 header length or total length is not what was sent")
    if checksum(data[:20]):
        raise BadPacketError("its IPv4 header checksum is wrong")
    if struct.unpack(">H", data[6:8])[0] != 0x4000:
        raise BadPacketError("DF is not set, or it is a fragment (RFC 1191)")
    return data[12:16], data[16:20], data[9], data[1], data[20:]


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(address) == 16 else socket.AF_INET, address)


def _read_icmp(src: bytes, dst: bytes, proto: int, body: bytes, link: int) -> Icmp:
    v6 = proto == 58
    if checksum((_pseudo(src, dst, 58, len(body)) if v6 else b"") + body):
        raise BadPacketError("its ICMP checksum is wrong")
    names = {pair[v6]: name for name, pair in ICMP_KINDS.items()}
    mtu = struct.unpack(">I", body[4:8])[0] if v6 else struct.unpack(">H", body[6:8])[0]
    quoted = body[8 + (40 if v6 else (body[8] & 15) * 4) :]
    sport, dport, seq = struct.unpack(">HHI", quoted[:8])
    name = names.get((body[0], body[1]), f"{body[0]}/{body[1]}")
    return Icmp(_text(src), _text(dst), name, mtu, sport, dport, seq, link)


def read(data: bytes, meta: dict[str, int]) -> Tcp | Icmp:
    """A packet of the core's; meta is what came with it (struct
    dmm_tx_meta). Raises BadPacketError.
    """
    src, dst, proto, tos, body = _read_ip(data)
    if proto in (1, 58):
        return _read_icmp(src, dst, proto, body, meta["link"])
    if proto != 6 or len(body) < 20:
        raise BadPacketError(f"its protocol is {proto} and {len(body)} bytes follow the IP header")
    pseudo = _pseudo(src, dst, 6, len(body))
    if meta["flags"]:
        if (meta["csum_start"], meta["csum_offset"]) != (len(data) - len(body), 16):
            raise BadPacketError("csum_start or csum_offset does not point at the TCP checksum")
        if struct.unpack(">H", body[16:18])[0] != ~checksum(pseudo) & 0xFFFF:
            raise BadPacketError("the checksum field does not hold the pseudo-header sum")
    elif checksum(pseudo + body):
        raise BadPacketError("its TCP checksum is wrong")
    sport, dport, seq, ack, offset_flags, win, _, urgent = struct.unpack(">HHIIHHHH", body[:20])
    head, flags = (offset_flags >> 12) * 4, offset_flags & 0x1FF
    if head < 20 or head > len(body):
        raise BadPacketError("its TCP data offset points outside")
    return Tcp(
        _text(src), _text(dst), sport, dport, seq, ack, flags, win,
        _read_options(body[20:head]), body[head:],
        tos, urgent, len(data), meta["gso_size"], meta["link"], *_read_ttl_label(data),
    )  # fmt: skip
