# SPDX-License-Identifier: Apache-2.0
"""The routes that lead a user stack's sockets to its device: an ip rule and a mirror of the main table.

Stack k owns rule preference 3536+k and table 56576+k, for IPv4 and IPv6. The rule sends packets that carry
the stack's mark to the table. In the table, every unicast route of main that leaves by a device the stack
serves stands as `dev dmm-k src ADDRESS`, with the same prefix, TOS and metric, and the source address that
the kernel would have chosen on the real device; every other route of main stands as `throw`, so that the
look-up goes on to main.

Invariants: only routes with protocol RTPROT_DMM and only rules of our preference are ever changed. When
dmm-k disappears the kernel drops its routes at once, and what is left (throw, or nothing) means main.
remove() needs numbers only, so that a detach after a crash can do it.

Refused: routes of IPv6 link-local and multicast prefixes are not mirrored but thrown, since a scope belongs
to a device.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dmm_ebpf import abi
from dmm_ebpf.errors import ConflictError, DmmError
from dmm_ebpf.hal import rtnl, tundevice
from dmm_ebpf.hal.netlink import RouteSocket, attributes, event_socket, explained, signed_messages
from dmm_ebpf.hal.nic import TUN_PREFIX

RULE_PREF_BASE = 3536
TABLE_BASE = 56576
RTPROT_DMM = 0xDD  # not in iproute2's rt_protos; marks what is ours

_RT_TABLE_MAIN = 254
_SCOPE_LINK = 253
_SCOPE_NOWHERE = 255
_IFF_UP = 0x1
_IFA_F_SECONDARY = 0x01
_IFA_F_UNUSABLE = 0x08 | 0x20 | 0x40  # DADFAILED, DEPRECATED, TENTATIVE
_IP6_METRIC = 1024  # what the kernel takes for 0
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_NEWRULE, _RTM_DELRULE = 32, 33
# LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
_RTA_TABLE = 15
_PORTS_KEPT = 64
_IPV6_THROWN = ("fe80::/10", "ff00::/8")
_DEBOUNCE_S = 0.05
_MAX_K = 34
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)

log = logging.getLogger("dmm-ebpf")

Key = tuple[str, int, int, int]  # destination, prefix length, TOS, metric


@dataclass(frozen=True)
class StackNumbers:
    """What stack k owns in its network namespace. mark_base and mask are of the firewall mark."""

    k: int
    mark_base: int
    mask: int

    @property
    def mark(self) -> int:
        """The stack's mark under mask."""
        shift = (self.mask & -self.mask).bit_length() - 1
        return self.mark_base + (self.k << shift)

    @property
    def tun(self) -> str:
        """Name of the TUN device."""
        return f"{TUN_PREFIX}{self.k}"

    @property
    def pref(self) -> int:
        """Preference of the ip rule."""
        return RULE_PREF_BASE + self.k

    @property
    def table(self) -> int:
        """Number of the mirror table."""
        return TABLE_BASE + self.k

    def remove(self) -> list[str]:
        """Takes rules and table away, and devices that outlived their process, and tells what went. Idempotent; needs
        nothing but the numbers.
        """
        names = [self.tun, *(f"{self.tun}.{slot}" for slot in range(abi.C.DMM_MAX_NICS))]
        devices = [f"device {name}" for name in tundevice.remove(names)]
        with explained("remove the routes of a user stack"):
            return devices + _remove(self)

    @staticmethod
    def in_use() -> set[int]:
        """Every k of which a rule or a device exists in this namespace, whoever made it."""
        with explained("list ip rules"):
            return _in_use()


@dataclass
class SyncResult:
    """What one synchronisation did; routes to dmm-k are only counted while the device is there."""

    added: int = 0
    removed: int = 0
    unicast: int = 0
    thrown: int = 0


