# SPDX-License-Identifier: Apache-2.0
"""Flows that only the kernel can carry, since a device is told of each packet where it goes; and
frames that come by a stack's device for others above it.
"""

from __future__ import annotations

import pytest
from sitefixtures import by
from talking import PORT, Talker, echo

OVERLAY = {"client": "192.0.2.1", "server": "192.0.2.2"}


def listen(policy: str) -> str:
    return policy.replace('table = "shop"\n', 'direction = "listen"\ntable = "shop"\n', 1)


@pytest.fixture
def overlay(wired):
    """A VXLAN device on each host that only its route tells where a packet goes."""
    hosts = (wired.client, wired.server)
    for number, (host, other) in enumerate(zip(hosts, hosts[::-1], strict=True), 1):
        peer, mac = f"192.0.2.{3 - number}", f"02:00:00:00:00:0{3 - number}"
        host.ip(
            "link add vx0 type vxlan external dstport 4789",
            f"link set vx0 address 02:00:00:00:00:0{number} mtu 1400 up",
            f"address add 192.0.2.{number}/24 dev vx0",
            f"route add {peer}/32 encap ip id 7 dst {other.ip4} dev vx0",
            f"neighbour replace {peer} lladdr {mac} dev vx0 nud permanent",
        )
    echo(wired.server, wired.server_cgroup)
    return wired


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_what_the_route_puts_into_a_tunnel_is_the_kernels(overlay, io):
    client = overlay.attach_client(by(io, "vx0"))
    server = overlay.attach_server(listen(by(io, "vx0")))
    talker = Talker(overlay.client, overlay.client_cgroup, OVERLAY["server"])
    assert talker.peer == OVERLAY["client"]
    assert talker.says("send 1000000") == "True"
    (row,) = client.flows(dport=PORT)
    assert (row["stack"], row["why"]) == ("kernel", "tunnel")
    assert client.ask("status")[0]["counters"]["syn_let_go"] == 1
    (row,) = server.flows(sport=PORT)
    assert (row["stack"], row["why"]) == ("kernel", "peer")


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_a_listener_leaves_alone_who_has_a_macvlan_above_its_device(wired, make_cgroup, io):
    """Its port is the same, and the host forwards nothing, so no route says whose a SYN is."""
    host, guest = wired.server, wired.lab.host("guest")
    host.ip(
        f"link add mv0 link {host.nic.name} type macvlan mode bridge",
        f"link set mv0 netns {guest.netns}",
    )
    guest.ip("address add 198.18.0.50/24 dev mv0", "link set mv0 up")
    echo(guest, make_cgroup())
    echo(host, wired.server_cgroup)
    routed = wired.attach_server(listen(by(io)))
    for address in ("198.18.0.50", host.ip4):
        talker = Talker(wired.client, wired.client_cgroup, address)
        assert talker.peer == wired.client.ip4
        assert talker.says("send 100000") == "True"
    (row,) = routed.flows(sport=PORT)
    assert (row["stack"], row["dst"]) == ("wan", wired.client.ip4)
    assert routed.ask("status")[0]["counters"]["xdp_listener"] == 1
