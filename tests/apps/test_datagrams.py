# SPDX-License-Identifier: Apache-2.0
"""Datagrams by a user stack: real sockets, connected and not, between two hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sitefixtures import with_udp
from tunlink import address as of_link
from tunlink import tun_link

from dmm_ebpf import loader
from lab import Cgroup, Host, wait_for
from lab.waiting import stop, wait_readable

PORT = 7400
WITHIN_S = 15.0

# Gives each datagram back to who has sent it, with whom it takes that one for in front.
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(peer[0].removeprefix("::ffff:").encode() + b" " + data, peer)
"""

# Runs what it is told, a line of Python each, and says the value, or the name of the error.
TOLD = """
import array, errno, hashlib, json, os, select, socket, struct, sys
names = {"s": {}, **globals()}
for line in sys.stdin:
    source = json.loads(line)
    try:
        try:
            value = eval(source, names)
        except SyntaxError:
            value = exec(source, names)
        print(json.dumps(value if isinstance(value, (int, str, list, type(None))) else repr(value)), flush=True)
    except OSError as error:
        print(json.dumps(errno.errorcode.get(error.errno, "timed out")), flush=True)
"""


class App:
    """An unmodified program in a cgroup that does as it is told."""

    def __init__(self, host: Host, cgroup: Cgroup) -> None:
        self.process = cgroup.spawn(
            ["/usr/bin/python3", "-c", TOLD],
            host=host,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self("1") == 1

    def __call__(self, source: str) -> Any:
        self.process.stdin.write(json.dumps(source) + "\n")
        self.process.stdin.flush()
        assert wait_readable(self.process.stdout.fileno(), WITHIN_S), source
        return json.loads(self.process.stdout.readline())

    def open(self, name: str, family: str = "ip4") -> None:
        kind = "socket.AF_INET6" if family == "ip6" else "socket.AF_INET"
        self(f"s[{name!r}] = socket.socket({kind}, socket.SOCK_DGRAM); s[{name!r}].settimeout(5)")

    def ask(self, name: str, word: str) -> str:
        """Of a connected socket: what comes back for a word."""
        self(f"s[{name!r}].send({word!r}.encode())")
        return self(f"s[{name!r}].recv(65536).decode()")

    def ask_of(self, name: str, word: str, address: str, port: int = PORT) -> str:
        """Of one that is not."""
        self(f"s[{name!r}].sendto({word!r}.encode(), ({address!r}, {port}))")
        return self(f"s[{name!r}].recvfrom(65536)[0].decode()")


def serve(host: Host, cgroup: Cgroup, port: int = PORT) -> None:
    argv = ["/usr/bin/python3", "-c", ECHO, str(port)]
    process = cgroup.spawn(argv, host=host, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"


@pytest.fixture
def app(wired) -> Iterator[App]:
    serve(wired.server, wired.server_cgroup)
    return App(wired.client, wired.client_cgroup)


def counters(routed) -> tuple[int, int]:
    """Datagrams that the stack process has relayed, out and in."""
    told = routed.stack("wan")["counters"]
    return told.get("datagrams_out", 0), told.get("datagrams_in", 0)


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_connected_socket(wired, app, io, family):
    routed = wired.attach_client(with_udp(io))
    here, there = getattr(wired.client, family), getattr(wired.server, family)
    app.open("x", family)
    app(f"s['x'].connect(({there!r}, {PORT}))")
    assert app.ask("x", "first") == f"{here} first"
    assert app.ask("x", "second") == f"{here} second"
    assert counters(routed) == (2, 2)
    (flow,) = routed.flows(proto="udp")
    assert (flow["stack"], flow["wanted"], flow["why"]) == ("wan", "wan", "")
    assert (flow["src"], flow["dst"], flow["dport"]) == (here, there, PORT)
    assert flow["sport"] == app("s['x'].getsockname()[1]")
    assert (flow["bytes_sent"], flow["bytes_received"]) == (11, 11 + 2 * len(here) + 2)
    assert (flow["state"], flow["pid"]) == ("ESTABLISHED", app.process.pid)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_datagrams_that_a_driver_leaves_in_pages(site, family):
    """Of those the IP header is not where programs find it at once: both ways by the stack all the
    same, at either end.
    """
    with tun_link((site.client, site.server), "tap0", network=60, offloads=False, in_pages=True):
        routed = site.attach_client(with_udp("tap", "tap0"))
        served = site.attach_server(with_udp("tap", "tap0"))
        serve(site.server, site.server_cgroup)
        app = App(site.client, site.client_cgroup)
        here, there = (of_link(60, number, family) for number in (1, 2))
        app.open("x", family)
        app(f"s['x'].connect(({there!r}, {PORT}))")
        for word in ("first", "second"):
            assert app.ask("x", word) == f"{here} {word}"
        assert counters(routed) == (2, 2)
        assert counters(served) == (2, 2)


def test_an_exchange_of_which_another_processor_has_just_noted_a_datagram(wired, app):
    """A tick of the clock later than this one has read: it goes on, and is not a new one."""
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    assert app.ask("x", "first") == f"{wired.client.ip4} first"
    maps = loader.open_maps(routed.instance)
    ((pair, one),) = maps.udp_flows.items()
    one.in_ns = time.monotonic_ns() + 60_000_000_000
    maps.udp_flows[pair] = one
    assert app.ask("x", "second") == f"{wired.client.ip4} second"
    (flow,) = routed.flows(proto="udp")
    assert (flow["bytes_sent"], flow["stack"]) == (11, "wan")
    assert counters(routed) == (2, 2)


def test_a_stack_that_does_not_say_so_carries_tcp_alone(wired, app):
    """Nothing is listed of what the kernel serves as if there were no policy; from the moment
    when the stack says so, it is the stack's.
    """
    policy = with_udp("tap").replace("udp = true\n", "")
    routed = wired.attach_client(policy)
    app.open("x")
    app.open("y")
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    here = wired.client.ip4
    assert app.ask("x", "one") == f"{here} one"
    assert app.ask_of("y", "two", wired.server.ip4) == f"{here} two"
    assert counters(routed) == (0, 0) and routed.flows(proto="udp") == []
    where = ("route", "get", f"{wired.server.ip4}:{PORT}", "--proto", "udp")
    where = (*where, "--cgroup", wired.client_cgroup.relative)
    assert (routed.ask(*where)["stack"], routed.ask(*where)["why"]) == ("kernel", "udp")
    routed.apply(with_udp("tap"))
    assert app.ask_of("y", "three", wired.server.ip4) == f"{here} three"
    assert counters(routed) == (1, 1)
    assert routed.ask(*where)["stack"] == "wan"
    routed.apply(policy)
    assert app.ask_of("y", "four", wired.server.ip4) == f"{here} four"
    assert counters(routed) == (1, 1)


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_socket_with_several_peers(wired, app, io, family):
    """Each datagram names its own, and each exchange is a flow."""
    for port in (PORT + 1, PORT + 2):
        serve(wired.server, wired.server_cgroup, port)
    routed = wired.attach_client(with_udp(io))
    here, there = getattr(wired.client, family), getattr(wired.server, family)
    app.open("x", family)
    for word in ("one", "two"):
        for port in range(PORT, PORT + 3):
            assert app.ask_of("x", word, there, port) == f"{here} {word}"
    assert counters(routed) == (6, 6)
    rows = routed.flows(proto="udp", stack="wan", why="")
    assert {row["dport"] for row in rows} == {PORT, PORT + 1, PORT + 2}
    assert {(row["src"], row["state"], row["bytes_sent"]) for row in rows} == {(here, "CLOSE", 6)}
    assert routed.stack("wan")["flows"] == 3


def test_a_socket_of_both_families(wired, app):
    """IPv4 by an IPv6 socket, connected and not."""
    routed = wired.attach_client(with_udp("tap"))
    app.open("x", "ip6")
    there = f"::ffff:{wired.server.ip4}"
    assert app.ask_of("x", "named", there) == f"{wired.client.ip4} named"
    app(f"s['x'].connect(({there!r}, {PORT}))")
    assert app.ask("x", "connected") == f"{wired.client.ip4} connected"
    assert counters(routed) == (2, 2)
    (row,) = routed.flows(proto="udp", stack="wan")
    assert (row["src"], row["dst"]) == (wired.client.ip4, wired.server.ip4)


def test_what_stays_with_the_kernel_is_listed_with_the_reason(wired, app):
    client, server = wired.client, wired.server
    serve(client, wired.client_cgroup)
    routed = wired.attach_client(with_udp("tap"))
    app("SO_BROADCAST = (socket.SOL_SOCKET, socket.SO_BROADCAST, 1)")
    cases = {
        "127.0.0.1": "socket",  # by lo
        client.ip4: "device",
        "239.1.2.3": "datagram",
        "255.255.255.255": "datagram",
        f"{client.ip4.rpartition('.')[0]}.255": "datagram",
    }
    for address in cases:
        app.open(address)
        app(f"s[{address!r}].setsockopt(*SO_BROADCAST)")
        app(f"s[{address!r}].connect(({address!r}, {PORT}))")
        app(f"s[{address!r}].send(b'x')")
    app.open("long")
    app(f"s['long'].connect(({server.ip4!r}, {PORT}))")
    word = "x" * 5000  # in four fragments
    assert app.ask("long", word) == f"{client.ip4} {word}"
    app.open("long6", "ip6")
    app(f"s['long6'].connect(({server.ip6!r}, {PORT}))")
    assert app.ask("long6", word) == f"{client.ip6} {word}"
    rows = {row["dst"]: row for row in routed.flows(proto="udp")}
    told = {address: row["why"] for address, row in rows.items()}
    assert told == cases | {server.ip4: "datagram", server.ip6: "datagram"}
    assert {(row["stack"], row["wanted"]) for row in rows.values()} == {("kernel", "wan")}
    assert counters(routed) == (0, 0)
    # The next one is short.
    assert app.ask("long", "short") == f"{client.ip4} short"
    assert [row["stack"] for row in routed.flows(proto="udp", dst=server.ip4)] == ["wan"]


def test_a_connected_socket_that_has_sent_nothing_is_no_flow(wired, app):
    """As the C library makes them to learn of its addresses."""
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    assert routed.flows(proto="udp") == []


def test_errors_reach_the_socket(wired, app):
    """ICMP errors that quote its datagrams, as an error of the next call and in the error queue."""
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    app("s['x'].setsockopt(socket.IPPROTO_IP, 11, 1)")  # IP_RECVERR
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT + 9}))")
    app("s['x'].send(b'nobody is there')")
    assert app("s['x'].recv(100)") == "ECONNREFUSED"
    assert app("s['x'].recvmsg(100, 512, socket.MSG_ERRQUEUE)[0].decode()") == "nobody is there"
    assert counters(routed) == (1, 0)


