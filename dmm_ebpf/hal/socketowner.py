# SPDX-License-Identifier: Apache-2.0
"""Which process has a socket, as /proc tells it: proc(5), /proc/PID/fd."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.hal import procstatus

_PROC = Path("/proc")
_START_FIELD = 22  # of /proc/PID/stat, counted from 1
_AFTER_NAME = 3  # the first field behind the name, which may have blanks and parentheses


@dataclass(frozen=True)
class Owner:
    """A process: its id, its name as /proc/PID/comm has it, at most 15 bytes, and its own group."""

    pid: int
    comm: bytes
    gid: int


def owners(inodes: Collection[int]) -> dict[int, Owner]:
    """By the socket's inode number, the process that has it; of several the one that was started
    first, which is who made it where it was inherited. A socket that no process has is left out:
    the kernel's own, or one that is under way between processes.
    """
    first: dict[int, tuple[int, Owner]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for process in _PROC.iterdir() if wanted else ():
        if not process.name.isdecimal():
            continue
        with suppress(OSError, ValueError):  # it has ended
            held = _held(process, wanted)
            if not held:
                continue
            started = _started(process)
            comm = (process / "comm").read_bytes().rstrip(b"\n")
            gid = procstatus.real_gid((process / "status").read_bytes())
            owner = Owner(int(process.name), comm, gid or 0)
            for inode in held:
                if inode not in first or started < first[inode][0]:
                    first[inode] = (started, owner)
    return {inode: owner for inode, (_, owner) in first.items()}


def _held(process: Path, wanted: dict[str, int]) -> set[int]:
    found = set()
    for descriptor in os.scandir(process / "fd"):
        with suppress(OSError):  # closed meanwhile
            inode = wanted.get(os.readlink(descriptor.path))  # noqa: PTH115 - a Path for each would be dear
            if inode is not None:
                found.add(inode)
    return found


def _started(process: Path) -> int:
    """In ticks since the host was started."""
    behind = (process / "stat").read_bytes().rpartition(b")")[2].split()
    return int(behind[_START_FIELD - _AFTER_NAME])
