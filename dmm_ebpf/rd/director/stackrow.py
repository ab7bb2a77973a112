# SPDX-License-Identifier: Apache-2.0
"""A user stack as `dmm-ebpf stacks` lists it."""

from __future__ import annotations

from typing import Any

from dmm_ebpf.rd.director import load, ports
from dmm_ebpf.rd.director.load import Loads
from dmm_ebpf.rd.director.nics import xdp_mode
from dmm_ebpf.rd.director.onestack import Stack
from dmm_ebpf.rd.director.phase import OFF
from dmm_ebpf.rd.director.ports import AF_XDP
from dmm_ebpf.rd.director.processes import Process


def row(s: Stack | None, loads: Loads) -> dict[str, Any]:
    """State of a user stack; one that nobody routes to (None) is "off". pid and device are those of
    its first process.
    loads: stack_load[].
    """
    if s is None or not s.processes:
        return {
            "state": OFF,
            "reason": "no route leads to it",
            "pid": None,
            "restarts": 0,
            "nics": [],
            "port": None,
            "ports": [],
        }
    rows = [p.describe() | {"full": _full(s, p, loads)} for p in s.processes]
    ports_now = s.ports.rows(s.nics)
    return {
        "state": s.status,
        "reason": s.reason,
        "pid": rows[0]["pid"],
        "restarts": sum(p.restarts for p in s.processes),
        "device": rows[0]["device"],
        "nics": [n.name for n in s.nics],
        "port": ports.shown(ports_now),
        "ports": ports_now,
        "xdp": _xdp(s),
        "processes": rows,
        "full": why_full(s, loads),
    }


def why_full(s: Stack, loads: Loads) -> list[str]:
    """What all its processes that take new flows are full of; empty: one has room."""
    return load.together(_full(s, p, loads) for p in s.processes if p.is_up and not p.retiring)


def _full(s: Stack, p: Process, loads: Loads) -> list[str]:
    return load.reasons(loads, s.stack_id, p.number) if p.pid else []


def _xdp(s: Stack) -> dict[str, str]:
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
