# SPDX-License-Identifier: Apache-2.0
"""A NIC that is set down under load and up again: its flows go on, as the kernel's do."""

from __future__ import annotations

import hashlib
import json
import random
import threading

import pytest
from sitefixtures import TAP, XDP, Site, by
from talking import Talker, echo, program, server

from lab import wait_for

PORT, FLOWS, SIZE = 7400, 40, 600_000
DOWN_S = 3.0

# Sends back what comes, at so many bytes a second of each connection and with little room, so that
# a transfer is still going on both ways.
SERVE = """
import socket, sys, threading
SO_MAX_PACING_RATE = 47
listening = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
for room in (socket.SO_RCVBUF, socket.SO_SNDBUF):
    listening.setsockopt(socket.SOL_SOCKET, room, 65536)
listening.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 200_000)
print("ready", flush=True)
def serve(c):
    while data := c.recv(16384):
        c.sendall(data)
    c.close()
while True:
    c, _ = listening.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""

# So many connections, to either address in turn, each with a thread that sends and one
# that reads; tells how many bytes have come back at each line that is read, and at the end
# each connection's digests.
LOAD = """
import hashlib, json, random, socket, sys, threading
addresses, (port, flows, size) = sys.argv[1:3], map(int, sys.argv[3:])
conns = [socket.create_connection((addresses[n % 2], port)) for n in range(flows)]
came, digests = [0] * flows, [None] * flows
def send(n):
    conns[n].sendall(random.Random(n).randbytes(size))
    conns[n].shutdown(socket.SHUT_WR)
def read(n):
    found = hashlib.sha256()
    try:
        while part := conns[n].recv(1 << 16):
            found.update(part)
            came[n] += len(part)
        digests[n] = found.hexdigest()
    except OSError as error:
        digests[n] = str(error)
threads = [threading.Thread(target=t, args=(n,), daemon=True) for n in range(flows) for t in (send, read)]
for t in threads: t.start()
for line in sys.stdin:
    if line.strip() == "end":
        break
    print(min(came), sum(came), flush=True)
for t in threads: t.join()
print(json.dumps(digests), flush=True)
"""


def _expected(number: int) -> str:
    return hashlib.sha256(random.Random(number).randbytes(SIZE)).hexdigest()


@pytest.mark.parametrize(
    "policy",
    [pytest.param(None, id="kernel"), pytest.param(TAP, id="tap"), pytest.param(XDP, id="af_xdp")],
)
def test_forty_flows_survive_three_seconds_without_the_nic(wired: Site, policy: str | None):
    """The neighbour's address and, for IPv6, the host's own are gone while it is down; the host
    puts them back.
    """
    client, nic = wired.client, wired.client.nic
    client.sysctl("net.ipv6.conf.all.keep_addr_on_down", 1)
    server(wired.server, wired.server_cgroup, SERVE, str(PORT))
    routed = wired.attach_client(policy)
    pid = policy and routed.stack("wan")["pid"]
    numbers = map(str, (PORT, FLOWS, SIZE))
    load = program(client, wired.client_cgroup, LOAD, wired.server.ip4, wired.server.ip6, *numbers)

    def progress() -> tuple[int, int]:
        assert load.stdin is not None and load.stdout is not None
        load.stdin.write("how far\n")
        load.stdin.flush()
        least, all_ = load.stdout.readline().split()
        return int(least), int(all_)

    wait_for(lambda: progress()[0] > 0, 30, "every flow to carry bytes")
    client.ip(f"link set {nic.name} down")
    threading.Event().wait(DOWN_S)  # what is tried is this long silence
    _, during = progress()
    assert during < FLOWS * SIZE, "it was over before"
    client.ip(
        f"link set {nic.name} up",
        f"route replace default via {wired.server.ip4} dev {nic.name}",
    )
    assert load.stdin is not None and load.stdout is not None
    load.stdin.write("end\n")
    load.stdin.flush()
    digests = json.loads(load.stdout.readline())
    assert digests == [_expected(n) for n in range(FLOWS)]
    if policy:
        stack = routed.stack("wan")
        assert (stack["pid"], stack["restarts"]) == (pid, 0)


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_the_flows_of_another_nic_do_not_wait_for_one_that_is_down(wired: Site, io: str):
    """One process serves both."""
    client, server_ = wired.client, wired.server
    wired.lab.wire(client, server_, offloads=True)
    down, other = client.nics
    echo(server_, wired.server_cgroup)
    routed = wired.attach_client(by(io, down.name, other.name))
    stuck = Talker(client, wired.client_cgroup, server_.nics[0].ip4)
    going = Talker(client, wired.client_cgroup, server_.nics[1].ip4)
    assert stuck.says("hello") == going.says("hello") == "hello"
    assert routed.stack("wan")["counters"]["active_open"] == 2
    client.ip(f"link set {down.name} down")
    stuck.process.stdin.write(f"send {SIZE}\n")
    stuck.process.stdin.flush()
    for _ in range(5):
        assert going.says(f"send {SIZE}") == "True"
    client.ip(f"link set {down.name} up")
    assert stuck.answer() == "True"
    assert routed.stack("wan")["restarts"] == 0
