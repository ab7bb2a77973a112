# SPDX-License-Identifier: Apache-2.0
"""Faults that a user stack injects: `dmm-ebpf faults`. docs/json.md tells of each field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmm_ebpf.records.record import Record


@dataclass(frozen=True, slots=True)
class FaultRow(Record):
    """Those of one process on one leg in one direction. rules: by the name of a fault which
    packets have it; done: by that name how many had it.
    """

    stack: str
    process: int
    leg: Literal["inner", "outer"]
    direction: Literal["in", "out"]
    rules: dict[str, dict[str, int]]
    delay_us: int
    seed: int
    seen: int
    done: dict[str, int]
    no_room: int
