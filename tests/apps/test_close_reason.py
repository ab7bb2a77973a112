# SPDX-License-Identifier: Apache-2.0
"""The event of a flow that closes says why, by the kernel alone and through a user stack."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from talking import program, server

from dmm_ebpf.rd.api.client import Client

PORT = 7340
DROP = "add table inet t; add chain inet t in { type filter hook input priority 0; policy drop; }"

# Does to each client what it asks for with its first line.
SERVE = """
import socket, struct, sys
listening = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    c, _ = listening.accept()
    try:
        what = c.recv(100)
        if what == b"reset":
            c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif what == b"wait":
            c.sendall(b"x")
            c.recv(100)
    except OSError:
        pass
    c.close()
"""
TALK = """
import os, socket, struct, sys
address, port, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket()
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500)
def ends():
    try:
        s.recv(1)
    except OSError:
        pass
try:
    if what == "give-up":
        s.setblocking(False)
        s.connect_ex((address, port))
        print("talks", flush=True)
        sys.stdin.readline()
        s.close()
        sys.exit()
    s.connect((address, port))
except OSError:
    sys.exit()
s.sendall({"fin": b"close", "reset": b"reset"}.get(what, b"wait"))
if what in ("fin", "reset"):
    ends()
else:
    s.recv(1)
    print("talks", flush=True)
    sys.stdin.readline()
    if what == "linger":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif what == "vanish":
        s.sendall(b"y")
        ends()
    else:
        ends()
s.close()
"""


@pytest.fixture(params=["kernel", "stack"])
def carried(request, wired):
    kernel = '[[rules]]\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "kernel"\n'
    routed = wired.attach_client(*([kernel] if request.param == "kernel" else []))
    serving = server(wired.server, wired.server_cgroup, SERVE, wired.server.ip4, str(PORT))
    try:
        yield wired, routed, request.param
    finally:
        serving.kill()
        serving.wait()


@contextmanager
def talk(site, what: str, port: int = PORT) -> Iterator[subprocess.Popen[str]]:
    one = program(site.client, site.client_cgroup, TALK, site.server.ip4, str(port), what)
    try:
        if what not in ("fin", "reset", "refused"):
            assert one.stdout.readline() == "talks\n"
        yield one
    finally:
        one.kill()
        one.wait()


def go(one: subprocess.Popen[str]) -> None:
    one.stdin.write("go\n")
    one.stdin.flush()


def closed(events) -> dict[str, object]:
    return next(event for event in events if event["type"] == "close")


def test_why_a_flow_ended(carried):
    site, routed, by = carried
    with Client(routed.instance) as client, client.stream("follow") as events:
        routed.apply()
        next(event for event in events if event["type"] == "policy")

        with talk(site, "fin"):
            assert closed(events)["reason"] == "fin"
        with talk(site, "reset"):
            assert closed(events)["reason"] == "reset-by-peer"
        with talk(site, "refused", PORT + 1):
            assert closed(events)["reason"] == "refused"
        with talk(site, "linger") as one:
            go(one)
            assert closed(events)["reason"] == "reset-by-app"
        with talk(site, "killed") as one:
            site.client.run(["ss", "-K", "dport", "=", str(PORT)])
            assert closed(events)["reason"] == "aborted"
        if by == "stack":
            with talk(site, "killed"):
                (process,) = routed.stack("wan")["processes"]
                os.kill(process["pid"], signal.SIGKILL)
                event = closed(events)
                assert (event["reason"], event["stack"]) == ("stack-died", "wan")
            return
        site.server.run(["nft", DROP])
        with talk(site, "give-up") as one:
            go(one)
            assert closed(events)["reason"] == "given-up"


def test_a_silent_peer_is_a_timeout(carried):
    site, routed, _ = carried
    with (
        Client(routed.instance) as client,
        client.stream("follow") as events,
        talk(site, "vanish") as one,
    ):
        site.server.run(["nft", DROP])
        go(one)
        assert closed(events)["reason"] == "timeout"
    site.server.run(["nft", "delete table inet t"])
