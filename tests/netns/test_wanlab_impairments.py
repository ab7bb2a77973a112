# SPDX-License-Identifier: Apache-2.0
"""What the emulator does to frames, seen by UDP datagrams that carry their number."""

from __future__ import annotations

import math
import socket
import struct
from dataclasses import dataclass

import pytest

from lab import Host, Lab, LinkStats, WanLink, wait_for

PORT = 9000
RCVBUF_BYTES = 64 << 20
SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_AUXDATA = 8
NS_PER_MS = 1_000_000


@dataclass
class Arrivals:
    """Numbers of the datagrams that arrived, in order of arrival, and the
    link's counters afterwards.
    """

    numbers: list[int]
    stats: LinkStats


def udp_socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RCVBUF_BYTES)
    sock.bind((address, PORT))
    sock.setblocking(False)
    return sock


def send_numbers(
    a: Host, b: Host, link: WanLink, count: int, size: int = 100, family: str = "ip4"
) -> Arrivals:
    """Sends count datagrams of size bytes from a to b as fast as the host can, and waits until
    the link is empty.
    """
    link.reset()
    with (
        a.call(udp_socket, getattr(a, family)) as sender,
        b.call(udp_socket, getattr(b, family)) as receiver,
    ):
        sender.setblocking(True)
        sender.connect((getattr(b, family), PORT))
        for number in range(count):
            sender.send(number.to_bytes(4, "big") + bytes(size - 4))

        def is_empty() -> bool:
            ab = link.stats().ab
            left = ab.losses + ab.queue_drops + ab.own_drops + ab.tx_pkts - ab.duplicated
            return ab.rx_pkts - ab.control_pkts == count and left == ab.rx_pkts

        wait_for(is_empty, 20, "the link to be empty")
        numbers = []
        while True:
            try:
                numbers.append(int.from_bytes(receiver.recv(65536)[:4], "big"))
            except BlockingIOError:
                break
    stats = link.stats()
    assert stats.own_drops == 0
    return Arrivals(numbers, stats)


def linked(lab: Lab, **params) -> tuple[Host, Host, WanLink]:
    a, b = lab.host("a"), lab.host("b")
    return a, b, lab.wan(a, b, neighbours="static", **params)


def assert_binomial(seen: int, count: int, probability: float) -> None:
    """Within five standard deviations: one false alarm in two million, were the seed not fixed."""
    deviation = math.sqrt(count * probability * (1 - probability))
    assert abs(seen - count * probability) < 5 * deviation


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_clean_link_loses_and_reorders_nothing(lab: Lab, family: str) -> None:
    a, b, link = linked(lab, rate="50mbit", delay="2ms", queue="none")
    arrived = send_numbers(a, b, link, 3000, family=family)
    assert arrived.numbers == list(range(3000))
    assert arrived.stats.ab.late_max_ns >= 0


def test_loss_has_the_asked_share(lab: Lab) -> None:
    a, b, link = linked(lab, delay="1ms", ab={"loss": "10%"})
    arrived = send_numbers(a, b, link, 5000)
    assert_binomial(5000 - len(arrived.numbers), 5000, 0.1)
    assert arrived.stats.ab.losses == 5000 - len(arrived.numbers)
    assert arrived.stats.ba.losses == 0


def test_seed_decides_which_frames_are_lost(lab: Lab) -> None:
    a, b, link = linked(lab, delay="1ms", loss="5%", seed=42)
    first = send_numbers(a, b, link, 1000).numbers
    link.set(seed=42)
    again = send_numbers(a, b, link, 1000).numbers
    link.set(seed=43)
    other = send_numbers(a, b, link, 1000).numbers
    assert first == again
    assert first != other


def test_rate_and_other_impairments_leave_the_loss_pattern(lab: Lab) -> None:
    a, b, link = linked(lab, loss="5%", seed=7)
    plain = send_numbers(a, b, link, 500).numbers
    link.set(seed=7, rate="20mbit", queue="none", delay="3ms", duplicate="20%")
    assert sorted(set(send_numbers(a, b, link, 500).numbers)) == plain


def test_directions_have_different_patterns(lab: Lab) -> None:
    a, b, link = linked(lab, loss="10%", seed=9)
    there = send_numbers(a, b, link, 500).numbers
    link.set(seed=9)
    with a.call(udp_socket, a.ip4) as receiver, b.call(udp_socket, b.ip4) as sender:
        for number in range(500):
            sender.sendto(number.to_bytes(4, "big"), (a.ip4, PORT))
        wait_for(lambda: link.stats().ba.tx_pkts + link.stats().ba.losses >= 500, 10)
        back = []
        while True:
            try:
                back.append(int.from_bytes(receiver.recv(64), "big"))
            except BlockingIOError:
                break
    assert there != back
    assert_binomial(500 - len(back), 500, 0.1)


