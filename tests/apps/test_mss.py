# SPDX-License-Identifier: Apache-2.0
"""The smaller segment size wins, whoever says it: both kernels and the wire say and do what
they do without a stack.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
from clamping import (
    clamp,
    iptables_clamp,
    iptables_unclamp,
    narrow_route,
    plain_route,
    unclamp,
)
from sitefixtures import TAP, XDP, Site
from talking import program, server

from lab import Host

PORT = 7320
SIZE = 400_000
FAMILIES = {"ip4": 20, "ip6": 40}  # bytes of an IP header
ETH_P_ALL = 3

SERVE = """
import json, socket, sys
address, port, size, most = sys.argv[1], *map(int, sys.argv[2:])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
if most:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, most)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((address, port))
s.listen()
print("ready", flush=True)
c, _ = s.accept()
left = size
while left:
    left -= len(c.recv(left))
c.sendall(bytes(size))
c.recv(1)
print(c.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), flush=True)
"""
TALK = """
import socket, sys
address, port, size, most = sys.argv[1], *map(int, sys.argv[2:])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
if most:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, most)
s.settimeout(30)
s.connect((address, port))
s.sendall(bytes(size))
left = size
while left:
    left -= len(s.recv(left))
print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), flush=True)
"""


Prepared = AbstractContextManager[None]


@contextmanager
def clamped(host: Host, hook: str, size: int | str = 1200) -> Iterator[None]:
    clamp(host, hook, size=size)
    yield
    unclamp(host)


@contextmanager
def by_iptables(host: Host, kind: str, chain: str) -> Iterator[None]:
    rule = (kind, chain, "--set-mss", "1200")
    iptables_clamp(host, *rule)
    yield
    iptables_unclamp(host, *rule)


@contextmanager
def narrowed(host: Host, attribute: str = "advmss", size: int = 1200) -> Iterator[None]:
    narrow_route(host, host.nic.name, attribute, size)
    yield
    plain_route(host, host.nic.name)


@contextmanager
def to_the_routes_mtu(host: Host, hook: str) -> Iterator[None]:
    with narrowed(host, "mtu", 1300), clamped(host, hook, "rt mtu"):
        yield


def nothing(site: Site) -> Prepared:
    return nullcontext()


HOOKS = ("output", "postrouting", "input", "prerouting")
# Who says 1200, or 1100, and to whom; what the client's and the server's socket are
# given; 0: nothing.
Settings = dict[str, tuple[Callable[[Site], Prepared], int, int]]
SOCKETS: Settings = {
    "nobody": (nothing, 0, 0),
    "the client": (nothing, 1200, 0),
    "the listener": (nothing, 0, 1200),
    "both": (nothing, 1200, 1100),
}
NFT: Settings = {
    f"{hook} of the {name}": (lambda site, n=name, h=hook: clamped(getattr(site, n), h), 0, 0)
    for name in ("client", "server")
    for hook in HOOKS
}
IPTABLES: Settings = {
    "legacy": (lambda site: by_iptables(site.client, "legacy", "OUTPUT"), 0, 0),
    "nft": (lambda site: by_iptables(site.client, "nft", "OUTPUT"), 0, 0),
    "legacy of the server": (lambda site: by_iptables(site.server, "legacy", "OUTPUT"), 0, 0),
    "nft of the server": (lambda site: by_iptables(site.server, "nft", "INPUT"), 0, 0),
}
ROUTES: Settings = {
    "the client's": (lambda site: narrowed(site.client), 0, 0),
    "the server's": (lambda site: narrowed(site.server), 0, 0),
    "the client's MTU": (lambda site: to_the_routes_mtu(site.client, "output"), 0, 0),
    "the client's MTU, behind routing": (
        lambda site: to_the_routes_mtu(site.client, "postrouting"),
        0,
        0,
    ),
    "the server's MTU": (lambda site: to_the_routes_mtu(site.server, "output"), 0, 0),
}
SETTINGS = {"sockets": SOCKETS, "nft": NFT, "iptables": IPTABLES, "routes": ROUTES}


def listen(host: Host) -> socket.socket:
    """All that passes a host's NIC, either way."""
    found: socket.socket = host.call(
        socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
    )
    found.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    found.bind((host.nic.name, ETH_P_ALL))
    found.setblocking(False)
    return found


def _packets(sniffed: socket.socket) -> Iterator[tuple[bytes, int]]:
    """(TCP and what follows, bytes of the whole IP packet)"""
    while True:
        try:
            data = sniffed.recv(65536)
        except BlockingIOError:
            return
        if data[0] >> 4 == 4 and data[9] == socket.IPPROTO_TCP:
            yield data[20:], len(data)
        elif data[0] >> 4 == 6 and data[6] == socket.IPPROTO_TCP:
            yield data[40:], len(data)


def _said(tcp: bytes) -> int:
    at = 20
    while at < (tcp[12] >> 4) * 4:
        if tcp[at] == 2:
            return int.from_bytes(tcp[at + 2 : at + 4], "big")
        at += 1 if tcp[at] == 1 else tcp[at + 1]
    return 0


def _seen(sniffed: socket.socket) -> dict[str, int]:
    """What the SYN and the SYN-ACK said, and the longest packet to the server and from it."""
    found = {"SYN": 0, "SYN-ACK": 0, "longest up": 0, "longest down": 0}
    for tcp, length in _packets(sniffed):
        source, destination = struct.unpack_from("!HH", tcp)
        if PORT not in (source, destination):
            continue
        if tcp[13] & 2:
            found["SYN" if destination == PORT else "SYN-ACK"] = _said(tcp)
        way = "longest up" if destination == PORT else "longest down"
        found[way] = max(found[way], length)
    return found


def _measure(site: Site, watched: Host, family: str, given: tuple[int, int]) -> dict[str, int]:
    sniffed = listen(watched)
    arguments = (getattr(site.server, family), str(PORT), str(SIZE))
    serving = server(site.server, site.server_cgroup, SERVE, *arguments, str(given[1]))
    talking = program(site.client, site.client_cgroup, TALK, *arguments, str(given[0]))
    try:
        told = {}
        for name, one in (("client", talking), ("server", serving)):
            assert one.stdout is not None
            told[f"TCP_MAXSEG of the {name}"] = json.loads(one.stdout.readline())
        return told | _seen(sniffed)
    finally:
        for one in (talking, serving):
            one.kill()
            one.wait()
        sniffed.close()


def _measured(site: Site, watched: Host, settings: Settings) -> dict[str, dict[str, int]]:
    """By setting and family, one after the other; each setting is taken back."""
    found = {}
    for name, (prepared, *given) in settings.items():
        with prepared(site):
            for family in FAMILIES:
                pair = (given[0], given[1])
                found[f"{name}, {family}"] = _measure(site, watched, family, pair)
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("side", ["client", "server"])
def test_it_is_as_without_a_stack(wired: Site, side: str, settings: Settings) -> None:
    watched = wired.server if side == "client" else wired.client
    without = _measured(wired, watched, settings)
    routed = wired.attach_client(TAP) if side == "client" else wired.attach_server(XDP)
    routed_ones = _measured(wired, watched, settings)
    stats = routed.ask_stack("wan")
    assert stats["core_active_open" if side == "client" else "core_passive_open"] >= len(without), (
        stats
    )
    for what, by_kernel in without.items():
        for name in [name for name in by_kernel if name.startswith("longest")]:
            assert routed_ones[what].pop(name) <= by_kernel.pop(name), (what, name)
    assert routed_ones == without
