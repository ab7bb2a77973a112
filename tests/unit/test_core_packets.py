# SPDX-License-Identifier: Apache-2.0
"""The core packet by packet through api.h, against packets made and read without it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from corepackets import (
    ACK,
    CLOSED,
    CWR,
    DISOWN,
    ECE,
    FIN,
    HOST,
    INNER,
    LINKS,
    MS,
    OUTER,
    OWN,
    PEER,
    RST,
    SYN,
    SYN_OPTIONS,
    Core,
    S,
    Segment,
    checksum,
    icmp,
    open_active,
    sack_blocks,
    timestamps,
    to_core,
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


@pytest.mark.parametrize("seed", [3, 4])
def test_the_peer_sees_the_first_number_of_the_apps_kernel(
    make_core: Callable[..., Core], seed: int
) -> None:
    """So that it goes on from that of the last connection, whichever process carried it, as a
    peer in TIME-WAIT asks where there are no timestamps.
    """
    for number in (1000, 2**32 - 1):
        core = make_core(seed=seed)
        core.put(INNER, to_core(INNER, number, 0, SYN, options=b"\x02\x04\x05\xb4"))
        (syn,) = core.get(OUTER)
        assert (syn.flags & (SYN | ACK | RST), syn.seq) == (SYN, number)


def test_an_answer_has_a_number_of_the_cores_own(make_core: Callable[..., Core]) -> None:
    """Which differs from process to process, and from those that it stands between (RFC 6528)."""
    numbers = set()
    for seed in (3, 4):
        core = make_core(seed=seed)
        core.put(OUTER, to_core(OUTER, 1000, 0, SYN, options=SYN_OPTIONS))
        (syn,) = core.get(INNER)
        core.put(INNER, to_core(INNER, 7000, syn.seq + 1, SYN | ACK, options=SYN_OPTIONS))
        (answer,) = core.get(OUTER)
        assert answer.flags & (SYN | ACK) == SYN | ACK
        numbers |= {syn.seq, answer.seq}
    assert len(numbers | {1000, 7000}) == 6


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
