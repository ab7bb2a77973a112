# SPDX-License-Identifier: Apache-2.0
"""Datagrams that a peer begins with a program of this host: by a user stack, both ways."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sitefixtures import with_udp
from test_datagrams import ECHO, PORT, WITHIN_S, App, counters, serve

from lab import wait_for

WAN = 'stack = "wan"\n'
SERVED = with_udp("tap").replace('table = "shop"\n', 'table = "shop"\ndirection = "listen"\n')


@pytest.fixture
def peer(wired) -> App:
    """On the other host, where nothing is attached."""
    return App(wired.client, wired.client_cgroup)


def listeners(routed, **wanted: Any) -> list[dict[str, Any]]:
    rows = routed.ask("listeners")
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_server_answers_by_its_stack(wired, peer, io, family):
    routed = wired.attach_server(SERVED.replace('"tap"', f'"{io}"'))
    serve(wired.server, wired.server_cgroup)
    here, there = getattr(wired.client, family), getattr(wired.server, family)
    (listener,) = listeners(routed, proto="udp")
    assert (listener["port"], listener["addr"], listener["table"]) == (PORT, "::", "shop")
    peer.open("x", family)
    for word in ("first", "second"):
        assert peer.ask_of("x", word, there) == f"{here} {word}"
    assert counters(routed) == (2, 2)
    (flow,) = routed.flows(proto="udp")
    assert (flow["stack"], flow["wanted"], flow["why"]) == ("wan", "wan", "")
    assert (flow["direction"], flow["rule"], flow["state"]) == ("listen", "shop", "CLOSE")
    assert (flow["src"], flow["sport"]) == (there, PORT)
    assert (flow["dst"], flow["dport"]) == (here, peer("s['x'].getsockname()[1]"))
    assert (flow["bytes_received"], flow["bytes_sent"]) == (11, 11 + 2 * len(here) + 2)
    assert flow["pid"] == listener["pid"]
    assert flow["cookie"]
    assert routed.stack("wan")["flows"] == 1


def test_many_peers_of_one_server(wired, peer):
    """Each has an exchange of its own, and its route."""
    policy = SERVED + f'\n[[tables.shop.routes]]\nto = "{wired.client.ip4}"\nstack = "lan"\n'
    routed = wired.attach_server(policy)
    serve(wired.server, wired.server_cgroup)
    for number in range(20):
        peer.open(f"x{number}", "ip6")
        assert peer.ask_of(f"x{number}", "hello", wired.server.ip6) == f"{wired.client.ip6} hello"
    peer.open("y")
    assert peer.ask_of("y", "hello", wired.server.ip4) == f"{wired.client.ip4} hello"
    assert counters(routed) == (20, 20)
    rows = routed.flows(proto="udp")
    assert {(row["stack"], row["dst"]) for row in rows} == {("wan", wired.client.ip6)}
    assert len(rows) == 20


def test_a_bound_socket_is_listed_until_it_is_closed(wired):
    routed = wired.attach_server(SERVED)
    app = App(wired.server, wired.server_cgroup)
    app.open("any")
    app(f"s['any'].bind(({wired.server.ip4!r}, 0))")
    (row,) = listeners(routed, proto="udp")
    assert (row["addr"], row["port"]) == (wired.server.ip4, app("s['any'].getsockname()[1]"))
    assert (row["pid"], row["sockets"], row["rule"]) == (app.process.pid, 1, "shop")
    for name in ("a", "b"):
        app.open(name)
        app(f"s[{name!r}].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)")
        app(f"s[{name!r}].bind(('0.0.0.0', {PORT}))")
    (row,) = listeners(routed, port=PORT)
    assert (row["addr"], row["sockets"]) == ("0.0.0.0", 2)
    # Its address changes with its peer, and the entry goes all the same.
    app(f"s['a'].connect(({wired.client.ip4!r}, {PORT})); s.pop('a').close()")
    assert [one["sockets"] for one in listeners(routed, port=PORT)] == [1]
    app("s.pop('b').close(); s.pop('any').close()")
    assert listeners(routed) == []
    app.open("unbound")
    app(f"s['unbound'].sendto(b'x', ({wired.client.ip4!r}, {PORT}))")
    assert listeners(routed) == []


def test_a_rule_asks_for_the_port(wired, peer):
    """Which is known by the time when the socket is counted, and is asked again with a policy."""
    rule = f'direction = "listen"\nlocal_port = {PORT}\n'
    routed = wired.attach_server(SERVED.replace('direction = "listen"\n', rule))
    for port in (PORT, PORT + 1):
        serve(wired.server, wired.server_cgroup, port)
    peer.open("x")

    def ask_both() -> dict[int, str | None]:
        for port in (PORT, PORT + 1):
            said = peer.ask_of("x", "x", wired.server.ip4, port)
            assert said == f"{wired.client.ip4} x"
        return {row["port"]: row["table"] for row in listeners(routed)}

    assert ask_both() == {PORT: "shop", PORT + 1: None}
    assert [row["sport"] for row in routed.flows(proto="udp")] == [PORT]
    moved = rule.replace(str(PORT), str(PORT + 1))
    routed.apply(SERVED.replace('direction = "listen"\n', moved))
    assert ask_both() == {PORT: None, PORT + 1: "shop"}
    assert [row["sport"] for row in routed.flows(proto="udp")] == [PORT + 1]


def test_who_has_begun_decides(wired, peer):
    """A bound socket that asks others: by rules for connect(); there is none, so the kernel does,
    and the answers are no beginning. A rule for both ways gives it to the stack.
    """
    serve(wired.client, wired.client_cgroup)
    routed = wired.attach_server(SERVED)
    app = App(wired.server, wired.server_cgroup)
    app.open("x")
    app(f"s['x'].bind(('0.0.0.0', {PORT + 1}))")
    for word in ("one", "two"):
        assert app.ask_of("x", word, wired.client.ip4) == f"{wired.server.ip4} {word}"
    assert counters(routed) == (0, 0) and routed.flows(proto="udp") == []
    # Another exchange of the same socket's
    peer.open("y")
    peer(f"s['y'].sendto(b'knock', ({wired.server.ip4!r}, {PORT + 1}))")
    assert app("s['x'].recvfrom(99)[0].decode()") == "knock"
    assert counters(routed) == (0, 1)
    routed.apply(with_udp("tap"))
    assert app.ask_of("x", "three", wired.client.ip4) == f"{wired.server.ip4} three"
    assert counters(routed) == (1, 2)
    assert {row["direction"] for row in routed.flows(proto="udp")} == {"connect", "listen"}


def test_a_policy_that_changes_while_datagrams_go(wired, peer):
    """Each exchange follows at its next datagram, whichever way that goes."""
    routed = wired.attach_server(SERVED)
    serve(wired.server, wired.server_cgroup)
    there, said = wired.server.ip4, f"{wired.client.ip4} x"
    peer.open("x")
    assert peer.ask_of("x", "x", there) == said
    assert counters(routed) == (1, 1)
    routed.apply(SERVED.replace('stack = "wan"', 'stack = "wan"\nproto = "tcp"'))
    assert peer.ask_of("x", "x", there) == said
    assert counters(routed) == (1, 1) and routed.flows(proto="udp") == []
    elsewhere = SERVED + f'\n[[tables.shop.routes]]\nto = "{wired.client.ip4}"\nstack = "lan"\n'
    routed.apply(elsewhere)
    assert peer.ask_of("x", "x", there) == said
    assert counters(routed) == (1, 1) and routed.flows(proto="udp") == []
    routed.apply(SERVED)
    assert peer.ask_of("x", "x", there) == said
    assert counters(routed) == (2, 2)


def test_errors_go_both_ways(wired, peer):
    """The peer hears of a server that has ended, and the server of a peer that has."""
    routed = wired.attach_server(SERVED)
    app = App(wired.server, wired.server_cgroup)
    app.open("y")
    app("s['y'].setsockopt(socket.IPPROTO_IP, 11, 1)")  # IP_RECVERR
    app(f"s['y'].bind(({wired.server.ip4!r}, {PORT}))")
    peer.open("x")
    peer(f"s['x'].connect(({wired.server.ip4!r}, {PORT})); s['x'].send(b'first')")
    app("told, who = s['y'].recvfrom(99)")
    port = peer("s['x'].getsockname()[1]")
    peer("s.pop('x').close()")
    app("s['y'].sendto(b'nobody is there', who)")
    error = "s['y'].recvmsg(100, 512, socket.MSG_ERRQUEUE)[0].decode()"
    wait_for(lambda: app(error) == "nobody is there", WITHIN_S, "the error")
    assert counters(routed) == (1, 1)
    app("s.pop('y').close()")
    peer.open("x")
    peer(f"s['x'].bind(('0.0.0.0', {port})); s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    peer("s['x'].send(b'still there?')")
    assert peer("s['x'].recv(100)") == "ECONNREFUSED"


def test_a_stack_process_that_is_killed_costs_no_more_than_what_it_held(wired, peer):
    routed = wired.attach_server(SERVED)
    serve(wired.server, wired.server_cgroup)
    peer.open("x")
    peer(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    said = f"{wired.client.ip4} "
    assert peer.ask("x", "before") == f"{said}before"
    pid = routed.stack("wan")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), WITHIN_S, "its end")
    for number in range(50):
        assert peer.ask("x", f"word {number}") == f"{said}word {number}"
    wait_for(lambda: routed.stack("wan")["pid"] not in {pid, None}, WITHIN_S, "another process")
    wait_for(
        lambda: peer.ask("x", "again") and min(counters(routed)) >= 1, WITHIN_S, "it to be carried"
    )


def test_a_stack_process_that_hangs_is_passed_by(wired, peer):
    routed = wired.attach_server(SERVED)
    serve(wired.server, wired.server_cgroup)
    peer.open("x")
    peer(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    assert peer.ask("x", "before").endswith("before")
    os.kill(routed.stack("wan")["pid"], signal.SIGSTOP)
    peer("s['x'].settimeout(0.1)")

    def passes_by() -> bool:
        peer("s['x'].send(b'knock')")
        return "knock" in str(peer("s['x'].recv(100).decode()"))

    wait_for(passes_by, WITHIN_S, "a datagram to pass by")
    (row,) = routed.flows(proto="udp")
    assert (row["stack"], row["why"]) == ("kernel", "full")


@pytest.mark.parametrize("word", ["x" * 5000, "x"], ids=["in fragments", "alone"])
def test_what_is_translated_and_what_is_in_fragments(wired, peer, word):
    """A port that is published elsewhere, and fragments, are the kernel's; and what it sends on."""
    server = wired.server
    rule = f"udp dport {PORT + 1} redirect to :{PORT}"
    table = (
        f"table inet t {{\nchain c {{\ntype nat hook prerouting priority dstnat;\n{rule}\n}}\n}}\n"
    )
    server.run(["nft", "-f", "-"], input=table)
    routed = wired.attach_server(SERVED)
    serve(server, wired.server_cgroup)
    peer.open("x")
    assert peer.ask_of("x", word, server.ip4, PORT + 1) == f"{wired.client.ip4} {word}"
    assert counters(routed) == (0, 0)


