# SPDX-License-Identifier: Apache-2.0
"""An instance and the fleet's policy in etcd: `dmm-ebpf status`, and `controller`. docs/json.md
tells of each field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dmm_ebpf.records.record import Parts, Record

CentralState = Literal["waiting", "applied", "refused", "held", "overridden"]
RolloutState = Literal["none", "rolling", "halted", "everywhere"]


@dataclass(frozen=True, slots=True)
class Central(Record):
    """push: what is in force here, 0: none; wanted: what etcd has for this host; newest: the
    highest that etcd was seen to tell of. routes: single ones in what is in force. lost: why etcd
    cannot be reached. unpublished: why this host is not listed there. unkept: why a boot would
    begin with an older policy. since: of state, Unix time.
    """

    place: str
    host: str
    labels: dict[str, str]
    since: float
    state: CentralState = "waiting"
    push: int = 0
    wanted: int = 0
    newest: int = 0
    routes: int = 0
    why: str = ""
    reached: bool = True
    lost: str = ""
    unpublished: str = ""
    unkept: str = ""


@dataclass(frozen=True, slots=True)
class HostRow(Record):
    """An instance as etcd lists it. state: as Central has it, "twice" of one whose name another
    has, or "unreadable". seen: the revision of what it said last.
    """

    host: str
    instance: str
    state: str
    push: int
    wanted: int
    newest: int
    routes: int
    why: str
    since: float
    labels: dict[str, str]
    version: str
    kernel: str
    stacks: list[dict[str, Any]]
    listeners: list[dict[str, Any]]
    revision: int


@dataclass(frozen=True, slots=True)
class RolloutRow(Record):
    """Which push is for whom. at: Unix time."""

    place: str
    state: RolloutState
    push: int
    stable: int
    steps: list[str]
    reached: int
    why: str
    by: str
    at: float
    note: str
    of: int
    routes: int


@dataclass(frozen=True, slots=True)
class Rolled(Record):
    """What has come of a push or a rollback. done: whether every host that was asked took it.
    silent: hosts whose paths were watched, and had too little traffic to be compared.
    """

    push: int
    state: RolloutState
    why: str
    done: bool
    hosts: list[HostRow]
    silent: list[str]

    PARTS: ClassVar[Parts] = {"hosts": HostRow}
