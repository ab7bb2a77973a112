# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition up to a deadline; nothing here ever sleeps blindly past what
it waits for.

On a machine that is known to be slow, DMM_LAB_PATIENCE makes every deadline of the laboratory so
many times as long.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.005
PATIENCE = float(os.environ.get("DMM_LAB_PATIENCE", "1"))


def patient(seconds: float) -> float:
    """A deadline, in seconds, as this machine needs it."""
    return seconds * PATIENCE


def wait_for(predicate: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """The first true value that predicate() gives within timeout seconds; else TimeoutError
    saying what was awaited.
    """
    timeout = patient(timeout)
    deadline = time.monotonic() + timeout
    never = threading.Event()
    while True:
        value = predicate()
        if value:
            return value
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"waited {timeout:g} s for {what or predicate}")
        never.wait(min(POLL_S, left))


def stop(pid: int) -> None:
    """SIGSTOP, until it holds for every thread: one goes on running until the thread that the
    signal was given to has its turn, which on a busy machine comes late.
    """
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")

    def stands() -> bool:
        states = [(one / "stat").read_text().rpartition(") ")[2][0] for one in tasks.iterdir()]
        return all(state == "T" for state in states)

    wait_for(stands, 10, f"process {pid} to stop")


def wait_readable(fd: int, timeout: float) -> bool:
    """Whether fd became readable (for a pidfd: its process ended) within timeout seconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0, patient(timeout)) * 1000))


def wait_pid_gone(pid: int, timeout: float) -> bool:
    """Whether the process, a child or not, ended within timeout seconds."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return wait_readable(fd, timeout)
    finally:
        os.close(fd)
