# SPDX-License-Identifier: Apache-2.0
"""Work in threads: what an error of it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

from dmm_ebpf.errors import DmmError
from dmm_ebpf.threads import in_thread


class _Large:
    """A policy of a million routes."""


def _fail() -> None:
    raise DmmError("apply the policy", why="it is full")


def test_what_callers_of_refused_work_have_is_free_at_once() -> None:
    """The collector may not come for long."""
    known: list[weakref.ref[_Large]] = []

    async def caller() -> None:
        large = _Large()
        known.append(weakref.ref(large))
        await in_thread(_fail)

    async def whole() -> None:
        with contextlib.suppress(DmmError):
            await caller()
        await asyncio.sleep(0)  # the event loop itself has it until here
        assert known[0]() is None

    gc.collect()
    gc.disable()
    try:
        asyncio.run(whole())
    finally:
        gc.enable()