@dataclass
class _Addresses:
    """Addresses of the namespace by device, and the choice of a source among them."""

    v4: dict[int, list[tuple[ipaddress.IPv4Interface, int]]] = field(default_factory=dict)
    v6: dict[int, list[str]] = field(default_factory=dict)

    def source4(self, oif: int, gateway: str | None, scope: int) -> str | None:
        """As inet_select_addr() of net/ipv4/devinet.c does it for a route without RTA_PREFSRC."""
        limit = _SCOPE_LINK if gateway is None and scope == _SCOPE_LINK else scope
        first = None
        for interface, address_scope in self.v4.get(oif, []):
            if address_scope > limit:
                continue
            if gateway is None or ipaddress.ip_address(gateway) in interface.network:
                return str(interface.ip)
            first = first or str(interface.ip)
        if first:
            return first
        for others in self.v4.values():
            for interface, address_scope in others:
                if address_scope <= limit and address_scope < _SCOPE_LINK:
                    return str(interface.ip)
        return None


def _addresses(sock: RouteSocket) -> _Addresses:
    found = _Addresses()
    for one in rtnl.addresses(sock):
        if one.family == socket.AF_INET:
            if not one.flags & _IFA_F_SECONDARY:
                interface = ipaddress.IPv4Interface(f"{one.address}/{one.prefixlen}")
                found.v4.setdefault(one.index, []).append((interface, one.scope))
        elif one.scope == 0 and not one.flags & _IFA_F_UNUSABLE:
            found.v6.setdefault(one.index, []).append(one.address)
    return found


def _key(route: rtnl.Route) -> Key:
    return (route.dst, route.dst_len, route.tos, route.metric)


@dataclass(frozen=True)
class _Wanted:
    """One route of the mirror table; source None: throw."""

    source: str | None
    scope: int = 0


@dataclass(frozen=True)
class _View:
    """What one synchronisation sees: tun is dmm-k's ifindex (0: not there or down), served the NICs'
    ifindexes.
    """

    tun: int
    served: set[int]
    addresses: _Addresses


def _wanted(sock: RouteSocket, route: rtnl.Route, view: _View) -> _Wanted:
    if route.type != rtnl.RTN_UNICAST or not route.devices or not set(route.devices) <= view.served:
        return _Wanted(None)
    oif, source = route.devices[0], route.prefsrc or None
    if route.family == socket.AF_INET:
        source = source or view.addresses.source4(oif, route.gateway or None, route.scope)
        return _Wanted(source, route.scope) if source else _Wanted(None)
    network = ipaddress.IPv6Network((route.dst, route.dst_len))
    if network.is_link_local or network.is_multicast:
        return _Wanted(None)
    return _Wanted(source or _source6(sock, network, oif, view.addresses))


def _source6(
    sock: RouteSocket, network: ipaddress.IPv6Network, oif: int, addresses: _Addresses
) -> str | None:
    """RFC 6724 rule 5 prefers the outgoing device's addresses; among several the kernel is asked."""
    own = addresses.v6.get(oif, [])
    if len(own) == 1:
        return own[0]
    if not addresses.v6:
        return None
    sample = network.network_address + (1 if network.prefixlen < 127 else 0)
    if network.prefixlen < 3:
        sample = ipaddress.IPv6Address("2000::1")
    try:
        return rtnl.route_to(sock, str(sample), oif).prefsrc or None
    except OSError:
        return own[0] if own else None


