# SPDX-License-Identifier: Apache-2.0
"""What every kernel must carry: the main job end to end, few attaches and small transfers, so that
an emulated machine gets through it in minutes. `tools/test --kernel` runs this in a guest, the
normal run on the host.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lab import curl_fetch, nginx, wait_for

POLICY = """
[stacks.wan]
kind = "user"
io = "af_xdp"
congestion = "wan"
fallback = "kernel"

[stacks.lan]
kind = "kernel"
congestion = "reno"
dscp = "af21"

[[rules]]
{selector}
direction = "{direction}"
table = "peers"

[[tables.peers.routes]]
to = "default"
proto = "tcp"
ports = "{wan}"
stack = "wan"

[[tables.peers.routes]]
to = "default"
ports = "{lan}"
stack = "lan"
"""


def _policy(*, wan=80, lan=8081, direction="connect", selector='cgroup = "{cgroup}"'):
    """Port wan goes by the user stack, port lan by the kernel's with options."""
    return POLICY.format(wan=wan, lan=lan, direction=direction, selector=selector)


# Opens a connection to each address:port, waits for a line, then gets the file from each: what
# came, by its hash.
HOLD = """
import hashlib, json, socket, sys
path, *peers = sys.argv[1:]
socks = [socket.create_connection((peer.rpartition(":")[0], int(peer.rpartition(":")[2]))) for peer in peers]
print("open", flush=True)
sys.stdin.readline()
for sock in socks:
    sock.sendall(f"GET /{path} HTTP/1.0\\r\\n\\r\\n".encode())
    got = b""
    try:
        while data := sock.recv(1 << 16):
            got += data
    except OSError as error:
        got = type(error).__name__.encode()
    body = got.partition(b"\\r\\n\\r\\n")[2]
    print(hashlib.sha256(body).hexdigest() if body else got.decode())
"""

BYTES = 1_000_000
PORTS = (80, 8081)


@pytest.fixture
def traces(wired):
    """All that an attached instance changes in the network of both hosts, as text."""

    def text():
        # Names and settings alone: a device's state follows its carrier some time later.
        script = (
            "ip rule; ip -6 rule; ip -o link | cut -d' ' -f2; ip route show table all | grep dmm; cat "
            + " ".join(
                f"/proc/sys/net/{name}"
                for name in ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect")
            )
        )
        return [host.run(["sh", "-c", script]).stdout for host in (wired.client, wired.server)]

    return text


@pytest.fixture
def hold(wired, payload):
    """Starts a program that holds a connection to each port by IPv4 and IPv6, and gets the
    file when told.
    """
    path, _ = payload(BYTES)

    def start(ports):
        peers = [
            f"{address}:{port}"
            for port in ports
            for address in (wired.server.ip4, wired.server.ip6)
        ]
        process = wired.client_cgroup.spawn(
            ["/usr/bin/python3", "-c", HOLD, path.name, *peers],
            host=wired.client,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "open\n"
        return process

    return start


def _serve(wired, payload, **options):
    path, sha256 = payload(BYTES)
    for port in PORTS:
        nginx(wired.server, path.parent, wired.directory / f"nginx-{port}", port=port, **options)
    return path.name, sha256


def _got(process):
    """The hashes that a program of hold() printed when it was let go on."""
    out, _ = process.communicate("go\n")
    return out.split()


def _served(flows, address="dst", port="dport"):
    """{(address, port): stack} of flows, by the peer's end or, with src and sport,
    by this host's.
    """
    return {(flow[address], flow[port]): flow["stack"] for flow in flows}


def _expected(wired, *, wan, lan):
    return {
        (a, port): stack
        for a in (wired.server.ip4, wired.server.ip6)
        for port, stack in ((wan, "wan"), (lan, "lan"))
    }


def _counters(routed):
    (status,) = routed.ask("status")
    return status["counters"]


def test_connecting_by_kernel_and_user_stack_and_a_policy_change(wired, payload, hold, traces):
    _, sha256 = _serve(wired, payload)
    before = traces()
    routed = wired.attach_client(_policy())
    old = hold(PORTS)
    assert _served(routed.flows()) == _expected(wired, wan=80, lan=8081)
    assert wired.client.run(["ss", "-tinH", "dport", "=", ":8081"]).stdout.count(" reno ") == 2
    routed.apply(_policy(wan=8081, lan=80))
    new = hold(PORTS)
    mine = [flow for flow in routed.flows() if flow["pid"] == new.pid]
    assert _served(mine) == _expected(wired, wan=8081, lan=80)
    assert _got(new) == [sha256] * 4
    assert _got(old) == [sha256] * 4, (
        "connections that were open when the policy changed were harmed"
    )
    counters = _counters(routed)
    # 1 MB is some 700 segments, and four transfers went through the user stack.
    assert counters["xdp_flow"] > 1000
    assert counters["sockopt_failed"] == 0
    routed.close()
    assert traces() == before


def test_listening_by_kernel_and_user_stack(wired, payload, hold, traces):
    before = traces()
    routed = wired.attach_server(_policy(direction="listen"))
    _, sha256 = _serve(wired, payload, cgroup=wired.server_cgroup)
    listeners = {(entry["addr"], entry["port"]) for entry in routed.ask("listeners")}
    assert listeners == {(address, port) for address in ("0.0.0.0", "::") for port in PORTS}
    peers = hold(PORTS)
    assert _served(routed.flows(), "src", "sport") == _expected(wired, wan=80, lan=8081)
    assert _got(peers) == [sha256] * 4
    counters = _counters(routed)
    assert counters["xdp_listener"] >= 2
    # Two transfers: what comes in are acknowledgements, of several segments each.
    assert counters["xdp_flow"] > 100
    routed.close()
    assert traces() == before


def test_killed_stack_and_killed_director(wired, payload, hold, traces):
    name, sha256 = _serve(wired, payload)
    before = traces()
    routed = wired.attach_client(_policy())
    held = hold((80,))
    os.kill(routed.stack("wan")["pid"], signal.SIGKILL)
    assert set(_got(held)) <= {"ConnectionResetError", "ConnectionAbortedError"}
    url = f"http://{wired.server.ip4}/{name}"
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256, (
        "by whoever serves now"
    )
    row = wait_for(
        lambda: (r := routed.stack("wan"))["state"] == "up" and r,
        20,
        "the stack to be started again",
    )
    assert row["restarts"] == 1
    through = _counters(routed)["xdp_flow"]
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
    assert _counters(routed)["xdp_flow"] > through + 300, "the new process carried nothing"
    routed.kill_director()
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
    routed.close()
    assert traces() == before


def test_run_has_the_exit_code_and_the_stack(wired, payload, instance):
    name, sha256 = _serve(wired, payload)
    policy = wired.directory / "run.toml"
    policy.write_text(_policy(selector=""))
    script = f"curl -sg http://[{wired.server.ip6}]/{name} | sha256sum; exit 7"
    command = [
        "-m",
        "dmm_ebpf.cli.main",
        "run",
        "--instance",
        instance(),
        "--policy",
        policy,
        "--",
        "sh",
        "-c",
        script,
    ]
    done = wired.client.run([sys.executable, *command], check=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.split()[0] == sha256
