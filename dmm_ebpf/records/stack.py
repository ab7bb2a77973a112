# SPDX-License-Identifier: Apache-2.0
"""A stack and its processes: `dmm-ebpf stacks`. docs/json.md tells of each field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dmm_ebpf.records.fault import FaultRow
from dmm_ebpf.records.record import ABSENT, Maybe, Parts, Record

StackKind = Literal["kernel", "user", "reject"]


@dataclass(frozen=True, slots=True)
class PortRow(Record):
    """What carries the outer leg by a NIC, and why."""

    nic: str
    port: str
    why: str


@dataclass(frozen=True, slots=True)
class Limits(Record):
    """What keeps a process from eating the host; None: nothing does. missing: why one is."""

    cgroup: str
    memory_bytes: int | None
    processes: int | None
    missing: str


@dataclass(frozen=True, slots=True)
class Plugin(Record):
    """What went wrong with a congestion control, or a transport, that is a plug-in."""

    faults: int
    connections: int
    fault: str


@dataclass(frozen=True, slots=True)
class ProcessRow(Record):
    """A process of a user stack; of a dead director only the first three, and device."""

    process: int
    state: Maybe[str] = ABSENT
    reason: Maybe[str] = ABSENT
    pid: int | None = None
    restarts: Maybe[int] = ABSENT
    device: str | None = None
    limits: Maybe[Limits | None] = ABSENT
    full: Maybe[list[str]] = ABSENT
    connections: Maybe[int | None] = ABSENT
    in_use: Maybe[int | None] = ABSENT
    max_connections: Maybe[int | None] = ABSENT
    memory_bytes: Maybe[int | None] = ABSENT
    memory_limit_bytes: Maybe[int | None] = ABSENT

    PARTS: ClassVar[Parts] = {"limits": Limits}


@dataclass(frozen=True, slots=True)
class StackRow(Record):
    """What is not of a stack's kind, or not known, is ABSENT."""

    instance: str
    name: str
    id: int
    kind: StackKind
    state: str
    flows: Maybe[int] = ABSENT
    reason: Maybe[str] = ABSENT
    pid: Maybe[int | None] = ABSENT
    restarts: Maybe[int] = ABSENT
    device: Maybe[str | None] = ABSENT
    nics: Maybe[list[str]] = ABSENT
    port: Maybe[str | None] = ABSENT
    ports: Maybe[list[PortRow]] = ABSENT
    xdp: Maybe[dict[str, str]] = ABSENT
    processes: Maybe[list[ProcessRow]] = ABSENT
    full: Maybe[list[str]] = ABSENT
    counters: Maybe[dict[str, int]] = ABSENT
    in_use: Maybe[int | None] = ABSENT
    max_connections: Maybe[int | None] = ABSENT
    memory_bytes: Maybe[int | None] = ABSENT
    memory_limit_bytes: Maybe[int | None] = ABSENT
    plugin: Maybe[Plugin] = ABSENT
    transport_plugin: Maybe[Plugin] = ABSENT
    faults: Maybe[list[FaultRow]] = ABSENT
    options: Maybe[dict[str, Any]] = ABSENT
    transport: Maybe[str] = ABSENT
    congestion: Maybe[str] = ABSENT
    io: Maybe[str] = ABSENT
    fallback: Maybe[str] = ABSENT

    PARTS: ClassVar[Parts] = {
        "ports": PortRow,
        "processes": ProcessRow,
        "plugin": Plugin,
        "transport_plugin": Plugin,
        "faults": FaultRow,
    }
