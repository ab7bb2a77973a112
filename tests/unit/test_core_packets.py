# SPDX-License-Identifier: Apache-2.0
"""The core packet by packet through api.h, against packets made and read here, with no code
of the core's.
"""

from __future__ import annotations

import itertools
import re
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cffi
import pytest

CORE = Path(__file__).parents[2] / "dmm_ebpf" / "userstack" / "core"
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


@pytest.fixture(scope="module")
def make_core(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Core]:
    library = tmp_path_factory.mktemp("core") / "core.so"
    sources = [str(path) for path in sorted(CORE.glob("*.c"))]
    subprocess.run(
        ["gcc", "-std=c11", "-O1", "-shared", "-fPIC", *sources, "-o", str(library)], check=True
    )
    ffi = cffi.FFI()
    ffi.cdef(re.sub(r"^#.*$", "", (CORE / "api.h").read_text(encoding="utf-8"), flags=re.MULTILINE))
    lib = ffi.dlopen(str(library))
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
    (final,) = core.get(OUTER)
    assert (final.flags, final.seq, final.ack) == (ACK, syn.seq + 1, 7001)
    (synack,) = core.get(INNER)
    assert (synack.flags, synack.ack) == (SYN | ACK, 1001)
    core.put(INNER, to_core(INNER, 1001, synack.seq + 1, ACK, options=timestamps(1001, 0)))
    assert core.get(INNER) == core.get(OUTER) == []
    return Open(
        core,
        {INNER: 1001, OUTER: 7001},
        {INNER: synack.seq + 1, OUTER: syn.seq + 1},
        {INNER: 0, OUTER: 0},
    )


def test_syn_is_linux_like(make_core: Callable[..., Core]) -> None:
    core = make_core()
    core.put(INNER, to_core(INNER, 1000, 0, SYN, options=SYN_OPTIONS))
    ((data, meta),) = core.raw(OUTER)
    syn = Segment.parse(data, meta)
    assert (syn.src, syn.dst, syn.sport, syn.dport, syn.flags) == (
        HOST,
        PEER,
        40000,
        80,
        SYN | ECE | CWR,
    )
    assert data[6:9] == b"\x40\x00\x40"  # DF, TTL 64
    assert meta["link"] == LINKS[INNER]
    assert syn.options[:8] == b"\x02\x04\x05\xb4\x04\x02\x08\x0a"
    # half of the 256 MiB that a stack has: 65,535 << 11 is 2 KiB less
    assert syn.options[16:] == b"\x01\x03\x03\x0c"


def test_the_peer_sees_the_timestamps_of_the_apps_kernel(make_core: Callable[..., Core]) -> None:
    """So that they go on from those of the last connection, whoever carried it, as a peer
    in TIME-WAIT asks.
    """
    core = make_core()
    for value in (5, 0xFFFFFFFE):
        options = b"\x02\x04\x05\xb4\x04\x02" + timestamps(value, 0)[2:] + b"\x01\x03\x03\x07"
        core.put(INNER, to_core(INNER, 1000, 0, SYN, options=options))
        (syn,) = core.get(OUTER)
        assert struct.unpack(">I", syn.options[8:12])[0] == value
        core.wait(3 * MS)
        core.put(INNER, to_core(INNER, 1001, 0, RST))
        core.put(OUTER, to_core(OUTER, 1, syn.seq + 1, RST | ACK))
        core.get(INNER)