def test_ttl_dscp_ecn_and_identification_are_the_apps(wired, app):
    far = App(wired.server, wired.server_cgroup)
    far.open("y")
    far("s['y'].setsockopt(socket.IPPROTO_IP, 12, 1)")  # IP_RECVTTL
    far("s['y'].setsockopt(socket.IPPROTO_IP, 13, 1)")  # IP_RECVTOS
    far(f"s['y'].bind(('0.0.0.0', {PORT + 1}))")
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    for ttl, tos in ((64, 0), (33, 0xB9), (1, 0x02)):
        app(f"s['x'].setsockopt(socket.IPPROTO_IP, socket.IP_TTL, {ttl})")
        app(f"s['x'].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, {tos})")
        app(f"s['x'].sendto(b'x', ({wired.server.ip4!r}, {PORT + 1}))")
        far("told = s['y'].recvmsg(9, 99)[1]")
        assert far("[data[0] for _, _, data in sorted(told)]") == [tos, ttl]
    assert counters(routed) == (3, 0)


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
def test_datagrams_that_go_as_one(site, io):
    """UDP_SEGMENT and UDP_GRO: neither is cut on the way through the stack process."""
    site.wire(offloads=True)
    app, far = App(site.client, site.client_cgroup), App(site.server, site.server_cgroup)
    routed = site.attach_client(with_udp(io))
    far.open("y")
    far(f"s['y'].bind(('0.0.0.0', {PORT})); s['y'].setsockopt(17, 104, 1)")
    app.open("x")
    app(f"s['x'].connect(({site.server.ip4!r}, {PORT})); data = os.urandom(30 * 1000 + 7)")
    app("s['x'].setsockopt(17, 103, 1000); s['x'].setsockopt(17, 104, 1)")
    app("s['x'].send(data)")
    far("got = b''; peer = None")
    far("while len(got) < 30007:\n    d, _, _, peer = s['y'].recvmsg(65536, 99)\n    got += d\n")
    digest = "hashlib.sha256({}).hexdigest()"
    assert far(digest.format("got")) == app(digest.format("data"))
    assert counters(routed) == (1, 0)
    far("s['y'].setsockopt(17, 103, 1000); s['y'].sendto(got, peer)")
    app("back, sizes = b'', []")
    app(
        "while len(back) < 30007:\n"
        "    d, told, _, _ = s['x'].recvmsg(65536, 99)\n"
        "    back += d; sizes += [len(d)]\n"
    )
    assert app("back == data") is True
    if io == "tap":  # native XDP takes a veth's segmentation away
        assert app("sizes") == [30007]
        assert counters(routed) == (1, 1)
    (row,) = routed.flows(proto="udp")
    assert (row["stack"], row["bytes_sent"], row["bytes_received"]) == ("wan", 30007, 30007)


