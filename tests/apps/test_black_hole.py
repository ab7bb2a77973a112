# SPDX-License-Identifier: Apache-2.0
"""A path that takes less than both ends' devices and says nothing of it: user stacks find its size
by themselves (RFC 8899), where a kernel waits for an ICMP message that a firewall has eaten.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sitefixtures import TAP, XDP, Site
from talking import Talker, echo

from lab import Lab

NARROW = 1300
SIZE = 300_000
EATS_ICMP = """
table inet deaf {
    chain c {
        type filter hook output priority 0;
        icmp type destination-unreachable counter drop
        icmpv6 type packet-too-big counter drop
    }
}
"""


class Narrow(Site):
    """Between the two a router, the link of which to the client takes 1300 bytes at its end."""

    def wire(self, **options: Any) -> None:
        router = self.lab.host("router")
        self.lab.wire(router, self.server)
        self.link = self.lab.wire(router, self.client)
        router.sysctl("net.ipv4.ip_forward", 1)
        router.sysctl("net.ipv6.conf.all.forwarding", 1)
        router.ip(f"link set {router.nics[1].name} mtu {NARROW}")
        router.run(["nft", "-f", "-"], input=EATS_ICMP)
        self.router = router

    def eaten(self) -> int:
        """ICMP messages of the router that got nowhere."""
        shown = self.router.run(["nft", "list", "table", "inet", "deaf"]).stdout
        return sum(int(packets) for packets in re.findall(r"packets (\d+)", shown))


@pytest.fixture
def narrow(lab: Lab, make_cgroup, tmp_path: Path):
    tmp_path.chmod(0o755)
    made = Narrow(lab, make_cgroup, tmp_path)
    made.wire()
    with made.stack:
        yield made


@pytest.mark.parametrize("io", [TAP, XDP], ids=["tap", "af_xdp"])
@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("routed", ["client", "server", "both"])
def test_bytes_get_through_either_way(narrow: Narrow, routed: str, family: str, io: str) -> None:
    attached = []
    for host, attach in (
        (narrow.client, narrow.attach_client),
        (narrow.server, narrow.attach_server),
    ):
        if routed in (host.name.rpartition("-")[2], "both"):
            attached.append(attach(io))
        else:
            host.sysctl("net.ipv4.tcp_mtu_probing", 1)  # a kernel finds it only so
    serving = echo(narrow.server, narrow.server_cgroup)
    talker = Talker(narrow.client, narrow.client_cgroup, getattr(narrow.server, family))
    assert talker.says(f"send {SIZE}") == "True"
    assert all(one.flows(stack="wan") for one in attached)
    assert narrow.eaten()
    assert len(attached) == (2 if routed == "both" else 1)
    for process in (talker.process, serving):
        process.kill()
        process.wait()