def test_what_is_only_forwarded_is_not_the_wildcard_s(wired, peer):
    """A server on every address of a router, and a datagram for a host behind it."""
    server, behind = wired.server, "203.0.113.9"
    server.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    server.ip(f"route add {behind}/32 via {wired.client.ip4}")
    wired.client.ip(f"route add {behind}/32 via {server.ip4}")
    routed = wired.attach_server(SERVED)
    serve(server, wired.server_cgroup)
    peer.open("x")
    peer(f"s['x'].sendto(b'on its way', ({behind!r}, {PORT}))")
    assert peer.ask_of("x", "here", server.ip4) == f"{wired.client.ip4} here"
    assert counters(routed) == (1, 1)
    assert {row["src"] for row in routed.flows(proto="udp")} == {server.ip4}


def test_both_hosts_have_a_stack(wired):
    """Each at its own end: who asks, and who answers."""
    mine = wired.attach_client(with_udp("tap"))
    theirs = wired.attach_server(SERVED)
    serve(wired.server, wired.server_cgroup)
    app = App(wired.client, wired.client_cgroup)
    app.open("x")
    app(f"s['x'].connect(({wired.server.ip4!r}, {PORT}))")
    for number in range(10):
        assert app.ask("x", str(number)) == f"{wired.client.ip4} {number}"
    assert counters(mine) == counters(theirs) == (10, 10)


