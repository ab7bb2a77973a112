# SPDX-License-Identifier: Apache-2.0
"""A cgroup v2 group for one process, with a limit on its memory and on its processes.

A group stands at ROOT_NAME/<instance>/<process> below the root of the hierarchy, outside of every
group that an instance is attached to, unless that is the root. What limits there are is the host's
choice: a controller that its root does not hand down (cgroup.subtree_control) is not switched on
here, since that changes every group of the host. Empty groups are removed with their process, the
parents with the last of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf import listing

ROOT_NAME = "dmm-ebpf"
_CONTROLLERS = ("memory", "pids")
_TRIES = 8


@dataclass(frozen=True)
class Limits:
    """What a group may have: bytes of memory, number of processes and threads."""

    memory_bytes: int
    processes: int


@dataclass(frozen=True)
class Granted:
    """What it got; None: there is no such limit, and missing says why."""

    memory_bytes: int | None
    processes: int | None
    missing: str = ""


@dataclass(frozen=True)
class Kills:
    """Of memory.events (cgroup-v2.rst): processes of a group that the kernel's OOM killer has ended
    for whichever reason, and how often the group was out of what it may have.
    """

    killed: int = 0
    at_limit: int = 0


def _hand_down(directory: Path) -> set[str]:
    """Gives the controllers of a group to those below it; those that there are."""
    there = set((directory / "cgroup.controllers").read_text(encoding="ascii").split())
    wanted = [name for name in _CONTROLLERS if name in there]
    if wanted:
        text = " ".join(f"+{name}" for name in wanted)
        (directory / "cgroup.subtree_control").write_text(text, encoding="ascii")
    return set(wanted)


def _make(path: Path) -> set[str]:
    """The group and its parents; the controllers that it has. A parent may go while it is
    empty, so more than once.
    """
    parents = (path.parent.parent, path.parent)
    for attempt in range(_TRIES):
        try:
            for parent in parents:
                parent.mkdir(exist_ok=True)
            path.mkdir(exist_ok=True)
            _hand_down(parents[0])
            return _hand_down(parents[1])
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
    return set()


def path_of(hierarchy: Path, instance: str, process: str) -> Path:
    """Where the group of a process stands; hierarchy is the root of cgroup v2."""
    return hierarchy / ROOT_NAME / instance / process


def make(path: Path, limits: Limits) -> None:
    """Makes the group, or takes an empty one that is there, and sets the limits that it can
    have. Raises OSError.
    """
    has = _make(path)
    for name, value in (("memory", limits.memory_bytes), ("pids", limits.processes)):
        if name in has:
            (path / f"{name}.max").write_text(str(value), encoding="ascii")


def _limit(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # "max" is none
        return int(path.read_text(encoding="ascii"))
    return None


def granted(path: Path) -> Granted:
    """The limits that a group has."""
    found = {name: _limit(path / f"{name}.max") for name in _CONTROLLERS}
    lacking = [name for name, value in found.items() if value is None]
    missing = f"cgroup {path} has no limit of {' and '.join(lacking)}" if lacking else ""
    return Granted(found["memory"], found["pids"], missing)


def kills(path: Path) -> Kills:
    """How many of a group's processes the kernel has killed for want of memory; without the memory
    controller, none that it tells of.
    """
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (path / "memory.events").read_text(encoding="ascii").splitlines():
            name, count = line.split()
            found[name] = int(count)
    return Kills(found.get("oom_kill", 0), found.get("oom", 0))


def want_of_memory(path: Path, before: Kills) -> str:
    """What memory a process of the group was killed for since kills() said before; empty: none."""
    now = kills(path)
    if now.killed <= before.killed:
        return ""
    if now.at_limit <= before.at_limit:
        return "the host was out of memory"
    limit = _limit(path / "memory.max")
    return (
        f"out of the {limit >> 20} MiB of its cgroup" if limit else "its cgroup was out of memory"
    )


def take(path: Path, pid: int) -> None:
    """Puts a process into the group. Raises OSError."""
    (path / "cgroup.procs").write_text(str(pid), encoding="ascii")


def remove(path: Path) -> bool:
    """Removes the group of a process that is gone, and its parents when they are empty. False:
    it is not empty.
    """
    gone = True
    for directory in (path, path.parent, path.parent.parent):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            gone = directory != path
            break
    return gone


def remove_all(hierarchy: Path, instance: str) -> None:
    """Removes the groups of all processes of an instance, which are gone. Raises OSError."""
    top = hierarchy / ROOT_NAME / instance
    for path in listing.folders(top):
        if not remove(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
    remove(top / "none")  # the parents, should they be empty
