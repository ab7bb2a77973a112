# SPDX-License-Identifier: Apache-2.0
"""Sockets that are bound to a device, and link-local peers: who carries them, and why."""

from __future__ import annotations

import pytest
from sitefixtures import WAN, by
from talking import PORT, Talker, echo

BYTES = 200_000


@pytest.fixture
def two(site):
    """Two wires from the client to the server, which listens; by both its address of the
    first is reached.
    """
    site.wires = [site.lab.wire(site.client, site.server, offloads=True) for _ in range(2)]
    first, second = site.wires
    site.client.ip(
        f"route add {first.b.ip4} via {second.b.ip4} dev {second.a.name} metric 500",
        f"route add {first.b.ip6} via {second.b.ip6} dev {second.a.name} metric 5000",
    )
    echo(site.server, site.server_cgroup)
    return site


def carried(site, routed, address: str, device: str = "") -> tuple[str, str]:
    """Stack and reason of a flow to the address, after bytes have come and gone."""
    talker = Talker(site.client, site.client_cgroup, address, device=device)
    assert talker.says(f"send {BYTES}") == "True"
    flow = talker.flow(routed)
    return flow["stack"], flow["why"]


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_bound_to_a_device(two, io, family):
    first, second = two.wires
    routed = two.attach_client(by(io, second.a.name))
    address = getattr(first.b, family)
    assert carried(two, routed, address, second.a.name) == ("wan", "")
    assert carried(two, routed, address, first.a.name) == ("kernel", "device")


def test_a_link_local_peer_is_the_kernels_and_says_so(two):
    wire = two.wires[0]
    routed = two.attach_client(WAN)
    shown = two.server.run(
        ["ip", "-6", "-o", "address", "show", "dev", wire.b.name, "scope", "link"]
    ).stdout
    address = shown.split("inet6 ")[1].split("/")[0]
    assert carried(two, routed, f"{address}%{wire.a.name}") == ("kernel", "socket")


def test_what_comes_by_a_redirect_in_prerouting_is_the_kernels_and_says_so(two):
    two.server.run(
        ["nft", "-f", "-"],
        input=f"""
        table inet t {{
            chain pre {{ type nat hook prerouting priority -100; tcp dport {PORT} redirect to :{PORT + 1}; }}
        }}
        """,
    )
    routed = two.attach_server(WAN)
    process = echo(two.server, two.server_cgroup, PORT + 1)
    talker = Talker(two.client, two.client_cgroup, two.wires[0].b.ip4)
    assert talker.says(f"send {BYTES}") == "True"
    (row,) = routed.flows(pid=process.pid)
    assert (row["stack"], row["why"]) == ("kernel", "peer")
