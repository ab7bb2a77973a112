# SPDX-License-Identifier: Apache-2.0
"""Faults that processes of user stacks are told to inject, for tests of what runs over them: set
and listed here, done by userstack/faults.c.

They are nowhere but in the process: one that is started again has none. A Resource Director that
takes over asks the processes, and so knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmm_ebpf import records
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.director.stacks import StackManager

_PLAN = ("leg", "direction", "rules", "delay_us", "seed")


async def inject(stacks: StackManager, params: Mapping[str, Any]) -> list[records.fault.FaultRow]:
    """Gives each process of params["stacks"] (names; empty: of all) params["plans"], one after the
    other, and returns what rows() does of them. Raises UsageError for a stack that is not there,
    and what a process refuses.
    """
    names, plans = params.get("stacks", []), params.get("plans", [])
    if not _are(names, str) or not _are(plans, dict) or any(set(p) - {*_PLAN} for p in plans):
        raise UsageError("inject faults", why="the request is none")
    for name in names:
        if name not in stacks.names():
            known = ", ".join(stacks.names()) or "none that runs"
            raise UsageError(f"inject faults into stack {name}", why=f"the instance has {known}")
    for plan in plans:
        await stacks.query_all("faults", only=names, strict=True, **plan)
    return await rows(stacks, names)


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


async def rows(stacks: StackManager, names: list[str]) -> list[records.fault.FaultRow]:
    """What is injected, one row for each process, leg and direction."""
    told = await stacks.query_all("faults", only=names)
    return [
        records.fault.FaultRow(stack, process, **row)
        for (stack, process), answer in told.items()
        for row in answer
    ]
