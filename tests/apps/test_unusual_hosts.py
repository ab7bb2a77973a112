# SPDX-License-Identifier: Apache-2.0
"""Hosts that are set up in unusual ways, and change while flows are open: a user stack carries them
each way, and every byte arrives. Each set-up yields once it stands, and then after each change,
which comes while data is under way.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

import pytest
from sitefixtures import Site, by
from talking import PORT, Talker, echo

from lab import Host, wait_for

SIZE = 1_000_000
FAR = "203.0.113.9"
Setup = Callable[[Site], Iterator[None]]


def _move(site: Site, device: str) -> None:
    """The client's addresses and default route are that device's now."""
    client, nic = site.client, site.client.nics[0]
    client.ip(f"address flush dev {nic.name}", f"link set {device} up")
    client.ip(f"address add {nic.ip4}/24 dev {device}", f"address add {nic.ip6}/64 dev {device}")
    client.run(["ip", "-6", "route", "flush", "default"])
    client.ip(f"route replace default via {site.server.ip4} dev {device}")


def _under_bridge(site: Site) -> None:
    name = site.client.nics[0].name
    site.client.ip("link add br0 type bridge", f"link set {name} master br0", "link set br0 up")


def nested_bridges(site: Site) -> Iterator[None]:
    _under_bridge(site)
    site.client.ip("link add br1 type bridge", "link add low type veth peer name high")
    site.client.ip("link set low master br0", "link set high master br1")
    site.client.ip("link set low up", "link set high up")
    _move(site, "br1")
    yield


def macvlan_on_a_bridge(site: Site) -> Iterator[None]:
    _under_bridge(site)
    site.client.ip("link add mv0 link br0 type macvlan mode bridge")
    _move(site, "mv0")
    yield


def a_bridge_loses_its_port(site: Site) -> Iterator[None]:
    _under_bridge(site)
    _move(site, "br0")
    yield
    name = site.client.nics[0].name
    for _ in range(2):
        site.client.ip(f"link set {name} nomaster", f"link set {name} master br0")
        yield


def ipv6_only(site: Site) -> Iterator[None]:
    for host in (site.client, site.server):
        host.run(["ip", "-4", "address", "flush", "dev", host.nics[0].name])
    yield


def routes_in_a_storm(site: Site) -> Iterator[None]:
    client, to, dev = site.client, site.server.ip4, site.client.nics[0].name
    client.ip(f"route add {to} dev {dev} metric 5")
    yield
    words = (
        f"ip route replace {to} via {to} dev {dev} onlink metric 3; ip route del {to} metric 3; "
        f"ip route replace default via {to} dev {dev}"
    )
    with _repeated(client, words):
        yield
        yield


@contextlib.contextmanager
def _repeated(host: Host, words: str) -> Iterator[None]:
    process = host.popen(["sh", "-c", f"while :; do {words}; done"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def addresses_come_and_go(site: Site) -> Iterator[None]:
    client, nic = site.client, site.client.nics[0]
    yield
    client.ip(f"address add 203.0.113.77/32 dev {nic.name}")
    yield
    client.ip(f"address del 203.0.113.77/32 dev {nic.name}")
    client.ip(
        f"address del {nic.ip4}/24 dev {nic.name}", f"address add {nic.ip4}/24 dev {nic.name}"
    )
    client.ip(f"address change {nic.ip6}/64 dev {nic.name} preferred_lft 0 valid_lft 600")
    yield


def bad_routes_for_a_while(site: Site) -> Iterator[None]:
    yield
    for kind in ("blackhole", "unreachable", "prohibit"):
        site.client.ip(f"route add {kind} {site.server.ip4}", f"route del {kind} {site.server.ip4}")
        yield


def packets_short_and_long(site: Site) -> Iterator[None]:
    yield
    for mtu in (1280, 1500):
        for host in (site.client, site.server):
            host.ip(f"link set {host.nics[0].name} mtu {mtu}")
        yield


SETUPS = (
    nested_bridges,
    macvlan_on_a_bridge,
    a_bridge_loses_its_port,
    ipv6_only,
    routes_in_a_storm,
    addresses_come_and_go,
    bad_routes_for_a_while,
    packets_short_and_long,
)


def _flows(site: Site) -> list[Talker]:
    """One each way, of each family that there is."""
    ends = (
        (site.client, site.client_cgroup, site.server),
        (site.server, site.server_cgroup, site.client),
    )
    has_ip4 = bool(site.client.run(["ip", "-4", "-o", "address", "show", "scope", "global"]).stdout)
    return [
        Talker(host, cgroup, address)
        for host, cgroup, peer in ends
        for address in ([peer.ip4] if has_ip4 else []) + [peer.ip6]
    ]


def _go_on(flows: list[Talker], steps: Iterator[None]) -> bool:
    """All send, while the next step is done, and get back what they sent; whether there was one."""
    for flow in flows:
        assert flow.process.stdin is not None
        flow.process.stdin.write(f"send {SIZE}\n")
        flow.process.stdin.flush()
    more = next(steps, StopIteration) is not StopIteration
    assert [flow.answer() for flow in flows] == ["True"] * len(flows)
    return more


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("setup", SETUPS)
def test_flows_each_way_go_on(wired: Site, setup: Setup, io: str) -> None:
    steps = setup(wired)
    next(steps)
    for host, cgroup in (
        (wired.client, wired.client_cgroup),
        (wired.server, wired.server_cgroup),
    ):
        echo(host, cgroup)
    routed = wired.attach_client(by(io))
    flows = _flows(wired)
    while _go_on(flows, steps):
        pass
    assert [(one["stack"], one["why"]) for one in routed.flows()] == [("wan", "")] * len(flows)
    # What a NIC has become is told until the stack's processes have taken it.
    wait_for(lambda: not routed.ask("status")[0]["missing"], 10, "nothing to be missing")
    assert routed.stack("wan")["restarts"] == 0


def test_the_way_is_chosen_by_a_mark_of_the_output_chain(wired: Site) -> None:
    client, server = wired.client, wired.server
    second = wired.lab.wire(client, server)
    chain = "type route hook output priority mangle;"
    rule = f"tcp dport {PORT} meta mark set 5"
    client.run(["nft", "-f", "-"], input=f"table inet m {{ chain o {{ {chain} {rule}; }}; }}")
    client.ip("rule add fwmark 5 table 7")
    client.ip(f"route add {server.ip4} via {second.b.ip4} dev {second.a.name} table 7")
    client.sysctl("net.ipv4.conf.all.rp_filter", 0)
    for nic in client.nics:
        client.sysctl(f"net.ipv4.conf.{nic.name}.rp_filter", 0)
    echo(server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", *(nic.name for nic in client.nics)))
    flow = Talker(client, wired.client_cgroup, server.ip4)
    assert flow.says(f"send {SIZE}") == "True"
    assert flow.flow(routed)["stack"] == "wan"


def test_next_hops_of_a_group_are_exchanged_under_an_open_flow(wired: Site) -> None:
    client, server = wired.client, wired.server
    second = wired.lab.wire(client, server)
    for number, (nic, via) in enumerate(
        ((client.nics[0], server.ip4), (second.a, second.b.ip4)), 1
    ):
        client.ip(f"nexthop add id {number} via {via} dev {nic.name}")
    client.ip("nexthop add id 10 group 1/2", f"route add {FAR} nhid 10")
    server.ip(f"address add {FAR} dev lo")
    for host in (client, server):
        host.sysctl("net.ipv4.conf.all.rp_filter", 0)
        for nic in host.nics:
            host.sysctl(f"net.ipv4.conf.{nic.name}.rp_filter", 0)
    echo(server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", *(nic.name for nic in client.nics)))
    flow = Talker(client, wired.client_cgroup, FAR)
    for group in (1, 2, 1):
        client.ip(f"nexthop replace id 10 group {group}")
        assert flow.says(f"send {SIZE}") == "True"
    assert flow.flow(routed)["stack"] == "wan"
