# SPDX-License-Identifier: Apache-2.0
"""The ceiling of a user stack on the road through the device: a process that copies frames and has
no TCP in it.

A host's TCP leaves by the NIC's tc egress to one TAP device, is copied by lab/relay to another, and
goes on to the wire; what comes from the wire takes the same way back. lab/relay.bpf.c says how.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from dmm_ebpf import abi, loader
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf
from lab.build import program_path
from lab.hosts import READY_TIMEOUT_S, Host, kill_group
from lab.waiting import wait_readable

SOURCE = Path(__file__).resolve().with_name("relay.bpf.c")
QUEUE_PACKETS = 10_000  # of each TAP device, as the stack's
DEVICES = ("relay-in", "relay-out")
_INCLUDES = ("/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu")
_COMPILER = Path(loader.__file__).with_name("bcc_child.py")


@functools.cache
def _compile(nic: int, inner: int, outer: int) -> dict[str, bytes]:
    """Program name to bytecode. nic, inner, outer: ifindexes."""
    job = {
        "source": str(SOURCE),
        "compat": str(abi.bpf_dir() / "compat"),
        "cflags": [
            *(f"-I{path}" for path in _INCLUDES),
            f"-DRELAY_NIC={nic}",
            f"-DRELAY_IN={inner}",
            f"-DRELAY_OUT={outer}",
            "-Wall",
        ],
        "programs": ["relay_egress", "relay_to_wire", "relay_ingress", "relay_to_host"],
    }
    command = [sys.executable, "-I", str(_COMPILER)]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DmmError("compile the relay's programs", why=done.stderr.strip() or "BCC failed")
    return {name: bytes.fromhex(insns) for name, insns in json.loads(done.stdout).items()}


class Relay(Closing):
    """All TCP of a host's first interface through the relay, until closed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._links: list[int] = []
        argv: list[str | Path] = [program_path("relay"), *DEVICES]
        pipe = subprocess.PIPE
        self.process = host.popen(argv, stdin=pipe, stdout=pipe)
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        assert self.process.stdout
        fd = self.process.stdout.fileno()
        if not wait_readable(fd, READY_TIMEOUT_S) or self.process.stdout.readline() != b"ready\n":
            raise DmmError(
                f"start the relay on {self.host.name}", why="it did not say that it is ready"
            )
        self.host.ip(*(f"link set {name} txqueuelen {QUEUE_PACKETS} up" for name in DEVICES))
        self._links = self.host.call(_link, self.host.nic.name)

    def close(self) -> None:
        """Takes the programs off and ends the process; harmless when repeated."""
        while self._links:
            os.close(self._links.pop())
        kill_group(self.process)


def _link(nic: str) -> list[int]:
    """Loads and attaches every program, in the namespace of the calling thread;
    the links' descriptors.
    """
    wire, inner, outer = (socket.if_nametoindex(name) for name in (nic, *DEVICES))
    ingress, egress = bpf.AttachType.TCX_INGRESS, bpf.AttachType.TCX_EGRESS
    places = {
        "relay_to_host": (inner, ingress),
        "relay_to_wire": (outer, ingress),
        "relay_ingress": (wire, ingress),
        "relay_egress": (wire, egress),
    }
    links: list[int] = []
    try:
        for name, code in _compile(wire, inner, outer).items():
            prog = bpf.prog_load(name, bpf.ProgType.SCHED_CLS, code)
            links.append(bpf.link_create(prog, *places[name]))
            os.close(prog)
    except BaseException:
        for link in links:
            os.close(link)
        raise
    return links
