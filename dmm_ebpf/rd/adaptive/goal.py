# SPDX-License-Identifier: Apache-2.0
"""What is better: samples as one number, by what a route is for.

Numbers are natural logarithms, so a difference of 0.1 is a tenth, and a margin means the same on
every path. The mean of them is a geometric one: a fast flow does not outweigh ten slow ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dmm_ebpf.rd.adaptive.figures import Estimate
from dmm_ebpf.rd.adaptive.sample import Sample
from dmm_ebpf.records.path import Goal

RTO_US = 200_000  # TCP_RTO_MIN, include/net/tcp.h
LEAST_ALIVE = 0.01  # of transfers that do not fail; more is taken as this
CPU_RATE = math.log(2)  # who costs less may be half as fast
_MOST_US = 1e12  # over any latency, so that no merit is negative


def merit(goal: Goal, one: Sample) -> float | None:
    """How good a sample is, whether its transfer ended well or not; None: it does not tell."""
    if goal == "latency":
        return math.log(_MOST_US / latency_us(one)) if one.rtt_us else None
    rate = one.rate
    return None if rate is None else math.log(max(rate, 1.0))


def latency_us(one: Sample) -> float:
    """What a small message takes there and back: a round trip, and for the share that is lost the
    time until it is sent again (RFC 6298: no sooner than the least RTO, or two round trips).
    """
    lost = one.resent / one.segments if one.segments else 0.0
    return one.rtt_us + lost * max(RTO_US, 2 * one.rtt_us)


def scores(goal: Goal, estimates: Mapping[str, Estimate], dear: frozenset[str]) -> dict[str, float]:
    """Of those that can be told: merit, less for transfers that fail. dear: who costs the host more
    processor time: user stacks. For "cpu" they are behind all others that are at least half as
    fast.
    """
    merits = {name: one.merit for name, one in estimates.items()}
    least = min((value for value in merits.values() if value is not None), default=0.0)
    found: dict[str, float] = {}
    for name, value in merits.items():
        failed = estimates[name].failed
        if value is None and not failed:
            continue
        # Whose transfers all fail has shown nothing else: it is as good as the worst at most.
        alive = math.log(max(1.0 - failed, LEAST_ALIVE))
        found[name] = (least if value is None else value) + alive
    if goal != "cpu":
        return found
    return {name: value - CPU_RATE * (name in dear) for name, value in found.items()}