def test_ecn_marks_what_rfc_3168_says(make_core: Callable[..., Core]) -> None:
    """New data is ECT(0), what is sent again and pure ACKs are not; CE is echoed until CWR comes,
    and an echo is answered by CWR on the next new data, once.
    """
    core = make_core()
    conn = open_active(core, ECE)
    conn.send(INNER, b"a" * 1000)
    ((data, _),) = core.raw(OUTER)
    assert (data[1] & 3, data[33] & (ECE | CWR)) == (2, 0)
    marked = to_core(
        OUTER, 7001, conn.ack[OUTER], ACK, payload=b"z", options=timestamps(2100, 0)
    ).pack()
    marked = marked[:1] + b"\x03" + marked[2:10] + b"\0\0" + marked[12:]
    core.put(OUTER, marked[:10] + struct.pack(">H", checksum(marked[:20])) + marked[12:])
    ((ack, _),) = core.raw(OUTER)
    assert (ack[1] & 3, ack[33] & (ECE | CWR)) == (0, ECE)
    conn.seq[OUTER] += 1
    conn.clock = 2200
    conn.send(OUTER, b"z", flags=ACK | CWR)
    assert not core.get(OUTER)[0].flags & (ECE | CWR)
    core.wait(S)  # the first segment again, as a tail loss probe
    ((again, _),) = core.raw(OUTER)
    assert (again[1] & 3, again[33] & CWR) == (0, 0)
    conn.ack[OUTER] += 1000
    for _ in range(2):
        conn.send(OUTER, flags=ACK | ECE)
    for expected in (CWR, 0):
        conn.send(INNER, b"b" * 100)
        (sent,) = core.get(OUTER)
        assert sent.flags & (ECE | CWR) == expected
    assert (core.count("ECN_CE"), core.count("ECN_ECE")) == (1, 1)
    conn.ack[OUTER] += 200
    conn.send(OUTER, flags=ACK | ECE)
    conn.send(INNER, b"c")
    assert core.get(OUTER)[0].flags & CWR
    assert core.count("ECN_ECE") == 2


def test_ports_again_before_the_old_connection_is_over(make_core: Callable[..., Core]) -> None:
    """The app's side is over and its bytes have arrived, only the peer's last ACK is missing: a new
    connect() goes through at once, in front of the old sequence numbers.
    """
    core = make_core()
    conn = open_active(core)
    conn.send(OUTER, flags=FIN | ACK)
    conn.seq[OUTER] += 1
    core.get(OUTER)
    (fin,) = core.get(INNER)
    assert fin.flags & FIN
    conn.ack[INNER] += 1
    conn.send(INNER, b"bye", flags=FIN | ACK)
    (last,) = core.get(OUTER)
    assert (last.flags & FIN, last.payload) == (FIN, b"bye")
    again = to_core(INNER, 900_000, 0, SYN, options=SYN_OPTIONS)
    core.put(INNER, again)  # the bytes are on their way: they go first
    assert core.actions() == []
    conn.ack[OUTER] += 3
    conn.send(OUTER)
    core.put(INNER, again)
    assert [a[0] for a in core.actions()] == [CLOSED, DISOWN, OWN]
    rst, syn = core.get(OUTER)
    assert (rst.flags & RST, rst.seq, rst.ack) == (RST, last.seq + 4, 7002)
    assert syn.flags & SYN
    assert 0 < (syn.seq - rst.seq) % 2**32 < 2**31


def test_the_last_ack_to_the_kernel_outlives_the_connection(make_core: Callable[..., Core]) -> None:
    """The peer's last ACK comes before the kernel's FIN was answered, as it does on a fast wire."""
    core = make_core()
    conn = open_active(core)
    conn.send(OUTER, flags=FIN | ACK)
    conn.seq[OUTER] += 1
    core.get(INNER)
    conn.ack[INNER] += 1
    conn.send(INNER, flags=FIN | ACK)
    (fin,) = [s for s in core.get(OUTER) if s.flags & FIN]
    conn.ack[OUTER] = fin.seq + 1
    conn.send(OUTER)
    (last,) = core.get(INNER)
    assert (last.flags, last.ack, len(last.options)) == (ACK, conn.seq[INNER] + 1, 12)
    core.wait(2 * S)
    assert [a[0] for a in core.actions()] == [CLOSED, DISOWN]
    assert core.count("NO_CONN") == 0


