# SPDX-License-Identifier: Apache-2.0
"""What an instance has on the host, found without its state.json: by command lines, descriptors,
maps and numbers.

state.json is asked first, always; this is for when it, or the whole run directory, was
lost. Reads only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.hal.nic import OWN_PREFIX
from dmm_ebpf.loader import Maps
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.userstack import pidfile


@dataclass(frozen=True)
class FoundProcess:
    """A process and, for a stack process, the name and the number that it goes by."""

    pid: int
    start_time: int
    label: str = ""
    k: int | None = None


def stack_processes(instance: str) -> list[FoundProcess]:
    """The stack processes of an instance, by their command lines (see StackSupervisor)."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            # A stack's command may be any; what follows it is the same for all.
            _fd, owner, label, device = argv[-5:-1]
            if owner != instance or not device.startswith(OWN_PREFIX):
                continue
            k, started = int(device.removeprefix(OWN_PREFIX)), pidfile.start_time(pid)
            if started and Path(f"/proc/{pid}").stat().st_uid in {0, pidfile.uid_of(pid)}:
                found.append(FoundProcess(pid, started, label, k))
    return found


def homeless_directors(run_dir: RunDir) -> list[FoundProcess]:
    """Processes that hold the lock of a run directory of this name that was removed under them."""
    gone = f"{run_dir.path / 'lock'} (deleted)"
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) == gone for fd in _descriptors(pid)):  # noqa: PTH115 - ends in " (deleted)"
                found.append(FoundProcess(pid, pidfile.start_time(pid)))
    return found


def numbers_in(maps: Maps) -> set[int]:
    """The numbers of the processes that an instance's hooks lead to."""
    if "seats" not in maps:
        return set()
    return {seat.seat - 1 for seat in maps.seats.views()}


def namespace(processes: list[FoundProcess], maps: Maps) -> NetNS | None:
    """The network namespace of an instance: that of its stack processes, or the one its
    hooks were told.
    """
    for process in processes:
        with contextlib.suppress(DmmError):
            return NetNS.from_arg(process.pid)
    if "control" not in maps:
        return None
    return NetNS.find_cookie(maps.control[0].netns_cookie)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _descriptors(pid: int) -> Iterator[Path]:
    return Path(f"/proc/{pid}/fd").iterdir()
