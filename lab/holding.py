# SPDX-License-Identifier: Apache-2.0
"""Thousands of connections held open at once between two hosts, by as many processes as the limit
of open files asks
for: each pair of a holdconn and an echo server has a port of its own.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from lab.build import program_path
from lab.cgroups import Cgroup
from lab.hosts import Host, kill_group
from lab.programs import Server, start_server
from lab.waiting import wait_readable

FIRST_PORT = 4100
PAIR_MAX = 10_000  # connections of one pair; a source address has 28,232 ports for one destination
OTHER_DESCRIPTORS = 64
# All pairs together. Fewer than a listener's queue holds, and than the handshakes that a stack
# keeps half open.
IN_FLIGHT = 512
_PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


@dataclass(frozen=True)
class Told:
    """What became of a word that all were told: connections it did and did not, the time from the
    first's beginning to the last's end, and the names of the first errors.
    """

    done: int
    failed: int
    seconds: float
    errors: tuple[str, ...]


def shares(count: int) -> list[int]:
    """How many connections each pair of processes holds."""
    most = min(PAIR_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - OTHER_DESCRIPTORS)
    pairs = -(-count // most)
    return [count // pairs + (i < count % pairs) for i in range(pairs)]


class Holders(Closing):
    """count connections from client to server, all held; a context manager that ends them."""

    def __init__(
        self,
        client: Host,
        server: Host,
        cgroups: tuple[Cgroup, Cgroup],
        count: int,
        directory: Path,
    ) -> None:
        """cgroups: the client's and the server's. Nothing is opened yet."""
        self.servers: list[Server] = []
        self.workers: list[subprocess.Popen[Any]] = []
        self._client = client
        parts = shares(count)
        in_flight = max(1, IN_FLIGHT // len(parts))
        try:
            for port, part in enumerate(parts, FIRST_PORT):
                serve: list[str | Path] = [program_path("pingpong"), "serve", server.ip4, str(port)]
                log = directory / f"pingpong-{port}.log"
                self.servers.append(start_server(server, serve, port, log, cgroup=cgroups[1]))
                hold: list[str | Path] = [
                    program_path("holdconn"),
                    server.ip4,
                    str(port),
                    str(part),
                    str(in_flight),
                ]
                self.workers.append(cgroups[0].spawn(hold, host=client, text=True, **_PIPES))
        except BaseException:
            self.close()
            raise

    def tell(self, word: str, timeout: float) -> Told:
        """ "open", "check", "close" or "reset", done to all of them. DmmError
        after timeout seconds.
        """
        for worker in self.workers:
            assert worker.stdin
            worker.stdin.write(f"{word}\n")
            worker.stdin.flush()
        deadline = time.monotonic() + timeout
        return _sum([_answer(worker, word, deadline) for worker in self.workers])

    def close(self) -> None:
        """Ends the processes, and with them what they hold; harmless when repeated."""
        for worker in self.workers:
            kill_group(worker)
            with contextlib.suppress(ValueError):
                self._client.processes.remove(worker)
        self.workers.clear()
        for server in self.servers:
            server.stop()
        self.servers.clear()


def _answer(worker: subprocess.Popen[Any], word: str, deadline: float) -> list[str]:
    assert worker.stdout
    ready = wait_readable(worker.stdout.fileno(), deadline - time.monotonic())
    words = str(worker.stdout.readline()).split() if ready else []
    if len(words) != 6 or words[0] != word:
        why = f"it ended with {worker.wait()}" if ready else "it took too long"
        raise DmmError(f"have holdconn {word} its connections", why=why)
    return words


def _sum(answers: Sequence[Sequence[str]]) -> Told:
    began_ns, ended_ns = min(int(a[3]) for a in answers), max(int(a[4]) for a in answers)
    return Told(
        done=sum(int(a[1]) for a in answers),
        failed=sum(int(a[2]) for a in answers),
        seconds=(ended_ns - began_ns) / 1e9,
        errors=tuple(sorted({a[5] for a in answers if a[5] != "-"})),
    )
