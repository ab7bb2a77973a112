# SPDX-License-Identifier: Apache-2.0
"""Figures of hosts' paths: what hosts count while a roll-out is watched, and what is worse than
before. Pure.

Hosts count from the moment they are asked; all figures are sums, so what a stretch of time has is
the difference of its ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from dmm_ebpf.central import layout

MB = 1e6
# Fewer than these tell nothing.
LEAST_BYTES = 100_000
LEAST_OPENS = 20
LEAST_TRIPS = 3
# Worse is so many times as much as before, and so much more: figures differ from minute to minute.
TIMES = 2.0
MORE_RETRANSMITS = 7.0  # for each MB, which is about 1 % of its segments
MORE_FAILED = 0.02  # of the connections that were tried
RTT_TIMES = 1.5
MORE_RTT_US = 5_000.0


@dataclass(frozen=True)
class Watch:
    """What hosts are asked: those that one of steps selects report each every_s seconds."""

    steps: list[str]
    every_s: float
    format: int = layout.FORMAT

    @classmethod
    def read(cls, key: str, value: bytes) -> Self:
        """Raises LayoutError."""
        said = layout.read_report(key, value)
        steps, every_s = said.get("steps"), said.get("every_s")
        if not isinstance(steps, list) or not all(isinstance(one, str) for one in steps):
            raise layout.refused(key, "its steps are of no known form")
        if not isinstance(every_s, int | float) or not 0.1 <= every_s <= 60:
            raise layout.refused(key, "its every_s is out of bounds")
        return cls(steps, float(every_s))


@dataclass(frozen=True)
class Figures:
    """Sums since the host was asked. reports: how often it has looked. sent_bytes, retransmits: of
    the flows that were open then, by whichever stack. trips, trip_us: round trips of them that were
    looked at, and their sum. opens, failed: connect() calls in the network namespace.
    """

    reports: int = 0
    sent_bytes: int = 0
    retransmits: int = 0
    trips: int = 0
    trip_us: int = 0
    opens: int = 0
    failed: int = 0

    def write(self) -> bytes:
        """As a value in etcd."""
        return json.dumps({"format": layout.FORMAT, **asdict(self)}).encode()

    @classmethod
    def read(cls, key: str, value: bytes) -> Self:
        """Raises LayoutError."""
        said = layout.read_report(key, value)
        return cls(**{name: _count(key, name, said) for name in cls.__dataclass_fields__})

    def since(self, before: Figures) -> Figures:
        """What has come since then; a host that began anew has counted from 0."""
        if self.reports < before.reports:
            return self
        now, then = asdict(self), asdict(before)
        return Figures(**{name: max(0, now[name] - then[name]) for name in now})


def _count(key: str, name: str, said: Mapping[str, Any]) -> int:
    value = said.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise layout.refused(key, f"its {name} is no count")
    return value


def worse(before: Figures, after: Figures) -> list[str]:
    """In what after is worse, in words; of what either has too little to tell nothing is said."""
    found = []
    if min(before.sent_bytes, after.sent_bytes) >= LEAST_BYTES:
        was, now = (one.retransmits / (one.sent_bytes / MB) for one in (before, after))
        if now >= TIMES * was and now - was >= MORE_RETRANSMITS:
            found.append(f"{now:.1f} segments are sent again for each MB, {was:.1f} before")
    if min(before.opens, after.opens) >= LEAST_OPENS:
        was, now = (one.failed / one.opens for one in (before, after))
        if now >= TIMES * was and now - was >= MORE_FAILED:
            found.append(f"{now:.1%} of connect() calls fail, {was:.1%} before")
    if min(before.trips, after.trips) >= LEAST_TRIPS:
        was, now = (one.trip_us / one.trips for one in (before, after))
        if now >= RTT_TIMES * was and now - was >= MORE_RTT_US:
            found.append(f"a round trip takes {now / 1000:.1f} ms, {was / 1000:.1f} before")
    return found


def tells(before: Figures, after: Figures) -> bool:
    """Whether there is enough of anything to compare."""
    least = (("sent_bytes", LEAST_BYTES), ("opens", LEAST_OPENS), ("trips", LEAST_TRIPS))
    return any(min(getattr(before, name), getattr(after, name)) >= enough for name, enough in least)
