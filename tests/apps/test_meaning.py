# SPDX-License-Identifier: Apache-2.0
"""The socket calls keep their meaning, and the firewall its say, when a user stack
carries the connection.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from lab import curl_fetch, nginx, wait_for

CONNECT_ERRNO = """
import errno, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    print("connected")
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""

NAMES = """
import json, socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
c.sendall(b"x")
print(json.dumps([c.getsockname()[:2], c.getpeername()[:2], json.loads(c.recv(1000))]))
"""

SAY_NAMES = """
import json, socket, sys
s = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    c, peer = s.accept()
    c.recv(1)
    c.sendall(json.dumps([c.getsockname()[:2], peer[:2]]).encode())
    c.close()
"""


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_refused_connection_is_econnrefused(wired, python, family):
    wired.attach_client()
    said = python(
        wired.client, wired.client_cgroup, CONNECT_ERRNO, getattr(wired.server, family), "9"
    )
    assert said == "ECONNREFUSED"


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_neighbour_that_is_not_there_is_ehostunreach(wired, python, family):
    wired.attach_client()
    address = getattr(wired.server, family)
    absent = address.rsplit("." if family == "ip4" else ":", 1)[0] + (
        ".77" if family == "ip4" else ":77"
    )
    assert python(wired.client, wired.client_cgroup, CONNECT_ERRNO, absent, "80") == "EHOSTUNREACH"


def test_an_icmp_error_is_the_errno_that_the_kernel_would_give(wired, python):
    wired.attach_client()
    _nft(
        wired.server,
        "add table inet t; add chain inet t in { type filter hook input priority 0; };"
        "add rule inet t in tcp dport 81 reject with icmp host-unreachable;"
        "add rule inet t in tcp dport 82 reject with icmp net-unreachable;"
        "add rule inet t in tcp dport 83 reject with icmpx port-unreachable",
    )
    for port, name in (("81", "EHOSTUNREACH"), ("82", "ENETUNREACH"), ("83", "ECONNREFUSED")):
        assert (
            python(wired.client, wired.client_cgroup, CONNECT_ERRNO, wired.server.ip4, port) == name
        )


def test_a_silent_peer_is_etimedout(wired, python):
    wired.client.sysctl("net.ipv4.tcp_syn_retries", 1)
    wired.client.sysctl("net.ipv4.tcp_syn_linear_timeouts", 0)
    wired.attach_client()
    _nft(
        wired.server,
        "add table inet t; add chain inet t in { type filter hook input priority 0; };"
        "add rule inet t in tcp dport 84 drop",
    )
    assert (
        python(wired.client, wired.client_cgroup, CONNECT_ERRNO, wired.server.ip4, "84")
        == "ETIMEDOUT"
    )


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("who", ["client", "server", "both"])
def test_both_ends_see_the_real_addresses(wired, python, family, who):
    if who != "server":
        wired.attach_client()
    if who != "client":
        wired.attach_server()
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", SAY_NAMES, "7100"],
        host=wired.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    ours, theirs, (far_own, far_peer) = json.loads(
        python(wired.client, wired.client_cgroup, NAMES, getattr(wired.server, family), "7100")
    )
    mapped = "::ffff:" if family == "ip4" else ""
    assert ours[0] == getattr(wired.client, family)
    assert theirs == [getattr(wired.server, family), 7100]
    assert far_own == [mapped + theirs[0], 7100]
    assert far_peer == [mapped + ours[0], ours[1]]


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_nft_in_output_and_input_counts_and_drops_the_real_addresses(wired, payload, family):
    path, sha256 = payload(1_000_000)
    wired.attach_client()
    server = nginx(wired.server, path.parent, wired.directory / "nginx")
    word, address = ("ip", wired.server.ip4) if family == "ip4" else ("ip6", wired.server.ip6)
    _nft(
        wired.client,
        "add table inet f; add chain inet f out { type filter hook output priority 0; };"
        "add chain inet f in { type filter hook input priority 0; };"
        f"add rule inet f out {word} daddr {address} tcp dport 80 counter;"
        f"add rule inet f in {word} saddr {address} tcp sport 80 counter",
    )
    url = server.url(path.name, ipv6=family == "ip6")
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
    sent, received = (_packets(wired.client, chain) for chain in ("out", "in"))
    assert sent > 3
    assert received > 3
    for chain, what in (("out", f"{word} daddr {address}"), ("in", f"{word} saddr {address}")):
        _nft(
            wired.client, f"flush chain inet f {chain}; add rule inet f {chain} {what} counter drop"
        )
        got = curl_fetch(
            wired.client,
            url,
            cgroup=wired.client_cgroup,
            timeout=3,
            options=["--connect-timeout", "1"],
        )
        assert got.exit_code == 28, "curl's exit code for a timeout"
        assert _packets(wired.client, chain) > 0
        _nft(wired.client, f"flush chain inet f {chain}")
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256


