# SPDX-License-Identifier: Apache-2.0
"""Work in threads that an event loop waits for, whatever comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """asyncio.to_thread(), but a cancellation is passed on only when the thread has ended: nothing
    then goes on making what is being undone.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # it is the cancellation that is told
        raise
    finally:
        # An error that it ended with has this frame, and through it all that callers have: a policy
        # of a million routes that was refused would wait for the garbage collector.
        del running
