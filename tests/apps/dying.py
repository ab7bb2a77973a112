# SPDX-License-Identifier: Apache-2.0
"""Commands that are ended at chosen moments of their lives, and what is then left of them
on the host.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from dmm_ebpf.hal import procgroup
from dmm_ebpf.hal.nic import OWN_PREFIX
from dmm_ebpf.rd.director.rundir import ROOT, RunDir
from dmm_ebpf.userstack import pidfile
from lab import Cgroup, Host, Lab, wait_for
from lab.cgroups import cgroup2_mount
from lab.commandline import CLI
from lab.netns import pids

LIFE_S = 60
PINS = Path("/sys/fs/bpf/dmm-ebpf")
SETTINGS = ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect")
SEEN = (
    "ip -4 rule; ip -6 rule; ip -br link; ip route show table all; ip -6 route show table all; cat "
    + " ".join(f"/proc/sys/net/{name}" for name in SETTINGS)
)
POLICY = """
[stacks.wan]
kind = "user"
io = "{io}"
processes = {processes}

[[rules]]
table = "t"

[[tables.t.routes]]
to = "default"
stack = "{stack}"
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


Reached = Callable[["Subject"], bool]
Kind = TypeVar("Kind", bound="Subject")


class Command(subprocess.Popen[bytes]):
    """A command, and what it says on standard error, which what it starts may go on holding."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            super().__init__(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=ENVIRONMENT,
            )

    def said(self) -> str:
        """All of it, so far."""
        return self._log.read_text()

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Signal it, if it lives, and wait for its end: its exit code, and what it said."""
        self.send_signal(number)
        code = self.wait(LIFE_S)
        return code, self.said()


class Subject:
    """An instance that is to die: where it works, how its commands are typed, and what shows
    how far it is. io: of its user stack.
    """

    io = "tap"

    def __init__(self, instance: str, host: Host, cgroup: Cgroup, policy: Path) -> None:
        self.instance = instance
        self.host = host
        self.cgroup = cgroup
        self.policy = policy
        self.run_dir = ROOT / instance
        self.pins = PINS / instance
        self.own_cgroup = cgroup2_mount() / f"dmm-ebpf-{instance}"
        self.groups = cgroup2_mount() / procgroup.ROOT_NAME / instance
        self._numbers = itertools.count()
        self.before = self.traces()

    def write(self, path: Path, *, processes: int = 1, stack: str = "wan") -> Path:
        """A policy that routes everything to one stack."""
        path.write_text(POLICY.format(io=self.io, processes=processes, stack=stack))
        return path

    # -- commands --

    def start(self, *words: str | Path) -> Command:
        """A dmm-ebpf command that goes on by itself."""
        return Command(
            [*CLI, *map(str, words)], self.policy.with_name(f"said{next(self._numbers)}.log")
        )

    def attach(self, *more: str) -> Command:
        """`dmm-ebpf attach` with the policy."""
        where = ("--cgroup", self.cgroup.path, "--netns", self.host.netns_path)
        return self.start(
            "attach", "--instance", self.instance, *where, "--policy", self.policy, *more
        )

    def run(self, *command: str) -> Command:
        """`dmm-ebpf run` with the policy."""
        where = ("--netns", self.host.netns_path, "--policy", self.policy)
        return self.start("run", "--instance", self.instance, *where, "--", *command)

    def attached(self) -> Command:
        """`dmm-ebpf attach`, and it serves."""
        director = self.attach()
        self.wait(Subject.serves, director, "it to serve")
        assert director.poll() is None, director.said()
        return director

    def detach(self) -> None:
        """`dmm-ebpf detach` to its end, which must be a good one, or nothing was there."""
        done = self.start("detach", "--instance", self.instance)
        nothing = f"cannot detach instance {self.instance}: there is none"
        assert done.wait(LIFE_S) == 0 or nothing in done.said(), done.said()

    # -- moments --

    def serves(self) -> bool:
        """It can be asked; the socket of a dead one cannot."""
        with socket.socket(socket.AF_UNIX) as asked:
            return asked.connect_ex(str(self.run_dir / "rd.sock")) == 0

    def wait(self, reached: Reached, process: Command, what: str = "it") -> bool:
        """Until it is reached, or the process has ended before: False."""
        wait_for(lambda: reached(self) or process.poll() is not None, LIFE_S, what)
        return process.poll() is None

    def director(self) -> int:
        """The pid that the run directory names; 0: none."""
        return RunDir(self.instance).holder()

    def state(self) -> str:
        """Text of its state.json; empty: there is none."""
        with contextlib.suppress(OSError):
            return (self.run_dir / "state.json").read_text()
        return ""

    def stack_pid(self) -> int:
        """Of the process that serves stack wan; 0: none."""
        return (pidfile.read(self.run_dir / "stack-wan.pid") or (0, 0))[0]

    # -- traces --

    def traces(self) -> list[str]:
        """All that the instance has on the host now, whatever tells of it."""
        lines = self.host.run(["sh", "-c", SEEN]).stdout.splitlines()
        found = [line for line in lines if "eth" not in line or OWN_PREFIX in line]
        found += [
            line
            for line in self.host.run(["ip", "-d", "link"]).stdout.splitlines()
            if "xdp" in line
        ]
        found += [
            str(path)
            for path in (self.run_dir, self.pins, self.own_cgroup, self.groups)
            if path.exists()
        ]
        return found + [f"process {line}" for line in self._processes()]

    def _processes(self) -> list[str]:
        mine = []
        for pid in pids():
            with contextlib.suppress(OSError):
                argv = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                )
                if self.instance in argv:
                    mine.append(" ".join(argv))
        return mine

    def assert_nothing_left(self, moment: str) -> None:
        """Everything is as it was at first."""
        now = self.traces()
        left = [line for line in now if line not in self.before]
        lost = [line for line in self.before if line not in now]
        assert not left and not lost, f"{moment}: left {left}, lost {lost}"


class OnXdp(Subject):
    """One whose XDP program shows."""

    io = "af_xdp"


def placed(
    kind: type[Kind], lab: Lab, cgroup: Cgroup, instance: str, folder: Path
) -> Iterator[Kind]:
    """One in host h, which has a wire to host o; detached at the end."""
    folder.chmod(0o755)
    host, other = lab.host("h"), lab.host("o")
    lab.wire(host, other)
    made = kind(instance, host, cgroup, folder / "policy.toml")
    made.write(made.policy)
    yield made
    made.detach()


def any_in(folder: Path, pattern: str = "*") -> bool:
    """Whether anything of that name is in a folder, which need not be there."""
    # Path.glob() fails on a folder that goes away while it lists.
    with contextlib.suppress(FileNotFoundError):
        return any(folder.glob(pattern))
    return False


def kill(pid: int) -> None:
    """SIGKILL to a process that is nobody's child here, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            wait_for(
                lambda: not Path(f"/proc/{pid}/fd").exists() or _is_zombie(pid), 20, f"{pid} to die"
            )
        finally:
            os.close(fd)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
