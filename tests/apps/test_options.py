# SPDX-License-Identifier: Apache-2.0
"""What an app has asked of its kernel's TCP holds towards the peer, when a user stack
carries the connection.
"""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from sitefixtures import TAP

SERVE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.IPPROTO_TCP, 27, 1)  # TCP_SAVE_SYN
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen()
print("ready", flush=True)
c, _ = s.accept()
print(c.getsockopt(socket.IPPROTO_TCP, 28, 500).hex(), flush=True)  # TCP_SAVED_SYN
while c.recv(65536):
    pass
"""

TTL_AND_MSS = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
if family == socket.AF_INET6:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 77)
else:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 77)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, int(sys.argv[3]))
s.connect((sys.argv[1], int(sys.argv[2])))
print("connected")
"""

SILENT = """
import errno, socket, sys
s = socket.socket()
for option, value in ((socket.TCP_KEEPIDLE, 2), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
    s.setsockopt(socket.IPPROTO_TCP, option, value)
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.connect((sys.argv[1], int(sys.argv[2])))
s.sendall(b"x")
print("open", flush=True)
try:
    s.recv(1)
    said = "closed"
except OSError as error:
    said = errno.errorcode[error.errno]
print(said, flush=True)
"""

FAR = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.IPPROTO_IP, 21, int(sys.argv[3]))  # IP_MINTTL
s.settimeout(3)
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def _serve(wired, address, port):
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", SERVE, address, str(port)],
        host=wired.server, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout.readline() == "ready\n"
    return server


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("mss", [1200, 300])
def test_the_peer_sees_the_ttl_and_the_mss_of_the_app(wired, python, family, mss):
    wired.attach_client()
    address = getattr(wired.server, family)
    server = _serve(wired, address, 7300)
    assert (
        python(wired.client, wired.client_cgroup, TTL_AND_MSS, address, "7300", str(mss))
        == "connected"
    )
    syn = bytes.fromhex(server.stdout.readline())
    assert syn[8 if family == "ip4" else 7] == 77
    tcp = syn[20 if family == "ip4" else 40 :]
    assert tcp[20:24] == b"\x02\x04" + mss.to_bytes(2, "big")
    assert server.wait(10) == 0


@pytest.mark.parametrize("who", ["client", "server"])
def test_the_app_sees_how_far_the_peer_is(wired, python, who):
    other = wired.server if who == "client" else wired.client
    other.sysctl("net.ipv4.ip_default_ttl", 255)
    wired.attach_client() if who == "client" else wired.attach_server()
    server = _serve(wired, wired.server.ip4, 7301)
    minimum = "255" if who == "client" else "0"
    assert (
        python(wired.client, wired.client_cgroup, FAR, wired.server.ip4, "7301", minimum)
        == "connected"
    )
    syn = bytes.fromhex(server.stdout.readline())
    assert syn[8] == (64 if who == "client" else 255)
    assert server.wait(10) == 0


def test_a_peer_that_is_farther_than_the_app_allows_is_not_heard(wired, python):
    wired.attach_client()
    server = _serve(wired, wired.server.ip4, 7302)
    try:
        said = python(wired.client, wired.client_cgroup, FAR, wired.server.ip4, "7302", "255")
        assert said == "TimeoutError"
    finally:
        server.kill()
        server.wait()


def test_keep_alive_finds_a_dead_peer_when_the_app_wants_it(wired):
    wired.attach_client()
    server = _serve(wired, wired.server.ip4, 7303)
    client = wired.client_cgroup.spawn(
        ["/usr/bin/python3", "-c", SILENT, wired.server.ip4, "7303"],
        host=wired.client, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stdout.readline() == "open\n"
    # Longer than all its probes together: the peer answers them.
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(8)
    wired.server.run(
        [
            "nft",
            "add table inet t; add chain inet t in { type filter hook input priority 0; policy drop; }",
        ]
    )
    began = time.monotonic()
    assert client.stdout.readline() == "ETIMEDOUT\n"
    assert time.monotonic() - began < 20
    server.kill()
    server.wait()
    client.wait(10)


WRITE_AND_RESET = """
import socket, struct, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.sendall(b"z" * 100000)
deadline = time.monotonic() + 20
import fcntl, array
left = array.array("i", [1])
while left[0] and time.monotonic() < deadline:
    fcntl.ioctl(s, 0x5411, left)  # SIOCOUTQ
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.close()
"""

COUNT_SLOWLY = """
import socket, sys
s = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
c, _ = s.accept()
n = 0
try:
    while data := c.recv(1000):
        n += len(data)
    end = "end"
except ConnectionResetError:
    end = "reset"
print(n, end, flush=True)
"""

CONNECT_TO_NOTHING = """
import errno, socket, sys
s = socket.socket()
try:
    s.connect((sys.argv[1], 0))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_what_was_acknowledged_arrives_before_a_reset(wired, python):
    shape = ["tc", "qdisc", "add", "dev", wired.client.nic.name, "root", "tbf"]
    wired.client.run([*shape, "rate", "2mbit", "burst", "4k", "latency", "100ms"])
    wired.attach_client()
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", COUNT_SLOWLY, "7304"],
        host=wired.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    python(wired.client, wired.client_cgroup, WRITE_AND_RESET, wired.server.ip4, "7304")
    assert server.stdout.readline() == "100000 reset\n"
    server.wait(10)


def test_connecting_to_port_0_is_refused_at_once(wired, python):
    wired.attach_client()
    assert (
        python(wired.client, wired.client_cgroup, CONNECT_TO_NOTHING, wired.server.ip4)
        == "ECONNREFUSED"
    )


CHANGES_PRIORITY = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
for minor in (2, 3):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 1 << 16 | minor)
    s.sendall(bytes(300000))
    s.recv(1)
"""

ANSWER = """
import socket, sys
s = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
c, _ = s.accept()
for _ in range(2):
    left = 300000
    while left:
        left -= len(c.recv(left))
    c.sendall(b"x")
"""


def test_a_priority_that_changes_in_mid_connection_chooses_the_class_of_the_qdisc(wired, python):
    nic = wired.client.nic.name
    wired.client.run(
        ["tc", "qdisc", "add", "dev", nic, "root", "handle", "1:", "htb", "default", "1"]
    )
    for minor in (1, 2, 3):
        wired.client.run(
            [
                "tc",
                "class",
                "add",
                "dev",
                nic,
                "parent",
                "1:",
                "classid",
                f"1:{minor}",
                "htb",
                "rate",
                "1gbit",
            ]
        )
    wired.attach_client(TAP)
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", ANSWER, "7305"],
        host=wired.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    python(wired.client, wired.client_cgroup, CHANGES_PRIORITY, wired.server.ip4, "7305")
    assert server.wait(10) == 0
    shown = wired.client.run(["tc", "-s", "class", "show", "dev", nic]).stdout
    sent = {
        one: int(size) for one, size in re.findall(r"class htb (\S+) .*\n Sent (\d+) bytes", shown)
    }
    assert sent["1:1"] < 5_000, sent
    assert 300_000 < sent["1:2"] < 330_000, sent
    assert 300_000 < sent["1:3"] < 330_000, sent
