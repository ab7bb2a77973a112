# SPDX-License-Identifier: Apache-2.0
"""Fragments, and IPv6 extension headers, of flows that a user stack carries: they are the stack's,
in whatever order they come, and those of others reach the kernel as they were.
"""

from __future__ import annotations

import hashlib
import itertools
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from breaker import Break, Breaker, breaking
from pieces import DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, Pieces, headers
from sitefixtures import by
from talking import Talker, echo

from lab import Cgroup, Lab
from lab.routed import Routed

SIZE = 200_000
SYN = 2


def listening(policy: str) -> str:
    return policy.replace('table = "shop"\n', 'direction = "listen"\ntable = "shop"\n', 1)


class ThreeHosts:
    """near, a router (eth0: near, eth1: far) and far."""

    def __init__(self, lab: Lab, make_cgroup: Callable[[], Cgroup], directory: Path) -> None:
        self.near, self.router, self.far = lab.host("near"), lab.host("router"), lab.host("far")
        lab.wire(self.router, self.near)
        lab.wire(self.router, self.far)
        for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            self.router.sysctl(f"net.{name}", 1)
        self.cgroup, self.others = make_cgroup(), make_cgroup()
        self.directory = directory
        self.stack = ExitStack()

    def attach(self, policy: str) -> Routed:
        return self.stack.enter_context(Routed(self.near, self.cgroup, policy, self.directory))

    def breaks(self, how: Break) -> Breaker:
        return self.stack.enter_context(breaking(self.router, self.near, how))

    def kernel(self, family: str) -> dict[str, int]:
        """What near's kernel has put together itself, by its own name of each figure."""
        if family == "ip6":
            lines = self.near.call(Path("/proc/thread-self/net/snmp6").read_text).splitlines()
            return {n.removeprefix("Ip6"): int(v) for n, v in (line.split() for line in lines)}
        names, values = (
            line.split()[1:]
            for line in self.near.call(Path("/proc/thread-self/net/snmp").read_text).splitlines()
            if line.startswith("Ip:")
        )
        return dict(zip(names, map(int, values), strict=True))


@pytest.fixture
def path(lab: Lab, make_cgroup: Callable[[], Cgroup], tmp_path: Path) -> Iterator[ThreeHosts]:
    tmp_path.chmod(0o755)
    made = ThreeHosts(lab, make_cgroup, tmp_path)
    with made.stack:
        yield made


def backwards(pieces: list[bytes]) -> list[bytes]:
    return pieces[::-1]


def first_second(pieces: list[bytes]) -> list[bytes]:
    return pieces[1:2] + pieces[:1] + pieces[2:]


def twice(pieces: list[bytes]) -> list[bytes]:
    return [one for each in pieces for one in (each, each)]


def serve(path: ThreeHosts, role: str) -> None:
    """The echo server on the host that does not connect."""
    if role == "connects":
        echo(path.far, path.others)
    else:
        echo(path.near, path.cgroup)


def talk(path: ThreeHosts, role: str, family: str) -> None:
    """Bytes to and fro between a socket of near's that is routed and far; compared at their end."""
    if role == "connects":
        talker = Talker(path.near, path.cgroup, getattr(path.far, family))
    else:
        talker = Talker(path.far, path.others, getattr(path.near, family))
    assert talker.says(f"send {SIZE}") == "True"


def exchange(path: ThreeHosts, role: str, family: str) -> None:
    """serve(), and talk() once."""
    serve(path, role)
    talk(path, role, family)


Order = Callable[[list[bytes]], list[bytes]]
ORDERS: tuple[Order, ...] = (list, backwards, first_second, twice)
FAMILIES = ("ip4", "ip6")
EXTENSIONS = (
    [HOP_BY_HOP],
    [FRAGMENT],
    [HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, DESTINATION],
)


