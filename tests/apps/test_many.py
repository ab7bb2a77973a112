# SPDX-License-Identifier: Apache-2.0
"""Thousands of connections open at once through one stack process: none is lost, mixed up,
unlisted or left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from dmm_ebpf import loader
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.rd.api.client import Client
from lab import wait_for
from lab.holding import Holders

MANY = 2000
PAYLOAD_BYTES = 20_000
BURST = 30_000
OPEN = 20_000
ESTABLISHED = 1  # TCP_ESTABLISHED

# Echoes PAYLOAD_BYTES on each connection, and closes when one byte more, or the end, comes.
SERVER = """
import asyncio, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
size = int(sys.argv[2])

async def echo(reader, writer):
    left = size
    while left and (data := await reader.read(left)):
        left -= len(data)
        writer.write(data)
        await writer.drain()
    await reader.read(1)
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "0.0.0.0", int(sys.argv[1]), backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

# Opens them all; at a word, sends noise of its own on each and compares hashes; at
# another, ends them.
CLIENT = """
import asyncio, hashlib, random, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
address, port, many, size, server_closes = sys.argv[1], *(int(word) for word in sys.argv[2:])

async def use(number, reader, writer):
    noise = random.Random(number).randbytes(size)
    writer.write(noise)
    got = hashlib.sha256(await reader.readexactly(size))
    return got.digest() == hashlib.sha256(noise).digest()

async def end(reader, writer):
    if server_closes:
        writer.write(b"q")
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()

async def main():
    opening = asyncio.Semaphore(256)

    async def open_one():
        async with opening:
            return await asyncio.open_connection(address, port)

    held = await asyncio.gather(*(open_one() for _ in range(many)))
    print(len(held), flush=True)
    input()
    print(sum(await asyncio.gather(*(use(number, *pair) for number, pair in enumerate(held)))), flush=True)
    input()
    await asyncio.gather(*(end(*pair) for pair in held))
    print("ended", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("who", ["client", "server"])
def test_2000_connections_open_at_once_each_with_its_own_bytes(wired, who):
    routed = wired.attach_client() if who == "client" else wired.attach_server()
    client = _start(wired, who)
    assert client.stdout.readline() == f"{MANY}\n"
    flows = routed.flows(stack="wan", state="ESTABLISHED", outer_state="ESTABLISHED")
    assert len({(f["src"], f["sport"], f["dst"], f["dport"]) for f in flows}) == len(flows) == MANY
    assert _in_maps(routed) == {"flows": MANY, "xdp_flows": MANY}
    _say(client)
    assert client.stdout.readline() == f"{MANY}\n"
    counted = routed.ask_stack("wan")
    assert counted["connections"] == MANY
    assert counted["core_refused_limit"] == counted["core_rst_in"] == counted["core_rst_out"] == 0
    _say(client)
    assert client.stdout.readline() == "ended\n"
    assert client.wait(10) == 0
    wait_for(
        lambda: not routed.ask_stack("wan")["connections"], 10, "the stack's connections to end"
    )
    wait_for(lambda: not any(_in_maps(routed).values()), 10, "the records of flows to go")


def test_a_program_that_resets_all_its_connections_at_once_leaves_none_in_the_stack(
    wired, tmp_path
):
    # Several times as many as the stack handles while they are sent: a reset that is lost is
    # not sent again.
    routed = wired.attach_client()
    cgroups = (wired.client_cgroup, wired.server_cgroup)
    with Holders(wired.client, wired.server, cgroups, BURST, tmp_path) as holders:
        assert holders.tell("open", 60).done == BURST
        assert routed.ask_stack("wan")["connections"] == BURST
        assert holders.tell("reset", 10).done == BURST
        wait_for(lambda: not routed.ask_stack("wan")["connections"], 20, "every reset to arrive")
    assert routed.ask_stack("wan")["core_rst_in"] == BURST
    assert not any(_in_maps(routed).values())


def test_detach_resets_thousands_of_connections_at_both_ends(wired, tmp_path):
    routed = wired.attach_client()
    cgroups = (wired.client_cgroup, wired.server_cgroup)
    with Holders(wired.client, wired.server, cgroups, OPEN, tmp_path) as holders:
        assert holders.tell("open", 60).done == OPEN
        assert _established(wired.client) == _established(wired.server) == OPEN
        routed.close()
        assert "flows that it carried are reset" not in routed.log.read_text(), (
            "the stack left some to others"
        )
        wait_for(lambda: not _established(wired.client), 10, "the client's sockets to be reset")
        wait_for(lambda: not _established(wired.server), 10, "the server's sockets to be reset")


@pytest.mark.alone("300 ms are the clock's")
def test_a_killed_stack_with_many_flows_keeps_the_director_from_nobody(wired, tmp_path):
    routed = wired.attach_client()
    cgroups = (wired.client_cgroup, wired.server_cgroup)
    with Holders(wired.client, wired.server, cgroups, BURST, tmp_path) as holders:
        assert holders.tell("open", 60).done == BURST
        [process] = routed.stack("wan")["processes"]
        os.kill(process["pid"], signal.SIGKILL)
        waits = []
        with Client(routed.instance) as director:
            while f"{BURST} flows that it carried are reset" not in routed.log.read_text():
                began = time.monotonic()
                director.call("policy_show")
                waits.append(time.monotonic() - began)
                assert sum(waits) < 20
        assert max(waits) < 0.3
        wait_for(lambda: not _established(wired.client), 10, "the client's sockets to be reset")
        wait_for(lambda: routed.stack("wan")["state"] == "up", 10, "the stack to be back")
        assert not _in_maps(routed)["xdp_flows"]


def _established(host):
    return sum(
        sock.state == ESTABLISHED for sock in host.call(lambda: sockdiag.list_tcp(listeners=False))
    )


def _start(wired, who):
    """The server, and the client when it has begun. The side that has no stack is the first to
    close: TIME_WAIT, which lasts, is the kernel's.
    """
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", SERVER, "7003", str(PAYLOAD_BYTES)],
        host=wired.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    words = [wired.server.ip4, "7003", str(MANY), str(PAYLOAD_BYTES), str(int(who == "client"))]
    return wired.client_cgroup.spawn(
        ["/usr/bin/python3", "-c", CLIENT, *words],
        host=wired.client,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _say(client):
    client.stdin.write("\n")
    client.stdin.flush()


def _in_maps(routed):
    """Records of flows, and 5-tuples that XDP gives to the stack."""
    attached = loader.adopt(routed.instance)
    try:
        return {
            "flows": sum(1 for _ in attached.flows()),
            "xdp_flows": attached.maps.xdp_flows.count(),
        }
    finally:
        attached.close()
