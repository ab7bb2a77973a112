# SPDX-License-Identifier: Apache-2.0
"""What is done to devices that not every kernel has, under open flows: a bond fails over, a NIC is
put under one and let go, and a tunnel of WireGuard's is where a forwarded flow comes in. A flow of
a user stack goes on where one of the kernel's does.

A kernel that lacks one skips it on the host; in a guest of `tools/kernelvm` (DMM_GUEST_KERNEL) it
must be there.
"""

from __future__ import annotations

import os

import pytest
from gatewayfixtures import POLICY, Gateway
from sitefixtures import Site, by
from talking import PORT, Talker, echo

from dmm_ebpf.errors import DmmError
from lab import Host, wait_for
from lab.hosts import Nic

pytestmark = pytest.mark.timeout(900)  # a guest is emulated
KERNEL = 7310
WITHIN_S = 60.0


def _made(host: Host, *lines: str) -> None:
    try:
        host.ip(*lines)
    except DmmError as error:
        if "DMM_GUEST_KERNEL" in os.environ:
            raise
        pytest.skip(f"this kernel: {error.why}")


def _bond(host: Host, nic: Nic, peer: Nic) -> None:
    """The host's bond, up, with the addresses of nic, and nothing below it yet."""
    _made(host, f"link add bond0 address {nic.mac} type bond mode active-backup miimon 100")
    host.ip(f"addr flush dev {nic.name}")
    _address(host, nic, peer, "bond0")


def _address(host: Host, nic: Nic, peer: Nic, name: str) -> None:
    host.ip(
        f"link set {name} up",
        f"addr replace {nic.ip4}/24 dev {name}",
        f"route replace default via {peer.ip4} dev {name}",
    )


def _put_under_bond(host: Host, *names: str) -> None:
    for name in names:
        host.ip(f"link set {name} down", f"link set {name} master bond0")


def _flows(site: Site) -> list[Talker]:
    """One of the kernel's, one of the stack's."""
    return [
        Talker(site.client, site.client_cgroup, site.server.ip4, port) for port in (KERNEL, PORT)
    ]


def _policy(device: str) -> str:
    return by("tap", device).replace('to = "default"', f'to = "default"\nports = "{PORT}"')


def _echoes(site: Site) -> None:
    for port in (KERNEL, PORT):
        echo(site.server, site.server_cgroup, port)


def test_a_bond_fails_over(site: Site):
    for _ in range(2):
        site.lab.wire(site.client, site.server)
    for host, other in ((site.client, site.server), (site.server, site.client)):
        _bond(host, host.nics[0], other.nics[0])
        host.ip(f"addr flush dev {host.nics[1].name}")
        _put_under_bond(host, "eth0", "eth1")
    _echoes(site)
    routed = site.attach_client(_policy("bond0"))
    flows = _flows(site)
    assert [one.flow(routed)["stack"] for one in flows] == ["kernel", "wan"]
    assert _below(site.client) == "eth0"
    site.client.ip("link set eth0 down")  # its peer has no carrier then
    wait_for(lambda: _below(site.client) == "eth1", WITHIN_S, "the bond to fail over")
    assert [one.says("hello") for one in flows] == ["hello", "hello"]
    assert routed.stack("wan")["restarts"] == 0


def _below(host: Host) -> str:
    """The port by which its bond sends."""
    shown = host.run(["ip", "-d", "link", "show", "bond0"]).stdout.split()
    return shown[shown.index("active_slave") + 1] if "active_slave" in shown else ""


def test_a_nic_is_put_under_a_bond_and_let_go(wired: Site):
    client, nic, peer = wired.client, wired.client.nic, wired.server.nic
    _echoes(wired)
    routed = wired.attach_client(_policy(nic.name))
    flows = _flows(wired)
    _bond(client, nic, peer)
    _put_under_bond(client, nic.name)
    assert [one.says("hello") for one in flows] == ["hello", "hello"]
    wait_for(lambda: routed.stack("wan")["nics"] == ["bond0"], WITHIN_S, "the bond to be served")
    client.ip("link del bond0", f"link set {nic.name} address {nic.mac}")
    _address(client, nic, peer, nic.name)
    assert [one.says("again") for one in flows] == ["again", "again"]
    assert routed.stack("wan")["restarts"] == 0


def test_a_forwarded_flow_comes_in_by_wireguard(gateway: Gateway):
    gate, inside, server = gateway.gate, gateway.inside, gateway.server
    hosts, keys = (gate, inside), {}
    for number, host in enumerate(hosts, 1):
        _made(host, "link add wg0 type wireguard")
        private = host.run(["wg", "genkey"]).stdout
        keys[host.name] = host.run(["wg", "pubkey"], input=private).stdout.strip()
        words = ["wg", "set", "wg0", "listen-port", "51820", "private-key", "/dev/stdin"]
        host.run(words, input=private)
        host.ip(f"addr add 192.0.2.{number}/24 dev wg0", "link set wg0 up")
    for host, end in ((gate, inside.ip4), (inside, gate.nics[1].ip4)):
        other = inside if host is gate else gate
        words = ["wg", "set", "wg0", "peer", keys[other.name], "endpoint", f"{end}:51820"]
        host.run([*words, "allowed-ips", "0.0.0.0/0"])
    inside.ip(f"route add {server.ip4} dev wg0")
    gateway.echo(server)
    rule = 'name = "vpn"\ndirection = "forward"\nin_interface = "wg0"'
    routed = gateway.attach(POLICY.format(io="tap", rule=rule))
    talker = Talker(inside, gateway.others, server.ip4)
    assert talker.peer == "192.0.2.2"
    assert talker.says("send 100000") == "True"
    (flow,) = routed.flows(kind="forwarded")
    assert (flow["stack"], flow["rule"], flow["in_interface"]) == ("wan", "vpn", "wg0")
