# SPDX-License-Identifier: Apache-2.0
"""What is known of the paths of adaptive routes: `dmm-ebpf paths`. docs/json.md tells of each
field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dmm_ebpf.records.record import Parts, Record

Goal = Literal["throughput", "latency", "cpu"]


@dataclass(frozen=True, slots=True)
class PathCandidate(Record):
    """A stack on a path. Shares are from 0 to 1; None: not known."""

    stack: str
    samples: float  # of late, faded
    rate_Bps: float | None  # noqa: N815 - the unit's own case
    loss: float | None
    burst: float | None
    rtt_us: float | None
    failed: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Path(Record):
    """A prefix, whom new flows to it go to, and what each candidate has shown there."""

    instance: str
    stack: str  # of the adaptive routes: "auto:GOAL:CANDIDATES"
    goal: Goal
    prefix: str
    chosen: str
    why: str
    since_s: float
    changes: int
    explores: str | None
    share: float
    candidates: list[PathCandidate]
    # What stands against a change of mind, and what is under way
    margin: float = 1.0  # how many times as good another must be
    leader: str | None = None  # who is so clearly better now,
    leads_s: float = 0.0  # and for how long
    holds_s: float = 0.0  # no change sooner than in so long
    searches_s: float = 0.0  # so long more are tried, since the path seems to have changed
    hosts: list[str] = field(default_factory=list)  # others, whose experience counts there, too

    PARTS: ClassVar[Parts] = {"candidates": PathCandidate}
