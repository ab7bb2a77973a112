# SPDX-License-Identifier: Apache-2.0
"""Messages at a steady pace over many connections, by lab/steady, and how long each took: to an
echo and back, also as datagrams, or one way to a sink.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dmm_ebpf.errors import DmmError
from lab.build import program_path
from lab.cgroups import Cgroup
from lab.hosts import Host, kill_group
from lab.programs import Server, start_server
from lab.waiting import patient


@dataclass(frozen=True)
class Pace:
    """What each connection sends. interval_s 0: the next message when the last one's answer is
    here. wait_s: how long what is late is waited for.
    """

    connections: int
    messages: int
    size_bytes: int
    interval_s: float
    wait_s: int = 30

    @property
    def seconds(self) -> float:
        """How long messages are sent."""
        return self.messages * self.interval_s

    @property
    def payload_bytes(self) -> int:
        """Of all connections, one way."""
        return self.connections * self.messages * self.size_bytes

    def words(self) -> list[str]:
        """For the program."""
        counts = (self.connections, self.messages, self.size_bytes)
        return [*map(str, counts), str(round(self.interval_s * 1e6)), str(self.wait_s)]


@dataclass
class Told:
    """What the program told: connect() of each connection and its whole life in s; each message by
    (connection, number) in s; why connections failed.
    """

    connect_s: dict[int, float] = field(default_factory=dict)
    life_s: dict[int, float] = field(default_factory=dict)
    message_s: dict[tuple[int, int], float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def add(self, lines: Iterable[str]) -> None:
        """Lines as steady.c tells them."""
        for line in lines:
            kind, connection, *rest = line.split()
            if kind == "m":
                self.message_s[int(connection), int(rest[0])] = int(rest[1]) / 1e9
            elif kind == "c":
                self.connect_s[int(connection)] = int(rest[0]) / 1e9
            elif kind == "e":
                self.life_s[int(connection)] = int(rest[0]) / 1e9
            elif kind == "f":
                self.failed[int(connection)] = rest[0]
            else:
                raise DmmError("read what steady told", why=line)


def echo_server(
    host: Host, port: int, log: Path, cgroup: Cgroup | None = None, *, datagrams: bool = False
) -> Server:
    """It sends back what it gets."""
    what = "echo-datagrams" if datagrams else "echo"
    words: list[str | Path] = [program_path("steady"), what, host.ip4, str(port)]
    return start_server(
        host, words, port, log, cgroup=cgroup, protocol="udp" if datagrams else "tcp"
    )


def sink_server(
    host: Host, port: int, size_bytes: int, log: Path, cgroup: Cgroup | None = None
) -> Server:
    """It tells in its log when messages arrive; see told_by()."""
    words: list[str | Path] = [program_path("steady"), "sink", host.ip4, str(port), str(size_bytes)]
    return start_server(host, words, port, log, cgroup=cgroup)


def told_by(log: Path) -> Told:
    """What a sink has told so far."""
    told = Told()
    told.add(log.read_text().splitlines())
    return told


class Sender:
    """steady under way on a host. what: `ask` or `ask-datagrams` for an echo, `send` for a sink."""

    def __init__(
        self, what: str, host: Host, to: tuple[str, int], pace: Pace, cgroup: Cgroup | None = None
    ) -> None:
        argv = [str(program_path("steady")), what, to[0], str(to[1]), *pace.words()]
        self._host = host
        self._within_s = pace.seconds + 3 * pace.wait_s
        self._process: subprocess.Popen[str] = host.popen(
            cgroup.argv(argv) if cgroup else argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Told:
        """When all is done; DmmError if it could not be tried."""
        try:
            out, err = self._process.communicate(timeout=patient(self._within_s))
        except subprocess.TimeoutExpired as error:
            raise DmmError("send at a steady pace", why=str(error)) from error
        finally:
            kill_group(self._process)
            self._host.processes.remove(self._process)
        if self._process.returncode:
            raise DmmError("send at a steady pace", why=err.strip())
        told = Told()
        told.add(out.splitlines())
        return told