@pytest.mark.parametrize("kind", ["snat", "dnat"])
def test_what_is_translated(wired, app, kind):
    client, server, there = wired.client, wired.server, "203.0.113.77"
    address = "198.51.100.7"
    client.ip(f"addr add {address}/32 dev {client.nic.name}")
    server.ip(f"route add {address} via {client.ip4}")
    rule = f"udp dport {PORT} snat ip to {address}"
    hook = "postrouting priority srcnat"
    if kind == "dnat":
        rule, hook = f"ip daddr {there} dnat ip to {server.ip4}", "output priority -100"
    table = f"table inet t {{\nchain c {{\ntype nat hook {hook};\n{rule}\n}}\n}}\n"
    client.run(["nft", "-f", "-"], input=table)
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    peer = there if kind == "dnat" else server.ip4
    app(f"s['x'].connect(({peer!r}, {PORT}))")
    assert app.ask("x", "hello") == f"{client.ip4 if kind == 'dnat' else address} hello"
    assert counters(routed) == (1, 1)
    (row,) = routed.flows(proto="udp")
    assert (row["stack"], row["src"], row["dst"]) == ("wan", client.ip4, peer)


def test_a_stack_process_that_is_killed_costs_no_more_than_what_it_held(wired, app):
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    assert app.ask("x", "before") == f"{wired.client.ip4} before"
    pid = routed.stack("wan")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), WITHIN_S, "its end")
    for number in range(50):
        assert app.ask("x", f"word {number}") == f"{wired.client.ip4} word {number}"
    wait_for(lambda: routed.stack("wan")["pid"] not in {pid, None}, WITHIN_S, "another process")
    wait_for(
        lambda: app.ask("x", "again") and counters(routed)[1] >= 1, WITHIN_S, "it to be carried"
    )
    assert [row["stack"] for row in routed.flows(proto="udp")] == ["wan"]


