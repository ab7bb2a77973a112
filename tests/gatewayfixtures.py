# SPDX-License-Identifier: Apache-2.0
"""A gateway between a host inside and a server outside, that routes what it forwards."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from talking import PORT, echo

from lab import Cgroup, Host, Lab
from lab.routed import Routed

POLICY = """
[stacks.wan]
kind = "user"
io = "{io}"
devices = ["eth0"]

[[rules]]
{rule}
table = "t"

[[tables.t.routes]]
to = "default"
proto = "tcp"
ports = "7300-7399"
stack = "wan"
"""
FROM_LAN = 'name = "lan"\ndirection = "forward"\nfrom = ["198.18.1.0/24", "2001:db8:1::/64"]\nin_interface = "eth1"'
FROM_WAN = 'name = "wan"\ndirection = "forward"\nin_interface = "eth0"'


class Gateway:
    """A host inside, a gateway (eth0: outside, eth1: inside) and a server outside, which has
    a way back.
    """

    def __init__(self, lab: Lab, make_cgroup: Callable[[], Cgroup], directory: Path) -> None:
        self.gate, self.inside, self.server = (
            lab.host("gate"),
            lab.host("inside"),
            lab.host("server"),
        )
        lab.wire(self.gate, self.server, offloads=True)
        lab.wire(self.gate, self.inside, offloads=True)
        self.gate.sysctl("net.ipv4.ip_forward", 1)
        self.gate.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.gate.run(["nft", "-f", "-"], input=TRACKED)
        self.directory = directory
        self.cgroup, self.others = make_cgroup(), make_cgroup()
        self.stack = ExitStack()

    def attach(self, policy: str, *options: str) -> Routed:
        return self.stack.enter_context(
            Routed(self.gate, self.cgroup, policy, self.directory, options=options)
        )

    def echo(self, host: Host) -> None:
        echo(host, self.others)

    def masquerade(self) -> None:
        self.gate.run(["nft", "-f", "-"], input=MASQUERADE)


TRACKED = f"""
table inet t {{
    chain forward {{
        type filter hook forward priority 0;
        tcp dport {PORT} ct state new counter comment "new"
        tcp dport {PORT} ct state established counter comment "established"
        tcp sport {PORT} ct state established counter comment "back"
        ct state invalid counter comment "invalid"
        tcp dport 7301 counter reject with icmpx admin-prohibited
        tcp dport 7302 counter drop comment "dropped"
    }}
}}
"""
MASQUERADE = """
table inet m {
    chain nat {
        type nat hook postrouting priority srcnat;
        oifname "eth0" masquerade
    }
}
"""


@pytest.fixture
def gateway(lab: Lab, make_cgroup: Callable[[], Cgroup], tmp_path: Path) -> Iterator[Gateway]:
    tmp_path.chmod(0o755)
    made = Gateway(lab, make_cgroup, tmp_path)
    with made.stack:
        yield made


def counters(routed: Routed) -> dict[str, int]:
    return dict(routed.ask("status")[0]["counters"])


def heard(server: Host, ethertype: int = 0x0800) -> socket.socket:
    """What comes to the server's NIC from now on."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype))
        made.bind((server.nic.name, ethertype))
        made.setblocking(False)
        return made

    return server.call(opened)