def test_duplicates_arrive_twice(lab: Lab) -> None:
    a, b, link = linked(lab, delay="1ms", ab={"duplicate": "10%"})
    arrived = send_numbers(a, b, link, 3000)
    assert sorted(set(arrived.numbers)) == list(range(3000))
    assert_binomial(len(arrived.numbers) - 3000, 3000, 0.1)
    assert arrived.stats.ab.duplicated == len(arrived.numbers) - 3000


def test_reordering_holds_frames_back(lab: Lab) -> None:
    a, b, link = linked(
        lab, rate="10mbit", queue="none", ab={"reorder": "5%", "reorder_delay": "5ms"}
    )
    arrived = send_numbers(a, b, link, 2000)
    assert sorted(arrived.numbers) == list(range(2000))
    highest, overtaken = -1, 0
    for number in arrived.numbers:
        overtaken += number < highest
        highest = max(highest, number)
    assert_binomial(arrived.stats.ab.reordered, 2000, 0.05)
    # The last frames may be held back with nothing left to overtake them.
    assert arrived.stats.ab.reordered - 60 < overtaken <= arrived.stats.ab.reordered


def test_corruption_is_caught_by_checksums(lab: Lab) -> None:
    a, b, link = linked(lab, ab={"corrupt": "10%"})
    arrived = send_numbers(a, b, link, 2000)
    assert_binomial(arrived.stats.ab.corrupted, 2000, 0.1)
    # A flipped bit in the IPv4 TOS or such fields is caught as well: every one breaks the IP or
    # the UDP checksum.
    assert len(arrived.numbers) == 2000 - arrived.stats.ab.corrupted


@pytest.mark.parametrize(("queue", "pkts"), [("50p", 50), ("50000B", 50), ("40ms", 50)])
def test_queue_drops_the_tail(lab: Lab, queue: str, pkts: int) -> None:
    """976 bytes on the wire 1000 with overhead: 0.8 ms at 10 Mbit/s, so the three limits
    mean the same.
    """
    a, b, link = linked(lab, rate="10mbit", queue=queue)
    arrived = send_numbers(a, b, link, 400, size=976 - 42)
    ab = arrived.stats.ab
    assert ab.queue_max_pkts == pkts
    assert ab.queue_max_bytes == pkts * 1000
    assert ab.queue_drops == 400 - len(arrived.numbers) > 0
    assert arrived.numbers[: pkts + 1] == list(range(pkts + 1))
    assert 39 * NS_PER_MS < ab.queue_wait_max_ns <= 41 * NS_PER_MS


def test_parameters_change_under_way(lab: Lab) -> None:
    a, b, link = linked(lab, rate="10mbit", queue="none")
    link.set("ab", rate="unlimited", loss="100%")
    assert link.params("ab").loss == 1.0
    assert link.params("ba").rate_bps == 10_000_000
    assert send_numbers(a, b, link, 100).numbers == []
    link.set("ab", loss=0)
    assert send_numbers(a, b, link, 100).numbers == list(range(100))


def test_link_control_has_no_fate(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    link = lab.wan(a, b, loss="100%")
    a.run(["ping", "-c", "1", "-W", "1", b.ip4], check=False)
    assert "02:dd:00:00:00:02" in a.run(["ip", "neigh", "show", b.ip4]).stdout
    assert link.stats().ab.control_pkts > 0


def test_jumbo_frames_pass(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    link = lab.wan(a, b, delay="1ms", mtu=9000)
    a.run(["ping", "-c", "1", "-M", "do", "-s", "8900", b.ip4])
    assert link.stats().own_drops == 0


def packet_socket(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((interface, ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.settimeout(5)
    return sock


def test_vlan_tags_pass(lab: Lab) -> None:
    """The kernel shows a tag to packet sockets as auxiliary data (packet(7)), also to
    the emulator's own.
    """
    a, b, link = linked(lab, delay="1ms")
    tag = struct.pack("!HH", 0x8100, 7)
    addresses = bytes.fromhex("02dd00000002") + bytes.fromhex("02dd00000001")
    payload = struct.pack("!H", 0x88B5) + bytes(range(100))
    with a.call(packet_socket, "eth0") as sender, b.call(packet_socket, "eth0") as receiver:
        sender.send(addresses + tag + payload)
        while True:
            frame, auxiliary, _, _ = receiver.recvmsg(2048, 256)
            if frame[:12] == addresses:
                break
    assert frame == addresses + payload
    aux = struct.unpack("=IIIHHHH", auxiliary[0][2])
    assert (aux[5], aux[6]) == (7, 0x8100)
    assert link.stats().own_drops == 0
