# SPDX-License-Identifier: Apache-2.0
"""Which route each port takes: painting routes over one another, and cutting the result into aligned blocks.

Owns the step from overlapping port ranges with precedence to disjoint segments, and from segments to the power of
two blocks that an LPM trie over the port's bits can hold. Segments are sorted, disjoint, and neighbours with one route
are one segment. Pure functions on integers.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from dmm_ebpf.rd.values import PORT_MAX

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


def all_ports(route: int) -> PortSet:
    """Every port of both protocols on one route."""
    segments = ((0, PORT_MAX, route),)
    return PortSet(segments, segments)


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


def blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest aligned blocks that make up first..last, as (first port, leading bits that count)."""
    while first <= last:
        size = first & -first or PORT_MAX + 1
        while first + size - 1 > last:
            size >>= 1
        yield first, 17 - size.bit_length()
        first += size
