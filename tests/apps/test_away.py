# SPDX-License-Identifier: Apache-2.0
"""Open flows of a user stack whose packets come to leave by a device that the stack does not serve:
they go on there, as TCP would, by either port; nothing of their inner leg gets to a wire.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
from dataclasses import dataclass

import pytest
from sitefixtures import by as with_io
from talking import program, server
from tunlink import tun_link

from dmm_ebpf.hal import tcfilter
from dmm_ebpf.loader import bpf
from lab import wait_for

WITHIN_S = 20.0
NEAR, FAR = (
    {"ip4": "203.0.113.8", "ip6": "2001:db8:cb::8"},
    {"ip4": "203.0.113.9", "ip6": "2001:db8:cb::9"},
)
ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
WRAP, MOST = 0xFFFFFFFF, 10_000_000  # of sequence numbers; of bytes that a flow sends here
SYN, HEADER_BYTES = 0x02, {0x0800: 20, 0x86DD: 40}

# Sends back what comes; to who says "more", so many bytes as the rest of the line says.
SERVER = """
import socket, threading
listening = socket.create_server(("::", 7500), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
def serve(c):
    with c:
        while data := c.recv(65536):
            if data.startswith(b"more "):
                data = b"x" * int(data[5:])
            c.sendall(data)
while True:
    c, _ = listening.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""

# For each line: so many bytes go to the peer and come back; after "more", they only come.
CLIENT = """
import os, socket, sys
try:
    s = socket.create_connection((sys.argv[1], 7500), timeout=float(sys.argv[2]))
except TimeoutError:
    sys.exit(print("late", flush=True))
s.settimeout(30)
print("open", flush=True)
for line in sys.stdin:
    more, number = line.startswith("more"), int(line.split()[-1])
    sent = f"more {number}".encode() if more else os.urandom(number)
    s.sendall(sent)
    back = bytearray()
    while len(back) < number:
        part = s.recv(65536)
        if not part:
            sys.exit(print("closed", flush=True))
        if more and not back:
            print("begun", flush=True)
        back += part
    print("same" if back == (b"x" * number if more else sent) else "other", flush=True)
"""


class Flow:
    """A program in the client's cgroup with a connection to the server's address that every
    way leads to.
    """

    def __init__(self, site, family: str, within_s: float = 30) -> None:
        self.process = program(site.client, site.client_cgroup, CLIENT, FAR[family], str(within_s))
        self.state = self.line()
        assert self.state == "open" or within_s < 30

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def carries(self, number: int = 300_000) -> bool:
        self.ask(str(number))
        return self.line() == "same"


def by(site, name: str) -> None:
    """Both hosts send what is for the other by the device of that name, one of site.ways."""
    for host, own, to in ((site.client, NEAR, FAR), (site.server, FAR, NEAR)):
        lead(site, host, name, own, to)


def lead(site, host, name: str, own: dict[str, str], to: dict[str, str]) -> None:
    """The same for one host."""
    device, via = site.ways[name][host.name]
    for family, address in to.items():
        gateway = f"via {via[family]} " if via else ""
        host.ip(f"route replace {address} {gateway}dev {device} src {own[family]}")


@dataclass(frozen=True)
class Segment:
    """What came by a wire. number: its sequence number."""

    number: int
    syn: bool


@contextlib.contextmanager
def heard(site, way: str):
    """A socket that hears what comes to the server by that way."""
    with site.server.call(
        socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
    ) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        wire.bind((site.ways[way][site.server.name][0], ETH_P_ALL))
        wire.setblocking(False)
        yield wire


def segments(wire: socket.socket) -> list[Segment]:
    """The TCP segments that it has heard by now."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (_, kind, direction, _, _) = wire.recvfrom(65536)
            if direction == PACKET_OUTGOING or kind not in HEADER_BYTES:
                continue
            at = 14 + HEADER_BYTES[kind]
            if frame[23 if kind == 0x0800 else 20] == socket.IPPROTO_TCP:
                number = int.from_bytes(frame[at + 4 : at + 8])
                found.append(Segment(number, bool(frame[at + 13] & SYN)))
    return found


@pytest.fixture
def ways(site):
    """Two wires and a tunnel between the hosts, and on each host an address that every
    way leads to.
    """
    with contextlib.ExitStack() as stack:
        wires = [site.lab.wire(site.client, site.server, offloads=True) for _ in range(2)]
        stack.enter_context(
            tun_link((site.client, site.server), "tun0", network=50, offloads=True, mtu=1300)
        )
        site.ways = {"tun": {host.name: ("tun0", None) for host in (site.client, site.server)}}
        for name, wire in zip(("first", "second"), wires, strict=True):
            ends = {site.client.name: (wire.a, wire.b), site.server.name: (wire.b, wire.a)}
            site.ways[name] = {
                host: (own.name, {"ip4": peer.ip4, "ip6": peer.ip6})
                for host, (own, peer) in ends.items()
            }
        for host, own in ((site.client, NEAR), (site.server, FAR)):
            host.ip(*(f"address add {address} dev lo" for address in own.values()))
            host.sysctl("net.ipv4.conf.all.rp_filter", 1)
            for way in site.ways.values():
                host.sysctl(f"net.ipv4.conf.{way[host.name][0]}.rp_filter", 1)
        by(site, "first")
        yield site


@pytest.fixture
def unnumbered(ways):
    """One more way: a wire on which neither host has an address but that of the link."""
    wire = ways.lab.wire(ways.client, ways.server, offloads=True)
    for host, nic in ((ways.client, wire.a), (ways.server, wire.b)):
        host.ip(f"address flush dev {nic.name} scope global")
        host.sysctl(f"net.ipv4.conf.{nic.name}.rp_filter", 1)
    near, far = (
        link_local(host, nic.name) for host, nic in ((ways.client, wire.a), (ways.server, wire.b))
    )
    ways.ways["unnumbered"] = {
        ways.client.name: (wire.a.name, {"ip4": f"inet6 {far}", "ip6": far}),
        ways.server.name: (wire.b.name, {"ip4": f"inet6 {near}", "ip6": near}),
    }
    return wire


def link_local(host, device: str) -> str:
    shown = json.loads(host.run(["ip", "-json", "-6", "address", "show", "dev", device]).stdout)
    return next(one["local"] for one in shown[0]["addr_info"] if one["scope"] == "link")


@pytest.fixture
def served(ways):
    server(ways.server, ways.server_cgroup, SERVER)
    return ways


def policy(site, way: str, io: str = "tap") -> str:
    return with_io(io, site.ways[way][site.client.name][0])


def dropped(routed) -> int:
    return routed.ask("status")[0]["counters"]["inner_dropped"]


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize(("home", "io"), [("first", "tap"), ("tun", "tap"), ("first", "af_xdp")])
def test_it_goes_on_by_the_other_device_and_back(served, home, io, family):
    by(served, home)
    routed = served.attach_client(policy(served, home, io))
    flow = Flow(served, family)
    assert flow.carries()
    for way in ("second", "first", "tun", "second", "tun", "first", home):
        by(served, way)
        assert flow.carries(), way
    (row,) = routed.flows(pid=flow.process.pid)
    assert (row["stack"], row["why"]) == ("wan", "")
    assert dropped(routed) == 0


def test_only_the_answers_come_by_the_other_device(served):
    """Strict reverse-path checks would drop them."""
    for host in (served.client, served.server):
        for name in ("all", *(way[host.name][0] for way in served.ways.values())):
            host.sysctl(f"net.ipv4.conf.{name}.rp_filter", 0)
    served.attach_client(policy(served, "first"))
    flow = Flow(served, "ip4")
    lead(served, served.server, "second", FAR, NEAR)
    assert flow.carries()


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_the_other_device_stands_on_the_home(served, io, family):
    """What leaves by it comes to the programs at the home once more, and goes on from there."""
    client = served.client
    home, far = (served.ways["first"][host.name][0] for host in (client, served.server))
    client.ip(f"link add mv0 link {home} type macvlan mode bridge", "link set mv0 up")
    via = link_local(served.server, far)
    served.ways["above"] = {client.name: ("mv0", {"ip4": f"inet6 {via}", "ip6": via})}
    routed = served.attach_client(policy(served, "first", io))
    flow = Flow(served, family)
    assert flow.carries()
    for way in ("above", "first", "above"):
        lead(served, client, way, NEAR, FAR)
        assert flow.carries(), way
    (row,) = routed.flows(pid=flow.process.pid)
    assert (row["stack"], row["why"]) == ("wan", "")
    assert dropped(routed) == 0


@pytest.mark.parametrize("end", ["down", "gone"])
def test_the_other_device_goes_down_while_the_app_only_reads(served, end):
    served.attach_client(policy(served, "first"))
    flow = Flow(served, "ip4")
    by(served, "second")
    assert flow.carries()
    flow.ask(f"more {20_000_000}")
    assert flow.line() == "begun"
    device = served.ways["second"][served.client.name][0]
    served.client.ip(f"link set {device} down" if end == "down" else f"link delete {device}")
    by(served, "first")
    assert flow.line() == "same"


@pytest.mark.parametrize("end", ["down", "gone"])
@pytest.mark.parametrize(("home", "io"), [("first", "tap"), ("tun", "tap"), ("first", "af_xdp")])
def test_a_flow_that_is_away_goes_on_when_its_home_goes(served, home, io, end):
    """Nothing of it needs that NIC, whether the flow has gone elsewhere already or does so now."""
    served.client.sysctl("net.ipv6.conf.all.keep_addr_on_down", 1)
    by(served, home)
    routed = served.attach_client(policy(served, home, io))
    device = served.ways[home][served.client.name][0]
    before, later = ([Flow(served, family) for family in NEAR] for _ in range(2))
    assert all(flow.carries() for flow in before + later)
    by(served, "second")
    assert all(flow.carries() for flow in before)
    served.client.ip(f"link set {device} down" if end == "down" else f"link delete {device}")
    for flow in before + later:
        assert flow.carries()
        (row,) = routed.flows(pid=flow.process.pid)
        assert (row["stack"], row["why"]) == ("wan", "")
    if end == "down" and home != "tun":
        served.client.ip(f"link set {device} up")
        by(served, home)
        assert all(flow.carries() for flow in before + later)


@pytest.mark.parametrize(
    ("way", "io"), [("second", "af_xdp"), ("unnumbered", "af_xdp"), ("unnumbered", "tap")]
)
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_nothing_of_the_inner_leg_gets_to_the_other_wire(served, unnumbered, way, io, family):
    routed = served.attach_client(policy(served, "first", io))
    with heard(served, "first") as home, heard(served, way) as other:
        flow = Flow(served, family)
        assert flow.carries()
        begun = next(segment for segment in segments(home) if segment.syn)
        by(served, way)
        assert flow.carries()
        there = segments(other)
        assert there, "nothing went by the other device"
        assert [segment for segment in there if segment.number - begun.number & WRAP > MOST] == []
        by(served, "first")
        assert flow.carries()
    (row,) = routed.flows(pid=flow.process.pid)
    assert (row["stack"], row["why"]) == ("wan", "")
    assert dropped(routed) == 0


def test_a_new_flow_by_the_other_device_is_the_kernels_and_says_so(served):
    routed = served.attach_client(policy(served, "first"))
    by(served, "second")
    flow = Flow(served, "ip4")
    assert flow.carries()
    (row,) = routed.flows(pid=flow.process.pid)
    assert (row["stack"], row["why"]) == ("kernel", "device")


def _has_programs(device: str) -> bool:
    try:
        return bool(bpf.prog_query(socket.if_nametoindex(device), bpf.AttachType.TCX_EGRESS)[1])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return tcfilter.has_clsact(socket.if_nametoindex(device))  # before Linux 6.6


def test_our_programs_come_and_go_with_the_device(served, unnumbered):
    """Whether it has an address: a route can lead there without."""
    routed = served.attach_client(policy(served, "first"))
    device = served.ways["unnumbered"][served.client.name][0]

    def programs() -> bool:
        return served.client.call(_has_programs, device)

    assert programs()
    served.client.ip(f"link set {device} down")
    wait_for(lambda: not programs(), WITHIN_S, "our programs to go")
    served.client.ip(f"link set {device} up")
    wait_for(programs, WITHIN_S, "our programs to come")
    served.client.ip("link add br0 type bridge", f"link set {device} master br0")
    wait_for(lambda: not programs(), WITHIN_S, "our programs to leave a bridge's port to it")
    served.client.ip(f"link set {device} nomaster")
    wait_for(programs, WITHIN_S, "our programs to come back")
    served.client.ip("link add ifb7 type ifb", "link set ifb7 up", "link set br0 up")
    wait_for(lambda: served.client.call(_has_programs, "br0"), WITHIN_S, "our programs on a bridge")
    assert not served.client.call(_has_programs, "ifb7")
    routed.close()
    assert not programs()


def _lead_all(site, name: str) -> None:
    """The client's default routes lead by the device of that name."""
    device, via = site.ways[name][site.client.name]
    for family, word in (("ip4", "-4"), ("ip6", "-6")):
        gateway = f"via {via[family]} " if via else ""
        route = f"default {gateway}dev {device} src {NEAR[family]}"
        site.client.run(["ip", word, "route", "flush", "default"])
        site.client.run(["ip", word, "route", "add", *route.split()])


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("way", ["second", "tun"])
def test_new_flows_follow_the_default_route(served, way, io, family):
    for address in FAR.values():
        served.client.ip(f"route del {address}")
    _lead_all(served, "first")
    routed = served.attach_client(with_io(io))
    assert routed.stack("wan")["nics"] == [served.ways["first"][served.client.name][0]]
    for name in (way, "first", way):
        lead(served, served.server, name, FAR, NEAR)
        _lead_all(served, name)
        wait_for(lambda name=name: _is_carried(served, routed, family), WITHIN_S, name)
    with heard(served, "first") as wire:
        assert _is_carried(served, routed, family)
        assert segments(wire) == []
    assert dropped(routed) == 0


def _is_carried(site, routed, family: str, within_s: float = 30) -> bool:
    flow = Flow(site, family, within_s)
    if flow.state != "open":
        return True
    assert flow.carries()
    (row,) = routed.flows(pid=flow.process.pid)
    return (row["stack"], row["why"]) == ("wan", "")


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_new_flows_follow_the_default_route_while_no_nic_of_the_stack_is_up(served, family):
    """They begin at once, and those that begin before the director has heard of it, too."""
    for address in FAR.values():
        served.client.ip(f"route del {address}")
    served.client.sysctl("net.ipv6.conf.all.keep_addr_on_down", 1)
    _lead_all(served, "first")
    routed = served.attach_client(with_io("tap"))
    lead(served, served.server, "second", FAR, NEAR)
    _lead_all(served, "second")
    wait_for(lambda: _is_carried(served, routed, family), WITHIN_S, "new flows to follow")
    served.client.ip(f"link set {served.ways['first'][served.client.name][0]} down")
    for _ in range(3):
        assert _is_carried(served, routed, family)
