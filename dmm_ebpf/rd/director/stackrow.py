# SPDX-License-Identifier: Apache-2.0
"""A stack as `dmm-ebpf stacks` lists it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmm_ebpf import records
from dmm_ebpf.kit import names
from dmm_ebpf.rd.director import load, ports
from dmm_ebpf.rd.director.load import Loads
from dmm_ebpf.rd.director.nics import xdp_mode
from dmm_ebpf.rd.director.onestack import Stack as Present
from dmm_ebpf.rd.director.phase import OFF, Phase
from dmm_ebpf.rd.director.ports import AF_XDP
from dmm_ebpf.rd.director.processes import Process
from dmm_ebpf.rd.policy.model import KERNEL, Stack
from dmm_ebpf.records.record import ABSENT


@dataclass(frozen=True)
class Asked:
    """What one listing has asked. loads: stack_load[]; stats: of query_all("stats"); dropped: of
    stackdevice.dropped(); injected: of faults.rows().
    """

    loads: Loads
    stats: Mapping[tuple[str, int], Mapping[str, Any]]
    dropped: Mapping[str, int]
    injected: Sequence[records.fault.FaultRow]


@dataclass(frozen=True)
class Named:
    """Which stack; config: as the policy has it, None: it is the kernel's own, or draining."""

    instance: str
    name: str
    stack_id: int
    config: Stack | None


def row(named: Named, flows: int, present: Present | None, asked: Asked) -> records.stack.StackRow:
    """A stack's line. flows: how many it has; present: of a user stack that is there."""
    config = named.config
    own_kind: records.stack.StackKind = "kernel" if named.name == KERNEL else "user"
    kind = config.kind if config else own_kind
    if kind != "user":
        known: dict[str, Any] = {"state": Phase.UP}
    elif present is None or not present.processes:
        known = {"state": OFF} | _off() | _counted(named.name, [], asked)
    else:
        known = _user(present, asked)
    if config is not None:
        options = config.options()
        known["options"] = options
        known |= {key: options[key] for key in _OPTIONS if key in options}
    return records.stack.StackRow(
        named.instance, named.name, named.stack_id, kind, known.pop("state"), flows, **known
    )


_OPTIONS = ("transport", "congestion", "io", "fallback")  # that have a column of their own


def _off() -> dict[str, Any]:
    """Of a user stack that nobody routes to."""
    return {
        "reason": "no route leads to it",
        "pid": None,
        "restarts": 0,
        "nics": [],
        "port": None,
        "ports": [],
    }


def _user(s: Present, asked: Asked) -> dict[str, Any]:
    """Of a user stack that is there; pid and device are those of its first process."""
    processes = [
        p.describe(_full(s, p, asked.loads), asked.stats.get((s.name, p.number)))
        for p in s.processes
    ]
    ports_now = s.ports.rows(s.nics)
    return {
        "state": s.status,
        "reason": s.reason,
        "pid": processes[0].pid,
        "restarts": sum(p.restarts for p in s.processes),
        "device": processes[0].device,
        "nics": [n.name for n in s.nics],
        "port": ports.shown(ports_now),
        "ports": ports_now,
        "xdp": _xdp(s),
        "processes": processes,
        "full": why_full(s, asked.loads),
        **_counted(s.name, [p.record.device for p in s.processes], asked),
    }


def _counted(name: str, devices: list[str], asked: Asked) -> dict[str, Any]:
    """The figures of a user stack."""
    counters = load.core_counters(asked.stats, name)
    counters |= load.device_counters(asked.dropped, devices)
    plugin, transport = (load.plugin(asked.stats, name, fits) for fits in names.SEAMS)
    return {
        "counters": counters,
        **load.figures(asked.stats, name),
        "plugin": ABSENT if plugin is None else plugin,
        "transport_plugin": ABSENT if transport is None else transport,
        "faults": [one for one in asked.injected if one.stack == name],
    }


def why_full(s: Present, loads: Loads) -> list[str]:
    """What all its processes that take new flows are full of; empty: one has room."""
    return load.together(_full(s, p, loads) for p in s.processes if p.is_up and not p.retiring)


def _full(s: Present, p: Process, loads: Loads) -> list[str]:
    return load.reasons(loads, s.stack_id, p.number) if p.pid else []


def _xdp(s: Present) -> dict[str, str]:
    """How AF_XDP works on each NIC that has it, in words; "metadata": checksums are left to
    what takes the frames.
    """
    zerocopy, sums = (s.first.zerocopy, s.first.sums) if s.first else ({}, {})
    return {
        n.name: f"{xdp_mode(n)}, {'zero-copy' if zerocopy.get(n.slot) else 'copy'}"
        f"{', metadata' if sums.get(n.slot) else ''}"
        for n in s.nics
        if s.ports.of(n).port == AF_XDP
    }
