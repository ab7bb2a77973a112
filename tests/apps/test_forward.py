# SPDX-License-Identifier: Apache-2.0
"""Flows that a host only forwards, those of its containers among them, carried by its user stacks:
the kernel filters, translates and tracks them as always, and what a stack cannot take goes on as if
there were none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time

import pytest
from gatewayfixtures import FROM_LAN, FROM_WAN, POLICY, Gateway, counters, heard
from talking import PORT, Talker, echo

from dmm_ebpf.hal import tcfilter
from dmm_ebpf.loader import bpf
from lab import Host, Lab
from lab.routed import Routed
from lab.waiting import wait_for

IOS = ("tap", "af_xdp")
PUBLISHED = 7380
SIZE = 3_000_000
WITHIN_S = 15.0


def counted(gateway: Gateway) -> dict[str, int]:
    shown = json.loads(gateway.gate.run(["nft", "-j", "list", "table", "inet", "t"]).stdout)[
        "nftables"
    ]
    rules = [item["rule"] for item in shown if "rule" in item and "comment" in item["rule"]]
    return {
        r["comment"]: e["counter"]["packets"] for r in rules for e in r["expr"] if "counter" in e
    }


def test_route_get_assumes_no_cgroup_of_what_is_forwarded(gateway):
    routed = gateway.attach(POLICY.format(io="tap", rule=FROM_LAN))
    words = (
        "192.0.2.9:7300",
        "--direction",
        "forward",
        "--from",
        "198.18.1.2",
        "--in-interface",
        "eth1",
    )
    answer = json.loads(routed.cli("route", "get", *words, "-i", routed.instance, "--json").stdout)
    assert (answer["stack"], answer["why"], answer["assumed"]) == ("wan", None, {})
    told = routed.cli("route", "get", *words, "-i", routed.instance).stdout
    assert "cgroup" not in told


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("nat", [False, True], ids=["plain", "masquerade"])
def test_a_gateway_carries_what_its_lan_opens(
    gateway: Gateway, io: str, family: str, nat: bool
) -> None:
    gateway.echo(gateway.server)
    if nat:
        gateway.masquerade()
    routed = gateway.attach(POLICY.format(io=io, rule=FROM_LAN))
    talker = Talker(gateway.inside, gateway.others, getattr(gateway.server, family))
    assert talker.peer == getattr(gateway.gate if nat else gateway.inside, family)
    assert talker.says(f"send {SIZE}") == "True"
    assert routed.stack("wan")["counters"]["active_open"] == 1
    seen = counted(gateway)
    assert (
        seen["new"] == 1 and seen["established"] > 3 and seen["back"] > 3 and seen["invalid"] == 0
    )
    got = counters(routed)
    assert (got["forward_out"], got["forward_in"], got["forward_let_go"]) == (1, 0, 0)
    (flow,) = routed.flows(kind="forwarded")
    assert (flow["src"], flow["dst"]) == (
        getattr(gateway.inside, family),
        getattr(gateway.server, family),
    )
    assert (flow["stack"], flow["rule"], flow["in_interface"]) == ("wan", "lan", "eth1")
    assert flow["state"] == "ESTABLISHED" and flow["srtt_us"] > 0 and flow["pid"] == 0


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_gateway_carries_what_is_opened_from_outside(
    gateway: Gateway, io: str, family: str
) -> None:
    gateway.echo(gateway.inside)
    routed = gateway.attach(POLICY.format(io=io, rule=FROM_WAN))
    talker = Talker(gateway.server, gateway.others, getattr(gateway.inside, family))
    assert talker.peer == getattr(gateway.server, family)
    assert talker.says(f"send {SIZE}") == "True"
    assert routed.stack("wan")["counters"]["passive_open"] == 1
    assert counted(gateway)["new"] == 1
    got = counters(routed)
    assert (got["forward_out"], got["forward_in"], got["forward_let_go"]) == (0, 1, 0)


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("nat", [False, True], ids=["plain", "masquerade"])
def test_a_smaller_mtu_towards_the_host_inside_is_followed(
    gateway: Gateway, io: str, family: str, nat: bool
) -> None:
    """The kernel tells who has sent what the device does not take: the stack, not the peer."""
    if nat:
        gateway.masquerade()
    gateway.echo(gateway.server)
    routed = gateway.attach(POLICY.format(io=io, rule=FROM_LAN))
    talker = Talker(gateway.inside, gateway.others, getattr(gateway.server, family))
    assert talker.says("send 300000") == "True"
    gateway.gate.ip("link set eth1 mtu 1300")
    gateway.inside.ip(f"link set {gateway.inside.nic.name} mtu 1300")
    assert talker.says("send 300000") == "True"
    assert routed.stack("wan")["counters"]["active_open"] == 1, "the kernel carried it"


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_published_port(gateway: Gateway, io: str, family: str) -> None:
    """The gateway's own address and port lead to the host inside."""
    gateway.echo(gateway.inside)
    to = {"ip4": f"ip to {gateway.inside.ip4}", "ip6": f"ip6 to [{gateway.inside.ip6}]"}[family]
    rule = f"type nat hook prerouting priority dstnat; tcp dport {PUBLISHED} dnat {to}:{PORT}"
    gateway.gate.run(["nft", "-f", "-"], input=f"table inet p {{ chain nat {{ {rule}; }}; }};\n")
    routed = gateway.attach(POLICY.format(io=io, rule=FROM_WAN))
    talker = Talker(gateway.server, gateway.others, getattr(gateway.gate, family), PUBLISHED)
    assert talker.peer == getattr(gateway.server, family)
    assert talker.says(f"send {SIZE}") == "True"
    assert routed.stack("wan")["counters"]["passive_open"] == 1
    assert counters(routed)["forward_in"] == 1


