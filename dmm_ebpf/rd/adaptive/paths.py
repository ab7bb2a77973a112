# SPDX-License-Identifier: Apache-2.0
"""All that adaptive routes with the same candidates and goal know and have decided: the tree of
figures, and a mind for each prefix that has enough of its own.

A prefix whose figures are too few, or old, has no mind: the one around it decides for it. Also how
all of it is kept over a restart; what cannot be read again is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.rd.adaptive.figures import LONG_S, Figures, Sums
from dmm_ebpf.rd.adaptive.goal import merit, scores
from dmm_ebpf.rd.adaptive.mind import ENOUGH, Draw, Mind
from dmm_ebpf.rd.adaptive.prefix import ROOT, Prefix, parent, prefix_of, prefixes
from dmm_ebpf.rd.adaptive.sample import Sample, checked
from dmm_ebpf.rd.adaptive.shared import told as told_of
from dmm_ebpf.rd.adaptive.tree import Known, Node, PathTree
from dmm_ebpf.records.path import Goal, Path, PathCandidate

IDLE_S = 600.0  # a prefix that was not heard of for longer has no mind of its own
MAX_MINDS = 2048
TURNS = 16  # of so many decisions one looks also at prefixes of which nothing new was heard
MAX_KEPT = 1024  # prefixes in what is kept
FORM = 1  # of what is kept


@dataclass(frozen=True)
class Choice:
    """name: of the stack that routes name, for listings. dear: candidates that are user stacks."""

    name: str
    goal: Goal
    candidates: tuple[str, ...]
    dear: frozenset[str] = frozenset()


class Paths:
    """Of one Choice. Times are the caller's, in seconds, and of one clock."""

    def __init__(self, choice: Choice, now: float) -> None:
        self.choice = choice
        self.tree = PathTree(choice.candidates)
        self.minds: dict[Prefix, Mind] = {ROOT: Mind(choice.candidates[0], now)}
        self.refused = 0  # samples that no path can have made
        self._most = MAX_MINDS
        self._decided = -math.inf  # when, and who was down then
        self._down: frozenset[str] = frozenset()
        self._turn = 0

    def allow(self, most: int) -> None:
        """No more than so many prefixes have minds of their own from now on, with the root."""
        self._most = min(most, MAX_MINDS)
        for prefix in list(self.minds)[self._most :]:  # the root is the first
            del self.minds[prefix]

    def add(self, sample: Sample, now: float) -> None:
        """What a flow has shown."""
        one = checked(sample)
        if one is None:
            self.refused += 1
            return
        self.tree.add(one, merit(self.choice.goal, one), now)

    def decide(self, down: Collection[str], now: float) -> dict[Prefix, Draw]:
        """What new flows to each prefix get; the longest one counts. down: see Mind.consider()."""
        known: Known = {}
        for prefix in self._due(frozenset(down)):
            estimates = self.tree.estimates(prefix, now, known)
            mind = self.minds.get(prefix) or self._made_up(prefix, estimates, now)
            if mind is not None:
                told = scores(self.choice.goal, estimates, self.choice.dear)
                mind.consider(told, estimates, down, now)
        self._decided = now
        for prefix in [prefix for prefix in self.minds if self._is_idle(prefix, now)]:
            del self.minds[prefix]
        return {prefix: mind.draw for prefix, mind in self.minds.items()}

    def _due(self, down: frozenset[str]) -> list[Prefix]:
        """Whom to look at: all each second would be most of a director's time, where there are
        thousands.
        """
        all_due, self._down = down != self._down, down
        turn = self._turn = (self._turn + 1) % TURNS
        return [
            prefix
            for prefix in self.tree
            if all_due
            or self._heard(prefix) >= self._decided
            or hash(prefix) % TURNS == turn
            or self._is_moved(prefix)
        ]

    def _is_moved(self, prefix: Prefix) -> bool:
        """Whether time alone may change what its mind says."""
        mind = self.minds.get(prefix)
        return mind is not None and (
            mind.leader is not None or mind.searching_until > self._decided
        )

    def _made_up(self, prefix: Prefix, estimates: Mapping[str, Any], now: float) -> Mind | None:
        """A mind of its own for a prefix that has shown enough; it begins with its parent's."""
        telling = sum(one.samples >= ENOUGH for one in estimates.values())
        if telling < min(2, len(estimates)) or len(self.minds) >= self._most:
            return None
        around = self._around(prefix)
        made = Mind(around.chosen, around.since, f"as {self._name_around(prefix)}")
        made.searched = now
        self.minds[prefix] = made
        return made

    def _around(self, prefix: Prefix) -> Mind:
        above = parent(prefix)
        while above is not None and above not in self.minds:
            above = parent(above)
        return self.minds[above or ROOT]

    def _name_around(self, prefix: Prefix) -> str:
        above = parent(prefix)
        while above is not None and above not in self.minds:
            above = parent(above)
        return str(above or ROOT)

    def _is_idle(self, prefix: Prefix, now: float) -> bool:
        if prefix == ROOT:
            return False
        return now - self._heard(prefix) > IDLE_S and not self.tree.shared.of(prefix)

    def _heard(self, prefix: Prefix) -> float:
        node = self.tree.nodes.get(prefix)
        return node.heard if node else -math.inf

    def mind_of(self, address: bytes) -> tuple[Prefix, Mind]:
        """Who decides for a peer, and by which prefix. address: as in Sample."""
        return next((p, self.minds[p]) for p in prefixes(address) if p in self.minds)

    def rows(self, instance: str, now: float) -> list[Path]:
        """For listings, shorter prefixes first."""
        return [self.row(instance, prefix, now) for prefix in sorted(self.minds)]

    def rows_around(self, instance: str, address: bytes, now: float) -> list[Path]:
        """Of each prefix of a peer of which something is known, the longest first. address: as in
        Sample.
        """
        return [self.row(instance, one, now) for one in prefixes(address) if one in self.tree.nodes]

    def row(self, instance: str, prefix: Prefix, now: float) -> Path:
        """Of a prefix; one without a mind has that around it."""
        mind = self.minds.get(prefix) or self._around(prefix)
        estimates = self.tree.estimates(prefix, now)
        told = scores(self.choice.goal, estimates, self.choice.dear)
        return Path(
            instance=instance,
            stack=self.choice.name,
            goal=self.choice.goal,
            prefix=str(prefix),
            chosen=mind.chosen,
            why=mind.why,
            since_s=round(max(0.0, now - mind.since), 1),
            changes=mind.changes,
            explores=mind.draw.explores,
            share=mind.draw.share,
            candidates=[
                PathCandidate(
                    name, round(one.samples - one.others, 2), one.rate, one.loss, one.burst,
                    one.rtt_us, one.failed, told.get(name),
                )
                for name, one in estimates.items()
            ],
            margin=round(math.exp(mind.margin), 3),
            leader=mind.leader,
            leads_s=round(max(0.0, now - mind.leads_since), 1) if mind.leader else 0.0,
            holds_s=round(mind.holds(now), 1),
            searches_s=round(max(0.0, mind.searching_until - now), 1),
            hosts=self.tree.shared.of(prefix),
        )  # fmt: skip

    # -- to other hosts --

    def told(self, now: float) -> list[list[object]]:
        """What this host has seen itself, as shared.read() takes it."""
        latest = sorted(self.tree.nodes.items(), key=lambda one: -one[1].heard)
        return told_of(((at, node.heard, node.figures) for at, node in latest), now)

    # -- over a restart --

    def kept(self, now: float) -> dict[str, Any]:
        """For JSON: the figures of hours and who serves; what was of late is not kept."""
        latest = sorted(self.tree.nodes.items(), key=lambda one: -one[1].heard)[:MAX_KEPT]
        nodes = [
            [
                prefix.length,
                prefix.packed.hex(),
                max(0.0, now - node.heard),
                {name: _faded(one, now) for name, one in node.figures.items()},
                self.minds[prefix].chosen if prefix in self.minds else None,
            ]
            for prefix, node in latest
        ]
        return {"form": FORM, "nodes": nodes}

    def take_back(self, kept: object, now: float) -> None:
        """What kept() gave. What of it cannot be is passed over."""
        if not isinstance(kept, dict) or kept.get("form") != FORM:
            return
        nodes = kept.get("nodes")
        # The latest stand first, and are to go last.
        for one in reversed((nodes if isinstance(nodes, list) else [])[:MAX_KEPT]):
            self._take_back(one, now)

    def _take_back(self, one: object, now: float) -> None:
        if not isinstance(one, list) or len(one) != 5:
            return
        length, address, age, figures, chosen = one
        prefix = prefix_of(length, address)
        is_age = type(age) in {int, float} and math.isfinite(age) and age >= 0
        if prefix is None or not is_age or not isinstance(figures, dict):
            return
        node = Node(heard=now - float(age))
        for name in self.choice.candidates:
            values = figures.get(name)
            long = Sums.of(LONG_S, now, values) if isinstance(values, list) else None
            if long is not None:
                node.figures[name] = Figures(now, long)
        self.tree.nodes[prefix] = node
        self.tree.nodes.move_to_end(ROOT)
        if chosen in self.choice.candidates:
            self.minds[prefix] = Mind(chosen, now, "kept over a restart")


def _faded(one: Figures, now: float) -> list[float]:
    one.long.fade(now)
    return list(one.long.values)
