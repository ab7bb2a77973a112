# SPDX-License-Identifier: Apache-2.0
"""Sums over samples that fade, and what is estimated from them.

Everything is kept three times: what is seen right now (half of it is forgotten in NOW_S), of late
(RECENT_S), which decides, and in the last hours (LONG_S), which stands in for it where little was.
What is seen right now and cannot be chance says that the path has changed: then what was of late is
forgotten at once. A clock that goes back lets nothing fade; one that leaps ahead lets everything
fade, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dmm_ebpf.rd.adaptive.sample import End, Sample

NOW_S, RECENT_S, LONG_S = 2.0, 8.0, 3600.0  # half-lives
PRIOR_SAMPLES = 0.5  # as many samples is what was known before worth, as long as there are none,
NO_PRIOR = 2.0  # and nothing any more from so many on
UNLIKE = math.log(1.2)  # a change of the path is more than this,
ERRORS = 1.5  # and so many standard errors more,
TELLING = 0.9  # as no fewer samples show
MOST = 1e18  # of any sum
_ROUNDED, _NONE = 1.001, 1e-6  # what is told in a few digits may be more by so much
LEAST_SPREAD, MOST_SPREAD = 0.05, 0.6  # of merits, where few samples tell of it
SPREAD_SAMPLES = 2.0  # as many are what is assumed of the spread worth
(
    _SAMPLES,
    _RATES,
    _LOG_RATE,
    _SEGMENTS,
    _RESENT,
    _RESENT_SQUARED,
    _RTTS,
    _RTT_US,
    _ENDS,
    _FAILED,
    _MERITS,
    _MERIT,
    _MERIT_SQUARED,
    _N,
) = range(14)


class Sums:
    """One kind of memory: sums of which half is forgotten in half_life seconds."""

    __slots__ = ("at", "half_life", "values")

    def __init__(self, half_life: float, at: float) -> None:
        self.half_life = half_life
        self.at = at
        self.values = [0.0] * _N

    def fade(self, now: float) -> None:
        """Forget what has to be forgotten until now."""
        if now > self.at:
            factor = 0.5 ** min((now - self.at) / self.half_life, 1000.0)
            self.values = [value * factor for value in self.values]
        self.at = now

    def add(self, one: Sample, merit: float | None, now: float) -> None:
        """A sample that is checked."""
        self.fade(now)
        values = self.values
        values[_SAMPLES] += 1
        rate = one.rate
        if rate is not None:
            values[_RATES] += 1
            values[_LOG_RATE] += math.log(max(rate, 1.0))
        values[_SEGMENTS] += one.segments
        values[_RESENT] += one.resent
        values[_RESENT_SQUARED] += float(one.resent) ** 2
        if one.rtt_us:
            values[_RTTS] += 1
            values[_RTT_US] += one.rtt_us
        if one.end is not None:
            values[_ENDS] += one.end is not End.NEITHER
            values[_FAILED] += one.end is End.FAILED
        if merit is not None:
            values[_MERITS] += 1
            values[_MERIT] += merit
            values[_MERIT_SQUARED] += merit**2

    @property
    def samples(self) -> float:
        """How many, faded."""
        return self.values[_SAMPLES]

    @property
    def merits(self) -> float:
        """How many of them tell how good it is."""
        return self.values[_MERITS]

    def is_likely(self, most_rate: float, most_rtt_us: float, most_merit: float) -> bool:
        """Whether some path could have made them."""
        v = self.values
        most = (
            (v[_LOG_RATE], v[_RATES] * math.log(most_rate)),
            (v[_RTT_US], v[_RTTS] * most_rtt_us),
            (v[_MERIT], v[_MERITS] * most_merit),
            (v[_MERIT_SQUARED], v[_MERITS] * most_merit**2),
            (v[_RESENT], v[_SEGMENTS]),
            (v[_FAILED], v[_ENDS]),
            *((v[number], v[_SAMPLES]) for number in (_RATES, _RTTS, _ENDS, _MERITS)),
        )
        return all(value <= bound * _ROUNDED + _NONE for value, bound in most)

    @classmethod
    def of(cls, half_life: float, at: float, values: Sequence[object]) -> Sums | None:
        """From values that were kept; None: no sums could be these."""
        made = cls(half_life, at)
        numbers = [float(v) for v in values if type(v) in {int, float}]  # type: ignore[arg-type]
        if len(values) != _N or len(numbers) != _N:
            return None
        if not all(math.isfinite(number) and 0 <= number <= MOST for number in numbers):
            return None
        made.values = numbers
        return made


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one stack on one path. samples: how many of late, faded. rate: bytes per second, the
    geometric mean of flows. loss: the share of segments that were sent again. burst: the variance
    of losses in a sample over their mean: 1 where each segment is lost by itself, more where
    they come together. failed: the share of transfers that the path ended. merit: how good, as
    goal.merit() has it; error: the standard error of that. None: not known.
    """

    samples: float
    rate: float | None
    loss: float | None
    burst: float | None
    rtt_us: float | None
    failed: float
    merit: float | None = None
    error: float = MOST_SPREAD
    changes: int = 0  # of the path, as this stack has seen it
    others: float = 0.0  # of samples, those that other hosts' experience stands in for


