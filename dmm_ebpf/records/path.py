# SPDX-License-Identifier: Apache-2.0
"""What is known of the paths of adaptive routes: `dmm-ebpf paths`. docs/json.md tells of each
field.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    PARTS: ClassVar[Parts] = {"candidates": PathCandidate}