def test_strangers_get_rst(make_core: Callable[..., Core]) -> None:
    core = make_core()
    for leg in (INNER, OUTER):
        core.put(leg, to_core(leg, 500, 900, ACK, payload=b"abc"))
        (rst,) = core.get(leg)
        assert (rst.flags, rst.seq, rst.meta["link"]) == (RST, 900, LINKS[leg])
        core.put(leg, to_core(leg, 500, 0, FIN, payload=b"abc"))
        (rst,) = core.get(leg)
        assert (rst.flags, rst.seq, rst.ack) == (RST | ACK, 0, 504)
        core.put(leg, to_core(leg, 500, 900, RST | ACK))
        assert core.get(leg) == []
    assert core.count("NO_CONN") == 6


def test_bad_packets_are_counted(make_core: Callable[..., Core]) -> None:
    core = make_core()
    good = to_core(OUTER, 1, 0, SYN, options=SYN_OPTIONS).pack()
    for length in range(len(good)):
        core.put(OUTER, good[:length])
    assert core.count("MALFORMED") == len(good)
    core.put(OUTER, good[:30] + bytes([good[30] ^ 1]) + good[31:])
    assert core.count("BAD_CSUM") == 1
    core.put(OUTER, to_core(OUTER, 1, 0, SYN | FIN))
    assert core.count("MALFORMED") == len(good) + 1
    core.put(OUTER, good + b"\0\0\0")  # padding of a short Ethernet frame
    assert [a[0] for a in core.actions()] == [OWN]


def test_accept_waits_for_the_peers_ack(make_core: Callable[..., Core]) -> None:
    core = make_core()
    core.put(OUTER, to_core(OUTER, 7000, 0, SYN, options=SYN_OPTIONS))
    assert core.get(OUTER) == []
    (syn,) = core.get(INNER)
    assert (syn.src, syn.dst, syn.flags) == (PEER, HOST, SYN)
    core.put(INNER, to_core(INNER, 300, syn.seq + 1, SYN | ACK, options=SYN_OPTIONS))
    assert core.get(INNER) == []
    (synack,) = core.get(OUTER)
    assert (synack.flags, synack.ack) == (SYN | ACK, 7001)
    core.put(OUTER, to_core(OUTER, 7001, synack.seq + 1, ACK, options=timestamps(1001, 0)))
    (ack,) = core.get(INNER)
    assert (ack.flags, ack.ack) == (ACK, 301)


def test_closed_port_and_firewall(make_core: Callable[..., Core]) -> None:
    """What the host's kernel says to an incoming SYN is what the remote peer hears: RST,
    ICMP, or nothing.
    """
    core = make_core()
    core.put(OUTER, to_core(OUTER, 7000, 0, SYN))
    assert [a[0] for a in core.actions()] == [OWN]
    (syn,) = core.get(INNER)
    core.put(INNER, to_core(INNER, 0, syn.seq + 1, RST | ACK))
    (rst,) = core.get(OUTER)
    assert (rst.flags, rst.ack) == (RST | ACK, 7001)
    assert [a[0] for a in core.actions()] == [CLOSED, DISOWN]

    core.put(OUTER, to_core(OUTER, 9000, 0, SYN))
    (syn,) = core.get(INNER)
    core.put(INNER, icmp(HOST, PEER, 3, 13, 0, syn))
    ((data, meta),) = core.raw(OUTER)
    assert meta["link"] == LINKS[INNER]  # as the firewall's answer would have gone
    assert (data[9], data[20], data[21]) == (1, 3, 13)
    assert data[28 + 20 : 28 + 28] == to_core(OUTER, 9000, 0, SYN).pack()[20:28]

    core.put(OUTER, to_core(OUTER, 9500, 0, SYN))
    core.actions()
    core.put(OUTER, to_core(OUTER, 9500, 0, SYN))
    core.wait(100 * S)
    assert core.get(OUTER) == []


def test_blind_resets_are_challenged(make_core: Callable[..., Core]) -> None:
    """RFC 5961: in the window but not exact gets a challenge ACK, at most one per half
    second; exact resets.
    """
    core = make_core()
    conn = open_active(core)
    for _ in range(3):
        conn.send(OUTER, flags=RST, offset=1000)
        conn.send(OUTER, flags=SYN, offset=2000)
    (challenge,) = core.get(OUTER)
    assert (challenge.flags, challenge.ack) == (ACK, 7001)
    core.wait(600 * MS)
    conn.send(OUTER, flags=RST, offset=1)
    assert len(core.get(OUTER)) == 1
    assert core.count("CHALLENGE_ACKS") == 2
    conn.send(OUTER, flags=RST)
    (rst,) = core.get(INNER)
    assert rst.flags & RST
    assert [a[0] for a in core.actions()] == [CLOSED, DISOWN]


