# SPDX-License-Identifier: Apache-2.0
"""The flows of a stack process that has died are ended, whatever becomes of the next process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from dmm_ebpf.rd.director.phase import Phase
from dmm_ebpf.rd.director.processes import Process
from dmm_ebpf.rd.director.rundir import StackState


def test_a_stop_meanwhile_is_no_error() -> None:
    """It calls off the start of the next process, which waits for the end of these flows."""

    async def end() -> None:
        process = Process.__new__(Process)
        process.record = StackState("wan", 1, 0)
        process.phase = Phase.STOPPING
        process._attached = SimpleNamespace(maps={})  # type: ignore[assignment]
        process._orphans = None
        waited = asyncio.get_running_loop().create_future()
        waited.cancel()
        await process._end_flows(waited)

    asyncio.run(end())
