# SPDX-License-Identifier: Apache-2.0
"""Copies of datagrams between two stacks of ours: what an app sends comes to the other one at most
as often as it was sent, more of it than the path lets through, and nothing else is ever seen by a
host without us.
"""

from __future__ import annotations

import heapq
import itertools
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from corepackets import INNER, MS, OUTER, Core, S, built_core, checksum

ETH = bytes(range(1, 7)) + bytes(range(11, 17))
ADDRESSES = {4: ("192.0.2.1", "198.51.100.7"), 6: ("2001:db8::1", "2001:db8:7::7")}
PORTS = (40000, 53)
ALLOW, FORBID = 1, 0
LOW, NORMAL = 1, 2
Loss = Callable[[], bool]


def pseudo(packet: bytes) -> tuple[bytes, bytes]:
    """What the checksum of a UDP packet is over besides it, and the UDP packet."""
    at, addresses = (20, packet[12:20]) if packet[0] >> 4 == 4 else (40, packet[8:40])
    udp = packet[at:]
    return addresses + struct.pack(">HH", 17, len(udp)), udp


def is_right(packet: bytes) -> bool:
    """As a host's kernel finds it (RFC 768, RFC 8200 section 8.1)."""
    head, udp = pseudo(packet)
    return udp[6:8] == b"\0\0" or checksum(head + udp) == 0


def datagram(
    family: int, side: int, payload: bytes, plain: bool = False, ports: tuple[int, int] = PORTS
) -> bytes:
    """Of a side's app, in an Ethernet frame; plain: without a checksum."""
    src, dst = ADDRESSES[family][side], ADDRESSES[family][1 - side]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    ends = socket.inet_pton(kind, src) + socket.inet_pton(kind, dst)
    bytes_ = 8 + len(payload)
    if family == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + bytes_, 1, 0x4000, 64, 17, 0) + ends
        ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    else:
        ip = struct.pack(">IHBB", 6 << 28, bytes_, 17, 64) + ends
    udp = struct.pack(">HHHH", ports[side], ports[1 - side], bytes_, 0) + payload
    if not plain:
        head, _ = pseudo(ip + udp)
        udp = udp[:6] + struct.pack(">H", checksum(head + udp) or 0xFFFF) + udp[8:]
    return ETH + (b"\x08\0" if family == 4 else b"\x86\xdd") + ip + udp


def own_port(leg: int, frame: bytes) -> int:
    """Of the host at which it passes."""
    at = (34 if frame[14] >> 4 == 4 else 54) + (0 if leg == INNER else 2)
    return int.from_bytes(frame[at : at + 2], "big")


@dataclass
class Stack:
    """One core and what its app has got."""

    core: Core
    got: list[tuple[int, bytes]] = field(default_factory=list)

    def put(self, leg: int, frame: bytes, **vnet: int) -> list[tuple[int, bytes]]:
        """Frames that leave at once: leg and frame."""
        ffi, core = self.core.ffi, self.core
        came, goes = ffi.new("struct dmm_vnet *", vnet), ffi.new("struct dmm_vnet *")
        passes = core.lib.dmm_core_datagram(
            core.ptr, leg, frame, len(frame) - 14, 3, came, goes, core.now
        )
        return ([(1 - leg, frame)] if passes else []) + self.due()

    def due(self) -> list[tuple[int, bytes]]:
        """Frames that are due now."""
        ffi, core, out = self.core.ffi, self.core, []
        frame, leg, nic = ffi.new("uint8_t[1514]"), ffi.new("uint32_t *"), ffi.new("uint32_t *")
        while n := core.lib.dmm_core_datagram_next(core.ptr, frame, leg, nic, core.now):
            assert nic[0] == 3
            out.append((leg[0], bytes(ffi.buffer(frame, 14 + n))))
        return out

    def next_ns(self) -> int:
        return int(self.core.lib.dmm_core_poll(self.core.ptr, self.core.now))


class Processes:
    """Processes of a host that share its exchanges by the host's own port."""

    def __init__(self, *stacks: Stack) -> None:
        self.stacks = stacks
        self.core = self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "now":
            for stack in self.stacks:
                stack.core.now = value
        else:
            super().__setattr__(name, value)

    def put(self, leg: int, frame: bytes) -> list[tuple[int, bytes]]:
        return self.stacks[own_port(leg, frame) % len(self.stacks)].put(leg, frame)

    def due(self) -> list[tuple[int, bytes]]:
        return [frame for stack in self.stacks for frame in stack.due()]

    def next_ns(self) -> int:
        return min(stack.next_ns() for stack in self.stacks)