def test_blind_icmp_is_ignored(make_core: Callable[..., Core]) -> None:
    """RFC 5927: what quotes nothing in flight changes nothing; a hard error on an open
    connection is soft.
    """
    core = make_core()
    conn = open_active(core)
    conn.send(INNER, b"x" * 5000)
    sent = core.get(OUTER)
    outside = Segment(HOST, PEER, 40000, 80, sent[0].seq - 1000, 0, ACK)
    core.put(OUTER, icmp("203.0.113.1", HOST, 3, 4, 800, outside))
    core.put(OUTER, icmp("203.0.113.1", HOST, 3, 1, 0, sent[0]))
    assert core.get(OUTER) == []
    assert core.actions() == []
    core.put(OUTER, icmp("203.0.113.1", HOST, 3, 4, 800, sent[0]))
    again = core.get(OUTER)
    assert again
    assert max(20 + 20 + len(s.options) + len(s.payload) for s in again) == 800
    assert again[0].seq == sent[0].seq


def test_old_timestamps_are_refused(make_core: Callable[..., Core]) -> None:
    core = make_core()
    conn = open_active(core)
    conn.send(OUTER, b"hello")
    assert core.get(OUTER)[0].ack == 7006
    conn.send(OUTER, b"world", tsval=500)
    (ack,) = core.get(OUTER)
    assert (ack.ack, sack_blocks(ack.options)) == (7006, [])
    assert core.count("PAWS") == 1


def test_sack_names_the_newest_first_and_duplicates_before_all(
    make_core: Callable[..., Core],
) -> None:
    core = make_core()
    conn = open_active(core)
    for offset in (1000, 3000, 5000):
        conn.send(OUTER, b"y" * 500, offset=offset)
        core.get(OUTER)
    conn.send(OUTER, b"y" * 500, offset=3500)
    (ack,) = core.get(OUTER)
    base = 7001
    assert sack_blocks(ack.options) == [
        (base + 3000, base + 4000),
        (base + 5000, base + 5500),
        (base + 1000, base + 1500),
    ]
    conn.send(OUTER, b"y" * 500, offset=5000)
    (ack,) = core.get(OUTER)
    assert sack_blocks(ack.options)[:2] == [(base + 5000, base + 5500), (base + 5000, base + 5500)]
    conn.send(OUTER, b"y" * 1000)
    (ack,) = core.get(OUTER)
    assert ack.ack == base + 1500
    assert sum(len(s.payload) for s in core.get(INNER)) == 1500


def test_acks_are_delayed_by_40_ms_or_two_segments(make_core: Callable[..., Core]) -> None:
    core = make_core()
    conn = open_active(core)
    for _ in range(16):  # quick at the start
        conn.send(OUTER, b"z" * 100)
        assert len(core.get(OUTER)) == 1
    conn.send(OUTER, b"z" * 100)
    assert core.get(OUTER) == []
    conn.send(OUTER, b"z" * 100)
    assert len(core.get(OUTER)) == 1
    conn.send(OUTER, b"z" * 100)
    core.wait(39 * MS)
    assert core.get(OUTER) == []
    core.wait(2 * MS)
    assert len(core.get(OUTER)) == 1


def test_super_segments_on_the_inner_leg(make_core: Callable[..., Core]) -> None:
    core = make_core()
    conn = open_active(core)
    for _ in range(20):
        conn.send(OUTER, b"w" * 1448)
    packets = core.get(INNER)
    assert sum(len(p.payload) for p in packets) == 20 * 1448
    assert packets[0].meta["gso_size"] == 1448
    assert len(packets[0].payload) % 1448 == 0
    assert len(packets) <= 2