class RouteMirror:
    """The rule and the mirror table of one stack, in the namespace of the thread that makes it. What somebody else
    takes away of them comes back.

    nics are names of the devices that the stack serves. The descriptor of fileno() becomes readable when
    something changed; handle_events() then belongs to be called, from an event loop (it synchronises 50 ms
    later, in a thread, so that a burst of changes costs one synchronisation) or without one (it
    synchronises at once).
    """

    def __init__(self, numbers: StackNumbers, nics: Iterable[str]) -> None:
        self.numbers = numbers
        self.last_error: Exception | None = None
        self._nics = frozenset(nics)
        self._events = event_socket(_GROUPS)
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._ports: deque[int] = deque(maxlen=_PORTS_KEPT)  # of sockets by which something was changed here
        self._syncing = threading.Lock()
        self._closed = False

    def serve(self, nics: Iterable[str]) -> None:
        """The stack serves these devices from now on, or, where no event loop runs, from the next sync() on."""
        before, self._nics = self._nics, frozenset(nics)
        if self._nics != before and self._timer is None:
            with contextlib.suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(_DEBOUNCE_S, self._fire, loop)

    def fileno(self) -> int:
        """Readable when routes, addresses or devices changed; -1 after close()."""
        return self._events.fileno()

    def sync(self) -> SyncResult:
        """Makes the rules if they are not there, and brings the table in step with main. Idempotent.

        After close() it does nothing. Raises ConflictError where somebody else's rule has our preference.
        """
        with self._syncing, explained("mirror the main routing table"):
            result = SyncResult() if self._closed else self._install()
        self.last_error = None
        return result

    def handle_events(self) -> None:
        """To be called when fileno() is readable. What a later synchronisation fails with is kept in
        last_error.
        """
        if not self._drain() or self._timer is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.sync()
            return
        self._timer = loop.call_later(_DEBOUNCE_S, self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._task is not None and not self._task.done():
            self._timer = loop.call_later(_DEBOUNCE_S, self._fire, loop)
            return

        async def resync() -> None:
            try:
                await asyncio.to_thread(self.sync)
            except (DmmError, OSError) as exc:
                self.last_error = exc
                log.warning("the routes of %s are behind: %s", self.numbers.tun, exc)

        self._task = loop.create_task(resync())

    def remove(self) -> list[str]:
        """Takes rules and table away; see StackNumbers.remove()."""
        return self.numbers.remove()

    def close(self) -> None:
        """Stops following; the rules and the table stay. A synchronisation under way in a thread is waited for: what
        is removed next must not come back.
        """
        with self._syncing:
            self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._events.close()

    def _drain(self) -> bool:
        changed = False
        while self._events.fileno() >= 0:
            try:
                data = self._events.recv(65536)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                changed = True
                continue
            changed = changed or any(self._concerns(*message) for message in signed_messages(data))
        return changed

    def _concerns(self, kind: int, sender: int, body: bytes) -> bool:
        """Whether an event is a reason to synchronise: all are, but what was done here, and mirrored routes unless
        somebody takes one away from our table.
        """
        ours = sender in self._ports
        if kind in (_RTM_NEWRULE, _RTM_DELRULE):
            return not ours
        if kind not in (_RTM_NEWROUTE, _RTM_DELROUTE) or len(body) < 12 or body[5] != RTPROT_DMM:
            return True
        if kind == _RTM_NEWROUTE or ours:
            return False
        table = dict(attributes(body, 12)).get(_RTA_TABLE, b"")
        return int.from_bytes(table, sys.byteorder) == self.numbers.table

    def _install(self) -> SyncResult:
        numbers = self.numbers
        with RouteSocket() as sock:
            self._ports.append(sock.port)
            for family in (socket.AF_INET, socket.AF_INET6):
                wanted = rtnl.Rule(
                    family, numbers.pref, numbers.table, numbers.mark, numbers.mask, RTPROT_DMM
                )
                present = [rule for rule in rtnl.rules(sock, family) if rule.priority == numbers.pref]
                if any(replace(rule, proto=RTPROT_DMM) != wanted for rule in present):
                    raise ConflictError(
                        f"add ip rule {numbers.pref}",
                        why="a rule of that preference that is not ours is there",
                        hint="see 'ip rule'",
                    )
                if not present:
                    rtnl.add_rule(sock, wanted)
            return self._sync(sock)

    def _sync(self, sock: RouteSocket) -> SyncResult:
        result = SyncResult()
        tun, served = 0, set()
        for link in rtnl.links(sock):
            if link.name == self.numbers.tun and link.flags & _IFF_UP:
                tun = link.index
            elif link.name in self._nics:
                served.add(link.index)
        view = _View(tun, served, _addresses(sock))
        for family in (socket.AF_INET, socket.AF_INET6):
            self._sync_family(sock, family, view, result)
        return result

    def _sync_family(self, sock: RouteSocket, family: int, view: _View, result: SyncResult) -> None:
        main, have = self._dump(sock, family)
        wanted: dict[Key, _Wanted] = {}
        for route in main:
            wanted.setdefault(_key(route), _wanted(sock, route, view))
        if family == socket.AF_INET6 and main:
            for text in _IPV6_THROWN:
                net = ipaddress.IPv6Network(text)
                wanted[(str(net.network_address), net.prefixlen, 0, _IP6_METRIC)] = _Wanted(None)
        if not view.tun:
            wanted = {key: want for key, want in wanted.items() if want.source is None}
        for key, want in wanted.items():
            if have.get(key) != want:
                result.added += self._put(sock, family, key, want, tun=view.tun, exists=key in have)
            result.unicast += want.source is not None
            result.thrown += want.source is None
        for key in have.keys() - wanted.keys():
            result.removed += _delete(sock, family, self.numbers.table, key)

    def _dump(self, sock: RouteSocket, family: int) -> tuple[list[rtnl.Route], dict[Key, _Wanted]]:
        main: list[rtnl.Route] = []
        have: dict[Key, _Wanted] = {}
        for route in rtnl.routes(sock, family):
            if route.table == _RT_TABLE_MAIN and not route.flags & rtnl.RTM_F_CLONED:  # IPv6 exceptions
                main.append(route)
            elif route.table == self.numbers.table:
                unicast = route.type == rtnl.RTN_UNICAST
                have[_key(route)] = _Wanted(
                    (route.prefsrc or None) if unicast else None,
                    route.scope if unicast and family == socket.AF_INET else 0,
                )
        return main, have

    def _put(self, sock: RouteSocket, family: int, key: Key, want: _Wanted, *, tun: int, exists: bool) -> int:
        table = self.numbers.table
        if exists:
            _delete(sock, family, table, key)
        if want.source is None:
            route = _mirrored(family, table, key, scope=0, kind=rtnl.RTN_THROW)
        else:
            route = _mirrored(family, table, key, scope=want.scope, kind=rtnl.RTN_UNICAST)
            route = replace(route, devices=(tun,), prefsrc=want.source)
        try:
            rtnl.add_route(sock, route)
        except OSError as exc:
            # The device, or the source address, may have gone since the dump: an event follows, and with it
            # a new sync.
            if exc.errno in (errno.ENODEV, errno.ENETDOWN, errno.EINVAL, errno.EEXIST, errno.ENETUNREACH):
                return 0
            raise
        return 1


def _mirrored(family: int, table: int, key: Key, *, scope: int, kind: int) -> rtnl.Route:
    dst, length, tos, metric = key
    return rtnl.Route(family, dst, length, tos, table, RTPROT_DMM, scope, kind, metric=metric)


def _delete(sock: RouteSocket, family: int, table: int, key: Key) -> int:
    try:
        rtnl.remove_route(sock, _mirrored(family, table, key, scope=_SCOPE_NOWHERE, kind=0))
    except OSError as exc:
        if exc.errno not in _GONE:
            raise
        return 0
    return 1


def _remove(numbers: StackNumbers) -> list[str]:
    removed = []
    with RouteSocket() as sock:
        for family, version in ((socket.AF_INET, "IPv4"), (socket.AF_INET6, "IPv6")):
            for rule in rtnl.rules(sock, family):
                if (rule.priority, rule.table) == (numbers.pref, numbers.table):
                    rtnl.remove_rule(sock, rule)
                    removed.append(f"{version} ip rule {numbers.pref}")
            gone = 0
            for route in rtnl.routes(sock, family):
                if (route.proto, route.table) == (RTPROT_DMM, numbers.table):
                    gone += _delete(sock, family, numbers.table, _key(route))
            if gone:
                removed.append(f"{gone} {version} routes of table {numbers.table}")
    return removed


def _in_use() -> set[int]:
    with RouteSocket() as sock:
        prefs = {
            rule.priority for family in (socket.AF_INET, socket.AF_INET6) for rule in rtnl.rules(sock, family)
        }
        names = {link.name for link in rtnl.links(sock)}
    return {k for k in range(_MAX_K) if RULE_PREF_BASE + k in prefs or f"{TUN_PREFIX}{k}" in names}
