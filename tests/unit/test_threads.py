# SPDX-License-Identifier: Apache-2.0
"""Work in threads: what an error of it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

from dmm_ebpf.errors import DmmError
from dmm_ebpf.threads import in_thread

WITHIN_S = 20.0


class _Large:
    """A policy of a million routes."""


def _fail() -> None:
    raise DmmError("apply the policy", why="it is full")


def test_what_callers_of_refused_work_have_is_free_at_once() -> None:
    """The collector may not come for long."""
    gone = asyncio.Event()

    async def caller() -> None:
        large = _Large()
        weakref.finalize(large, gone.set)
        await in_thread(_fail)

    async def whole() -> None:
        with contextlib.suppress(DmmError):
            await caller()
        await asyncio.wait_for(gone.wait(), WITHIN_S)  # the event loop itself has it for a while

    gc.collect()
    gc.disable()
    try:
        asyncio.run(whole())
    finally:
        gc.enable()
