# SPDX-License-Identifier: Apache-2.0
"""Namespaces for the tests of hal and userstack: made with ip(8), unique by pid,
always taken away.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dmm_ebpf.hal.netns import NetNS

_serial = itertools.count()


def sh(*argv: str, netns: str | None = None, check: bool = True) -> str:
    """Runs a command, in a namespace if one is named; its output."""
    prefix = ["ip", "netns", "exec", netns] if netns else []
    done = subprocess.run([*prefix, *argv], capture_output=True, text=True, check=False, timeout=30)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def wait_until(
    condition: Callable[[], bool], timeout: float = 10.0, what: str = "condition"
) -> None:
    """Polls a condition that has no descriptor to wait on, at 5 ms, until a deadline."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {timeout} s")
        select.select([], [], [], 0.005)


@dataclass
class Host:
    """One namespace."""

    name: str
    ns: NetNS = field(init=False)

    def __post_init__(self) -> None:
        sh("ip", "netns", "add", self.name)
        self.ns = NetNS.from_arg(self.name)
        self.sh("ip", "link", "set", "lo", "up")

    def sh(self, command: str, *more: str, check: bool = True) -> str:
        """ip netns exec NAME ...; a single argument is split at blanks."""
        argv = [command, *more] if more else command.split()
        return sh(*argv, netns=self.name, check=check)

    def close(self) -> None:
        self.ns.close()
        sh("ip", "netns", "del", self.name, check=False)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Fresh namespaces with lo up."""
    made: list[Host] = []
    try:
        for _ in range(count):
            made.append(Host(f"hal{os.getpid()}n{next(_serial)}"))
        yield made
    finally:
        for host in made:
            host.close()


def link(
    left: Host,
    right: Host,
    *,
    names: tuple[str, str] = ("eth0", "eth0"),
    net: int = 1,
    queues: int = 1,
) -> None:
    """A veth pair with 10.9.NET.1/2 and fd09:NET::1/2 on it, both up, no DAD."""
    (lname, rname), n = names, str(queues)
    sh(
        "ip", "link", "add", lname, "netns", left.name, "numrxqueues", n, "numtxqueues", n,
        "type", "veth", "peer", "name", rname, "netns", right.name, "numrxqueues", n, "numtxqueues", n,
    )  # fmt: skip
    for host, name, last in ((left, lname, 1), (right, rname, 2)):
        host.sh(f"ip addr add 10.9.{net}.{last}/24 dev {name}")
        host.sh(f"ip addr add fd09:{net}::{last}/64 dev {name} nodad")
        host.sh(f"ip link set {name} up")


def listen(host: Host, family: int = socket.AF_INET, port: int = 0) -> socket.socket:
    """A listening TCP socket in the namespace."""
    sock = host.ns.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0" if family == socket.AF_INET else "::", port))
    sock.listen(64)
    return sock


class Pump(threading.Thread):
    """Runs a function in a thread and hands its exception to join()."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def finish(self, timeout: float = 30) -> None:
        """Waits for the end; raises what the function raised."""
        self.join(timeout)
        assert not self.is_alive(), "thread did not end"
        if self._error is not None:
            raise self._error
