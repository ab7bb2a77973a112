# SPDX-License-Identifier: Apache-2.0
"""Which candidate serves one prefix, when that changes, and how many flows try another.

A change needs samples of both, a margin, and that the lead lasts; who has just changed waits, and
who changes back and forth has to see ever more. Exploration is a share of new flows: small, smaller
where the other is much worse, and larger for a short while after the path seems to have changed.
All numbers are here, but for those that tell a lead from chance (figures.ERRORS). Pure: the clock
is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from dmm_ebpf.rd.adaptive.figures import ERRORS, Estimate

ENOUGH = 2.5  # samples of late that tell something
MARGIN = math.log(1.15)  # how much better another must be
MOST_MARGIN = math.log(2.0)
LASTING_S = 2.0  # for how long
HOLD_S = 10.0  # no second change sooner
CALM_S = 120.0  # after that a change counts as none
SHARE = 1 / 16  # of new flows try another
BAD_SHARE = 1 / 32  # where that is less than half as good
BAD = math.log(2.0)
SEARCH_SHARE = 1 / 4  # while the path may have changed,
SEARCH_S = 12.0  # no longer than this,
SEARCH_SAMPLES = 8.0  # or these tell nothing,
SEARCH_AGAIN_S = 30.0  # and not again before that


@dataclass(frozen=True, slots=True)
class Draw:
    """What new flows get: chosen, but a share of them, 0 to 1, gets explores."""

    chosen: str
    explores: str | None = None
    share: float = 0.0


@dataclass(slots=True)
class Mind:
    """Of one prefix. since, and all other times: by the caller's clock, in seconds."""

    chosen: str
    since: float
    why: str = "first candidate"
    changes: int = 0
    restless: int = 0  # changes that CALM_S has not made forgotten
    leader: str | None = None
    leads_since: float = 0.0
    path_changes: dict[str, int] = field(default_factory=dict)  # as each has seen them
    searching_until: float = -math.inf
    searched: float = -math.inf
    draw: Draw = field(init=False)

    def __post_init__(self) -> None:
        self.draw = Draw(self.chosen)

    def consider(
        self,
        scores: Mapping[str, float],
        estimates: Mapping[str, Estimate],
        down: Collection[str],
        now: float,
    ) -> Draw:
        """What new flows get from now on. scores: see goal.scores(); NaN counts as none. down:
        candidates that take no flows.
        """
        now = self._clock(now)
        known = {name: score for name, score in scores.items() if math.isfinite(score)}
        up = [name for name in estimates if name not in down]
        if self.chosen not in up and up:
            best = max(up, key=lambda name: (known.get(name, -math.inf), -up.index(name)))
            self._change(best, f"{self.chosen} is down", known, now)
        self._follow(known, estimates, up, now)
        self._watch(estimates, now)
        self.draw = self._explore(known, estimates, up, now)
        return self.draw

    def _clock(self, now: float) -> float:
        """A clock that has gone back: nothing is to last longer than it would have."""
        self.since = min(self.since, now)
        self.leads_since = min(self.leads_since, now)
        self.searched = min(self.searched, now)
        self.searching_until = min(self.searching_until, now + SEARCH_S)
        return now

    # -- the one that serves --

    def _follow(
        self,
        known: Mapping[str, float],
        estimates: Mapping[str, Estimate],
        up: Collection[str],
        now: float,
    ) -> None:
        if now - self.since > CALM_S:
            self.restless = 0
        if self.chosen not in known:
            return
        rivals = [
            name
            for name in up
            if name != self.chosen and name in known and estimates[name].samples >= ENOUGH
        ]
        best = max(rivals, key=lambda name: known[name], default=None)
        lead = -math.inf if best is None else known[best] - known[self.chosen]
        if best is None or lead < self.margin:
            self.leader = None
        elif lead < self.margin + ERRORS * _error(estimates, best, self.chosen):
            self.leader = None
            self._search(now)
        elif self.leader != best:
            self.leader, self.leads_since = best, now
        elif now - self.leads_since >= LASTING_S and now - self.since >= HOLD_S:
            self._change(best, f"{math.exp(lead):.2f} times as good as {self.chosen}", known, now)

    def holds(self, now: float) -> float:
        """How long there is no change of mind yet, in seconds."""
        leads = now - self.leads_since if self.leader else 0.0
        return max(0.0, self.since + HOLD_S - now, LASTING_S - leads if self.leader else 0.0)

    @property
    def margin(self) -> float:
        """By how much another must be better now."""
        return min(MARGIN * 2.0 ** max(0, self.restless - 1), MOST_MARGIN)

    def _change(self, to: str, why: str, known: Mapping[str, float], now: float) -> None:
        self.chosen, self.since, self.why = to, now, why
        self.changes += 1
        self.restless += 1
        self.leader = None
        self.searching_until = -math.inf

    # -- the others --

    def _watch(self, estimates: Mapping[str, Estimate], now: float) -> None:
        """Whether the path seems to have changed, or is a new one."""
        for name, one in estimates.items():
            seen = self.path_changes.get(name)
            if one.merit is not None and seen != one.changes:
                self._search(now)
                self.path_changes[name] = one.changes

    def _search(self, now: float) -> None:
        if now - self.searched >= SEARCH_AGAIN_S:
            self.searched = now
            self.searching_until = now + SEARCH_S

    def _explore(
        self,
        known: Mapping[str, float],
        estimates: Mapping[str, Estimate],
        up: Collection[str],
        now: float,
    ) -> Draw:
        others = [name for name in up if name != self.chosen]
        if not others or self.chosen not in up:
            return Draw(self.chosen)
        unsure = [name for name in others if self._may_be_better(name, known, estimates)]
        if now < self.searching_until and unsure:
            least = min(unsure, key=lambda name: estimates[name].samples)
            return Draw(self.chosen, least, SEARCH_SHARE)
        least = min(others, key=lambda name: estimates[name].samples)
        behind = known.get(self.chosen, 0.0) - known.get(least, math.inf)
        return Draw(self.chosen, least, BAD_SHARE if behind > BAD else SHARE)

    def _may_be_better(
        self, name: str, known: Mapping[str, float], estimates: Mapping[str, Estimate]
    ) -> bool:
        """Whether too little is known of it to say no."""
        samples = estimates[name].samples
        if samples < ENOUGH or name not in known or self.chosen not in known:
            return samples < SEARCH_SAMPLES
        lead = known[name] - known[self.chosen]
        return lead + 2 * ERRORS * _error(estimates, name, self.chosen) > 0


def _error(estimates: Mapping[str, Estimate], one: str, other: str) -> float:
    """Of the difference of two."""
    return math.hypot(estimates[one].error, estimates[other].error)
