# SPDX-License-Identifier: Apache-2.0
"""Routes beside the policy, in the kernel's maps live[] and live_ports[].

live[] has several places, and a generation reads one of them (abi.h): a change is written into
another, and then one write of control[0] puts it in force. So a flow is decided by all of a change
or by nothing of it. A place that was left is written again only after a grace period, in which the
last program that read it has ended; those that come next are made ready while nobody waits.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.loader import bpf
from dmm_ebpf.loader.bpf import MapType
from dmm_ebpf.loader.maps import Map
from dmm_ebpf.loader.spec import LIVE_KEY, PORT_KEY, Maps
from dmm_ebpf.rd.policy.overlay import Block, Overlay, Place, Said, Shown

CHUNK = 256  # prefixes that are written at a time, where others wait: some milliseconds
_MAPPED = 0xFFFF << 32
_U32 = 1 << 32
_UNKNOWN = Shown(-1, -1)  # what a prefix says of which a refused write may have left something


def place_of(generation: int) -> int:
    """Which place a generation reads."""
    return generation >> 1 & int(C.DMM_LIVE_PLACES) - 1


def after(generation: int, step: int) -> int:
    """A later generation, never 0; steps keep their meaning where numbers begin again."""
    later = generation + step
    return later if later < _U32 else later - _U32 + 2 * int(C.DMM_LIVE_PLACES)


class Places:
    """Of one instance. Not for two threads at once."""

    def __init__(self, maps: Maps) -> None:
        """Of what a director that was killed has left, only the place in force stays, until it is
        written anew.
        """
        self._maps = maps
        self._overlay = Overlay()
        self._written: list[dict[Place, Said]] = [{} for _ in range(C.DMM_LIVE_PLACES)]
        self._stale: list[set[Place]] = [set() for _ in range(C.DMM_LIVE_PLACES)]
        self._sets: dict[tuple[Block, ...], int] = {}
        self._uses: Counter[tuple[Block, ...]] = Counter()
        self._next_set = 1
        self._foreign: list[set[Any]] = [set() for _ in range(C.DMM_LIVE_PLACES)]
        self._foreign_ports: set[Any] = set()
        self._grace: tuple[Map, Map] | None = None
        self._find_foreign()

    def _find_foreign(self) -> None:
        in_force = place_of(int(self._maps.control[0].generation))
        for key in list(self._maps.live):
            place = int(key.table) >> C.DMM_LIVE_TABLE_BITS
            if place == in_force:
                self._foreign[place].add(key)
            else:
                self._maps.live.delete(key)
        for port in list(self._maps.live_ports):
            self._foreign_ports.add(port)
            self._next_set = max(self._next_set, socket.ntohl(int(port.portset)) + 1)

    def is_ready(self, place: int) -> bool:
        """Whether nothing is to be written for a place to have what is wanted."""
        return not self.backlog(place)

    def backlog(self, place: int) -> int:
        """How much is to be written for a place to have what is wanted."""
        return len(self._stale[place]) + len(self._foreign[place])

    def take(self, overlay: Overlay, changed: Iterable[Place] | None = None) -> None:
        """What every place is to have from now on; changed: where that differs from before, if it
        is the same object; None: it may everywhere.
        """
        if changed is None:
            changed = {*self._overlay, *overlay, *(p for one in self._written for p in one)}
        self._overlay = overlay
        for stale in self._stale:
            stale.update(changed)

    def write(self, place: int, most: int | None = None) -> bool:
        """Give a place that no program reads what is wanted, of so many prefixes at most (None:
        all); whether it has all of it then. DmmError: then it is not known what it has, and the
        next write() says so again.
        """
        self._remove_foreign(place)
        stale = self._stale[place]
        some = set(stale) if most is None else {stale.pop() for _ in range(min(most, len(stale)))}
        try:
            self._write(place, some)
        except BaseException:
            stale |= some
            raise
        stale -= some
        return not stale

    def _write(self, place: int, some: Iterable[Place]) -> None:
        written, gone = self._written[place], []
        put: dict[Place, Said] = {}
        for at in some:
            said, before = self._overlay.said(at), written.get(at)
            if said == before:
                continue
            if said is not None:
                put[at] = said
            else:
                self._maps.live.delete(_key(place, at))
                del written[at]
            if before is not None:
                gone.append(before)
        if put:
            # Thousands of elements say few things.
            values = {said: self._value(said) for said in set(put.values())}
            entries = {_key(place, at): values[said] for at, said in put.items()}
            try:
                self._maps.live.update(entries)
            except BaseException:
                written |= dict.fromkeys(put, _UNKNOWN)
                raise
        written |= put
        self._uses.update(said for said in put.values() if not isinstance(said, Shown))
        for before in gone:
            if not isinstance(before, Shown):
                self._drop(before)

    def _remove_foreign(self, place: int) -> None:
        for key in self._foreign[place]:
            self._maps.live.delete(key)
        self._foreign[place].clear()
        if not any(self._foreign):
            for port in self._foreign_ports:
                self._maps.live_ports.delete(port)
            self._foreign_ports.clear()

    def _value(self, said: Said) -> Struct:
        if isinstance(said, Shown):
            return abi.new("dmm_route_value", route=said.route, stack=said.stack)
        number = self._sets.get(said)
        if number is None:
            number = self._next_set
            self._next_set += 1
            self._maps.live_ports.update({_port(number, one): _shown(one) for one in said})
            self._sets[said] = number
        return abi.new("dmm_route_value", route=C.DMM_ROUTE_NONE, portset=socket.htonl(number))

    def _drop(self, blocks: tuple[Block, ...]) -> None:
        self._uses[blocks] -= 1
        if self._uses[blocks]:
            return
        del self._uses[blocks]
        number = self._sets.pop(blocks)
        for one in blocks:
            self._maps.live_ports.delete(_port(number, one))

    def wait(self) -> None:
        """Until every program that runs now has ended: what put a map into another one waits for
        (sync.py).
        """
        if self._grace is None:
            inner = loader.create_routes_map("ports", 1)
            fd = bpf.map_create("dmm_grace", MapType.ARRAY_OF_MAPS, 4, 4, 1, inner_fd=inner.fd)
            self._grace = Map(fd), inner
        loader.set_inner(self._grace[0], 0, self._grace[1])


def _key(place: int, at: Place) -> Any:
    mapped = at.family == 4
    return LIVE_KEY.type(
        32 + at.length + 96 * mapped,
        place << C.DMM_LIVE_TABLE_BITS | at.table,
        (at.addr | _MAPPED * mapped).to_bytes(16, "big"),
    )


def _port(number: int, block: Block) -> Any:
    return PORT_KEY.type(
        block.length, socket.htonl(number), block.proto, 0, socket.htons(block.first)
    )


def _shown(block: Block) -> Struct:
    shown = block.shown or Shown(C.DMM_ROUTE_NONE, 0)
    return abi.new("dmm_port_value", route=shown.route, stack=shown.stack)
