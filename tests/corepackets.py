# SPDX-License-Identifier: Apache-2.0
"""A core with its clock in our hands, a packet at a time through api.h, and packets made and read
with no code of the core's.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.sim.corelab import build_library

INNER, OUTER = 0, 1
FIN, SYN, RST, PSH, ACK, ECE, CWR = 1, 2, 4, 8, 16, 64, 128
OWN, DISOWN, CLOSED = 1, 2, 3
HOST, PEER = "192.0.2.1", "198.51.100.7"
MS = 1_000_000
S = 1_000_000_000
LINKS = (9, 77)  # of what comes from this host's kernel, and from the peer
COUNTERS = ("MALFORMED", "BAD_CSUM", "NO_CONN", "PAWS", "CHALLENGE_ACKS")


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(src: str, dst: str, length: int) -> bytes:
    return socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack(">HH", 6, length)


@dataclass
class Segment:
    """A TCP segment in an IPv4 packet."""

    src: str
    dst: str
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    wnd: int = 65535
    options: bytes = b""
    payload: bytes = b""
    meta: dict[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        offset = (20 + len(self.options)) // 4
        tcp = struct.pack(
            ">HHIIBBHHH",
            self.sport,
            self.dport,
            self.seq % 2**32,
            self.ack % 2**32,
            offset << 4,
            self.flags,
            self.wnd,
            0,
            0,
        )
        tcp += self.options + self.payload
        tcp = (
            tcp[:16]
            + struct.pack(">H", checksum(pseudo(self.src, self.dst, len(tcp)) + tcp))
            + tcp[18:]
        )
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0x4000, 64, 6, 0)
        ip += socket.inet_aton(self.src) + socket.inet_aton(self.dst)
        return ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:] + tcp

    @classmethod
    def parse(cls, data: bytes, meta: dict[str, int]) -> Segment:
        assert checksum(data[:20]) == 0
        assert data[9] == 6
        assert struct.unpack(">H", data[2:4])[0] == len(data)
        src, dst = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
        tcp = data[20:]
        if meta["flags"]:  # the field holds the sum of the pseudo-header, not complemented
            assert (meta["csum_start"], meta["csum_offset"]) == (20, 16)
            assert (
                struct.unpack(">H", tcp[16:18])[0] == ~checksum(pseudo(src, dst, len(tcp))) & 0xFFFF
            )
        else:
            assert checksum(pseudo(src, dst, len(tcp)) + tcp) == 0
        sport, dport, seq, ack, offset, flags, wnd = struct.unpack(">HHIIBBH", tcp[:16])
        end = (offset >> 4) * 4
        return cls(src, dst, sport, dport, seq, ack, flags, wnd, tcp[20:end], tcp[end:], meta)


def icmp(src: str, dst: str, kind: int, code: int, mtu: int, quoted: Segment) -> bytes:
    body = struct.pack(">BBHHH", kind, code, 0, 0, mtu) + quoted.pack()[:28]
    body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 1, 0)
    ip += socket.inet_aton(src) + socket.inet_aton(dst)
    return ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:] + body


def timestamps(value: int, echo: int) -> bytes:
    return struct.pack(">BBBBII", 1, 1, 8, 10, value % 2**32, echo)


def sack_blocks(options: bytes) -> list[tuple[int, int]]:
    at = 0
    while at < len(options):
        if options[at] == 1:
            at += 1
            continue
        if options[at] == 5:
            words = struct.unpack(
                f">{(options[at + 1] - 2) // 4}I", options[at + 2 : at + options[at + 1]]
            )
            return (
                list(itertools.batched(words, 2))
                if hasattr(itertools, "batched")
                else [(words[i], words[i + 1]) for i in range(0, len(words), 2)]
            )
        at += options[at + 1]
    return []


class Core:
    """One core with its clock in our hands."""

    def __init__(self, ffi: Any, lib: Any, **config: int) -> None:
        self.ffi, self.lib, self.now = ffi, lib, 5 * S
        settings = ffi.new(
            "struct dmm_core_config *", {"seed": 3, "inner_gso_max": 65535, **config}
        )
        self.ptr = ffi.gc(lib.dmm_core_create(settings), lib.dmm_core_destroy)
        self.buffer = ffi.new("uint8_t[65535]")

    def put(self, leg: int, packet: Segment | bytes) -> None:
        data = packet if isinstance(packet, bytes) else packet.pack()
        meta = self.ffi.new("struct dmm_rx_meta *", {"link": LINKS[leg]})
        self.lib.dmm_core_input(self.ptr, leg, data, len(data), meta, self.now)

    def raw(self, leg: int) -> list[tuple[bytes, dict[str, int]]]:
        out = []
        meta = self.ffi.new("struct dmm_tx_meta *")
        while n := self.lib.dmm_core_output(
            self.ptr, leg, self.buffer, 65535 if leg == INNER else 1500, meta, self.now
        ):
            said = {name: getattr(meta, name) for name in ("link", "family")}
            said |= {
                name: getattr(meta.vnet, name)
                for name, _ in self.ffi.typeof("struct dmm_vnet").fields
            }
            out.append((bytes(self.ffi.buffer(self.buffer, n)), said))
        return out

    def get(self, leg: int) -> list[Segment]:
        return [Segment.parse(data, meta) for data, meta in self.raw(leg)]

    def actions(self) -> list[tuple[int, int, int]]:
        action = self.ffi.new("struct dmm_action *")
        out = []
        while self.lib.dmm_core_action(self.ptr, action):
            out.append((action.type, action.conn, action.error))
        return out

    def wait(self, ns: int) -> None:
        self.now += ns
        self.lib.dmm_core_poll(self.ptr, self.now)

    def count(self, name: str) -> int:
        return int(self.lib.dmm_core_counter(self.ptr, getattr(self.lib, f"DMM_CORE_{name}")))


def built_core(directory: Path) -> Callable[..., Core]:
    """Compiles the core there; what makes one."""
    ffi, lib = build_library(directory)
    return lambda **config: Core(ffi, lib, **config)


SYN_OPTIONS = (
    struct.pack(">BBH", 2, 4, 1460)
    + b"\x04\x02"
    + struct.pack(">BBII", 8, 10, 1000, 0)
    + b"\x01\x03\x03\x07"
)


def to_core(leg: int, seq: int, ack: int, flags: int, **more: Any) -> Segment:
    """A segment from the core's peer on leg: the app's kernel (inner) or the
    remote host (outer).
    """
    if leg == INNER:
        return Segment(HOST, PEER, 40000, 80, seq, ack, flags, **more)
    return Segment(PEER, HOST, 80, 40000, seq, ack, flags, **more)


@dataclass
class Open:
    """An open connection: our next sequence number and the core's, per leg."""

    core: Core
    seq: dict[int, int]
    ack: dict[int, int]
    echo: dict[int, int]
    clock: int = 2000

    def send(
        self,
        leg: int,
        payload: bytes = b"",
        offset: int = 0,
        flags: int = ACK,
        tsval: int | None = None,
    ) -> None:
        self.clock += 1
        options = timestamps(self.clock if tsval is None else tsval, self.echo[leg])
        self.core.put(
            leg,
            to_core(
                leg, self.seq[leg] + offset, self.ack[leg], flags, options=options, payload=payload
            ),
        )
        if not offset and tsval is None:
            self.seq[leg] += len(payload)


def open_active(core: Core, ecn: int = 0) -> Open:
    core.put(INNER, to_core(INNER, 1000, 0, SYN, options=SYN_OPTIONS))
    assert core.get(INNER) == []
    assert [a[0] for a in core.actions()] == [OWN]
    (syn,) = core.get(OUTER)
    core.wait(20 * MS)
    core.put(OUTER, to_core(OUTER, 7000, syn.seq + 1, SYN | ACK | ecn, options=SYN_OPTIONS))
    (synack,) = core.get(INNER)
    assert (synack.flags, synack.ack) == (SYN | ACK, 1001)
    assert core.get(OUTER) == []
    core.put(INNER, to_core(INNER, 1001, synack.seq + 1, ACK, options=timestamps(1001, 0)))
    (final,) = core.get(OUTER)
    assert (final.flags, final.seq, final.ack) == (ACK, syn.seq + 1, 7001)
    assert core.get(INNER) == []
    return Open(
        core,
        {INNER: 1001, OUTER: 7001},
        {INNER: synack.seq + 1, OUTER: syn.seq + 1},
        {INNER: 0, OUTER: 0},
    )
