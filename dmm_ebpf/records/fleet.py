# SPDX-License-Identifier: Apache-2.0
"""A fleet as `dmm-ebpf controller hosts`, `diff` and `watch` tell of it. docs/json.md tells of each
field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dmm_ebpf.records.central import HostRow, RolloutRow, RolloutState
from dmm_ebpf.records.policy import Change
from dmm_ebpf.records.record import ABSENT, Maybe, Parts, Record


@dataclass(frozen=True, slots=True)
class FleetListed(Record):
    """Which push is for whom, and the instances that are listed."""

    rollout: RolloutRow
    hosts: list[HostRow]

    PARTS: ClassVar[Parts] = {"rollout": RolloutRow, "hosts": HostRow}


@dataclass(frozen=True, slots=True)
class FleetCompared(Record):
    """In what a policy differs from that of a push; 0: from none."""

    push: int
    equal: bool
    changes: list[Change]

    PARTS: ClassVar[Parts] = {"changes": Change}


@dataclass(frozen=True, slots=True)
class FleetEvent(Record):
    """What has changed in a fleet: a host says something, the rollout's state, or another key of
    etcd's is put or gone. time: Unix time.
    """

    type: Literal["host", "rollout", "put", "gone"]
    time: float
    host: Maybe[HostRow] = ABSENT
    state: Maybe[RolloutState] = ABSENT
    push: Maybe[int] = ABSENT
    why: Maybe[str] = ABSENT
    key: Maybe[str] = ABSENT

    PARTS: ClassVar[Parts] = {"host": HostRow}
