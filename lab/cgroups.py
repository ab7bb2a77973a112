# SPDX-License-Identifier: Apache-2.0
"""cgroup v2 groups for tests: made under the v2 root wherever that is mounted, killed and
removed at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import KernelFeatureError
from lab.netns import start_time
from lab.waiting import wait_for

if TYPE_CHECKING:
    from lab.hosts import Host

PREFIX = "dmmlab."
_counter = itertools.count()


def cgroup2_mount() -> Path:
    """Where cgroup v2 is mounted, from /proc/self/mountinfo (proc(5))."""
    # Tests beside this one may mount at what is no UTF-8.
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] == "cgroup2":
            return Path(left.split()[4].encode().decode("unicode_escape"))
    raise KernelFeatureError(
        "make a cgroup", why="cgroup v2 is not mounted", hint="mount -t cgroup2 none /sys/fs/cgroup"
    )


def remove_cgroups_of_the_dead() -> None:
    """Kills and removes the groups of processes that have ended without doing so."""
    for path in cgroup2_mount().glob(f"{PREFIX}*.*"):
        if start_time(int(path.name.removeprefix(PREFIX).partition(".")[0])) is None:
            remove_group(path)


def remove_group(path: Path) -> None:
    """Kills all that runs in a group and below it, and removes it; harmless when it
    is not there.
    """
    if path.exists():
        _kill(path)
        _remove(path)


def _kill(group: Path) -> None:
    (group / "cgroup.kill").write_text("1")


def _populated(path: Path) -> bool:
    return "populated 1" in (path / "cgroup.events").read_text()


def _remove(group: Path) -> None:
    wait_for(lambda: not _populated(group), 10, f"{group} to be empty")
    for path, _, _ in os.walk(group, topdown=False):
        Path(path).rmdir()


class Cgroup(Closing):
    """A cgroup v2 group. Children may be made below it; close() kills and removes all of them."""

    def __init__(self, name: str | None = None, *, parent: Cgroup | None = None) -> None:
        base = parent.path if parent else cgroup2_mount()
        self.path: Path = base / (name or f"{PREFIX}{os.getpid()}.{next(_counter)}")
        self.path.mkdir()
        self.processes: list[subprocess.Popen[Any]] = []

    @property
    def relative(self) -> str:
        """The path as a policy names it: from the cgroup v2 root, with a leading slash."""
        return "/" + str(self.path.relative_to(cgroup2_mount()))

    def child(self, name: str) -> Cgroup:
        """A group below this one."""
        return Cgroup(name, parent=self)

    def argv(self, argv: Sequence[str | Path]) -> list[str]:
        """The command that joins this group and then becomes argv, so that its first socket
        is already inside.
        """
        join = 'echo $$ >"$0" && exec "$@"'
        return [
            "/bin/sh",
            "-c",
            join,
            str(self.path / "cgroup.procs"),
            *(str(word) for word in argv),
        ]

    def spawn(
        self, argv: Sequence[str | Path], *, host: Host | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """A process in this group, and in a host's network namespace if one is given."""
        if host is not None:
            process = host.popen(self.argv(argv), **options)
        else:
            process = subprocess.Popen(self.argv(argv), **options)
        self.processes.append(process)
        return process

    def run(
        self, argv: Sequence[str | Path], *, host: Host, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """A command in this group and a host, to its end; options as for Host.run."""
        return host.run(self.argv(argv), **options)

    def pids(self) -> list[int]:
        """Processes in this group, not below it."""
        return [int(word) for word in (self.path / "cgroup.procs").read_text().split()]

    def kill(self) -> None:
        """Kills every process in this group and below it (cgroup.kill)."""
        _kill(self.path)

    def close(self) -> None:
        """Kills and removes the group and all below it; harmless when repeated."""
        if not self.path.exists():
            return
        self.kill()
        for process in self.processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()
        _remove(self.path)
