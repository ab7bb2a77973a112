# SPDX-License-Identifier: Apache-2.0
"""Next hops for the engine, from the kernel's own routes and neighbours, without a privilege.

The engine asks for the path to a destination; the answer is a NIC, the next hop's link-layer address and
the MTU. The route is RTM_GETROUTE's answer for a packet without a mark, so the rules that lead to user
stacks do not match. A neighbour that the kernel does not know is made known by a UDP datagram to its
discard port through the NIC: the kernel then resolves it and tells the outcome as an event, which an
unprivileged process may read; NUD_FAILED is EHOSTUNREACH at once, silence after DEADLINE_S too. The kernel
refreshes only neighbours that it sends to itself, so those of destinations in use are poked when they are
STALE.

Invariants: every request is answered once, by path_set or path_failed. What is known is kept in step with
events of routes, devices, addresses and neighbours; lost events are made good by a dump.

Refused: IPv6 link-local destinations (their scope is a device, which a TUN device hides).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dmm_ebpf import abi
from dmm_ebpf.hal.netlink import RouteSocket, attribute, attributes, messages
from dmm_ebpf.hal.routes import RTPROT_DMM

log = logging.getLogger("dmm-ebpf.stack")

DEADLINE_S = 3.5  # the kernel gives up after three probes, one a second
POKE_INTERVAL_S = 5.0
IN_USE_NS = 60 * 10**9
_DEBOUNCE_S = 0.1
_DISCARD_PORT = 9
_SO_BINDTODEVICE = 25
_RTM_NEWLINK, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 24, 25
_RTM_GETROUTE = 26
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_NLM_F_DUMP_REQUEST = 0x301
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # LINK, NEIGH, addresses and routes of both families
_NDA_DST, _NDA_LLADDR = 1, 2
_IFLA_ADDRESS, _IFLA_MTU = 1, 4
_NUD_STALE, _NUD_FAILED = 0x04, 0x20
_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
_RTN_UNICAST = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_METRICS, _RTA_VIA = 1, 4, 5, 8, 18
_RTAX_MTU = 2
REQUEST = struct.Struct("=16sII")

Hop = tuple[int, str]  # ifindex, address of the neighbour


class PathTable(Protocol):
    """What the resolver needs of the engine. Addresses are 16 bytes, MACs 6."""

    def path_set(self, addr: bytes, nic: int, mac: bytes, mtu: int) -> None:
        """The path to addr is known, or has changed."""

    def path_failed(self, addr: bytes, error: int) -> None:
        """There is no path: connections that wait for it get the errno."""

    def path_forget(self, addr: bytes) -> None:
        """What was said of addr no longer holds."""

    def path_idle_ns(self, addr: bytes) -> int | None:
        """How long ago something was sent to addr; None when the table has no path to it."""

    def nic_set_mac(self, nic: int, mac: bytes) -> None:
        """The NIC's own address changed."""


@dataclass(frozen=True)
class ResolverNic:
    """A NIC of the stack; index is the engine's."""

    index: int
    ifindex: int
    name: str
    mtu: int


@dataclass
class _Destination:
    addr: bytes
    hop: Hop
    mtu: int
    known: bool = False  # the engine has the path


@dataclass
class _Neighbour:
    mac: bytes | None = None
    state: int = 0
    destinations: set[bytes] = field(default_factory=set)
    deadline: asyncio.TimerHandle | None = None