def opened(counters: dict[str, int]) -> int:
    """Flows that the stack has carried, whoever has opened them."""
    return counters.get("active_open", 0) + counters.get("passive_open", 0)


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("role", ["connects", "listens"])
def test_flows_in_fragments(path: ThreeHosts, io: str, role: str) -> None:
    """One after the other, by both families, in every order."""
    routed = path.attach(by(io) if role == "connects" else listening(by(io)))
    pieces = Pieces()
    path.breaks(pieces)
    serve(path, role)
    counters: dict[str, int] = {}
    for number, (family, pieces.order) in enumerate(itertools.product(FAMILIES, ORDERS), 1):
        what = f"{family} {pieces.order.__name__}"
        put_together = counters.get("reassembled", 0)
        before = path.kernel(family)
        talk(path, role, family)
        counters = routed.stack("wan")["counters"]
        assert opened(counters) == number, what
        assert counters["reassembled"] - put_together > SIZE / 1460 / 2, what
        after = path.kernel(family)
        assert after["ReasmOKs"] == before["ReasmOKs"], (
            f"{what}: the kernel has put together what is a stack's"
        )


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("role", ["connects", "listens"])
def test_flows_behind_extension_headers(path: ThreeHosts, io: str, role: str) -> None:
    """An atomic fragment's among them (RFC 6946). A SYN behind them would be the kernel's."""
    path.far.ip(
        f"link set {path.far.nic.name} mtu 1400"
    )  # so that there is room for them on the way
    routed = path.attach(by(io) if role == "connects" else listening(by(io)))
    kinds: list[int]
    path.breaks(lambda packet: [packet if packet[40 + 13] & SYN else headers(packet, kinds)])
    serve(path, role)
    for number, kinds in enumerate(EXTENSIONS, 1):
        talk(path, role, "ip6")
        counters = routed.stack("wan")["counters"]
        assert opened(counters) == number, kinds
        faults = ("malformed", "bad_csum", "reassembled")
        assert [counters[name] for name in faults] == [0, 0, 0], kinds


def test_extension_headers_in_fragments(path: ThreeHosts) -> None:
    routed = path.attach(by("tap"))
    path.breaks(Pieces(first_second, behind=[DESTINATION]))
    exchange(path, "connects", "ip6")
    assert routed.stack("wan")["counters"]["reassembled"] > SIZE / 1460 / 2


def test_a_router_with_a_smaller_mtu(path: ThreeHosts) -> None:
    """It is the kernel that cuts: the far host finds no path MTU, and the router's way to
    near takes less.
    """
    path.far.sysctl("net.ipv4.ip_no_pmtu_disc", 1)
    path.router.ip("link set eth0 mtu 900")
    routed = path.attach(by("tap"))
    exchange(path, "connects", "ip4")
    counters = routed.stack("wan")["counters"]
    assert counters["active_open"] == 1
    assert counters["reassembled"] > SIZE / 1460 / 2
    assert counters["fragments_dropped"] == 0


def spoilt(packet: bytes, spoil: Callable[[bytes], bool], pieces: Pieces) -> Sequence[bytes]:
    """Its fragments, and a forged one that overlaps the first, for some packets."""
    made = list(pieces(packet))
    if len(made) > 1 and spoil(packet):
        forged = made[0][:-200] + bytes(200)
        made.insert(1, forged)
    return made


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_an_overlap_costs_its_packet_and_no_more(path: ThreeHosts, family: str) -> None:
    """Which is sent again; nothing of what was forged gets to the app."""
    seen: set[bytes] = set()
    pieces = Pieces()

    def is_new(packet: bytes) -> bool:
        """Each segment once, and not all."""
        place = packet[24:28] if family == "ip4" else packet[44:48]
        first = place not in seen and len(seen) % 4 == 0
        seen.add(place)
        return first

    routed = path.attach(by("tap"))
    path.breaks(lambda packet: spoilt(packet, is_new, pieces))
    exchange(path, "connects", family)
    counters = routed.stack("wan")["counters"]
    assert counters["fragments_dropped"] > 0
    assert counters["active_open"] == 1


def test_fragments_of_the_kernels_between_the_same_hosts(path: ThreeHosts) -> None:
    """While a stack's flow is broken as well: TCP of a program outside the cgroup,
    and a datagram; by both families, in every order.
    """
    routed = path.attach(by("tap"))
    pieces = Pieces()
    path.breaks(pieces)
    echo(path.far, path.others)
    for number, (family, pieces.order) in enumerate(itertools.product(FAMILIES, ORDERS), 1):
        what = f"{family} {pieces.order.__name__}"
        address = getattr(path.far, family)
        ours, others = (Talker(path.near, cgroup, address) for cgroup in (path.cgroup, path.others))
        results: list[str] = []
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ours.says, f"send {SIZE}")
            results.append(others.says(f"send {SIZE}"))
            results.append(asked.result())
        assert results == ["True", "True"], what
        assert routed.stack("wan")["counters"]["active_open"] == number, what
        assert datagram(path, family) == hashlib.sha256(DATAGRAM).hexdigest(), what


DATAGRAM = bytes(range(256)) * 30


def datagram(path: ThreeHosts, family: str) -> str:
    """One that is longer than the path's MTU, from far to near; the digest of what came."""
    kind = socket.AF_INET if family == "ip4" else socket.AF_INET6
    with (
        path.near.call(socket.socket, kind, socket.SOCK_DGRAM) as near,
        path.far.call(socket.socket, kind, socket.SOCK_DGRAM) as far,
    ):
        near.settimeout(10)
        near.bind((getattr(path.near, family), 0))
        far.sendto(DATAGRAM, near.getsockname()[:2])
        return hashlib.sha256(near.recv(65536)).hexdigest()
