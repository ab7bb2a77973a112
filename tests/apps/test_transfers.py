# SPDX-License-Identifier: Apache-2.0
"""Real programs, routed to a user stack, on either end and on both: every payload arrives whole."""

from __future__ import annotations

import hashlib
import json

import pytest
from talking import SEND_AND_READ

from lab import busybox_fetch, busybox_httpd, curl_fetch, iperf3, iperf3_server, nginx, redis_server

MB = 1_000_000


@pytest.mark.parametrize("who", ["client", "server", "both"])
def test_curl_gets_100_mb_from_nginx_over_a_long_lossy_link(site, payload, who):
    path, sha256 = payload(100 * MB)
    site.wan(rate="100mbit", delay="50ms", loss="1%", seed=7)
    attached = []
    if who in ("client", "both"):
        attached.append(site.attach_client())
    if who in ("server", "both"):
        attached.append(site.attach_server())
    server = nginx(site.server, path.parent, site.directory / "nginx", cgroup=site.server_cgroup)
    got = curl_fetch(site.client, server.url(path.name), cgroup=site.client_cgroup, timeout=120)
    assert (got.exit_code, got.stderr) == (0, "")
    assert got.sha256 == sha256
    for routed in attached:
        counters = (
            routed.ask("status")["counters"] if isinstance(routed.ask("status"), dict) else None
        )
        counters = counters or routed.ask("status")[0]["counters"]
        assert counters["xdp_flow"] > 1000, "the transfer did not go through the user stack"
    assert site.link.stats().own_drops == 0


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_a_static_binary_fetches_through_the_user_stack(wired, payload, ipv6):
    path, sha256 = payload(5 * MB)
    routed = wired.attach_client()
    server = busybox_httpd(wired.server, path.parent, wired.directory / "httpd")
    got = busybox_fetch(wired.client, server.url(path.name, ipv6=ipv6), cgroup=wired.client_cgroup)
    assert (got.exit_code, got.sha256) == (0, sha256)
    assert _status(routed)["counters"]["xdp_flow"] > 100


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_a_listening_static_binary_serves_through_the_user_stack(wired, payload, ipv6):
    path, sha256 = payload(5 * MB)
    routed = wired.attach_server()
    server = busybox_httpd(
        wired.server, path.parent, wired.directory / "httpd", cgroup=wired.server_cgroup
    )
    got = curl_fetch(wired.client, server.url(path.name, ipv6=ipv6), cgroup=wired.client_cgroup)
    assert (got.exit_code, got.sha256) == (0, sha256)
    counters = _status(routed)["counters"]
    assert counters["xdp_listener"] >= 1
    assert counters["xdp_flow"] > 100


def test_an_upload_and_a_download_at_once(wired, payload, python):
    path, sha256 = payload(20 * MB)
    wired.attach_client()
    wired.attach_server()
    echo = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", ECHO, "7000"], host=wired.server, stdout=-1, text=True
    )
    assert echo.stdout.readline() == "ready\n"
    said = python(
        wired.client, wired.client_cgroup, SEND_AND_READ, wired.server.ip4, "7000", str(path)
    )
    assert said == sha256
    echo.wait(10)


def test_a_half_closed_connection_still_answers(wired, python):
    wired.attach_client()
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", COUNTER, "7001"], host=wired.server, stdout=-1, text=True
    )
    assert server.stdout.readline() == "ready\n"
    said = python(wired.client, wired.client_cgroup, HALF_CLOSE, wired.server.ip4, "7001")
    assert said == "3000000"
    server.wait(10)


def test_iperf3_both_ways_and_redis(wired, python):
    routed = wired.attach_client()
    iperf3_server(wired.server, wired.directory / "iperf3")
    for options in ((), ("-R",), ("-P", "8")):
        result = iperf3(
            wired.client, wired.server.ip4, "-n", "20M", *options, cgroup=wired.client_cgroup
        )
        # iperf3 ends by a word on its control connection, and does not wait for what is still
        # on its way.
        assert result["end"]["sum_received"]["bytes"] >= 10 * 1024 * 1024
    redis = redis_server(wired.server, wired.directory / "redis")
    done = wired.client_cgroup.run(
        [
            *("redis-benchmark", "-h", wired.server.ip4, "-p", str(redis.port)),
            *("-n", "5000", "-c", "20", "-t", "set,get,lpush", "-d", "1000", "--csv"),
        ],
        host=wired.client,
    )
    assert done.stdout.count("\n") >= 4
    assert _status(routed)["counters"]["xdp_flow"] > 10_000


def test_200_connections_at_once_each_with_its_own_bytes(wired, python):
    wired.attach_client()
    wired.attach_server()
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", MANY_SERVER, "7002"], host=wired.server, stdout=-1, text=True
    )
    assert server.stdout.readline() == "ready\n"
    said = json.loads(
        python(wired.client, wired.client_cgroup, MANY_CLIENT, wired.server.ip4, "7002", "200")
    )
    expected = [hashlib.sha256(f"{i}".encode() * 20_000).hexdigest() for i in range(200)]
    assert said == expected
    server.wait(10)


def _status(routed):
    answer = routed.ask("status")
    return answer[0] if isinstance(answer, list) else answer


ECHO = """
import socket, sys
s = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
c, _ = s.accept()
while data := c.recv(1 << 16):
    c.sendall(data)
c.shutdown(socket.SHUT_WR)
"""

COUNTER = """
import socket, sys
s = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
c, _ = s.accept()
n = 0
while data := c.recv(1 << 16):
    n += len(data)
c.sendall(str(n).encode())
"""

HALF_CLOSE = """
import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
c.sendall(b"x" * 3000000)
c.shutdown(socket.SHUT_WR)
print(c.recv(100).decode())
"""

MANY_SERVER = """
import selectors, socket, sys
s = socket.create_server(("", int(sys.argv[1])), backlog=512)
print("ready", flush=True)
import threading
def serve(c):
    name = c.recv(100)
    c.sendall(name * 20000)
    c.close()
ts = []
for _ in range(200):
    c, _a = s.accept()
    t = threading.Thread(target=serve, args=(c,))
    t.start()
    ts.append(t)
for t in ts:
    t.join()
"""

MANY_CLIENT = """
import hashlib, json, socket, sys, threading
n = int(sys.argv[3])
out = [None] * n
def one(i):
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    c.sendall(str(i).encode())
    d = hashlib.sha256()
    while data := c.recv(1 << 16):
        d.update(data)
    out[i] = d.hexdigest()
ts = [threading.Thread(target=one, args=(i,)) for i in range(n)]
[t.start() for t in ts]
[t.join() for t in ts]
print(json.dumps(out))
"""
