# SPDX-License-Identifier: Apache-2.0
"""The calling thread before others on the processor, sched(7): for what has to come before somebody
else's next step.

What it starts, threads and processes, has none of this (SCHED_RESET_ON_FORK). Where the kernel
refuses, or a limit of the service manager's does, nothing changes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_NICE = -10
_RR_PRIORITY = 1


def prefer() -> None:
    """From now on the calling thread is soon on a processor when it has something to do."""
    with contextlib.suppress(OSError):
        _set(os.SCHED_OTHER, 0)
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """For the body, which has to be short, nothing but real-time work of others comes before
    the calling thread.
    """
    before = os.sched_getscheduler(0)
    if before & ~os.SCHED_RESET_ON_FORK in {os.SCHED_FIFO, os.SCHED_RR}:
        yield
        return
    with contextlib.suppress(OSError):
        _set(os.SCHED_RR, _RR_PRIORITY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, before, os.sched_param(0))


def _set(policy: int, priority: int) -> None:
    os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
