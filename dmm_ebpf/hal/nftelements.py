# SPDX-License-Identifier: Apache-2.0
"""What a set of nft(8) has, as prefixes, element by element: kept up to date by what the kernel
says was put there and taken away. Pure.

An interval is two elements to the kernel, its first address and the one behind its last
(NFT_SET_ELEM_INTERVAL_END); the second is left out where the interval ends with the last address
there is, and by some where the next one begins there. A set of intervals whose first does not begin
with 0 may have an end at 0, which ends nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dmm_ebpf.hal.netlink import attributes

Block = tuple[int, int, int]  # a prefix: 4 or 6, the network as an integer, its length

_NFTA_LIST_ELEM, _NFTA_DATA_VALUE = 1, 1  # linux/netfilter/nf_tables.h
_NFTA_SET_ELEM_KEY, _NFTA_SET_ELEM_FLAGS = 1, 3
_INTERVAL_END, _CATCH_ALL = 0x1, 0x2
_V4_MAPPED = 0xFFFF  # ::ffff:0:0/96 (RFC 4291 section 2.5.5.2), without the last 32 bits


class Element(NamedTuple):
    """address: None is the element for all that no other matches (*). ends: the interval before."""

    address: int | None
    ends: bool = False


def elements(listed: bytes) -> Iterator[Element]:
    """Those of an attribute NFTA_SET_ELEM_LIST_ELEMENTS. ValueError: one has no address."""
    for kind, one in attributes(listed):
        if kind == _NFTA_LIST_ELEM:
            yield _element(one)


def _element(one: bytes) -> Element:
    told = dict(attributes(one))
    flags = int.from_bytes(told.get(_NFTA_SET_ELEM_FLAGS, b""), "big")
    if flags & _CATCH_ALL:
        return Element(None)
    key = dict(attributes(told.get(_NFTA_SET_ELEM_KEY, b""))).get(_NFTA_DATA_VALUE)
    if not key:
        raise ValueError("an element without a key")
    return Element(int.from_bytes(key, "big"), bool(flags & _INTERVAL_END))


class Edit(NamedTuple):
    """Prefixes that a set has now and had not, and those that it has no more."""

    put: list[Block]
    drop: list[Block]


class Elements:
    """Of one set of addresses. family: 4 or 6. blocks: its prefixes, as of the latest settle()."""

    def __init__(self, family: int, found: Iterable[Element], *, intervals: bool) -> None:
        self._family = family
        self._last = (1 << (32 if family == 4 else 128)) - 1
        self._intervals = intervals
        self._spans: dict[int, int] = {}  # first address to last one, as of the latest settle()
        self.blocks: dict[Block, int] = {}  # how many spans have one: the catch-all may be a second
        self._catch_all = False  # as are these three
        has = set(found)
        self._catches_all = Element(None) in has
        # Twice the address, and 1 where an interval begins: ends stand before what begins there
        self._here = set(map(_point, has - {Element(None)}))
        self._points = sorted(self._here) if intervals else []
        self._touched = set(self._here)
        self.settle()

    def put(self, one: Element) -> None:
        """The kernel has it now. One that is there already changes nothing."""
        if one.address is None:
            self._catches_all = True
        elif (point := _point(one)) not in self._here:
            self._here.add(point)
            self._touched.add(point)
            if self._intervals:
                bisect.insort(self._points, point)

    def drop(self, one: Element) -> None:
        """The kernel has it no more."""
        if one.address is None:
            self._catches_all = False
        elif (point := _point(one)) in self._here:
            self._here.remove(point)
            self._touched.add(point)
            if self._intervals:
                del self._points[bisect.bisect_left(self._points, point)]

    def settle(self) -> Edit:
        """What has become of the prefixes since it was asked last; to be asked between transactions
        alone, for half of one may be half of an interval.
        """
        before: dict[Block, bool] = {}
        if self._catches_all is not self._catch_all:
            self._catch_all = self._catches_all
            self._count((0, self._last), self._catch_all, before)
        for first in self._touched_firsts():
            was, now = self._spans.get(first), self._span_end(first)
            if was == now:
                continue
            if was is not None:
                self._count((first, was), False, before)
                del self._spans[first]
            if now is not None:
                self._count((first, now), True, before)
                self._spans[first] = now
        self._touched.clear()
        put = [one for one, had in before.items() if not had and one in self.blocks]
        return Edit(put, [one for one, had in before.items() if had and one not in self.blocks])

    def _touched_firsts(self) -> set[int]:
        """Where spans begin that may be others now."""
        firsts = {point >> 1 for point in self._touched if point & 1}
        if self._intervals:
            for point in self._touched:  # it may end the one that begins before it
                at = bisect.bisect_left(self._points, point)
                if at and self._points[at - 1] & 1:
                    firsts.add(self._points[at - 1] >> 1)
        return firsts

    def _span_end(self, first: int) -> int | None:
        """The last address of the span that begins there; None: none does."""
        point = first << 1 | 1
        if point not in self._here:
            return None
        if not self._intervals:
            return first
        at = bisect.bisect_right(self._points, point)
        return (self._points[at] >> 1) - 1 if at < len(self._points) else self._last

    def _count(self, span: tuple[int, int], there: bool, before: dict[Block, bool]) -> None:
        for one in _span_blocks(self._family, *span):
            count = self.blocks.get(one, 0)
            before.setdefault(one, count > 0)
            if there:
                self.blocks[one] = count + 1
            elif count > 1:
                self.blocks[one] = count - 1
            else:
                del self.blocks[one]


def _point(one: Element) -> int:
    return (one.address or 0) << 1 | (not one.ends)


def _span_blocks(family: int, first: int, last: int) -> Iterator[Block]:
    """The fewest prefixes that are these addresses, in order."""
    bits = 32 if family == 4 else 128
    while first <= last:
        room = (last - first + 1).bit_length() - 1
        free = min(room, (first & -first).bit_length() - 1 if first else bits)
        yield _plain((family, first, bits - free))
        first += 1 << free


def _plain(block: Block) -> Block:
    """An IPv4-mapped prefix as the IPv4 prefix that it is."""
    family, addr, length = block
    if family == 6 and length >= 96 and addr >> 32 == _V4_MAPPED:
        return 4, addr & 0xFFFFFFFF, length - 96
    return block