def test_nft_input_on_the_listening_side_drops_before_the_application(wired, payload):
    path, sha256 = payload(1_000_000)
    wired.attach_server()
    server = nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    assert curl_fetch(wired.client, server.url(path.name)).sha256 == sha256
    _nft(
        wired.server,
        "add table inet f; add chain inet f in { type filter hook input priority 0; };"
        f"add rule inet f in ip saddr {wired.client.ip4} tcp dport 80 counter drop",
    )
    got = curl_fetch(
        wired.client, server.url(path.name), timeout=3, options=["--connect-timeout", "1"]
    )
    assert got.exit_code == 28
    assert _packets(wired.server, "in") > 0


def test_ss_and_flows_show_the_connection_as_it_is(wired, python):
    routed = wired.attach_client()
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", HOLD_SERVER, "7200"],
        host=wired.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    holder = wired.client_cgroup.spawn(
        ["/usr/bin/python3", "-c", HOLD_CLIENT, wired.server.ip4, "7200"],
        host=wired.client,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "ready\n"
    (flow,) = wait_for(lambda: routed.flows(dport=7200), 5, "the flow")
    listed = wired.client.run(["ss", "-tnH", "state", "established"]).stdout
    assert f"{wired.client.ip4}:{flow['sport']}" in listed
    assert f"{wired.server.ip4}:7200" in listed
    expected = {
        "instance": routed.instance,
        "proto": "tcp",
        "src": wired.client.ip4,
        "dst": wired.server.ip4,
        "direction": "connect",
        "stack": "wan",
        "table": "shop",
        "rule": "shop",
        "route": "0.0.0.0/0",
        "state": "ESTABLISHED",
        "pid": holder.pid,
        "cgroup": wired.client_cgroup.relative,
    }
    assert {k: flow[k] for k in expected} == expected
    # The kernel counts SYN and FIN as a byte each (tcp_info, as in RFC 4898).
    assert 100_000 <= flow["bytes_sent"] <= 100_002
    assert 5 <= flow["bytes_received"] <= 7
    assert flow["comm"].startswith("python3")
    assert 0 < flow["srtt_us"] < 1_000_000
    holder.communicate("\n", 10)
    wait_for(lambda: not routed.flows(dport=7200), 5, "the flow to be gone")
    server.kill()


HOLD_SERVER = """
import socket, sys
s = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
while True:
    c, _ = s.accept()
    n = 0
    while n < 100000:
        n += len(c.recv(65536))
    c.sendall(b"hello")
    c.recv(1)
    c.close()
"""

HOLD_CLIENT = """
import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
c.sendall(b"x" * 100000)
assert c.recv(5, socket.MSG_WAITALL) == b"hello"
print("ready", flush=True)
sys.stdin.readline()
"""


def _nft(host, script):
    host.run(["nft", script])


def _packets(host, chain):
    listed = json.loads(host.run(["nft", "-j", "list", "chain", "inet", "f", chain]).stdout)
    return sum(
        expr["counter"]["packets"]
        for item in listed["nftables"]
        if "rule" in item
        for expr in item["rule"]["expr"]
        if "counter" in expr
    )
