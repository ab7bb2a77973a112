# SPDX-License-Identifier: Apache-2.0
"""When a container's socket takes a silent peer for dead, on every kernel: what its program says
counts, then the stack, then the container's own sysctls.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from lab.routed import Routed

POLICY = """
[stacks.wan]
kind = "user"
io = "tap"
devices = ["eth0"]
keepalive_time_s = 3300

[[rules]]
cgroup = "{cgroup}"
table = "t"

[[tables.t.routes]]
to = "default"
stack = "wan"
"""
TOLD_WITHIN_S = 600  # an emulated machine asks slowly, and the time left goes on falling
CLIENT = """
import socket, sys
s = socket.socket()
if sys.argv[2] != "0":
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(sys.argv[2]))
s.connect((sys.argv[1], 7000))
print("open", flush=True)
sys.stdin.read()
"""
SERVER = """
import socket
l = socket.create_server(("", 7000))
print("ready", flush=True)
kept = []
while True:
    kept.append(l.accept())
"""


@pytest.mark.parametrize(("own", "seconds"), [(0, 3300), (7000, 7000)])
def test_the_keys_hold_in_a_container_of_other_sysctls(wired, own, seconds):
    """The container is a namespace that the host forwards for."""
    host, container = wired.client, wired.lab.host("container")
    wired.lab.wire(host, container, offloads=True)
    host.sysctl("net.ipv4.ip_forward", 1)
    container.ip(f"route replace default via {host.nics[1].ip4}")
    wired.server.ip(f"route add {container.ip4} via {host.ip4}")
    container.sysctl("net.ipv4.tcp_keepalive_time", 1100)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = wired.server.popen(["/usr/bin/python3", "-c", SERVER], **pipes)
    assert server.stdout.readline() == "ready\n"
    routed = wired.stack.enter_context(
        Routed(host, wired.client_cgroup, POLICY, wired.directory, options=["--containers"])
    )
    words = ["/usr/bin/python3", "-c", CLIENT, wired.server.ip4, str(own)]
    client = wired.client_cgroup.spawn(words, host=container, **pipes)
    assert client.stdout.readline() == "open\n"
    (flow,) = routed.flows(pid=client.pid)
    assert (flow["kind"], flow["stack"]) == ("container", "wan")
    shown = container.run(["ss", "-Htno", "state", "established"]).stdout
    told = re.search(r"timer:\(keepalive,(?:(\d+)min)?(?:(\d+)(?:\.\d+)?sec)?", shown)
    assert told, shown
    left = 60 * int(told[1] or 0) + int(told[2] or 0)
    assert seconds - TOLD_WITHIN_S < left <= seconds, shown
    client.kill()
    client.wait()
