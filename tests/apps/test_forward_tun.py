# SPDX-License-Identifier: Apache-2.0
"""A gateway carries what it forwards where devices have no link header: what comes in by a TUN, as
from a VPN's daemon, and what leaves by one.
"""

from __future__ import annotations

import contextlib
import functools

import pytest
from talking import PORT, Talker, echo
from tunlink import address, tun_link

from lab.routed import Routed

SIZE = 3_000_000
INSIDE, OUTSIDE = 61, 62  # networks of the TUN links
POLICY = """
[stacks.wan]
kind = "user"
io = "tap"
devices = ["{outside}"]

[[rules]]
name = "vpn"
direction = "forward"
in_interface = "{entrance}"
table = "t"

[[tables.t.routes]]
to = "default"
proto = "tcp"
ports = "{port}"
stack = "wan"
"""
MASQUERADE = """
table inet m {{
    chain nat {{
        type nat hook postrouting priority srcnat;
        oifname "{device}" masquerade
    }}
}}
"""


class Way:
    """A host inside, a gateway and a server outside; each link a TUN or a wire. inside, outside:
    the gateway's devices.
    """

    def __init__(
        self, lab, make_cgroup, stack, directory, *, bare_in: bool, bare_out: bool, offloads: bool
    ) -> None:
        self.gate, self.client, self.server = (
            lab.host(name) for name in ("gate", "client", "server")
        )
        self.directory, self.cgroup, self.others = directory, make_cgroup(), make_cgroup()
        self.inside = self._link(lab, stack, self.client, INSIDE if bare_in else 0, offloads)
        self.outside = self._link(lab, stack, self.server, OUTSIDE if bare_out else 0, offloads)
        self.gate.sysctl("net.ipv4.ip_forward", 1)
        self.gate.sysctl("net.ipv6.conf.all.forwarding", 1)

    def _link(
        self, lab, stack, host, network: int, offloads: bool
    ) -> tuple[str, dict[str, str], dict[str, str]]:
        """The gateway's device, its addresses there and the host's."""
        families = ("ip4", "ip6")
        if not network:
            wire = lab.wire(self.gate, host, offloads=True)
            ends = tuple(
                {family: getattr(end, family) for family in families} for end in (wire.a, wire.b)
            )
            return wire.a.name, *ends
        name = f"tun{network}"
        stack.enter_context(tun_link((self.gate, host), name, network=network, offloads=offloads))
        near, far = ({family: address(network, n, family) for family in families} for n in (1, 2))
        host.ip(*(f"route replace default via {near[family]} dev {name}" for family in families))
        return name, near, far


@pytest.fixture
def way(lab, make_cgroup, tmp_path):
    """Makes one."""
    tmp_path.chmod(0o755)
    with contextlib.ExitStack() as stack:
        yield functools.partial(Way, lab, make_cgroup, stack, tmp_path)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize(
    ("bare_in", "bare_out", "offloads"),
    [(True, False, False), (False, True, True), (True, True, True), (True, True, False)],
    ids=["in", "out", "both", "both-whole"],
)
@pytest.mark.parametrize("opened", ["inside", "outside", "masquerade"])
def test_both_directions(way, bare_in, bare_out, offloads, family, opened):
    """Opened by the host inside, whose address the gateway may translate, or by the one outside."""
    made = way(bare_in=bare_in, bare_out=bare_out, offloads=offloads)
    (inside, _, client), (outside, own, server) = made.inside, made.outside
    near, far = (made.server, made.client) if opened == "outside" else (made.client, made.server)
    entrance = outside if opened == "outside" else inside
    if opened == "masquerade":
        made.gate.run(["nft", "-f", "-"], input=MASQUERADE.format(device=outside))
    echo(far, made.others)
    policy = POLICY.format(outside=outside, entrance=entrance, port=PORT)
    with Routed(made.gate, made.cgroup, policy, made.directory) as routed:
        talker = Talker(near, made.others, (client if opened == "outside" else server)[family])
        assert (
            talker.peer == {"inside": client, "outside": server, "masquerade": own}[opened][family]
        )
        assert talker.says(f"send {SIZE}") == "True"
        got = routed.stack("wan")["counters"]
        assert got["passive_open" if opened == "outside" else "active_open"] == 1
        (flow,) = routed.flows(kind="forwarded")
        assert (flow["stack"], flow["rule"], flow["in_interface"]) == ("wan", "vpn", entrance)
        assert flow["state"] == "ESTABLISHED"
        assert routed.ask("status")[0]["counters"]["inner_dropped"] == 0
