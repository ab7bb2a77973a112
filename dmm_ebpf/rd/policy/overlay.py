# SPDX-License-Identifier: Apache-2.0
"""Routes beside a policy: what each of their prefixes says, kept up to date route by route.

The same semantics as compile_routes.py, for some thousands of routes that come and go one at a
time. Between these and the policy's own the kernel decides, by their ranks (abi.h, enum
dmm_route_rank), so a change here never touches what a million routes were compiled to. A change of
one prefix is worked out for that, and for the longer ones in it whose ports leave something open.

Pure: nothing is written anywhere (rd/director/places.py does).
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.compile_routes import specific
from dmm_ebpf.rd.policy.portsets import MISS, Layer, PortSet, paint, trie_entries
from dmm_ebpf.rd.policy.routes import Match, port_rank
from dmm_ebpf.rd.policy.values import PORT_MAX, TCP, UDP, Prefix

_INHERITED = (1, 0, 0)  # as in compile_routes.py
_PORT_BITS_BEFORE = 48
_NOTHING = PortSet((), ())
_MOST_PAINTED = 4096  # port sets that are remembered


class Place(NamedTuple):
    """A prefix of a table, by the table's number; those inside it come behind it in order."""

    table: int
    family: int
    addr: int
    length: int

    @classmethod
    def of(cls, table: int, prefix: Prefix) -> Place:
        """A prefix in a table."""
        return cls(table, *prefix)

    def around(self, length: int) -> Place:
        """The shorter one of that length."""
        free = (32 if self.family == 4 else 128) - length
        return Place(self.table, self.family, self.addr >> free << free, length)


class Own(NamedTuple):
    """A route of a prefix. stack: its number. route: as flow records have it. origin:
    DMM_RANK_LIVE, or 0 for an element. order: the smaller counts, where all else is equal.
    """

    match: Match
    stack: int
    route: int
    origin: int
    order: int = 0


class Shown(NamedTuple):
    """What a look-up finds; stack: with the rank."""

    route: int
    stack: int


class Block(NamedTuple):
    """An entry of live_ports[]; length: bits; shown None: no route."""

    length: int
    proto: int
    first: int
    shown: Shown | None


Said = Shown | tuple[Block, ...]  # of a prefix: one route for all, or by its ports


class Overlay:
    """All routes beside a policy, of all its tables."""

    def __init__(self) -> None:
        self._own: dict[Place, list[Own]] = {}
        self._order: list[Place] = []
        self._lengths: dict[tuple[int, int], Counter[int]] = {}
        self._sets: dict[Place, PortSet] = {}
        self._said: dict[Place, Said] = {}
        self._painted: dict[tuple[object, ...], tuple[PortSet, Said]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._order)

    def said(self, place: Place) -> Said | None:
        """What a prefix says; None: it has no route here."""
        return self._said.get(place)

    def change(
        self, put: Iterable[tuple[Place, Own]] = (), drop: Iterable[tuple[Place, Own]] = ()
    ) -> set[Place]:
        """Take away these routes, which are there, and add those; the prefixes of which something
        else is said now.
        """
        touched: set[Place] = set()
        for place, own in drop:
            self._own[place].remove(own)
            touched.add(place)
        for place, own in put:
            self._own.setdefault(place, []).append(own)
            touched.add(place)
        changed: set[Place] = set()
        for place in touched:
            self._note(place)
        for place in sorted(touched):
            self._renew(place, changed)
            for inner in self._inside(place):
                if inner not in touched:
                    self._renew(inner, changed)
        return changed

    def _note(self, place: Place) -> None:
        """Whether there is such a prefix."""
        lengths = self._lengths.setdefault((place.table, place.family), Counter())
        at = bisect.bisect_left(self._order, place)
        there = at < len(self._order) and self._order[at] == place
        if self._own[place] and not there:
            self._order.insert(at, place)
            lengths[place.length] += 1
        elif not self._own[place]:
            del self._own[place]
            if there:
                del self._order[at]
                lengths[place.length] -= 1

    def _inside(self, place: Place) -> Iterator[Place]:
        """The longer prefixes in one that leave something open."""
        lengths = self._lengths[place.table, place.family]
        if not any(count for length, count in lengths.items() if length > place.length):
            return
        bits = 32 if place.family == 4 else 128
        end = place.addr + (1 << bits - place.length)
        low = bisect.bisect_right(self._order, place)
        high = bisect.bisect_left(self._order, Place(place.table, place.family, end, 0))
        for inner in self._order[low:high]:
            if not isinstance(self._said.get(inner), Shown) or not _is_closed(self._own[inner]):
                yield inner

    def _renew(self, place: Place, changed: set[Place]) -> None:
        before = self._said.get(place)
        own = self._own.get(place)
        if own is None:
            self._sets.pop(place, None)
            said = None
        else:
            self._sets[place], said = self._paint(place, own)
        if said == before:
            return
        changed.add(place)
        if said is None:
            del self._said[place]
        else:
            self._said[place] = said

    def _paint(self, place: Place, own: list[Own]) -> tuple[PortSet, Said]:
        below = _NOTHING if _is_closed(own) else self._parent(place)
        key = (*own, place.length, below)
        found = self._painted.get(key)
        if found is None:
            if len(self._painted) >= _MOST_PAINTED:
                self._painted.clear()
            ports = _painted(own, place.length, below)
            found = self._painted[key] = ports, _said(ports)
        return found

    def _parent(self, place: Place) -> PortSet:
        lengths = self._lengths[place.table, place.family]
        for length in sorted((n for n, count in lengths.items() if count), reverse=True):
            found = self._sets.get(place.around(length)) if length < place.length else None
            if found is not None:
                return found
        return _NOTHING


def _is_closed(own: list[Own]) -> bool:
    return any(one.match.takes_all for one in own)


def _painted(own: list[Own], length: int, below: PortSet) -> PortSet:
    layers: dict[int, list[Layer]] = {
        TCP: [Layer(_INHERITED, *segment) for segment in below.tcp],
        UDP: [Layer(_INHERITED, *segment) for segment in below.udp],
    }
    for one in own:
        last = (C.DMM_RANK_LIVE - one.origin) << 32 | one.order
        for low, high in one.match.ports or ((0, PORT_MAX),):
            rank = length << C.DMM_RANK_LENGTH_SHIFT | specific(one.match, low, high) | one.origin
            shown = one.route << 32 | rank << C.DMM_RANK_SHIFT | one.stack
            first = -port_rank(one.match.ports, low, high), 0 if one.match.proto else 1
            for proto in (one.match.proto,) if one.match.proto else (TCP, UDP):
                layers[proto].append(Layer((*first, last), low, high, shown))
    return PortSet(paint(layers[TCP]), paint(layers[UDP]))


def _said(ports: PortSet) -> Said:
    if len(ports.tcp) == 1 and ports.tcp == ports.udp:
        first, last, shown = ports.tcp[0]
        if (first, last) == (0, PORT_MAX):
            return Shown(shown >> 32, shown & 0xFFFFFFFF)
    return tuple(
        Block(_PORT_BITS_BEFORE + bits, proto, first, _shown(route))
        for proto, segments in ((TCP, ports.tcp), (UDP, ports.udp))
        for first, bits, route in trie_entries(segments)
    )


def _shown(route: int) -> Shown | None:
    return None if route == MISS else Shown(route >> 32, route & 0xFFFFFFFF)
