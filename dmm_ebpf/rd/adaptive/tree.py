# SPDX-License-Identifier: Apache-2.0
"""The tree of prefixes: a sample counts for its network and for all around it.

A network without figures of its own has those of the one around it. There are at most MAX_NODES;
who was heard of longest ago goes first, and never the root.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dmm_ebpf.rd.adaptive.figures import MOST_SPREAD, NOTHING, Estimate, Figures
from dmm_ebpf.rd.adaptive.sample import Sample

MAX_NODES = 4096
V4 = 96  # bits before an IPv4 address that is v4-mapped
V4_LENGTHS = (V4 + 24, V4 + 16)  # from the longest; 0 is the root of both families
V6_LENGTHS = (48, 32)
_MAPPED = bytes(10) + b"\xff\xff"
_BITS = 128


class Prefix(NamedTuple):
    """Of a v4-mapped or IPv6 address: how many bits count, and the address as a number."""

    length: int
    number: int

    @property
    def packed(self) -> bytes:
        """Its address, 16 bytes in network order."""
        return self.number.to_bytes(16, "big")

    def __str__(self) -> str:
        if not self.length:
            return "default"
        if self.packed.startswith(_MAPPED):
            address = ipaddress.IPv4Address(self.packed[12:])
            return f"{address}/{self.length - V4}"
        return f"{ipaddress.IPv6Address(self.number)}/{self.length}"


ROOT = Prefix(0, 0)


def prefixes(address: bytes) -> list[Prefix]:
    """Those that a sample of a peer counts for, from the longest to the root."""
    number = int.from_bytes(address, "big")
    lengths = V4_LENGTHS if address.startswith(_MAPPED) else V6_LENGTHS
    return [
        *(Prefix(length, number >> (_BITS - length) << (_BITS - length)) for length in lengths),
        ROOT,
    ]


def parent(prefix: Prefix) -> Prefix | None:
    """The prefix around it; None: it is the root."""
    if not prefix.length:
        return None
    around = prefixes(prefix.packed)
    return around[around.index(prefix) + 1]


@dataclass(slots=True)
class Node:
    """What is known of one prefix, by stack."""

    figures: dict[str, Figures] = field(default_factory=dict)
    heard: float = 0.0  # when, by the caller's clock


Known = dict[Prefix, dict[str, Estimate]]


class PathTree:
    """Of the routes with the same candidates and goal."""

    def __init__(self, stacks: tuple[str, ...]) -> None:
        self.stacks = stacks
        self.nodes: OrderedDict[Prefix, Node] = OrderedDict({ROOT: Node()})

    def add(self, one: Sample, merit: float | None, now: float) -> list[Prefix]:
        """A sample that is checked, and its goal.merit(); returns the prefixes that it counts for.
        One of a stack that is no candidate counts for none.
        """
        if one.stack not in self.stacks:
            return []
        found = prefixes(one.address)
        for prefix in found:
            node = self.nodes.setdefault(prefix, Node())
            node.figures.setdefault(one.stack, Figures(now)).add(one, merit, now)
            node.heard = now
            self.nodes.move_to_end(prefix)
        while len(self.nodes) > MAX_NODES:  # the root was heard of last, so it is never first
            self.nodes.popitem(last=False)
        return found

    def estimates(
        self, prefix: Prefix, now: float, known: Known | None = None
    ) -> dict[str, Estimate]:
        """Of each candidate, there or, as far as is not known there, around it. known: what was
        found at that very time; what is found is put there.
        """
        if known is not None and prefix in known:
            return known[prefix]
        around = parent(prefix)
        above = (
            self.estimates(around, now, known) if around else dict.fromkeys(self.stacks, NOTHING)
        )
        node = self.nodes.get(prefix)
        if node is None:
            found = {stack: _elsewhere(one) for stack, one in above.items()}
        else:
            found = {stack: self._one(node, stack, now, above[stack]) for stack in self.stacks}
        if known is not None:
            known[prefix] = found
        return found

    def _one(self, node: Node, stack: str, now: float, above: Estimate) -> Estimate:
        figures = node.figures.get(stack)
        return figures.estimate(now, above) if figures else _elsewhere(above)

    def __iter__(self) -> Iterator[Prefix]:
        """Shorter prefixes first."""
        return iter(sorted(self.nodes))


def _elsewhere(one: Estimate) -> Estimate:
    """Of another prefix, so none of its samples is of this one."""
    return replace(one, samples=0.0, error=MOST_SPREAD)
