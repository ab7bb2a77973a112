# SPDX-License-Identifier: Apache-2.0
"""Two hosts: one with dmm-ebpf and an application in its cgroup, one on whose wire lwIP has an
address of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Cgroup, Host, Lab, wait_for
from lab.routed import Routed

SOURCE = Path(__file__).with_name("lwip_peer.c")
FLAGS = ("-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-isystem", "/usr/include/lwip")
MAC = "02:dd:00:00:00:33"
PEER4, PEER6 = "198.18.0.3", "2001:db8::3"
PORT = 7
POLICY = """
[stacks.wan]
kind = "user"
io = "af_xdp"
transport = "tcp"
congestion = "cubic"

[[rules]]
name = "all"
cgroup = "{cgroup}"
table = "all"

[[tables.all.routes]]
to = "default"
stack = "wan"
"""


@pytest.fixture(scope="session")
def lwip_peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("lwip") / "lwip_peer"
    command = ["gcc", *FLAGS, SOURCE, "-o", program, "-llwip", "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


class Peer:
    """One run of lwip_peer; events are what it has said so far."""

    def __init__(self, host: Host, program: Path, directory: Path, *words: str | Path) -> None:
        self.log = directory / f"lwip{len(host.processes)}.log"
        with self.log.open("wb") as log:
            argv = [program, host.nic.name, MAC, PEER4, PEER6, *words]
            self.process: subprocess.Popen[Any] = host.popen(
                argv, stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    @property
    def events(self) -> list[str]:
        return self.log.read_text().splitlines()

    def said(self, event: str, times: int = 1) -> None:
        """Waits until it has said so."""
        wait_for(
            lambda: sum(line.startswith(event) for line in self.events) >= times or self._ended(),
            30,
            f"lwIP to say {event!r}; it said {self.events}",
        )

    def _ended(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"lwIP's process ended: {self.events}")
        return False

    def stop(self) -> None:
        """Ends the process, and with it the peer's host as far as its connections can see."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(10) == 0, self.events


class Site:
    """The application's host, with dmm-ebpf, and lwIP's."""

    def __init__(self, lab: Lab, cgroup: Cgroup, program: Path, directory: Path) -> None:
        self.lab, self.cgroup, self.program, self.directory = lab, cgroup, program, directory
        self.app_host = lab.host("app")
        self.peer_host = lab.host("peer")
        self.routed: Routed | None = None

    def attach(self) -> Routed:
        self.routed = Routed(self.app_host, self.cgroup, POLICY, self.directory)
        return self.routed

    def peer(self, *words: str | Path) -> Peer:
        return Peer(self.peer_host, self.program, self.directory, *words)

    def listen(self, mode: str, *file: Path) -> Peer:
        peer = self.peer("listen", str(PORT), mode, *file)
        peer.said("ready")
        return peer

    def app(self, script: str, *words: str, timeout: float = 60) -> str:
        """What an unmodified Python program in the cgroup prints."""
        done = self.cgroup.run(
            ["/usr/bin/python3", "-c", script, *words], host=self.app_host, timeout=timeout
        )
        return str(done.stdout).strip()

    def counters(self) -> dict[str, int]:
        assert self.routed
        status = self.routed.ask("status")
        status = status[0] if isinstance(status, list) else status
        counters: dict[str, int] = status["counters"]
        return counters


@pytest.fixture
def site(
    lab: Lab, make_cgroup: Callable[[], Cgroup], lwip_peer: Path, tmp_path: Path
) -> Iterator[Site]:
    tmp_path.chmod(0o755)
    made = Site(lab, make_cgroup(), lwip_peer, tmp_path)
    yield made
    if made.routed:
        made.routed.close()
