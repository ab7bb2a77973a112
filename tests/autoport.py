# SPDX-License-Identifier: Apache-2.0
"""What tests of a port that changes while flows run have in common: a Resource Director that takes
veth for a driver with zero-copy, and a stream that goes on.
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading

from sitefixtures import Site
from talking import program

from lab import Host, wait_for
from lab.routed import Routed

WITHIN_S = 3.0  # the change is to be there after a second; the rest is for a busy machine
BACK_WITHIN_S = 15.0
PORT = 7300
CHUNK = 1 << 16

ZERO_COPY = """
import dataclasses, sys
from dmm_ebpf.hal import genl
real = genl.xdp_features
def told():
    found = real()
    return {i: dataclasses.replace(f, zero_copy=True) if f.native is True else f for i, f in found.items()}
genl.xdp_features = told
from dmm_ebpf.cli.main import main
sys.exit(main())
"""

# Sends a stream that its seed determines, a little at a time, until told to end; then how many
# bytes and their digest.
SEND = """
import hashlib, random, socket, sys, threading
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
noise, digest, total = random.Random(7), hashlib.sha256(), 0
while not stop.is_set():
    data = noise.randbytes(1 << 16)
    s.sendall(data)
    digest.update(data)
    total += len(data)
    back = b""
    while len(back) < len(data):
        back += s.recv(1 << 16)
    assert back == data, "what came back is another"
s.shutdown(socket.SHUT_WR)
assert s.recv(1) == b""
print(total, digest.hexdigest())
"""


class ZeroCopy(Routed):
    """A Resource Director that takes veth for a driver with zero-copy."""

    def _command(self) -> tuple[str, ...]:
        return (sys.executable, "-c", ZERO_COPY)

    def port(self) -> dict[str, str]:
        """Of the one NIC."""
        (port,) = self.stack("wan")["ports"]
        return port

    def wait_for_port(self, name: str, why: str, within_s: float) -> None:
        wait_for(
            lambda: (p := self.port())["port"] == name and why in p["why"],
            within_s,
            f"port {name} because of {why}",
        )


class Stream:
    """A program in the client's cgroup that sends to an echo of this test's, and checks
    what comes back.
    """

    def __init__(self, site: Site) -> None:
        self._digest = hashlib.sha256()
        self.total = 0
        self._listening = site.server.call(lambda: socket.create_server((site.server.ip4, PORT)))
        self._echo = threading.Thread(target=self._serve)
        self._echo.start()
        self.process = program(site.client, site.client_cgroup, SEND, site.server.ip4, str(PORT))

    def _serve(self) -> None:
        with self._listening:
            accepted, _ = self._listening.accept()
        with accepted:
            while data := accepted.recv(CHUNK):
                self._digest.update(data)
                self.total += len(data)
                accepted.sendall(data)

    def goes_on(self, more: int = 20 * CHUNK) -> None:
        """That so many bytes more get through."""
        until = self.total + more
        wait_for(
            lambda: self.total >= until or self.process.poll() is not None,
            20,
            "the stream to go on",
        )
        assert self.process.poll() is None

    def end(self) -> None:
        out, _ = self.process.communicate("end\n", timeout=30)
        self._echo.join(30)
        assert out.split() == [str(self.total), self._digest.hexdigest()]


def xdp_on(host: Host) -> bool:
    """Whether an XDP program is on its NIC."""
    return "prog/xdp" in host.run(["ip", "link", "show", host.nic.name]).stdout
