# SPDX-License-Identifier: Apache-2.0
"""A process named by pid and start time, so that a recycled pid is never taken for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

# Of 1879048192 to 2147483647, which are unused (systemd's UIDS-GIDS); pids need
# 22 bits (PID_MAX_LIMIT).
UID_BASE = 0x7DC00000
_KILL_WAIT_MS = 2000
_RECORD_BYTES = 48


def uid_of(pid: int) -> int:
    """The user that the stack process pid becomes."""
    return UID_BASE + pid


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc(5)), in clock ticks since boot; 0 when there is
    no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def open_process(pid: int, started: int) -> int | None:
    """A pidfd of the process, or None when it is gone or its pid belongs to another one now."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    # Compared after the descriptor is open: whatever the pid means later, the descriptor
    # means this process.
    if started and start_time(pid) == started:
        return fd
    os.close(fd)
    return None


def kill_process(pid: int, started: int, number: int = signal.SIGKILL) -> bool:
    """Signals that very process and waits up to 2 s for its end. False when it was gone already."""
    fd = open_process(pid, started)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll(_KILL_WAIT_MS)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def write(path: Path, pid: int, started: int) -> None:
    """Records a process, by one write(2) over the last one of the same length: a full disk keeps no
    process from being started again.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, f"{pid} {started}".ljust(_RECORD_BYTES - 1).encode() + b"\n", 0)
    finally:
        os.close(fd)


def read(path: Path) -> tuple[int, int] | None:
    """pid and start time, or None when the file is not there or not ours."""
    with contextlib.suppress(OSError, ValueError):
        pid, started = path.read_text(encoding="ascii").split()
        return int(pid), int(started)
    return None