class Path:
    """Two hosts and the way between them; packets may be lost and come out of order."""

    def __init__(
        self,
        stacks: tuple[Stack | None, Stack | None],
        delay_ns: int,
        lost: Loss,
        jitter_ns: int = 0,
    ) -> None:
        self.stacks, self.delay_ns, self.lost, self.jitter_ns = stacks, delay_ns, lost, jitter_ns
        self.now = 5 * S
        self.flying: list[tuple[int, int, int, bytes]] = []
        self.random = random.Random(7)
        self.number = itertools.count()
        self.sent: Counter[int] = Counter()  # packets, by side
        self.seen: list[bytes] = []  # by a host without us
        self.wrong = 0  # on the way to an app
        self.got: tuple[list[bytes], list[bytes]] = ([], [])

    def _carry(self, side: int, frames: list[tuple[int, bytes]]) -> None:
        for leg, frame in frames:
            if leg == INNER:
                if not is_right(frame[14:]):
                    self.wrong += 1  # the host's kernel drops it
                    continue
                self.got[side].append(frame[14:][-(len(frame) - 14 - self._head(frame)) :])
                continue
            self.sent[side] += 1
            if not self.lost():
                at = self.now + self.delay_ns + self.random.randrange(self.jitter_ns + 1)
                heapq.heappush(self.flying, (at, next(self.number), 1 - side, frame))

    @staticmethod
    def _head(frame: bytes) -> int:
        return 28 if frame[14] >> 4 == 4 else 48

    def send(self, side: int, frame: bytes, **vnet: int) -> None:
        stack = self.stacks[side]
        if stack is None:
            self._carry(side, [(OUTER, frame)])
        else:
            stack.core.now = self.now
            self._carry(side, stack.put(INNER, frame, **vnet))

    def _arrive(self, side: int, frame: bytes) -> None:
        stack = self.stacks[side]
        if stack is None:
            if is_right(frame[14:]):
                self.seen.append(frame[14 + self._head(frame) :])
            return
        stack.core.now = self.now
        self._carry(side, stack.put(OUTER, frame))

    def run(self, until_ns: int) -> None:
        while True:
            due = [self.flying[0][0]] if self.flying else []
            for stack in self.stacks:
                if stack is not None:
                    stack.core.now = self.now
                    due.append(stack.next_ns())
            at = min(due, default=until_ns)
            if at >= until_ns:
                break
            self.now = max(at, self.now)
            while self.flying and self.flying[0][0] <= self.now:
                _, _, side, frame = heapq.heappop(self.flying)
                self._arrive(side, frame)
            for side, stack in enumerate(self.stacks):
                if stack is not None:
                    stack.core.now = self.now
                    self._carry(side, stack.due())
        self.now = until_ns


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Stack]:
    new = built_core(tmp_path_factory.mktemp("udp"))

    def stack(**config: Any) -> Stack:
        return Stack(new(**{"negotiate": ALLOW, "latency": LOW, **config}))

    return stack


def randomly(share: float, seed: int = 1) -> Loss:
    dice = random.Random(seed)
    return lambda: dice.random() < share


def message(number: int, size: int = 200) -> bytes:
    return random.Random(number).randbytes(size)


def talk(path: Path, family: int, n: int, every_ms: int = 20, echo: bool = False) -> list[bytes]:
    """n messages of side 0; with echo, what comes goes back. Those sent."""
    sent = []
    answered = 0
    for number in range(n):
        sent.append(message(number))
        path.send(0, datagram(family, 0, sent[-1]))
        path.run(path.now + every_ms * MS)
        for payload in path.got[1][answered:] if echo else ():
            path.send(1, datagram(family, 1, payload))
            answered += 1
    path.run(path.now + 5 * S)
    return sent


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("loss", [0.02, 0.12])
def test_what_the_path_loses_comes_by_copies(make, family, loss) -> None:
    path = Path((make(seed=1), make(seed=2)), 50 * MS, randomly(loss), jitter_ns=3 * MS)
    sent = talk(path, family, 3000)
    late = path.got[1][500:]
    assert max(Counter(path.got[1]).values()) == 1
    assert set(path.got[1]) <= set(sent)
    missing = set(sent[600:]) - set(late)
    assert len(missing) <= 0.004 * 2400
    copies = path.stacks[0].core.count("DATAGRAM_COPIES")
    assert (1 if loss < 0.1 else 2) * 2400 <= copies <= (2 if loss < 0.1 else 4) * 3000
    assert path.stacks[1].core.count("DATAGRAMS_REPAIRED") > 0.8 * loss * 2400
    assert path.stacks[0].core.count("DATAGRAM_PEERS") == 1


