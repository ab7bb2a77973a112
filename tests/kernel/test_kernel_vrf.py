# SPDX-License-Identifier: Apache-2.0
"""A NIC of a user stack's in a VRF: who connects is bound to the VRF, who listens serves all of
them (tcp_l3mdev_accept); and one that is put into a VRF, and taken out, under open flows, whose
routes a rule finds in the VRF's table.

A kernel without VRF skips it on the host; in a guest of `tools/kernelvm` (DMM_GUEST_KERNEL) it must
be there.
"""

from __future__ import annotations

import os

import pytest
from sitefixtures import by
from talking import PORT, Talker, echo

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import Client


def _enslave(host):
    host.sysctl("net.ipv4.tcp_l3mdev_accept", 1)
    try:
        host.ip("link add vrf9 type vrf table 100", "link set vrf9 up")
    except DmmError as error:
        if "DMM_GUEST_KERNEL" in os.environ:
            raise
        pytest.skip(f"this kernel: {error.why}")
    host.ip(f"link set {host.nic.name} master vrf9")


@pytest.mark.timeout(900)  # a guest is emulated
def test_a_flow_each_way(wired):
    for host in (wired.client, wired.server):
        _enslave(host)
    echo(wired.server, wired.server_cgroup)
    words = (wired.client, wired.client_cgroup, wired.server.ip4)
    assert Talker(*words, device="vrf9").says("send 100000") == "True", "without us"
    policy = by("tap", wired.client.nic.name)
    routed = wired.attach_client(policy), wired.attach_server(policy)
    talker = Talker(*words, device="vrf9")
    assert talker.peer == wired.client.ip4
    assert talker.says("send 100000") == "True"
    for one, counter in zip(routed, ("active_open", "passive_open"), strict=True):
        with Client(one.instance) as client:
            (stack,) = (s for s in client.call("stacks") if s["name"] == "wan")
            assert stack["counters"][counter] == 1


@pytest.mark.timeout(900)
def test_a_nic_goes_into_a_vrf_and_out_under_open_flows(wired):
    client, nic, peer = wired.client, wired.client.nic, wired.server.nic
    ports = {"kernel": PORT + 1, "wan": PORT}
    for port in ports.values():
        echo(wired.server, wired.server_cgroup, port)
    policy = by("tap", nic.name).replace('to = "default"', f'to = "default"\nports = "{PORT}"')
    routed = wired.attach_client(policy)
    words = (client, wired.client_cgroup, wired.server.ip4)
    flows = [Talker(*words, port) for port in ports.values()]
    assert [one.flow(routed)["stack"] for one in flows] == list(ports)
    before = routed.stack("wan")
    _enslave(client)
    client.ip(f"route replace default via {peer.ip4} dev {nic.name} vrf vrf9")
    client.ip("rule add pref 90 lookup 100")
    assert [one.says("hello") for one in flows] == ["hello", "hello"]
    inside = Talker(*words, device="vrf9")
    assert inside.flow(routed)["stack"] == "wan"
    assert inside.says("send 100000") == "True"
    client.ip(f"link set {nic.name} nomaster", "rule del pref 90 lookup 100")
    client.ip(f"route replace default via {peer.ip4} dev {nic.name}")
    assert [one.says("again") for one in flows] == ["again", "again"]
    after = routed.stack("wan")
    assert (after["pid"], after["restarts"], after["nics"]) == (before["pid"], 0, [nic.name])