IN_GROUP = 'name = "box"\ncgroup = "{cgroup}"'


def bridged(gateway: Gateway) -> None:
    """The host inside is behind a bridge with the gateway's addresses."""
    nic = gateway.gate.nics[1]
    gateway.gate.ip(
        "link add br0 type bridge",
        f"addr flush dev {nic.name}",
        f"link set {nic.name} master br0",
        "link set br0 up",
        f"addr add {nic.ip4}/24 dev br0",
        f"addr add {nic.ip6}/64 dev br0 nodad",
    )


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("bridge", [False, True], ids=["veth", "bridge"])
def test_a_containers_flow_by_its_cgroup(
    gateway: Gateway, io: str, family: str, bridge: bool
) -> None:
    gateway.echo(gateway.server)
    gateway.masquerade()
    if bridge:
        bridged(gateway)
    routed = gateway.attach(POLICY.format(io=io, rule=IN_GROUP), "--containers")
    talker = Talker(gateway.inside, gateway.cgroup, getattr(gateway.server, family))
    assert talker.peer == getattr(gateway.gate, family)
    assert talker.says(f"send {SIZE}") == "True"
    (flow,) = routed.flows(pid=talker.process.pid)
    assert (flow["stack"], flow["wanted"], flow["why"], flow["rule"]) == ("wan", "wan", "", "box")
    assert (flow["src"], flow["dst"]) == (
        getattr(gateway.inside, family),
        getattr(gateway.server, family),
    )
    assert (
        flow["state"] == "ESTABLISHED" and min(flow["bytes_sent"], flow["bytes_received"]) >= SIZE
    )
    assert flow["outer_state"] == "ESTABLISHED"  # as the NIC has it, behind the masquerade
    assert counted(gateway)["new"] == 1
    other = Talker(gateway.inside, gateway.others, getattr(gateway.server, family))
    assert other.says("by the kernel") == "by the kernel"
    assert counters(routed)["forward_out"] == 1


@pytest.mark.parametrize("rule", [FROM_LAN, IN_GROUP], ids=["rule", "container"])
def test_what_the_firewall_forbids_never_gets_to_the_stack(gateway: Gateway, rule: str) -> None:
    routed = gateway.attach(POLICY.format(io="tap", rule=rule), "--containers")
    assert Talker(gateway.inside, gateway.cgroup, gateway.server.ip4, 7301).peer == "EHOSTUNREACH"
    assert Talker(gateway.inside, gateway.cgroup, gateway.server.ip6, 7301).peer == "EACCES"
    dropped = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4, 7302, wait=False).process
    wait_for(lambda: counted(gateway)["dropped"] >= 1, WITHIN_S, "the SYN to be dropped")
    dropped.kill()
    dropped.wait()
    assert counters(routed)["forward_out"] == 0
    assert routed.stack("wan")["counters"]["active_open"] == 0


