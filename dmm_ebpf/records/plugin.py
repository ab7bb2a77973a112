# SPDX-License-Identifier: Apache-2.0
"""Congestion controls and transports that a policy may name, and what controls did in virtual
time: `dmm-ebpf stacks --plugins` and `dmm-ebpf sim`. docs/json.md tells of each field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dmm_ebpf.records.record import Parts, Record


@dataclass(frozen=True, slots=True)
class PluginRow(Record):
    """file None: built in; class_: of Python; abi None: it cannot be loaded, and error says why."""

    name: str
    kind: str
    fits: str
    file: str | None = None
    class_: str | None = None
    abi: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Simulated(Record):
    """What one flow got, from when the first 15 % of the time were over."""

    congestion: str
    goodput_Bps: float  # noqa: N815 - the unit's own case
    share: float
    queue_ms: float
    sent_packets: int
    retransmits: int
    needless_retransmits: int
    queue_loss: float
    random_loss: float
    rtos: int
    faults: int
    fault: str


@dataclass(frozen=True, slots=True)
class Simulation(Record):
    """The path, and the flows in the order in which they were asked for."""

    rate_Bps: float  # noqa: N815 - the unit's own case
    rtt_s: float
    loss: float
    queue_bdp: float
    duration_s: float
    seed: int
    queue_bytes: int
    limit_Bps: float  # noqa: N815
    flows: list[Simulated]

    PARTS: ClassVar[Parts] = {"flows": Simulated}