NOTHING = Estimate(0.0, None, None, None, None, 0.0)


class Figures:
    """All memories of one stack on one path."""

    __slots__ = ("changes", "long", "now", "recent")

    def __init__(self, now: float, long: Sums | None = None) -> None:
        self.now = Sums(NOW_S, now)
        self.recent = Sums(RECENT_S, now)
        self.long = long or Sums(LONG_S, now)
        self.changes = 0

    def add(self, one: Sample, merit: float | None, now: float) -> None:
        """A sample that is checked, and how good it is; None: it does not tell."""
        self.recent.fade(now)
        for sums in (self.now, self.long):
            sums.add(one, merit, now)
        if merit is not None and self._is_another_path():
            self.changes += 1
            self.recent.values = list(self.now.values)
        else:
            self.recent.add(one, merit, now)

    def _is_another_path(self) -> bool:
        """Whether what is seen now is unlike what was seen until now."""
        here, before = self.now.values, self.recent.values
        if before[_MERITS] < TELLING:
            before = self.long.values
        if min(here[_MERITS], before[_MERITS]) < TELLING:
            return False
        spread = min(max(variance(self.recent.values), LEAST_SPREAD**2), MOST_SPREAD**2)
        error = math.sqrt(spread / here[_MERITS] + spread / before[_MERITS])
        change = here[_MERIT] / here[_MERITS] - before[_MERIT] / before[_MERITS]
        return abs(change) > UNLIKE + ERRORS * error

    def estimate(self, now: float, above: Estimate = NOTHING) -> Estimate:
        """above: of the prefix around it."""
        self.recent.fade(now)
        self.long.fade(now)
        log_above = None if above.rate is None else math.log(above.rate)
        log_rate = self._mean(_LOG_RATE, _RATES, log_above)
        loss = self._mean(_RESENT, _SEGMENTS, above.loss, unit=100.0)
        failed = self._mean(_FAILED, _ENDS, above.failed) or 0.0
        return Estimate(
            samples=self.recent.values[_SAMPLES],
            rate=None if log_rate is None else math.exp(log_rate),
            loss=None if loss is None else min(loss, 1.0),
            burst=_burst(self.long.values),
            rtt_us=self._mean(_RTT_US, _RTTS, above.rtt_us),
            failed=min(failed, 1.0),
            merit=self._mean(_MERIT, _MERITS, above.merit),
            error=self._error(),
            changes=self.changes,
        )

    def _error(self) -> float:
        """Of merit: as the samples of late differ, and before there are some as those of hours."""
        recent, long = self.recent.values, self.long.values
        assumed = min(max(variance(long), LEAST_SPREAD**2), MOST_SPREAD**2)
        n = recent[_MERITS]
        mean = (n * variance(recent) + SPREAD_SAMPLES * assumed) / (n + SPREAD_SAMPLES)
        return math.sqrt(mean / (n + PRIOR_SAMPLES))

    def _mean(
        self, total: int, weight: int, above: float | None, unit: float = 1.0
    ) -> float | None:
        """Of late, where what hours say stands for a few samples, and what the prefix above says
        for as many before them. unit: what weight one sample has.
        """
        recent, long = self.recent.values, self.long.values
        known = _mean(long[total], long[weight], above, PRIOR_SAMPLES * unit)
        lacking = max(0.0, 1 - recent[weight] / (NO_PRIOR * unit))
        return _mean(recent[total], recent[weight], known, PRIOR_SAMPLES * unit * lacking)


def _mean(total: float, weight: float, prior: float | None, worth: float) -> float | None:
    """worth: as much weight the prior has."""
    if prior is None or not worth:
        return total / weight if weight > 1e-9 else prior
    return (total + worth * prior) / (weight + worth)


def _burst(sums: Sequence[float]) -> float | None:
    if sums[_SAMPLES] < 1 or sums[_RESENT] <= 1e-9:
        return None
    mean = sums[_RESENT] / sums[_SAMPLES]
    return max(0.0, sums[_RESENT_SQUARED] / sums[_SAMPLES] - mean**2) / mean


def variance(sums: Sequence[float]) -> float:
    """Of merits."""
    if sums[_MERITS] <= 1e-9:
        return MOST_SPREAD**2
    mean = sums[_MERIT] / sums[_MERITS]
    return max(0.0, sums[_MERIT_SQUARED] / sums[_MERITS] - mean**2)
