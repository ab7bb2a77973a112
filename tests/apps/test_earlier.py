# SPDX-License-Identifier: Apache-2.0
"""Servers and connections that were there before the attach: the listeners are served,
the connections listed.
"""

from __future__ import annotations

import signal

import pytest
from sitefixtures import TAP, WAN
from talking import PORT, SEND, SINK, Talker, echo, server

from lab import curl_fetch, nginx, wait_for
from lab.routed import Routed

BYTES = 3_000_000
WITHIN_S = 20.0
LAN = WAN.replace('stack = "wan"', 'stack = "lan"')


class Pending(Routed):
    options = ("--pending",)


def _listeners(routed: Routed, port: int = PORT) -> list[dict]:
    return [one for one in routed.ask("listeners") if one["port"] == port]


def _served_by(site, routed, address: str = "", port: int = PORT) -> str:
    """The stack that serves a new connection from the client, over which bytes come back
    as they went.
    """
    talker = Talker(site.client, site.client_cgroup, address or site.server.ip4, port)
    assert talker.says(f"send {BYTES}") == "True"
    (row,) = [one for one in routed.flows(sport=port, direction="listen") if one["why"] != "attach"]
    talker.process.kill()
    talker.process.wait()
    wait_for(
        lambda: not [one for one in routed.flows(sport=port) if one["why"] != "attach"],
        WITHIN_S,
        "the flow to end",
    )
    assert row["pid"] in [one["pid"] for one in _listeners(routed, port)]
    return row["stack"]


@pytest.mark.parametrize("reuseport", [False, True])
def test_nginx_that_ran_before_is_served(wired, payload, reuseport):
    path, sha256 = payload(BYTES)
    web = nginx(
        wired.server,
        path.parent,
        wired.directory / "nginx",
        workers=3,
        reuseport=reuseport,
        cgroup=wired.server_cgroup,
    )
    routed = wired.attach_server(TAP)
    for one in _listeners(routed, web.port):
        assert one["table"] == "shop"
        assert one["sockets"] == (3 if reuseport else 1)
        assert (one["pid"], one["comm"], one["uid"]) == (web.process.pid, "nginx", 0)
        assert one["cgroup"] == wired.server_cgroup.relative
    assert len(_listeners(routed, web.port)) == 2

    def fetch(opened: int) -> None:
        for ipv6 in (False, True):
            got = curl_fetch(
                wired.client, web.url(path.name, ipv6=ipv6), cgroup=wired.client_cgroup
            )
            assert (got.exit_code, got.sha256) == (0, sha256)
        assert routed.stack("wan")["counters"]["passive_open"] == opened

    fetch(2)
    web.process.send_signal(signal.SIGHUP)  # nginx -s reload
    fetch(4)
    routed.kill_director()
    routed.restart()
    assert {one["sockets"] for one in _listeners(routed, web.port)} == {3 if reuseport else 1}
    fetch(6)
    web.stop()
    wait_for(lambda: not _listeners(routed, web.port), WITHIN_S, "the listeners to go")


def test_a_connection_that_was_open_goes_on_and_is_listed(wired):
    process = echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    gone = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    routed = wired.attach_server(TAP)
    rows = routed.flows(why="attach")
    assert len(rows) == 2
    for row in rows:
        assert (row["stack"], row["direction"], row["pid"]) == ("kernel", "listen", process.pid)
        assert (row["src"], row["sport"], row["state"]) == (wired.server.ip4, PORT, "ESTABLISHED")
        assert row["cgroup"] == wired.server_cgroup.relative
    assert "kernel (attach)" in routed.cli("flows", "-i", routed.instance).stdout
    assert talker.says(f"send {BYTES}") == "True"
    assert routed.ask("status")[0]["flows"] == 2
    assert _served_by(wired, routed) == "wan"
    gone.process.kill()
    wait_for(
        lambda: len(routed.flows(why="attach")) == 1, WITHIN_S, "the other one to be forgotten"
    )
    routed.kill_director()
    routed.restart()
    assert len(routed.flows(why="attach")) == 1
    assert talker.says(f"send {BYTES}") == "True"


def test_a_policy_moves_a_listener_that_ran_before(wired):
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_server(TAP)
    assert _served_by(wired, routed) == "wan"
    assert _served_by(wired, routed, wired.server.ip6) == "wan"
    routed.apply(LAN)
    assert _served_by(wired, routed) == "lan"
    routed.apply(TAP.replace('cgroup = "{cgroup}"', 'cgroup = "{cgroup}/none"'))
    assert [one["table"] for one in _listeners(routed)] == [None]
    assert _served_by(wired, routed) == "kernel"
    routed.apply(TAP)
    assert _served_by(wired, routed) == "wan"


def test_a_server_in_a_cgroup_that_was_made_again_is_served(wired):
    base = wired.server_cgroup
    wired.server_cgroup = base.child("web.service")
    wired.server_cgroup.path.rmdir()
    routed = wired.stack.enter_context(
        Pending(wired.server, wired.server_cgroup, TAP, wired.directory)
    )
    for _ in range(3):
        wired.server_cgroup.path.mkdir()
        process = echo(wired.server, wired.server_cgroup)
        wait_for(
            lambda: [one["table"] for one in _listeners(routed)] == ["shop"],
            WITHIN_S,
            "the listener",
        )
        assert _served_by(wired, routed) == "wan"
        process.kill()
        process.wait()
        wired.server_cgroup.path.rmdir()
        wait_for(lambda: not _listeners(routed), WITHIN_S, "the listener to go")


def test_what_is_outside_the_cgroup_or_bound_to_a_device_is_left_alone(wired):
    echo(wired.server, wired.client_cgroup, PORT + 1)
    bind = f'listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"{wired.server.nic.name}")'
    bound = SINK.replace('print("ready"', f'{bind}\nprint("ready"')
    server(wired.server, wired.server_cgroup, bound, str(PORT))
    routed = wired.attach_server(TAP)
    assert _listeners(routed, PORT + 1) == []
    assert [one["table"] for one in _listeners(routed)] == [None]
    routed.apply(LAN)
    assert [one["table"] for one in _listeners(routed)] == [None]


def test_a_listener_that_was_shut_down_and_listens_again_is_counted_once(wired):
    script = SINK.replace(
        'print("ready", flush=True)',
        'print("ready", flush=True)\nsys.stdin.readline()\nlistening.shutdown(2)\nlistening.listen(16)\n'
        'print("again", flush=True)',
    )
    process = server(wired.server, wired.server_cgroup, script, str(PORT))
    routed = wired.attach_server(TAP)
    assert [one["sockets"] for one in _listeners(routed)] == [1]
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "again\n"
    assert [(one["sockets"], one["table"]) for one in _listeners(routed)] == [(1, "shop")]
    done = wired.client_cgroup.run(
        ["/usr/bin/python3", "-c", SEND, wired.server.ip4, str(PORT), str(BYTES), "30"],
        host=wired.client,
    )
    sent, back = done.stdout.split()
    assert sent == back
    process.kill()
    wait_for(lambda: not _listeners(routed), WITHIN_S, "the listener to go")
