# SPDX-License-Identifier: Apache-2.0
"""A user stack with several processes: both carry flows, one may be killed, and nothing
is left behind.
"""

from __future__ import annotations

import os
import signal

import pytest
from talking import program, server

from dmm_ebpf.userstack.pidfile import start_time
from lab import curl_fetch, iperf3, iperf3_server, nginx, wait_for
from lab.waiting import stop

TWO = """
[stacks.wan]
kind = "user"
io = "af_xdp"
congestion = "wan"
processes = 2

[[rules]]
cgroup = "{cgroup}"
table = "t"

[[tables.t.routes]]
to = "default"
stack = "wan"
"""

# Opens as many connections as it is told, then answers each line on stdin with how
# each connection fares.
MANY = """
import socket, struct, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sockets = [socket.create_connection((host, port), 10) for _ in range(count)]
for s in sockets:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME-WAIT to wait for
print("connected", flush=True)
for line in sys.stdin:
    fates = []
    for s in sockets:
        try:
            s.sendall(b"x" * 1000)
            got = s.recv(1000, socket.MSG_WAITALL)
            fates.append("well" if len(got) == 1000 else "closed")
        except OSError as error:
            fates.append("broken")
    print(*fates, flush=True)
"""

ECHO = """
import asyncio
async def serve(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()
async def main():
    server = await asyncio.start_server(serve, None, 7000, backlog=1000)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def _python(host, cgroup, script, *args):
    return program(host, cgroup, script, *map(str, args))


def _echo(site):
    return server(site.server, site.server_cgroup, ECHO)


def _say(program):
    program.stdin.write("go\n")
    program.stdin.flush()
    return program.stdout.readline().split()


def _processes(routed):
    return routed.stack("wan")["processes"]


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_both_processes_carry_connections(wired, who, ipv6):
    routed = wired.attach_client(TWO) if who == "client" else wired.attach_server(TWO)
    _echo(wired)
    address = wired.server.ip6 if ipv6 else wired.server.ip4
    many = _python(wired.client, wired.client_cgroup, MANY, address, 7000, 40)
    assert many.stdout.readline() == "connected\n"
    assert _say(many) == ["well"] * 40
    counts = [p["connections"] for p in _processes(routed)]
    assert sum(counts) == 40
    assert min(counts) >= 5, counts


@pytest.mark.parametrize("who", ["client", "server", "both"])
def test_fetches_through_both_processes_arrive_whole(wired, payload, who):
    path, sha256 = payload(5_000_000)
    routed = []
    if who in ("client", "both"):
        routed.append(wired.attach_client(TWO))
    if who in ("server", "both"):
        routed.append(wired.attach_server(TWO))
    server = nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    for _ in range(16):
        got = curl_fetch(wired.client, server.url(path.name), cgroup=wired.client_cgroup)
        assert (got.exit_code, got.sha256) == (0, sha256)
    for one in routed:
        sent = [one.ask_stack(name)["nic_rx_pkts"] for name in ("wan", "wan@1")]
        assert min(sent) > 50, sent  # a peer may acknowledge many segments at once


def test_iperf3_with_eight_streams_over_a_lossy_link(site):
    site.wan(rate="200mbit", delay="5ms", loss="1%", seed=3)
    routed = site.attach_client(TWO)
    iperf3_server(site.server, site.directory / "iperf3", cgroup=site.server_cgroup)
    result = iperf3(site.client, site.server.ip4, "-P", "8", "-t", "3", cgroup=site.client_cgroup)
    assert result["end"]["sum_received"]["bits_per_second"] > 100e6
    assert min(routed.ask_stack(name)["nic_tx_pkts"] for name in ("wan", "wan@1")) > 1000


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ones_flows_go_on(wired, victim):
    routed = wired.attach_client(TWO)
    _echo(wired)
    many = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 20)
    assert many.stdout.readline() == "connected\n"
    before = _processes(routed)
    carried = [p["connections"] for p in before]
    assert sum(carried) == 20
    os.kill(before[victim]["pid"], signal.SIGKILL)
    # New flows work at once: the other process, or until the death is noticed the
    # kernel, takes them.
    new = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 20)
    assert new.stdout.readline() == "connected\n"
    fates = _say(many)
    assert fates.count("well") == carried[1 - victim]
    assert fates.count("broken") == carried[victim]
    assert _say(new) == ["well"] * 20
    wait_for(
        lambda: all(p["state"] == "up" for p in _processes(routed)),
        10,
        "the process to be started again",
    )
    after = _processes(routed)
    assert after[victim]["pid"] not in (before[victim]["pid"], before[1 - victim]["pid"])
    assert after[1 - victim]["pid"] == before[1 - victim]["pid"]
    assert [p["restarts"] for p in after] == [int(victim == 0), int(victim == 1)]
    again = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 20)
    assert again.stdout.readline() == "connected\n"
    assert _say(again) == ["well"] * 20
    counts = [p["connections"] for p in _processes(routed)]
    assert min(counts) >= 5, counts


def test_clients_of_a_server_find_the_process_that_lives(wired):
    routed = wired.attach_server(TWO)
    _echo(wired)
    pid = routed.stack("wan")["processes"][1]["pid"]
    # Kept from coming back, so that what serves the clients is certain.
    stop(pid)
    routed.kill_director()
    os.kill(pid, signal.SIGKILL)
    many = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 20)
    assert many.stdout.readline() == "connected\n"
    assert _say(many) == ["well"] * 20
    routed.restart()
    wait_for(lambda: all(p["state"] == "up" for p in _processes(routed)), 10, "both processes")
    assert _say(many) == ["well"] * 20


def _left_on(host):
    text = host.run(
        [
            "sh",
            "-c",
            "ip rule; ip -6 rule; ip -br link; ip route show table all; ip -6 route show table all",
        ]
    )
    return text.stdout + host.run(["cat", "/proc/sys/net/ipv4/tcp_fwmark_accept"]).stdout


@pytest.mark.parametrize("director", ["alive", "killed"])
def test_detach_leaves_nothing(wired, director):
    wait_for(
        lambda: "tentative" not in wired.client.run(["ip", "-6", "addr"]).stdout, 10, "addresses"
    )
    before = _left_on(wired.client)
    routed = wired.attach_client(TWO)
    pids = [p["pid"] for p in _processes(routed)]
    assert "dmm-" in _left_on(wired.client)
    if director == "killed":
        routed.kill_director()
    routed.close()
    assert _left_on(wired.client) == before
    assert [start_time(pid) for pid in pids] == [0, 0], "a process is left"


def test_a_new_director_takes_every_process_over(wired):
    routed = wired.attach_client(TWO)
    _echo(wired)
    many = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 20)
    assert many.stdout.readline() == "connected\n"
    pids = [p["pid"] for p in _processes(routed)]
    routed.kill_director()
    assert _say(many) == ["well"] * 20
    routed.restart()
    assert [p["pid"] for p in _processes(routed)] == pids
    assert _say(many) == ["well"] * 20


def test_processes_are_added_and_taken_away_while_flows_go_on(wired):
    one, three = TWO.replace("processes = 2\n", ""), TWO.replace("processes = 2", "processes = 3")
    routed = wired.attach_client(one)
    _echo(wired)
    first = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 5)
    assert first.stdout.readline() == "connected\n"
    routed.apply(three)
    second = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 30)
    assert second.stdout.readline() == "connected\n"
    counts = [p["connections"] for p in _processes(routed)]
    assert counts[0] >= 5 + 5
    assert min(counts[1:]) >= 5, counts
    routed.apply(one)
    assert [p["state"] for p in _processes(routed)] == ["up", "draining", "draining"]
    third = _python(wired.client, wired.client_cgroup, MANY, wired.server.ip4, 7000, 10)
    assert third.stdout.readline() == "connected\n"
    assert [p["connections"] for p in _processes(routed)] == [counts[0] + 10, counts[1], counts[2]]
    for one, count in ((first, 5), (second, 30), (third, 10)):
        assert _say(one) == ["well"] * count
    second.stdin.close()
    second.wait(10)
    wait_for(lambda: len(_processes(routed)) == 1, 20, "the processes without flows to end")
    assert _say(first) == ["well"] * 5
    links = wired.client.run(["ip", "-br", "link"]).stdout
    assert (links.count("dmm-"), links.count("dmm-0.0.")) == (
        2,
        2,
    )  # both legs of the first process
