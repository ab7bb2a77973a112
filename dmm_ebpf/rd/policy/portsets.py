# SPDX-License-Identifier: Apache-2.0
"""Which route each port takes: painting routes over one another, and the trie that says so.

Owns the step from overlapping port ranges with precedence to disjoint segments, and from segments
to the fewest entries of an LPM trie over the port's bits. Segments are sorted, disjoint, and
neighbours with one route are one segment. Pure functions on integers.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from typing import NamedTuple

from dmm_ebpf.rd.policy.values import PORT_MAX

MISS = -1  # no route
_PORT_BITS = 16

Segment = tuple[int, int, int]  # first port, last port, route
Segments = tuple[Segment, ...]


class PortSet(NamedTuple):
    """The segments of each protocol; ports in no segment have no route."""

    tcp: Segments
    udp: Segments


class Layer(NamedTuple):
    """A route over a range of ports; of the layers over one port the smallest precedence wins."""

    precedence: tuple[int, int, int]
    first: int
    last: int
    route: int


def paint(layers: list[Layer]) -> Segments:
    """The segments that show when the layers lie over one another."""
    layers = sorted(layers, key=lambda layer: layer.first)
    edges = sorted({layer.first for layer in layers} | {layer.last + 1 for layer in layers})
    out: list[Segment] = []
    active: list[tuple[tuple[int, int, int], int, int]] = []  # heap of precedence, last, route
    position = 0
    for start, end in itertools.pairwise(edges):
        while position < len(layers) and layers[position].first <= start:
            layer = layers[position]
            heapq.heappush(active, (layer.precedence, layer.last, layer.route))
            position += 1
        while active and active[0][1] < start:
            heapq.heappop(active)
        if not active:
            continue
        route = active[0][2]
        if out and out[-1][2] == route and out[-1][1] == start - 1:
            out[-1] = (out[-1][0], end - 1, route)
        else:
            out.append((start, end - 1, route))
    return tuple(out)


def trie_entries(segments: Segments) -> list[tuple[int, int, int]]:
    """The fewest LPM entries that say the same as segments: (first port, leading bits
    that count, route).

    The longest entry over a port decides; its route is MISS where a hole lies inside a longer
    range. A port under no entry has no route. The method is Draves et al., "Constructing optimal IP
    routing tables" (INFOCOM 1999): from the leaves up the set of routes that cost least, from the
    root down an entry wherever the inherited route is not in that set.
    """
    starts, ends, routes = _without_gaps(segments)
    out: list[tuple[int, int, int]] = []

    def choices(first: int, size: int) -> _Node:
        at = bisect.bisect_right(starts, first) - 1
        if ends[at] >= first + size - 1:
            return _Node(frozenset((routes[at],)), None, None)
        left, right = choices(first, size >> 1), choices(first + (size >> 1), size >> 1)
        return _Node(left.routes & right.routes or left.routes | right.routes, left, right)

    def emit(node: _Node, first: int, bits: int, inherited: int) -> None:
        route = inherited
        if inherited not in node.routes:
            route = min(node.routes)
            out.append((first, bits, route))
        if node.left is not None and node.right is not None:
            emit(node.left, first, bits + 1, route)
            emit(node.right, first + (1 << (_PORT_BITS - 1 - bits)), bits + 1, route)

    emit(choices(0, PORT_MAX + 1), 0, 0, MISS)
    return out


class _Node(NamedTuple):
    """An aligned block of ports, and the routes one of which its entry should have."""

    routes: frozenset[int]
    left: _Node | None
    right: _Node | None


def _without_gaps(segments: Segments) -> tuple[list[int], list[int], list[int]]:
    """First ports, last ports and routes of segments, with MISS in between."""
    filled: list[Segment] = []
    position = 0
    for first, last, route in segments:
        if first > position:
            filled.append((position, first - 1, MISS))
        filled.append((first, last, route))
        position = last + 1
    if position <= PORT_MAX:
        filled.append((position, PORT_MAX, MISS))
    return [s[0] for s in filled], [s[1] for s in filled], [s[2] for s in filled]
