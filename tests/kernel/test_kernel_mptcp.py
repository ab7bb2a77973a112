# SPDX-License-Identifier: Apache-2.0
"""A kernel stack with mptcp: programs that never asked for it have MPTCP sockets where the kernel
lets a policy turn them, and plain ones, with the reason told, where it does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from sitefixtures import Site, python

from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.loader import protocolprobe
from lab import wait_for
from lab.routed import Routed

POLICY = """
[stacks.multi]
kind = "kernel"
mptcp = true
dscp = "af21"

[[rules]]
name = "single"
cgroup = "{cgroup}"
comm = "plain"
table = "single"

[[rules]]
name = "several"
cgroup = "{cgroup}"
table = "several"

[[tables.several.routes]]
to = "default"
stack = "multi"

[[tables.single.routes]]
to = "default"
stack = "kernel"
"""
# Whether a socket is one of MPTCP's (SO_PROTOCOL), of each kind that a program may make.
KINDS = """
import socket, sys
if len(sys.argv) > 1:
    open("/proc/self/comm", "w").write(sys.argv[1])
made = {
    "tcp4": socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "tcp6": socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 6),
    "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
}
print(*(name for name, one in made.items() if one.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == 262))
"""
# A server whose sockets nobody turns: MPTCP's, or plain TCP's.
SERVER = """
import socket, sys
l = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, int(sys.argv[1]))
l.bind(("::", 7400)); l.listen(); print("ready", flush=True)
while True:
    c = l.accept()[0]
    while data := c.recv(65536):
        c.sendall(data)
"""
CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7400))
s.sendall(b"x" * 100000)
got = 0
while got < 100000:
    got += len(s.recv(65536))
print("through", flush=True)
sys.stdin.readline()
"""
POSSIBLE = protocolprobe.why_not()
NEEDED = os.environ.get("DMM_GUEST_KERNEL", "").startswith("6.12")


def _missing(routed: Routed) -> list[str]:
    return [one["why"] for one in routed.ask("status")[0]["missing"] if one["what"] == "MPTCP"]


def _kinds(site: Site, *name: str) -> str:
    return python(site.client, site.client_cgroup, KINDS, *name)


def _flow_while_open(site: Site, routed: Routed, protocol: int) -> dict[str, object]:
    """The client's flow to a server of that protocol, while it is open and has carried bytes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = site.server.popen(["/usr/bin/python3", "-c", SERVER, str(protocol)], **pipes)
    try:
        assert server.stdout.readline() == "ready\n"
        words = ["/usr/bin/python3", "-c", CLIENT, site.server.ip4]
        client = site.client_cgroup.spawn(words, host=site.client, **pipes)
        assert client.stdout.readline() == "through\n"
        (flow,) = routed.flows(pid=client.pid)
        client.communicate("\n")
        assert client.returncode == 0
    finally:
        server.kill()
        server.wait()
    return flow


def _hal(site: Site) -> dict[str, object]:
    done = site.client.run([sys.executable, "-m", "dmm_ebpf.cli.main", "hal", "--host", "--json"])
    return json.loads(done.stdout)["mptcp"]


@pytest.mark.skipif(bool(POSSIBLE) and not NEEDED, reason=f"this kernel: {POSSIBLE}")
def test_a_policy_makes_sockets_mptcp_s(wired: Site) -> None:
    routed = wired.attach_client(POLICY)
    assert _missing(routed) == []
    assert _hal(wired) == {"yes": True, "why": ""}
    assert _kinds(wired) == "tcp4 tcp6"
    # The first rule that matches decides, and nobody else's sockets are touched.
    assert _kinds(wired, "plain") == ""
    assert python(wired.client, wired.server_cgroup, KINDS) == ""
    assert python(wired.server, wired.client_cgroup, KINDS) == ""

    both = _flow_while_open(wired, routed, 262)
    assert (both["stack"], both["rule"], both["mptcp"]) == ("multi", "several", True)
    alone = _flow_while_open(wired, routed, 6)
    assert (alone["stack"], alone["mptcp"]) == ("multi", False)

    # Another policy, and back; the director killed, and one that takes over.
    routed.apply(POLICY.replace("mptcp = true", "mptcp = false"))
    assert _kinds(wired) == ""
    routed.apply(POLICY)
    assert _kinds(wired) == "tcp4 tcp6"
    routed.kill_director()
    assert _kinds(wired) == "tcp4 tcp6"
    routed.restart()
    assert _kinds(wired) == "tcp4 tcp6"

    # Where MPTCP is switched off socket(2) must not fail.
    wired.client.sysctl("net.mptcp.enabled", 0)
    wait_for(lambda: "switched off" in "".join(_missing(routed)), 30, "the switch to be seen")
    assert _kinds(wired) == ""
    wired.client.sysctl("net.mptcp.enabled", 1)
    wait_for(lambda: not _missing(routed), 30, "the switch to be seen")
    assert _kinds(wired) == "tcp4 tcp6"
    routed.detach()
    assert _kinds(wired) == ""


@pytest.mark.skipif(not POSSIBLE, reason="this kernel can")
def test_where_the_kernel_does_not_let_it_sockets_stay_tcp_s_and_it_is_told(wired: Site) -> None:
    assert not NEEDED, POSSIBLE
    assert not isinstance(POSSIBLE, Unknown)
    assert _hal(wired) == {"yes": False, "why": POSSIBLE}
    routed = wired.attach_client(POLICY)
    wait_for(lambda: _missing(routed), 30, "the director to have looked")
    assert _missing(routed) == [f"sockets are made as TCP's: {POSSIBLE}"]
    assert _kinds(wired) == ""
    flow = _flow_while_open(wired, routed, 262)
    assert flow["stack"] == "multi" and "mptcp" not in flow
    checked = routed.cli("policy", "check", "--host", str(routed.policy_file))
    assert f"stack multi: its sockets stay TCP's on this host: {POSSIBLE}" in checked.stderr