class Resolver:
    """Answers the engine's requests; lives in the stack process's event loop."""

    def __init__(self, table: PathTable, nics: Sequence[ResolverNic], requests: socket.socket) -> None:
        """Opens its sockets; to be made in the stack's namespace, before privileges are dropped."""
        self._table = table
        self._nics = {nic.ifindex: nic for nic in nics}
        self._mtus = {nic.ifindex: nic.mtu for nic in nics}  # now
        self._requests = requests
        self._requests.setblocking(False)
        self._events = _event_socket()
        self._routes = RouteSocket()
        self._pokers = {
            (nic.ifindex, family): _poker(family, nic.name)
            for nic in nics
            for family in (socket.AF_INET, socket.AF_INET6)
        }
        self._destinations: dict[bytes, _Destination] = {}
        self._neighbours: dict[Hop, _Neighbour] = {}
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._routes_changed = asyncio.Event()

    async def run(self) -> None:
        """Serves until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._events.fileno(), self._read_events)
        self._dump_neighbours()
        loop.add_reader(self._requests.fileno(), self._read_requests)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._answer())
                tasks.create_task(self._follow_routes())
                tasks.create_task(self._keep_alive())
        finally:
            loop.remove_reader(self._events.fileno())
            loop.remove_reader(self._requests.fileno())

    def close(self) -> None:
        """Closes what the constructor opened."""
        self._events.close()
        self._routes.close()
        for sock in self._pokers.values():
            sock.close()

    def stats(self) -> dict[str, int]:
        """Sizes, for listings."""
        return {"destinations": len(self._destinations), "neighbours": len(self._neighbours)}

    # -- requests --

    def _read_requests(self) -> None:
        while True:
            try:
                data = self._requests.recv(REQUEST.size)
            except BlockingIOError:
                return
            if len(data) < REQUEST.size:
                return
            self._queue.put_nowait(REQUEST.unpack(data)[0])

    async def _answer(self) -> None:
        while True:
            addr = await self._queue.get()
            try:
                hop, mtu = self._route(addr)
            except OSError as exc:
                self._drop(addr)
                self._table.path_forget(addr)
                self._table.path_failed(addr, exc.errno or errno.EHOSTUNREACH)
                continue
            self._drop(addr)
            destination = _Destination(addr, hop, mtu)
            self._destinations[addr] = destination
            neighbour = self._neighbours.setdefault(hop, _Neighbour())
            neighbour.destinations.add(addr)
            if neighbour.mac is not None:
                self._tell(destination, neighbour.mac)
            elif neighbour.deadline is None:
                self._resolve(hop, neighbour)

    def _route(self, addr: bytes) -> tuple[Hop, int]:
        """The neighbour that leads to addr, and the path's MTU. Raises OSError with what an app is to see."""
        ip = ipaddress.ip_address(abi.addr_text(addr))
        if ip.is_link_local and ip.version == 6:
            raise OSError(errno.EHOSTUNREACH, "link-local")
        kind, values = self._ask_route(ip)
        (oif,) = struct.unpack("=I", values.get(_RTA_OIF, bytes(4)))
        nic = self._nics.get(oif)
        if kind != _RTN_UNICAST or nic is None:
            raise OSError(errno.EHOSTUNREACH, "not through a NIC of this stack")
        gateway = values.get(_RTA_GATEWAY) or values.get(_RTA_VIA, b"")[2:] or ip.packed
        family = socket.AF_INET if len(gateway) == 4 else socket.AF_INET6
        metrics = dict(attributes(values.get(_RTA_METRICS, b""), 0))
        (mtu,) = struct.unpack("=I", metrics.get(_RTAX_MTU, bytes(4)))
        return (nic.ifindex, socket.inet_ntop(family, gateway)), min(mtu or nic.mtu, self._mtus[nic.ifindex])

    def _ask_route(self, ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[int, dict[int, bytes]]:
        """The kernel's route for a packet to ip: its type and its attributes (rtnetlink(7), struct rtmsg)."""
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        payload = struct.pack("=8BI", family, ip.max_prefixlen, *(0,) * 7) + attribute(_RTA_DST, ip.packed)
        answer = self._routes.get(_RTM_GETROUTE, payload)
        return answer[7], dict(attributes(answer, 12))

    def _tell(self, destination: _Destination, mac: bytes) -> None:
        destination.known = True
        self._table.path_set(destination.addr, self._nics[destination.hop[0]].index, mac, destination.mtu)

    def _drop(self, addr: bytes) -> None:
        old = self._destinations.pop(addr, None)
        if old is None:
            return
        neighbour = self._neighbours.get(old.hop)
        if neighbour is not None:
            neighbour.destinations.discard(addr)

    # -- neighbours --

    def _resolve(self, hop: Hop, neighbour: _Neighbour) -> None:
        neighbour.deadline = asyncio.get_running_loop().call_later(DEADLINE_S, self._failed, hop)
        self._poke(hop)

    def _poke(self, hop: Hop) -> None:
        ifindex, text = hop
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        address: tuple[Any, ...] = (text, _DISCARD_PORT)
        if family == socket.AF_INET6:
            address = (text, _DISCARD_PORT, 0, ifindex if text.startswith("fe80:") else 0)
        # An error here (a pending ICMP answer, no route at the moment) is told by the neighbour's event or
        # the deadline.
        with contextlib.suppress(OSError):
            self._pokers[ifindex, family].sendto(b"", address)

    def _failed(self, hop: Hop) -> None:
        neighbour = self._neighbours.pop(hop, None)
        if neighbour is None:
            return
        if neighbour.deadline is not None:
            neighbour.deadline.cancel()
        for addr in neighbour.destinations:
            self._destinations.pop(addr, None)
            # Known ones are forgotten, so that the next connection, or the next retransmission, asks again.
            self._table.path_forget(addr)
            self._table.path_failed(addr, errno.EHOSTUNREACH)

    def _usable(self, hop: Hop, mac: bytes, state: int) -> None:
        neighbour = self._neighbours.setdefault(hop, _Neighbour())
        neighbour.state = state
        if neighbour.deadline is not None:
            neighbour.deadline.cancel()
            neighbour.deadline = None
        changed = neighbour.mac != mac
        neighbour.mac = mac
        for addr in neighbour.destinations:
            destination = self._destinations[addr]
            if changed or not destination.known:
                self._tell(destination, mac)

    def _gone(self, hop: Hop) -> None:
        """The kernel forgot the neighbour, which it does with what it does not use itself."""
        neighbour = self._neighbours.get(hop)
        if neighbour is None:
            return
        if not neighbour.destinations:
            del self._neighbours[hop]
            return
        neighbour.state = 0
        if neighbour.deadline is None and self._in_use(neighbour):
            self._resolve(hop, neighbour)

    def _in_use(self, neighbour: _Neighbour) -> bool:
        for addr in neighbour.destinations:
            idle = self._table.path_idle_ns(addr)
            if idle is not None and idle < IN_USE_NS:
                return True
        return False

    # -- events --

    def _dump_neighbours(self) -> None:
        body = struct.pack("=BxHiHBB", 0, 0, 0, 0, 0, 0)
        header = struct.pack("=IHHII", 16 + len(body), _RTM_GETNEIGH, _NLM_F_DUMP_REQUEST, 1, 0)
        self._events.send(header + body)

    def _read_events(self) -> None:
        while True:
            try:
                data = self._events.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self._routes_changed.set()
                self._dump_neighbours()
                continue
            for kind, body in messages(data):
                self._event(kind, body)

    def _event(self, kind: int, body: bytes) -> None:
        if kind in (_RTM_NEWNEIGH, _RTM_DELNEIGH):
            self._neighbour_event(kind, body)
        elif kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            if len(body) > 5 and body[5] != RTPROT_DMM:
                self._routes_changed.set()
        elif kind == _RTM_NEWLINK:
            self._link_event(body)
            self._routes_changed.set()
        elif kind > _RTM_NEWLINK:
            self._routes_changed.set()

    def _neighbour_event(self, kind: int, body: bytes) -> None:
        """struct ndmsg and its attributes."""
        family, ifindex, state = struct.unpack_from("=BxxxiH", body)
        if ifindex not in self._nics or family not in (socket.AF_INET, socket.AF_INET6):
            return
        values = dict(attributes(body, 12))
        if _NDA_DST not in values:
            return
        hop = (ifindex, socket.inet_ntop(family, values[_NDA_DST]))
        mac = values.get(_NDA_LLADDR, b"")
        if kind == _RTM_DELNEIGH:
            self._gone(hop)
        elif state & _NUD_FAILED:
            self._failed(hop)
        elif state & _NUD_USABLE and len(mac) == 6:
            self._usable(hop, mac, state)

    def _link_event(self, body: bytes) -> None:
        """struct ifinfomsg and its attributes. An MTU above that of the start waits for the next start: devices and
        frames are made for that one.
        """
        (ifindex,) = struct.unpack_from("=i", body, 4)
        nic = self._nics.get(ifindex)
        if nic is None:
            return
        values = dict(attributes(body, 16))
        mac, mtu = values.get(_IFLA_ADDRESS, b""), values.get(_IFLA_MTU, b"")
        if len(mac) == 6:
            self._table.nic_set_mac(nic.index, mac)
        if len(mtu) == 4:
            self._mtus[ifindex] = min(nic.mtu, int.from_bytes(mtu, sys.byteorder))

    async def _follow_routes(self) -> None:
        """After a change every destination is looked up again, in place: its connections follow the new
        route.
        """
        while True:
            await self._routes_changed.wait()
            await asyncio.sleep(_DEBOUNCE_S)
            self._routes_changed.clear()
            for addr, destination in list(self._destinations.items()):
                if destination.known and self._table.path_idle_ns(addr) is None:
                    self._drop(addr)  # the engine has given it up
                else:
                    self._queue.put_nowait(addr)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(POKE_INTERVAL_S)
            for hop, neighbour in list(self._neighbours.items()):
                if neighbour.state == _NUD_STALE and self._in_use(neighbour):
                    self._poke(hop)


def _event_socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((0, _GROUPS))
    return sock


def _poker(family: int, device: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device.encode() + b"\0")
    return sock