@pytest.mark.parametrize("rule", [FROM_LAN, IN_GROUP], ids=["rule", "container"])
def test_what_a_stack_that_is_full_cannot_take_goes_on(gateway: Gateway, rule: str) -> None:
    gateway.echo(gateway.server)
    policy = POLICY.format(io="tap", rule=rule).replace(
        'io = "tap"', 'io = "tap"\nmax_connections = 1'
    )
    routed = gateway.attach(policy, "--containers")
    first = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    wait_for(lambda: routed.stack("wan")["full"], WITHIN_S, "the stack to be full")
    second = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    assert second.peer == gateway.inside.ip4
    assert (first.says("by the stack"), second.says("by the kernel")) == (
        "by the stack",
        "by the kernel",
    )
    if rule == IN_GROUP:
        stacks = {f["pid"]: (f["kind"], f["stack"], f["why"]) for f in routed.flows(rule="box")}
        assert stacks[first.process.pid] == ("container", "wan", "")
        assert stacks[second.process.pid] == ("container", "kernel", "full")
    else:
        assert counters(routed)["forward_let_go"] == 1
        assert [f["sport"] for f in routed.flows(kind="forwarded")] != []


def flags_of(sniffed: socket.socket) -> list[int]:
    """Of the TCP segments that have come to the echo server's port."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, address = sniffed.recvfrom(65536)
            tcp = packet[(packet[0] & 15) * 4 :]
            if (
                address[2] != socket.PACKET_OUTGOING
                and packet[9] == 6
                and tcp[2:4] == PORT.to_bytes(2, "big")
            ):
                found.append(tcp[13])
    return found


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("rule", [FROM_LAN, IN_GROUP], ids=["rule", "container"])
def test_a_process_that_is_killed(gateway: Gateway, io: str, rule: str) -> None:
    """Who has a flow of it learns that, and nothing of it gets to the peer, which
    knows other numbers.
    """
    gateway.echo(gateway.server)
    gateway.masquerade()
    routed = gateway.attach(POLICY.format(io=io, rule=rule), "--containers")
    talker = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    assert talker.says("hello") == "hello"
    with heard(gateway.server) as sniffed:
        os.kill(routed.stack("wan")["pid"], signal.SIGKILL)
        assert talker.says("are you there") in {"ECONNABORTED", "ECONNRESET", "EPIPE"}
        wait_for(lambda: routed.stack("wan")["state"] == "up", WITHIN_S, "the stack to be up again")
        assert [flags for flags in flags_of(sniffed) if not flags & 4] == []
    again = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    assert again.says("hello again") == "hello again"
    assert counters(routed)["forward_out"] == 2


def test_a_peer_learns_that_the_process_was_killed_when_it_sends(gateway: Gateway) -> None:
    """Opened from outside: the peer is the one that sends."""
    gateway.echo(gateway.inside)
    routed = gateway.attach(POLICY.format(io="tap", rule=FROM_WAN))
    talker = Talker(gateway.server, gateway.others, gateway.inside.ip4)
    assert talker.says("hello") == "hello"
    os.kill(routed.stack("wan")["pid"], signal.SIGKILL)
    assert talker.says("are you there") in {"ECONNABORTED", "ECONNRESET", "EPIPE"}
    again = Talker(gateway.server, gateway.others, gateway.inside.ip4)
    assert again.says("hello again") == "hello again"


OURS = (
    ["dmm_tcfrom"],
    ["dmm_tcin"],
)  # the second does what the first does, where a flow may leave, too


def at_ingress(host: Host, device: str) -> list[str]:
    """Names of the programs there."""

    def read() -> list[str]:
        index = socket.if_nametoindex(device)
        names = [bpf.prog_name(i) for i in bpf.prog_query(index, bpf.AttachType.TCX_INGRESS)[1]]
        return names + tcfilter.attached(index)

    return host.call(read)


def test_a_director_that_is_killed_and_what_is_left_in_the_end(gateway: Gateway) -> None:
    gateway.echo(gateway.server)
    routed = gateway.attach(POLICY.format(io="tap", rule=IN_GROUP), "--containers")
    talker = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    assert talker.says("hello") == "hello"
    routed.kill_director()
    assert talker.says("still there") == "still there"
    alone = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    assert alone.says("hello") == "hello"
    routed.restart()
    assert talker.says("and on") == "and on"
    assert {f["stack"] for f in routed.flows(kind="container")} == {"wan"}
    assert at_ingress(gateway.gate, "eth1") in OURS
    routed.close()
    assert at_ingress(gateway.gate, "eth1") == []
    assert talker.says("are you there") in {"ECONNABORTED", "ECONNRESET", "EPIPE"}


def test_a_container_that_comes_later(gateway: Gateway, lab: Lab) -> None:
    gateway.echo(gateway.server)
    routed = gateway.attach(POLICY.format(io="tap", rule=IN_GROUP), "--containers")
    late = lab.host("late")
    lab.wire(gateway.gate, late)
    gateway.server.ip(f"route add {late.ip4}/32 via {gateway.gate.ip4}")
    began = time.monotonic()
    wait_for(lambda: at_ingress(gateway.gate, "eth2") in OURS, 1.0, "our program on its device")
    print(f"{time.monotonic() - began:.3f} s after the device")
    talker = Talker(late, gateway.cgroup, gateway.server.ip4)
    assert talker.says("hello") == "hello"
    assert [(f["stack"], f["kind"]) for f in routed.flows(pid=talker.process.pid)] == [
        ("wan", "container")
    ]


def test_containers_are_left_alone_unless_they_are_asked_for(gateway: Gateway) -> None:
    gateway.echo(gateway.server)
    routed = gateway.attach(POLICY.format(io="tap", rule=IN_GROUP))
    talker = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    assert talker.says("hello") == "hello"
    assert routed.ask("flows") == []


def test_what_a_container_had_before_goes_on_by_the_kernel(gateway: Gateway) -> None:
    """Its open connection and its listener; what it opens from then on is routed."""
    gateway.echo(gateway.server)
    echo(gateway.inside, gateway.cgroup)
    before = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    into = Talker(gateway.server, gateway.others, gateway.inside.ip4)
    routed = gateway.attach(POLICY.format(io="tap", rule=IN_GROUP), "--containers")
    assert routed.ask("listeners") == [] and routed.ask("status")[0]["earlier"] is None
    for talker in (before, into, Talker(gateway.server, gateway.others, gateway.inside.ip4)):
        assert talker.says(f"send {SIZE}") == "True"
    assert routed.ask("flows") == [] and routed.stack("wan")["counters"]["passive_open"] == 0
    after = Talker(gateway.inside, gateway.cgroup, gateway.server.ip4)
    assert after.says(f"send {SIZE}") == "True"
    assert [(f["stack"], f["kind"]) for f in routed.flows(pid=after.process.pid)] == [
        ("wan", "container")
    ]
    assert before.says(f"send {SIZE}") == "True"


@pytest.mark.parametrize("rule", [FROM_LAN, FROM_WAN, IN_GROUP], ids=["lan", "wan", "container"])
def test_several_processes_share_what_is_forwarded(gateway: Gateway, rule: str) -> None:
    gateway.echo(gateway.server)
    gateway.echo(gateway.inside)
    policy = POLICY.format(io="af_xdp", rule=rule).replace(
        'io = "af_xdp"', 'io = "af_xdp"\nprocesses = 2'
    )
    routed = gateway.attach(policy, "--containers")
    ends = (
        (gateway.inside, gateway.server) if rule != FROM_WAN else (gateway.server, gateway.inside)
    )
    talkers = [Talker(ends[0], gateway.cgroup, ends[1].ip4) for _ in range(8)]
    assert {talker.says("send 100000") for talker in talkers} == {"True"}
    processes = routed.stack("wan")["processes"]
    assert sum(process["connections"] for process in processes) == 8
    assert min(process["connections"] for process in processes) > 0


@pytest.mark.parametrize("nat", [False, True], ids=["plain", "masquerade"])
def test_a_new_flow_follows_the_default_route(gateway, lab, nat):
    gate, server, far = gateway.gate, gateway.server, "203.0.113.9"
    first, second = gate.nics[0].name, lab.wire(gate, server, offloads=True).a.name
    server.ip(f"address add {far} dev lo")
    if nat:
        gateway.masquerade()
        gate.run(["nft", "add", "rule", "inet", "m", "nat", "oifname", second, "masquerade"])
    gateway.echo(server)
    policy = POLICY.replace('devices = ["eth0"]\n', "")
    routed = gateway.attach(policy.format(io="tap", rule=FROM_LAN))
    assert routed.stack("wan")["nics"] == [first]
    via = dict(zip((first, second), (nic.ip4 for nic in server.nics), strict=True))
    for name in (second, first, second):
        gate.ip(f"route replace default via {via[name]} dev {name}")
        wait_for(lambda: _is_carried(gateway, routed, far), WITHIN_S, f"flows by {name}")


def _is_carried(gateway: Gateway, routed: Routed, address: str) -> bool:
    before = counters(routed)["forward_out"]
    talker = Talker(gateway.inside, gateway.others, address)
    assert talker.says("send 100000") == "True"
    return counters(routed)["forward_out"] == before + 1
