# SPDX-License-Identifier: Apache-2.0
"""The mount namespace of process 1, from wherever a command is typed.

`ip netns exec` mounts another sysfs over /sys in a mount namespace of its own, which hides bpffs
and cgroup v2. They are then reached through the root directory of a process that is in process 1's
namespace: process 1 itself, or, where it has capabilities that we have not (so that /proc/1/root is
refused to root), an ancestor of ours or anybody. Two processes are in the same namespace when the
mount on / has the same id in their mountinfo, which anybody may read.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from dmm_ebpf.errors import PrivilegeError

_HERE = Path("/")


def _root_mount(pid: int | str) -> str | None:
    """The id of the mount on /, as process pid sees it; None if it sees none (chroot)
    or is gone.
    """
    try:
        with Path(f"/proc/{pid}/mountinfo").open(
            encoding="utf-8", errors="surrogateescape"
        ) as lines:
            for line in lines:
                fields = line.split(" ", 5)
                if fields[4] == "/":
                    return fields[0]
    except OSError:
        pass
    return None


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _candidates() -> Iterator[int]:
    """Process 1, our ancestors, then everybody in the order of birth, more or less."""
    yield 1
    pid = _parent(os.getpid())
    while pid > 1:
        yield pid
        pid = _parent(pid)
    yield from sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


@functools.cache
def _fds() -> tuple[int, int] | None:
    """(its root directory, its namespace) as fds, for the life of this process; None if we
    are in it.
    """
    init = _root_mount(1)
    if init is None or _root_mount("self") == init:
        return None
    for pid in _candidates():
        if _root_mount(pid) != init:
            continue
        try:
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            return root, os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        except OSError:
            os.close(root)
    raise PrivilegeError(
        "reach the mount namespace of process 1",
        why="no process that is in it may be looked into",
        hint="run it as root, and outside containers",
    )


def root() -> Path:
    """Its root directory: "/" when this process is in that namespace, else a path
    that leads there.
    """
    fds = _fds()
    return _HERE if fds is None else Path(f"/proc/self/fd/{fds[0]}")


def namespace_fd() -> int:
    """An fd for setns(2), which the caller closes."""
    fds = _fds()
    return os.open("/proc/self/ns/mnt", os.O_RDONLY) if fds is None else os.dup(fds[1])
