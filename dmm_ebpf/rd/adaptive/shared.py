# SPDX-License-Identifier: Apache-2.0
"""What other hosts have learnt of paths, and how much of it counts here.

It is a word of strangers: what no path can have is refused, of each host no more than CAP samples
count for a prefix, and half of that is forgotten in HALF_S. It stands in for what is not known
here, and is worth half a sample beside what is (figures.PRIOR_SAMPLES). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from dmm_ebpf.rd.adaptive.figures import (
    LEAST_SPREAD,
    MOST_SPREAD,
    PRIOR_SAMPLES,
    Estimate,
    Figures,
    Sums,
    variance,
)
from dmm_ebpf.rd.adaptive.mind import ENOUGH
from dmm_ebpf.rd.adaptive.prefix import Prefix, prefix_of
from dmm_ebpf.rd.adaptive.sample import MAX_RATE_BPS, MAX_RTT_US

HALF_S = 600.0
CAP = 4.0  # samples of one host
LEAST = 0.5  # samples of all hosts; fewer tell nothing
MOST_PREFIXES = 64  # that a host tells of, those that it heard of last
MOST_HOSTS = 64  # whose experience is had
MOST_AGE_S = 3600.0
_MOST_MERIT = math.log(1e12)
_DIGITS = 6

Of = dict[Prefix, dict[str, Sums]]  # what one host tells, by prefix and stack


class UnlikelyError(ValueError):
    """What a host tells that no path can have; str(): what."""


def told(
    nodes: Iterator[tuple[Prefix, float, Mapping[str, Figures]]], now: float
) -> list[list[object]]:
    """For JSON: figures of hours of each prefix, and how long ago that was heard of."""
    rows: list[list[object]] = []
    for prefix, heard, figures in nodes:
        told_of = {name: _capped(one.long, now) for name, one in figures.items()}
        stacks = {name: values for name, values in told_of.items() if values[0] > 0}
        if stacks and len(rows) < MOST_PREFIXES:
            age = round(max(0.0, now - heard), 1)
            rows.append([prefix.length, prefix.packed.hex(), age, stacks])
    return rows


def _capped(sums: Sums, now: float) -> list[float]:
    """In so few digits that what has hardly changed is the same."""
    sums.fade(now)
    scale = min(1.0, CAP / sums.samples) if sums.samples else 1.0
    return [float(f"{value * scale:.{_DIGITS}g}") for value in sums.values]


def read(rows: object, stacks: tuple[str, ...], now: float) -> Of:
    """What told() gave, of another host. Of a stack that is no candidate here nothing counts.
    UnlikelyError.
    """
    if not isinstance(rows, list) or len(rows) > MOST_PREFIXES:
        raise UnlikelyError(f"it is no list of {MOST_PREFIXES} prefixes at most")
    found: Of = {}
    for row in rows:
        if not isinstance(row, list) or len(row) != 4:
            raise UnlikelyError("a row of it has another form")
        prefix, age = prefix_of(row[0], row[1]), row[2]
        if prefix is None:
            raise UnlikelyError("it tells of what is no prefix")
        if type(age) not in {int, float} or not 0 <= age < math.inf:
            raise UnlikelyError(f"what it tells of {prefix} has no age that can be")
        if not isinstance(row[3], dict):
            raise UnlikelyError(f"what it tells of {prefix} has another form")
        known = {name: _sums(prefix, row[3][name], now - age) for name in stacks if name in row[3]}
        if age <= MOST_AGE_S and known:
            found[prefix] = known
    return found


def _sums(prefix: Prefix, values: object, at: float) -> Sums:
    made = Sums.of(HALF_S, at, values) if isinstance(values, list) else None
    if made is None or not made.is_likely(MAX_RATE_BPS, MAX_RTT_US, _MOST_MERIT):
        raise UnlikelyError(f"what it tells of {prefix} no path can have")
    if made.samples > CAP:
        made.values = [value * CAP / made.samples for value in made.values]
    return made


@dataclass
class Shared:
    """Of the routes with the same candidates and goal. hosts: what each has told last."""

    hosts: dict[str, Of] = field(default_factory=dict)

    def take(self, host: str, one: Of) -> None:
        """What a host tells now; nothing: it tells no more."""
        self.hosts.pop(host, None)
        if one:
            self.hosts[host] = one
        while len(self.hosts) > MOST_HOSTS:
            del self.hosts[next(iter(self.hosts))]

    def prefixes(self) -> set[Prefix]:
        """Of which somebody tells."""
        return {prefix for one in self.hosts.values() for prefix in one}

    def of(self, prefix: Prefix) -> list[str]:
        """The hosts that tell of a prefix."""
        return sorted(host for host, one in self.hosts.items() if prefix in one)

    def estimate(self, prefix: Prefix, stack: str, now: float, above: Estimate) -> Estimate | None:
        """Of all hosts together; above: of the prefix around it. None: they tell nothing."""
        there = (one[prefix].get(stack) for one in self.hosts.values() if prefix in one)
        sums = [one for one in there if one is not None]
        if not sums:
            return None
        for one in sums:
            one.fade(now)
        total = Sums(HALF_S, now)
        total.values = [sum(parts) for parts in zip(*(s.values for s in sums), strict=True)]
        if total.samples < LEAST:
            return None
        spread = min(max(variance(total.values), LEAST_SPREAD**2), MOST_SPREAD**2)
        n = min(total.merits, CAP)
        found = Figures(now, total).estimate(now, above)
        samples = ENOUGH if found.merit is not None and n >= LEAST else 0.0
        error = math.sqrt(spread / (n + PRIOR_SAMPLES))
        return replace(found, samples=samples, error=error, others=samples)


def blended(own: Estimate, others: Estimate | None) -> Estimate:
    """Of one's own, for which others' was the prior: as long as there is little of it, as telling
    as theirs.
    """
    if others is None or own.samples >= others.samples:
        return own
    error, lacking = min(own.error, others.error), others.samples - own.samples
    return replace(own, samples=others.samples, error=error, others=lacking)
