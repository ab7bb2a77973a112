# SPDX-License-Identifier: Apache-2.0
"""Whether a process that owes an answer stands still: what /proc says of it, looked at again and
again while nothing comes.

One that is busy uses processor time, and one that waits for the kernel is in it; a Resource
Director looks after its host every second besides. One that is stopped (SIGSTOP), frozen (cgroup
v2's freezer) or hangs in a lock does none of these.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.5  # between two looks
STILL_S = 2.0  # without a sign of life
_STOPPED = "Tt"  # by a signal, or by a tracer
_STILL = "STt"


@dataclass(frozen=True)
class Life:
    """Of a process (proc(5)): its state, the processor time of all its threads in clock
    ticks, and how often its first thread has given the processor up.
    """

    state: str
    ticks: int
    switches: int


def life(pid: int) -> Life | None:
    """None: there is no such process, or not for who asks."""
    if pid <= 0:
        return None
    proc = Path(f"/proc/{pid}")
    try:
        text = (proc / "stat").read_text(encoding="utf-8", errors="replace")
        lines = (proc / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    switches = sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches:" in line)
    return Life(fields[0], int(fields[11]) + int(fields[12]), switches)


class Watch:
    """Over one process, while it owes one answer."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._last: Life | None = None
        self._since = 0.0

    @property
    def stopped(self) -> bool:
        """At the last look."""
        return self._last is not None and self._last.state in _STOPPED

    def stands_still(self) -> bool:
        """Look. True: it has shown no sign of life for STILL_S."""
        now = life(self.pid)
        if now is None or now != self._last or now.state not in _STILL:
            self._last, self._since = now, time.monotonic()
            return False
        return time.monotonic() - self._since >= STILL_S
