# SPDX-License-Identifier: Apache-2.0
"""Ports that are used again while the peer is in TIME-WAIT, by a process of the stack that knows
nothing of the last connection on them: no SYN is taken for an old one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from lab import wait_for

PORTS = 40
SOON_S = 0.9  # a SYN that is refused comes again after a second

# Closes first what it takes, when a byte has come: TIME-WAIT is its.
SERVER = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 7009), backlog=128)
print("ready", flush=True)
while True:
    one, _ = listener.accept()
    one.recv(1)
    one.close()
"""

# Connects from each port in turn; prints how long each connect() took.
CLIENT = """
import json, socket, struct, sys, time
took = []
for port in range(21000, 21000 + int(sys.argv[2])):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("0.0.0.0", port))
    began = time.monotonic()
    one.connect((sys.argv[1], 7009))
    took.append(time.monotonic() - began)
    one.send(b"x")
    assert one.recv(1) == b""
    one.close()
print(json.dumps(took))
"""


@pytest.mark.parametrize("timestamps", [0, 1])
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_process_that_is_new_opens_on_ports_of_the_last_one(wired, who, timestamps):
    for host in (wired.client, wired.server):
        host.sysctl("net.ipv4.tcp_timestamps", timestamps)
    routed = wired.attach_client() if who == "client" else wired.attach_server()
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", SERVER], host=wired.server, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout.readline() == "ready\n"
    argv = ["/usr/bin/python3", "-c", CLIENT, wired.server.ip4, str(PORTS)]
    for _ in range(3):
        said = wired.client_cgroup.run(argv, host=wired.client)
        assert max(json.loads(said.stdout)) < SOON_S
        before = routed.stack("wan")["pid"]
        os.kill(before, signal.SIGKILL)
        wait_for(lambda b=before: routed.stack("wan")["pid"] not in (b, None), 20, "a new one")
        wait_for(lambda: routed.stack("wan")["state"] == "up", 20, "it to serve")
