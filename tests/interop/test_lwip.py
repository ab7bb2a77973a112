# SPDX-License-Identifier: Apache-2.0
"""An unmodified application through the user stack, with lwIP at the other end: bytes,
closes and resets.

lwIP here has no SACK, no timestamps, a window of 64 KiB, and retransmits by a 500 ms timer: what
the stack does with such a peer shows in nothing else that we test with.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from talking import SEND_AND_READ

from lab import wait_for

PEER = {4: "198.18.0.3", 6: "2001:db8::3"}

# lwIP sends first and closes first
GET = """
import hashlib, socket, sys
c = socket.create_connection((sys.argv[1], 7))
digest = hashlib.sha256()
while data := c.recv(1 << 16):
    digest.update(data)
c.close()
print(digest.hexdigest())
"""

# the application sends and closes both ways at once
PUT = """
import socket, sys
c = socket.create_connection((sys.argv[1], 7))
with open(sys.argv[2], "rb") as f:
    c.sendfile(f)
c.close()
"""

RESET_SEEN = """
import socket, sys
c = socket.create_connection((sys.argv[1], 7))
c.sendall(b"x")
try:
    print("read", c.recv(1))
except ConnectionResetError:
    print("reset")
"""

RESETS = """
import socket, struct, sys
c = socket.create_connection((sys.argv[1], 7))
c.sendall(b"x")
c.recv(1)
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
c.close()
"""

REFUSED = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 8))
except ConnectionRefusedError:
    print("refused")
"""

# accept one connection; echo, or send a file, or keep what comes; then the end
SERVE = """
import hashlib, socket, sys
s = socket.create_server(("::", 9), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    c, _a = s.accept()
    digest = hashlib.sha256()
    while data := c.recv(1 << 16):
        digest.update(data)
    print(digest.hexdigest(), flush=True)
    with open(sys.argv[1], "rb") as f:
        c.sendfile(f)
    c.close()
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_echo_and_refusal(site, payload):
    site.lab.wire(site.app_host, site.peer_host)
    site.attach()
    path, digest = payload(1_000_000)
    peer = site.listen("echo")
    for number, family in enumerate((4, 6), 1):
        assert site.app(SEND_AND_READ, PEER[family], "7", str(path)) == digest
        peer.said("eof 1000000", number)
        peer.said("closed", number)
        assert site.app(REFUSED, PEER[family]) == "refused"
    assert site.counters()["xdp_flow"] > 1000
    peer.stop()


def test_each_end_closes_first_and_each_resets(site, payload):
    site.lab.wire(site.app_host, site.peer_host)
    site.attach()
    path, digest = payload(300_000)
    sender = site.listen("source", path)
    assert site.app(GET, PEER[4]) == digest
    sender.said("closed")
    sender.stop()
    kept = site.directory / "kept"
    sink = site.listen("sink", kept)
    site.app(PUT, PEER[4], str(path))
    sink.said("eof 300000")
    sink.said("closed")
    assert sha256(kept) == digest
    sink.stop()
    peer = site.listen("reset")
    assert site.app(RESET_SEEN, PEER[4]) == "reset"
    peer.stop()
    peer = site.listen("echo")
    site.app(RESETS, PEER[4])
    peer.said("reset")
    peer.stop()


def test_lwip_connects_to_the_application(site, payload):
    site.lab.wire(site.app_host, site.peer_host)
    site.attach()
    path, digest = payload(300_000)
    server = site.cgroup.spawn(
        ["/usr/bin/python3", "-c", SERVE, str(path), "2"], host=site.app_host, stdout=-1, text=True
    )
    assert server.stdout.readline() == "ready\n"
    for address in (site.app_host.ip4, site.app_host.ip6):
        peer = site.peer("connect", address, "9", "source", path)
        assert server.stdout.readline().strip() == digest
        peer.said("eof 300000")
        peer.said("closed")
        peer.stop()
    assert site.counters()["xdp_listener"] >= 2
    assert server.wait(10) == 0


def test_both_ways_with_loss(site, payload):
    site.lab.wan(site.app_host, site.peer_host, rate="50mbit", delay="5ms", loss="1%", seed=11)
    site.attach()
    path, digest = payload(200_000)
    peer = site.listen("echo")
    assert site.app(SEND_AND_READ, PEER[4], "7", str(path), timeout=90) == digest
    peer.said("eof 200000")
    peer.said("closed")
    wait_for(
        lambda: (
            not site.routed.flows()
            or {flow.get("outer_state", "TIME_WAIT") for flow in site.routed.flows()}
            <= {"TIME_WAIT"}
        ),
        20,
        "the connection to be over",
    )
    peer.stop()
