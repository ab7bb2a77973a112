# SPDX-License-Identifier: Apache-2.0
"""A user stack that is full: new connections take its fallback and work, the open ones go on, and
once there is room again the stack serves new ones.
"""

from __future__ import annotations

import subprocess

import pytest

from lab import wait_for

POLICY = """
[stacks.wan]
kind = "user"
io = "af_xdp"
{limit}

[[rules]]
cgroup = "{cgroup}"
table = "t"

[[tables.t.routes]]
to = "default"
stack = "wan"
"""
FEW = POLICY.replace("{limit}", "max_connections = 4")
SMALL = POLICY.replace("{limit}", 'memory = "4M"')
HALVES = POLICY.replace("{limit}", "max_connections = 4\nprocesses = 2")

# Answers each chunk with its SHA-256, so that both directions are checked: 4 bytes of length,
# then the bytes.
SERVER = """
import asyncio, hashlib, struct
async def serve(reader, writer):
    try:
        while True:
            size, = struct.unpack("!I", await reader.readexactly(4))
            data = await reader.readexactly(size)
            writer.write(hashlib.sha256(data).digest() + data)
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    writer.close()
async def main():
    server = await asyncio.start_server(serve, None, 7000, backlog=1000, limit=1 << 22)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

# Commands on stdin, one answer each. "stall" sends more than is taken, "drain" reads all that comes
# back for it.
CLIENT = """
import hashlib, os, socket, struct, sys, threading
host = sys.argv[1]
opened, stalled = [], []
SIZE = 200_000
def say(*words):
    print(*words, flush=True)
def exchange(s):
    data = os.urandom(SIZE)
    sender = threading.Thread(target=s.sendall, args=(struct.pack("!I", SIZE) + data,))
    sender.start()
    got = b""
    while len(got) < SIZE + 32 and (part := s.recv(1 << 20)):
        got += part
    sender.join()
    return got == hashlib.sha256(data).digest() + data
for line in sys.stdin:
    what, count = line.split()
    count = int(count)
    if what == "open":
        opened += [socket.create_connection((host, 7000), 20) for _ in range(count)]
        say(*[s.getsockname()[1] for s in opened[-count:]])
    elif what == "close":
        for _ in range(count):
            opened.pop(0).close()
        say("closed")
    elif what == "stall":
        for _ in range(count):
            s = socket.create_connection((host, 7000), 20)
            s.settimeout(60)  # of all that sendall() does, most of it waiting
            data = os.urandom(2 << 20)
            sender = threading.Thread(target=s.sendall, args=(struct.pack("!I", len(data)) + data,), daemon=True)
            sender.start()
            stalled.append((s, data, sender))
        say(*[s.getsockname()[1] for s, _, _ in stalled])
    elif what == "drain":
        right = 0
        for s, data, sender in stalled:
            got = bytearray()
            while len(got) < len(data) + 32 and (part := s.recv(1 << 20)):
                got += part
            right += got == hashlib.sha256(data).digest() + data
            s.close()
        stalled.clear()
        say(right)
    else:
        say(*[exchange(s) for s in opened])
"""


class Program:
    """A Python program in a cgroup of a host, spoken to by lines."""

    def __init__(self, host, cgroup, script, *args):
        self._process = cgroup.spawn(
            ["/usr/bin/python3", "-c", script, *args],
            host=host,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> list[str]:
        return self._process.stdout.readline().split()

    def __call__(self, line: str) -> list[str]:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.read()


@pytest.fixture(params=["ipv4", "ipv6"])
def start(wired, request):
    """Starts the server, which must be done after a policy for it is in force, and the client."""

    def begin() -> Program:
        server = Program(wired.server, wired.server_cgroup, SERVER)
        assert server.read() == ["ready"]
        address = wired.server.ip6 if request.param == "ipv6" else wired.server.ip4
        return Program(wired.client, wired.client_cgroup, CLIENT, address)

    return begin


def _who(routed, ports: list[str], side: str = "sport") -> list[str]:
    """The stacks that serve these ports, in their order."""
    stacks = {str(f[side]): f["stack"] for f in routed.flows(wanted="wan")}
    return [stacks[port] for port in ports]


def _full(routed) -> list[str]:
    return routed.stack("wan")["full"]


def _counters(routed) -> dict[str, int]:
    (status,) = routed.ask("status")
    return status["counters"]


@pytest.mark.parametrize("policy", [FEW, HALVES], ids=["one process", "two processes"])
def test_connect_beyond_max_connections_takes_the_fallback(wired, start, policy):
    routed = wired.attach_client(policy)
    client = start()
    first = client("open 4")
    assert _full(routed) == ["connections"]
    more = client("open 2")
    assert _who(routed, first) == ["wan"] * 4
    assert _who(routed, more) == ["kernel"] * 2
    assert client("check 0") == ["True"] * 6
    assert _counters(routed)["connect_full"] == 2
    told = routed.cli("stacks", "--instance", routed.instance).stdout
    assert "wan is full (4 of 4 connections): new flows go to kernel" in told
    assert (
        routed.ask("route", "get", wired.server.ip4, "--cgroup", wired.client_cgroup.relative)[
            "stack"
        ]
        == "kernel"
    )
    assert client("close 1") == ["closed"]
    wait_for(lambda: not _full(routed), 10, "the stack to have room")
    assert _who(routed, client("open 1")) == ["wan"]
    assert client("check 0") == ["True"] * 6
    assert routed.ask_stack("wan")["core_refused_limit"] == 0


def test_a_listeners_peers_beyond_max_connections_are_served_by_the_kernel(wired, start):
    routed = wired.attach_server(FEW)
    client = start()
    first = client("open 4")
    assert client("check 0") == ["True"] * 4
    assert _full(routed) == ["connections"]
    more = client("open 2")
    assert _who(routed, first, "dport") == ["wan"] * 4
    assert _who(routed, more, "dport") == ["kernel"] * 2
    assert client("check 0") == ["True"] * 6
    assert _counters(routed)["xdp_full"] >= 2
    assert client("close 1") == ["closed"]
    wait_for(lambda: not _full(routed), 10, "the stack to have room")
    assert _who(routed, client("open 1"), "dport") == ["wan"]
    assert client("check 0") == ["True"] * 6


@pytest.mark.parametrize("start", ["ipv4"], indirect=True)
def test_connect_while_memory_is_short_takes_the_fallback(wired, start):
    routed = wired.attach_client(SMALL)
    client = start()
    slow = client("stall 40")
    wait_for(lambda: _full(routed) == ["memory"], 20, "the stack's memory to be used up")
    more = client("open 2")
    assert _who(routed, more) == ["kernel"] * 2
    assert client("check 0") == ["True"] * 2
    assert "wan" in _who(routed, slow)
    assert client("drain 0") == ["40"]
    wait_for(lambda: not _full(routed), 20, "the stack to have memory")
    assert _who(routed, client("open 1")) == ["wan"]
    assert client("check 0") == ["True"] * 3
