# SPDX-License-Identifier: Apache-2.0
"""Threads made ahead, for a process that soon may make none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue


class Workers:
    """So many threads, each of which does one job at a time, and then waits for the next."""

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = count
        self._lock = threading.Lock()
        for _ in range(count):
            threading.Thread(target=self._work, name="dmm-plugin", daemon=True).start()

    def run(self, job: Callable[[], None]) -> bool:
        """Has a thread do job; False: all are at work, or hang in it."""
        with self._lock:
            if not self._idle:
                return False
            self._idle -= 1
        self._jobs.put(job)
        return True

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            with contextlib.suppress(BaseException):  # it is for whoever gave the job to tell
                job()
            with self._lock:
                self._idle += 1