def test_both_ways_at_once(make) -> None:
    path = Path((make(seed=1), make(seed=2)), 50 * MS, randomly(0.12))
    sent = talk(path, 4, 3000, echo=True)
    back = set(path.got[0])
    assert max(Counter(path.got[0]).values()) == 1
    assert len(set(sent[600:]) - back) <= 0.01 * 2400


def plural(make, many: int, seed: int) -> Processes:
    return Processes(*(make(seed=seed + number) for number in range(many)))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("many", [2, 5, 16])
@pytest.mark.parametrize("lasting", [True, False])
def test_each_process_of_a_peer_hears_of_its_own(make, family, many, lasting) -> None:
    """Many exchanges, long or of one datagram each, by several processes at both hosts."""
    path = Path((plural(make, many, 100), plural(make, many, 200)), 50 * MS, randomly(0.12))
    dice, sent, n = random.Random(4), [], 6000
    for number in range(n):
        sent.append(message(number))
        own = 40_000 + (dice.randrange(64) if lasting else number)
        path.send(0, datagram(family, 0, sent[-1], ports=(own, 50 + dice.randrange(20))))
        path.run(path.now + 5 * MS)
    path.run(path.now + S)
    early = 3000 if many > 5 else 1500
    for process in path.stacks[0].stacks:
        assert process.core.count("DATAGRAM_COPIES") > 1.5 * (n - early) / many
    assert max(Counter(path.got[1]).values()) == 1
    assert len(set(sent[early:]) - set(path.got[1])) <= 0.01 * (n - early)


def test_processes_whose_exchanges_are_short_stay_known(make) -> None:
    """Nothing is lost, so there are no copies by which they would be known; but few to be so."""
    path = Path((plural(make, 4, 100), make(seed=2)), 20 * MS, lambda: False)
    sent, n = [], 8000
    gone: set[int] = set()
    put = path.stacks[0].put

    def only_lasting(leg: int, frame: bytes) -> list[tuple[int, bytes]]:
        return [] if own_port(leg, frame) in gone else put(leg, frame)

    path.stacks[0].put = only_lasting
    for number in range(n):
        sent.append(message(number))
        path.send(0, datagram(4, 0, sent[-1], ports=(30_000 + number, 53)))
        gone.add(30_000 + number - 500)  # as the programs at the NIC forget an exchange
        path.run(path.now + 10 * MS)
    assert path.got[1] == sent[: len(path.got[1])]
    copies = [process.core.count("DATAGRAM_COPIES") for process in path.stacks[0].stacks]
    assert max(copies) <= 3 + n / 100 / 3, "one each five seconds, or some more"
    path.lost = randomly(0.12)
    for number in range(n, n + 2000):
        path.send(0, datagram(4, 0, message(number), ports=(30_000 + number, 53)))
        gone.add(30_000 + number - 500)
        path.run(path.now + 10 * MS)
    path.run(path.now + S)
    late = {message(number) for number in range(n + 1000, n + 2000)}
    assert len(late - set(path.got[1])) <= 0.02 * 1000


def test_a_report_that_comes_twice_tells_once(make) -> None:
    """A path that doubles what goes back; else what is lost would seem to have come."""
    dice = randomly(0.12)
    path = Path((make(seed=1), make(seed=2)), 50 * MS, dice)
    carry = path._carry

    def doubled(side: int, frames: list[tuple[int, bytes]]) -> None:
        carry(side, [frame for frame in frames for _ in range(1 + side)])

    path._carry = doubled  # type: ignore[method-assign]
    sent = talk(path, 4, 3000)
    assert len(set(sent[600:]) - set(path.got[1])) <= 0.004 * 2400
    assert path.stacks[0].core.count("DATAGRAM_COPIES") >= 2 * 2400


def test_reports_are_never_more_than_what_came(make) -> None:
    """Forged copies, each with another tag: whose address they bear gets no more than was sent."""
    path = Path((make(seed=1), make(seed=2)), 5 * MS, lambda: False)
    dice, came, told = random.Random(1), 0, 0
    receiver = path.stacks[1]
    for number in range(4000):
        frame = bytearray(datagram(4, 0, message(number, dice.choice([0, 1, 30]))))
        frame[18:20] = dice.randrange(1, 1 << 16).to_bytes(2, "big")
        frame[40:42] = (int.from_bytes(frame[40:42], "big") ^ 0x5A3C).to_bytes(2, "big")
        path.now += 2 * MS
        receiver.core.now = path.now
        came += max(len(frame), 60)
        told += sum(
            max(len(out), 60) for leg, out in receiver.put(OUTER, bytes(frame)) if leg == OUTER
        )
        assert told <= came
    assert told > 0