def test_a_stack_process_that_hangs_is_passed_by(wired, app):
    """What it held goes on when it does, once."""
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    assert app.ask("x", "before") == f"{wired.client.ip4} before"
    pid = routed.stack("wan")["pid"]
    stop(pid)
    app("s['x'].settimeout(0.1)")

    def passes_by() -> bool:
        app("s['x'].send(b'knock')")
        return "knock" in str(app("s['x'].recv(100).decode()"))

    wait_for(passes_by, WITHIN_S, "a datagram to pass by")
    (row,) = routed.flows(proto="udp")
    assert (row["stack"], row["why"]) == ("kernel", "full")
    app("s['x'].settimeout(5)")
    app("s['x'].send(b'the last')")
    assert app("s['x'].recv(100).decode()").endswith("the last")
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: app.ask("x", "on") and counters(routed)[1] > 1, WITHIN_S, "it to go on")


def test_none_comes_twice_whatever_becomes_of_the_process(wired, app):
    """It stops, goes on, and is killed, while numbered datagrams are on their way."""
    far = App(wired.server, wired.server_cgroup)
    far.open("y")
    far(f"s['y'].bind(('0.0.0.0', {PORT + 1})); got = []")
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT + 1})); n = 0")

    def sent(number: int) -> int:
        app(f"for _ in range({number}): s['x'].send(str(n).encode()); n += 1")
        return app("n")

    def came() -> list[int]:
        far("while select.select([s['y']], [], [], 0)[0]: got.append(int(s['y'].recv(99)))")
        return far("got")

    total = sent(5)
    wait_for(lambda: len(came()) == total, WITHIN_S, "the first ones")
    pid = routed.stack("wan")["pid"]
    stop(pid)
    wait_for(lambda: sent(1) and len(came()) > total, WITHIN_S, "one to pass by")
    os.kill(pid, signal.SIGCONT)
    total = app("n")
    wait_for(lambda: len(came()) == total, WITHIN_S, "those that it held")
    assert sorted(came()) == list(range(total))
    os.kill(pid, signal.SIGKILL)
    first = sent(200)
    wait_for(lambda: sent(1) and came()[-1] >= first, WITHIN_S, "one after its end")
    assert len(set(came())) == len(came())


