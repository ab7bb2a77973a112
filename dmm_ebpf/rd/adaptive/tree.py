# SPDX-License-Identifier: Apache-2.0
"""The tree of prefixes: a sample counts for its network and for all around it.

A network without figures of its own has those of the one around it. There are at most MAX_NODES;
who was heard of longest ago goes first, and never the root.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dmm_ebpf.rd.adaptive.figures import MOST_SPREAD, NOTHING, Estimate, Figures
from dmm_ebpf.rd.adaptive.prefix import ROOT, Prefix, parent, prefixes
from dmm_ebpf.rd.adaptive.sample import Sample
from dmm_ebpf.rd.adaptive.shared import Shared, blended

MAX_NODES = 4096


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
        self.shared = Shared()

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
        found = {stack: self._one(prefix, stack, now, above[stack]) for stack in self.stacks}
        if known is not None:
            known[prefix] = found
        return found

    def _one(self, prefix: Prefix, stack: str, now: float, above: Estimate) -> Estimate:
        node = self.nodes.get(prefix)
        figures = node.figures.get(stack) if node else None
        others = self.shared.estimate(prefix, stack, now, above)
        if figures is None:
            return others or _elsewhere(above)
        return blended(figures.estimate(now, others or above), others)

    def __iter__(self) -> Iterator[Prefix]:
        """Shorter prefixes first."""
        return iter(sorted({*self.nodes, *self.shared.prefixes()}))


def _elsewhere(one: Estimate) -> Estimate:
    """Of another prefix, so none of its samples is of this one."""
    return replace(one, samples=0.0, error=MOST_SPREAD, others=0.0)