def test_a_path_that_loses_nothing_sees_offers_and_few_reports(make) -> None:
    path = Path((make(seed=1), make(seed=2)), 50 * MS, lambda: False)
    sent = talk(path, 4, 1000)
    assert path.got[1] == sent
    assert path.stacks[0].core.count("DATAGRAM_COPIES") <= 3
    assert path.sent[0] == 1000 + path.stacks[0].core.count("DATAGRAM_COPIES")
    assert path.sent[1] <= 20 * 4 + 10  # four reports a second


def test_a_host_without_us_sees_what_was_sent_and_is_spared(make) -> None:
    path = Path((make(seed=1), None), 50 * MS, lambda: False)
    sent = talk(path, 4, 2000)
    assert path.seen == sent
    assert path.sent[0] == 2000 + 3
    path.run(path.now + 300 * S)
    for number in range(20):
        path.send(0, datagram(4, 0, message(9000 + number)))
    assert path.sent[0] == 2000 + 3 + 20
    path.run(path.now + S)
    assert path.sent[0] == 2000 + 3 + 20 + 3, "the next offers come later"


def test_a_peer_whose_stack_ends_gets_no_more(make) -> None:
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.12))
    talk(path, 4, 1000)
    path.stacks = (path.stacks[0], None)
    before = path.stacks[0].core.count("DATAGRAM_COPIES")
    talk(path, 4, 1000)
    assert path.stacks[0].core.count("DATAGRAM_COPIES") - before < 5 * 320  # 6 s of them
    assert max(Counter(path.seen).values()) == 1


@pytest.mark.parametrize("config", [{"negotiate": FORBID}, {"latency": NORMAL}])
def test_a_policy_that_forbids_sends_none(make, config) -> None:
    path = Path((make(seed=1, **config), make(seed=2)), 20 * MS, randomly(0.12))
    talk(path, 4, 500)
    assert path.sent[0] == 500
    assert path.sent[1] == 0


def test_a_receiver_that_forbids_is_not_told_apart_from_the_kernel(make) -> None:
    path = Path((make(seed=1), make(seed=2, negotiate=FORBID)), 20 * MS, lambda: False)
    for number in range(500):
        path.send(0, datagram(4, 0, message(number)))
        path.run(path.now + 20 * MS)
    assert path.sent[0] == 503
    assert path.sent[1] == 0


def test_what_is_alike_comes_as_often_as_it_was_sent_at_most(make) -> None:
    """A keep-alive of one byte, again and again, over a path that loses and reorders."""
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.12), jitter_ns=30 * MS)
    talk(path, 4, 500)
    came = len(path.got[1])
    for _ in range(500):
        path.send(0, datagram(4, 0, b"\0"))
        path.run(path.now + 10 * MS)
    path.run(path.now + 5 * S)
    assert 0.7 * 500 < len(path.got[1]) - came <= 500


def test_a_process_that_stood_still_sends_no_old_copies(make) -> None:
    """They would come when the other stack has forgotten the datagram."""
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.12))
    talk(path, 4, 500)
    sender = path.stacks[0].core
    before = sender.count("DATAGRAM_COPIES")
    sender.now = path.now
    assert path.stacks[0].put(INNER, datagram(4, 0, b"once")) != []
    sender.now += 5 * S
    assert path.stacks[0].due() == []
    assert sender.count("DATAGRAM_COPIES") == before


def test_a_datagram_without_checksum_is_copied_too(make) -> None:
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.12))
    talk(path, 4, 1000)
    sent = [message(5000 + number) for number in range(500)]
    for payload in sent:
        path.send(0, datagram(4, 0, payload, plain=True))
        path.run(path.now + 20 * MS)
    path.run(path.now + S)
    assert len(set(sent) - set(path.got[1])) <= 4


def test_what_is_put_together_on_the_way_is_never_told_twice(make) -> None:
    """Datagrams that a NIC has merged are not looked into: then no copy is believed."""
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.12))
    talk(path, 4, 500)
    receiver = path.stacks[1]
    receiver.core.now = path.now
    merged = datagram(4, 0, message(7000, 100) + message(7001, 100))
    passed = receiver.put(
        OUTER, merged, flags=1, gso_type=5, gso_size=100, csum_start=20, csum_offset=6
    )
    assert (INNER, merged) in passed
    before = receiver.core.count("DATAGRAMS_REPAIRED")
    talk(path, 4, 100)
    assert receiver.core.count("DATAGRAMS_REPAIRED") == before