def test_a_policy_that_changes_while_datagrams_go(wired, app):
    """A socket that names its peers follows at once; one that is connected stays as it was."""
    routed = wired.attach_client(with_udp("tap"))
    app.open("x")
    app.open("c")
    app(f"s['c'].connect(({wired.server.ip4!r}, {PORT}))")
    app.ask("c", "one")
    app.ask_of("x", "one", wired.server.ip4)
    assert counters(routed) == (2, 2)
    routed.apply(with_udp("tap").replace('stack = "wan"', 'stack = "wan"\nproto = "tcp"'))
    app.ask_of("x", "two", wired.server.ip4)
    assert counters(routed) == (2, 2)
    assert [row["state"] for row in routed.flows(proto="udp")] == ["ESTABLISHED"]
    routed.apply(with_udp("tap"))
    app.ask_of("x", "three", wired.server.ip4)
    app.ask("c", "three")
    assert counters(routed) == (4, 4)


def test_a_stack_that_hangs_and_whose_fallback_refuses(wired, app):
    policy = with_udp("tap").replace("[[rules]]", '[stacks.no]\nkind = "reject"\n\n[[rules]]')
    routed = wired.attach_client(policy.replace('io = "tap"', 'io = "tap"\nfallback = "no"'))
    app.open("x")
    assert app.ask_of("x", "up", wired.server.ip4) == f"{wired.client.ip4} up"
    assert counters(routed) == (1, 1)
    pid = routed.stack("wan")["pid"]
    stop(pid)
    send = f"s['x'].sendto(b'x', ({wired.server.ip4!r}, {PORT}))"
    wait_for(lambda: app(send) == "EPERM", WITHIN_S, "a refusal")
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: app(send) == 1, WITHIN_S, "it to go on")