def test_a_server_of_another_cgroup(wired, peer):
    """Nothing is listed or carried."""
    routed = wired.attach_server(SERVED)
    argv = ["/usr/bin/python3", "-c", ECHO, str(PORT)]
    process = wired.client_cgroup.spawn(argv, host=wired.server, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    peer.open("x")
    assert peer.ask_of("x", "x", wired.server.ip4) == f"{wired.client.ip4} x"
    assert (listeners(routed), counters(routed)) == ([], (0, 0))


@pytest.mark.parametrize("first", ["wan", "kernel"])
def test_what_a_peer_begins_goes_by_the_candidate_that_serves(wired, peer, first):
    """Of an adaptive route; and its answers go the same way, whoever that is."""
    second = {"wan": "kernel", "kernel": "wan"}[first]
    stack = f'stack = "auto"\ncandidates = ["{first}", "{second}"]\ngoal = "latency"\n'
    head, tables = with_udp("tap").split("[[tables", 1)
    routed = wired.attach_server(f"{head}[[tables{tables.replace(WAN, stack)}")
    serve(wired.server, wired.server_cgroup)
    here, there = wired.client.ip4, wired.server.ip4
    peer.open("x")
    for word in ("first", "second"):
        assert peer.ask_of("x", word, there) == f"{here} {word}"
    words = ("route", "get", f"{here}:{PORT}", "--proto", "udp", "--direction", "listen")
    asked = routed.ask(*words, "--cgroup", str(wired.server_cgroup.path))
    assert (asked["stack"], asked["why"]) == (first, None)
    if first == "kernel":
        assert routed.flows(proto="udp") == []
        return
    assert counters(routed) == (2, 2)
    (flow,) = routed.flows(proto="udp")
    assert (flow["stack"], flow["wanted"], flow["direction"]) == ("wan", "wan", "listen")