def test_budget_and_heavy_loss(make) -> None:
    path = Path((make(seed=1, redundancy_budget_ppm=2000), make(seed=2)), 20 * MS, randomly(0.12))
    talk(path, 4, 1000)
    spent = path.stacks[0].core.count("DATAGRAM_COPIES") * 228
    assert spent <= 5000 * 25 + 5000  # 2.5 MB/s by 0.002, in 25 s
    assert path.stacks[0].core.count("DATAGRAM_COPIES_HELD") > 100
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.6))
    talk(path, 4, 3000)
    assert path.stacks[0].core.count("DATAGRAM_COPIES") < 3 * 3000


def test_nothing_is_copied_while_a_queue_stands(make) -> None:
    path = Path((make(seed=1), make(seed=2)), 50 * MS, randomly(0.12))
    talk(path, 4, 1000)
    path.delay_ns = 120 * MS
    copies = []
    for number in range(200):
        path.send(0, datagram(4, 0, message(20_000 + number)))
        path.run(path.now + 20 * MS)
        copies.append(path.stacks[0].core.count("DATAGRAM_COPIES"))
    assert copies[-1] - copies[75] < 15, "after a second and a half"
    assert path.stacks[0].core.count("DATAGRAM_COPIES_HELD") > 300


def test_a_flood_has_no_copies_and_loses_none(make) -> None:
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.12))
    talk(path, 4, 500)
    before = path.stacks[0].core.count("DATAGRAM_COPIES")
    for number in range(5000):
        path.send(0, datagram(4, 0, message(10_000 + number, 40)))
        path.run(path.now + MS // 4)
    path.run(path.now + S)
    assert path.stacks[0].core.count("DATAGRAM_COPIES") - before < 500
    assert max(Counter(path.got[1]).values()) == 1


def test_bursts_make_the_copies_go_farther_apart(make) -> None:
    """Gilbert-Elliott, bad for 10 ms on average: copies within 2 ms share a burst."""
    dice, state = random.Random(3), {"bad": False, "at": 0}
    path: Path

    def lost() -> bool:
        while state["at"] < path.now:
            state["at"] += MS
            state["bad"] = dice.random() < (0.9 if state["bad"] else 0.0136)
        return bool(state["bad"])

    path = Path((make(seed=1), make(seed=2)), 50 * MS, lost)
    state["at"] = path.now
    left: dict[bytes, list[int]] = {}
    carry = path._carry

    def timed(side: int, frames: list[tuple[int, bytes]]) -> None:
        for _, frame in frames if side == 0 else ():
            left.setdefault(frame[42:], []).append(path.now)
        carry(side, frames)

    path._carry = timed  # type: ignore[method-assign]
    sent = talk(path, 4, 8000)
    assert len(set(sent[4000:]) - set(path.got[1])) / 4000 < 0.01
    gaps = [at[1] - at[0] for at in map(left.__getitem__, sent) if len(at) > 1]
    assert gaps[3] == 2 * MS
    assert min(gaps[-1000:]) >= 8 * MS


@pytest.mark.parametrize("seed", range(12))
def test_any_packet_leaves_the_apps_right(make, seed) -> None:
    """Truncated, bent and forged frames of both marks, among true ones: nothing that is wrong is
    given to an app, and no datagram comes twice.
    """
    dice = random.Random(seed)
    path = Path((make(seed=1), make(seed=2)), 20 * MS, randomly(0.12, seed), jitter_ns=5 * MS)
    seen: list[bytes] = []
    carry = path._carry

    def tapped(side: int, frames: list[tuple[int, bytes]]) -> None:
        seen.extend(frame for leg, frame in frames if leg == OUTER)
        carry(side, frames)

    path._carry = tapped  # type: ignore[method-assign]
    sent = []
    for number in range(400):
        sent.append(message(number, dice.choice([0, 1, 7, 200, 1472])) + struct.pack(">I", number))
        sent[-1] = sent[-1][:1472]
        path.send(0, datagram(4, 0, sent[-1]))
        path.run(path.now + 20 * MS)
        bent = bytearray(dice.choice(seen[-100:]))  # of the last seconds
        for _ in range(dice.randrange(4)):
            bent[dice.randrange(14, len(bent))] = dice.randrange(256)
        if dice.random() < 0.3:
            del bent[dice.randrange(34, len(bent)) :]
        side = dice.randrange(2)
        stack = path.stacks[side]
        stack.core.now = path.now
        frames = stack.put(OUTER, bytes(bent))
        kept = [(leg, f) for leg, f in frames if leg == OUTER or f != bytes(bent)]
        path._carry(side, kept)
    counted = Counter(path.got[1])
    assert not [payload for payload, n in counted.items() if payload in sent and n > 1]
