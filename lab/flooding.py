# SPDX-License-Identifier: Apache-2.0
"""connect() calls as fast as the machine can, by lab/connflood: for what connect() costs, and for
what is decided while a policy changes.

Peers need not be there: a host has a device that takes every packet, and drops it.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
from dataclasses import dataclass

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from lab.build import program_path
from lab.cgroups import Cgroup
from lab.hosts import Host, kill_group
from lab.waiting import patient, wait_readable

WITHIN_S = 60.0
OTHER_DESCRIPTORS = 64


def swallow(host: Host, name: str = "void0") -> None:
    """Give a host a device that takes what goes anywhere: one of a pair whose other is down, as not
    every kernel has dummies.
    """
    host.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"])
    host.run(["ip", "address", "add", "192.0.2.1/24", "dev", name])
    host.run(["ip", "address", "add", "2001:db8:ffff::1/64", "dev", name, "nodad"])
    host.run(["ip", "link", "set", name, "up"])
    for family in ("-4", "-6"):
        host.run(["ip", family, "route", "add", "default", "dev", name])


def most_sockets() -> int:
    """That one Flood may hold."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - OTHER_DESCRIPTORS


@dataclass(frozen=True)
class Opened:
    """What became of so many connect() calls. began_ns, ended_ns: CLOCK_MONOTONIC."""

    done: int
    failed: int
    began_ns: int
    ended_ns: int
    median_ns: int
    error: str


@dataclass(frozen=True)
class Peers:
    """first + k * stride for k < span, all at one port. stride: of IPv6 in /64s."""

    first: str
    stride: int
    span: int
    port: int = 443

    def words(self) -> list[str]:
        """For the program."""
        return [self.first, str(self.stride), str(self.span), str(self.port)]


class Flood(Closing):
    """One process in a cgroup; what it has opened it holds until close_all()."""

    def __init__(self, host: Host, cgroup: Cgroup, peers: Peers) -> None:
        self._host = host
        self._process: subprocess.Popen[str] = cgroup.spawn(
            [program_path("connflood"), *peers.words()],
            host=host,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def begin(self, count: int) -> None:
        """Open so many; opened() tells when that is done."""
        self._say(f"open {count}")

    def opened(self) -> Opened:
        """What became of begin()."""
        done, failed, began, ended, median, error = self._answer("open")
        return Opened(int(done), int(failed), int(began), int(ended), int(median), error)

    def sockets(self) -> dict[int, int]:
        """SO_PRIORITY of each that is held, by its SO_COOKIE."""
        self._say("tell")
        held = {}
        while (words := self._line())[0] != "told":
            held[int(words[0])] = int(words[1])
        return held

    def close_all(self) -> int:
        """End all that is held; how many that were."""
        self._say("close")
        return int(self._answer("close")[0])

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _line(self) -> list[str]:
        assert self._process.stdout
        return str(self._process.stdout.readline()).split() or ["ended"]

    def _answer(self, word: str) -> list[str]:
        assert self._process.stdout
        ready = wait_readable(self._process.stdout.fileno(), patient(WITHIN_S))
        words = self._line() if ready else ["nothing"]
        if words[0] != word:
            raise DmmError(f"have connflood {word} its sockets", why=f"it said {words[0]}")
        return words[1:]

    def close(self) -> None:
        """Ends the process; harmless when repeated."""
        kill_group(self._process)
        with contextlib.suppress(ValueError):
            self._host.processes.remove(self._process)
