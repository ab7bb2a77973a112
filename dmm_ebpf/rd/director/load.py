# SPDX-License-Identifier: Apache-2.0
"""How full the processes of user stacks are: why one takes no new flow (stack_load[]), and
of how much;
and what they have counted.

Reads only. Who writes it, and at what levels, is in userstack/load.h.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dmm_ebpf import abi, records
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.loader.table import Table
from dmm_ebpf.userstack.answers import plugin_keys

REASONS = {
    C.DMM_FULL_CONNECTIONS: "connections",
    C.DMM_FULL_MEMORY: "memory",
    C.DMM_FULL_FRAMES: "frames",
    C.DMM_FULL_REFUSED: "refused",
}
FIGURES = ("in_use", "max_connections", "memory_bytes", "memory_limit_bytes")


Loads = Table[int, Struct]  # the table stack_load


def _key(stack_id: int, process: int) -> int:
    return int(stack_id * C.DMM_MAX_PROCESSES + process)


def begin(stack_load: Loads, stack_id: int, process: int) -> None:
    """A process has just come up: it is not full, and is to be heard of from now on."""
    stack_load[_key(stack_id, process)] = abi.new("dmm_stack_load", beat_ns=time.monotonic_ns())


def hung(stack_load: Loads, stack_id: int, process: int) -> bool:
    """Whether a process was not heard of for so long that the hooks give it no new flow."""
    beat_ns = stack_load[_key(stack_id, process)].beat_ns
    return bool(beat_ns) and time.monotonic_ns() - beat_ns > C.DMM_BEAT_MAX_NS


def reasons(stack_load: Loads, stack_id: int, process: int) -> list[str]:
    """Why a process is full: names of enum dmm_full; empty while it takes new flows."""
    full = stack_load[_key(stack_id, process)].full
    return [name for bit, name in REASONS.items() if full & bit]


def together(full: Iterable[list[str]]) -> list[str]:
    """Why a stack is full whose processes are full for these reasons; it is not while
    any has none.
    """
    each = list(full)
    return (
        list(dict.fromkeys(name for names in each for name in names)) if each and all(each) else []
    )


Stats = Mapping[tuple[str, int], Mapping[str, Any]]  # of query_all("stats")


def figures(stats: Stats, name: str) -> dict[str, int | None]:
    """What is in use of a stack, and how much there is, over the processes that answered;
    None: none did.
    """
    said = _said(stats, name)
    return {key: sum(int(one[key]) for one in said) if said else None for key in FIGURES}


def plugin(stats: Stats, name: str, fits: str = "congestion") -> records.stack.Plugin | None:
    """What went wrong with a stack's congestion control, or its transport, where that is a
    plug-in.
    """
    faults, connections, fault = plugin_keys(fits)
    said = [one for one in _said(stats, name) if faults in one]
    if not said:
        return None
    return records.stack.Plugin(
        faults=sum(one[faults] for one in said),
        connections=sum(one[connections] for one in said),
        fault=next((one[fault] for one in said if one[fault]), ""),
    )


def _said(stats: Stats, name: str) -> list[Mapping[str, Any]]:
    return [one for (stack, _), one in stats.items() if stack == name]


def process_figures(stats: Mapping[str, Any] | None) -> dict[str, int | None]:
    """The same of one process, with all its connections."""
    return {key: int(stats[key]) if stats else None for key in ("connections", *FIGURES)}


def core_counters(stats: Stats, name: str) -> dict[str, int]:
    """What the processes of a user stack have counted together since each began: enum
    dmm_core_counter by name.
    """
    totals: Counter[str] = Counter()
    for one in _said(stats, name):
        totals.update(
            {k.removeprefix("core_"): int(v) for k, v in one.items() if k.startswith("core_")}
        )
    return dict(totals)


def device_counters(dropped: Mapping[str, int], devices: Iterable[str]) -> dict[str, int]:
    """What the kernel has dropped at the TAP devices of a stack's processes.
    dropped: of stackdevice.dropped().
    """
    return {"tap_queue_dropped": sum(dropped.get(device, 0) for device in devices)}
