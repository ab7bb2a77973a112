# SPDX-License-Identifier: Apache-2.0
"""The BPF file system, with all pins, is unmounted under a running Resource Director.

In a namespace of processes with mounts of its own, whose first process is the test's: pins are in
its bpffs, and nobody else's is touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from talking import program, server

from lab import wait_for
from lab.commandline import CLI
from lab.routed import Routed

WITHIN_S = 20.0
POLICY = """
[stacks.wan]
kind = "user"

[[rules]]
cgroup = "{cgroup}"
table = "t"

[[tables.t.routes]]
to = "default"
proto = "tcp"
stack = "wan"
"""
FIRST = """
mount --make-rprivate /
umount -l /sys/fs/bpf
mount -t bpf bpf /sys/fs/bpf
echo ready
exec sleep infinity
"""
ECHO = """
import socket
listener = socket.create_server(("", 7000))
print("ready", flush=True)
peer, _ = listener.accept()
while data := peer.recv(65536):
    peer.sendall(data)
"""
# Says each line that it reads, over its one connection.
TALK = """
import socket, sys
peer = socket.create_connection((sys.argv[1], 7000), 30)
for line in sys.stdin:
    peer.sendall(line.encode())
    print(peer.recv(100, 0).decode(), end="", flush=True)
"""


class _Inside(Routed):
    """In the namespaces of another process, which is the first one there."""

    first = 0

    def _command(self):
        return (*enter(self.first), *CLI)

    def cli(self, *words, check=True):
        return subprocess.run(
            [*self._command(), *words], capture_output=True, text=True, check=check, timeout=60
        )

    def kill_director(self):
        """nsenter(1), which was started, is its parent."""
        (child,) = (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        )
        os.kill(int(child), signal.SIGKILL)
        self.process.wait()


def enter(pid):
    return ("nsenter", "--mount", "--pid", f"--target={pid}", "--")


@pytest.fixture
def first():
    argv = [
        "unshare",
        "--fork",
        "--kill-child",
        "--pid",
        "--mount",
        "--mount-proc",
        "sh",
        "-ec",
        FIRST,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        finally:
            process.kill()


@pytest.fixture
def routed(wired, first, tmp_path, monkeypatch):
    monkeypatch.setattr(_Inside, "first", first)
    made = _Inside(wired.client, wired.client_cgroup, POLICY, tmp_path / "inside")
    yield made
    made.cli("detach", "--instance", made.instance, check=False)
    made.process.wait(WITHIN_S)


def _says(talk, what):
    talk.stdin.write(f"{what}\n")
    talk.stdin.flush()
    return talk.stdout.readline().strip()


def test_flows_go_on_and_outlive_the_director_when_bpffs_is_unmounted(wired, routed, first):
    server(wired.server, wired.server_cgroup, ECHO)
    talk = program(wired.client, wired.client_cgroup, TALK, wired.server.ip4)
    assert _says(talk, "before") == "before"
    subprocess.run([*enter(first), "umount", "--lazy", "/sys/fs/bpf"], check=True)
    assert _says(talk, "without") == "without"
    for back in ("unmounted the BPF file system", "our tc programs were taken off"):
        wait_for(
            lambda back=back: f"{back}; it was put right" in routed.log.read_text(),
            WITHIN_S,
            f"what went with bpffs to be put back: {back}",
        )

    routed.kill_director()
    assert _says(talk, "nobody") == "nobody"
    routed.restart()
    (flow,) = routed.flows(dport=7000)
    assert (flow["stack"], flow["state"]) == ("wan", "ESTABLISHED")
    assert _says(talk, "after") == "after"
