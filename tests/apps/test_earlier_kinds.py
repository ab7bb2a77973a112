# SPDX-License-Identifier: Apache-2.0
"""Sockets from before the attach that are not plain: MPTCP's, those of child cgroups, UDP's."""

from __future__ import annotations

import pytest
from sitefixtures import TAP
from talking import ECHO, PORT, Talker, program, server

from lab import wait_for

BYTES = 1_000_000
WITHIN_S = 20.0
IPPROTO_MPTCP = 262
OF_MPTCP = ECHO.replace(
    'socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)',
    f"socket.socket(socket.AF_INET6, socket.SOCK_STREAM, {IPPROTO_MPTCP})\n"
    'listening.bind(("::", int(sys.argv[1])))\nlistening.listen(64)',
)
MPTCP_CLIENT = f"""
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, {IPPROTO_MPTCP})
s.connect((sys.argv[1], int(sys.argv[2])))
f = s.makefile("rb")
f.readline()
data = os.urandom(100_000)
s.sendall(data)
print(f.read(len(data)) == data, flush=True)
sys.stdin.readline()
"""


def _listeners(routed, port: int = PORT):
    return [one for one in routed.ask("listeners") if one["port"] == port]


def _serves(site, routed) -> str:
    talker = Talker(site.client, site.client_cgroup, site.server.ip4, PORT)
    try:
        assert talker.says(f"send {BYTES}") == "True"
        (row,) = [
            one for one in routed.flows(sport=PORT, direction="listen") if one["why"] != "attach"
        ]
    finally:
        talker.process.kill()
        talker.process.wait()
    wait_for(lambda: not routed.flows(sport=PORT), WITHIN_S, "the flow to end")
    return row["stack"]


@pytest.mark.parametrize("before", [True, False])
def test_an_mptcp_listener_is_served_to_clients_of_plain_tcp(wired, before):
    """As Go's net package listens."""
    started = before and server(wired.server, wired.server_cgroup, OF_MPTCP, str(PORT))
    routed = wired.attach_server(TAP)
    process = started or server(wired.server, wired.server_cgroup, OF_MPTCP, str(PORT))
    (row,) = _listeners(routed)
    assert (row["sockets"], row["table"], row["pid"]) == (1, "shop", process.pid)
    assert row["cgroup"] == wired.server_cgroup.relative
    assert _serves(wired, routed) == "wan"
    client = program(wired.client, wired.client_cgroup, MPTCP_CLIENT, wired.server.ip4, str(PORT))
    assert client.stdout.readline() == "True\n"
    (flow,) = routed.flows(sport=PORT)
    assert (flow["stack"], flow["why"]) == ("kernel", "option")
    client.kill()
    client.wait()
    process.kill()
    process.wait()
    wait_for(lambda: not _listeners(routed), WITHIN_S, "the listener to go")


def test_a_listener_of_a_child_cgroup_takes_the_rule_of_the_child(wired):
    child = wired.server_cgroup.child("web.service")
    process = server(wired.server, child, ECHO, str(PORT))
    routed = wired.attach_server(
        TAP.replace('cgroup = "{cgroup}"', 'cgroup = "{cgroup}/web.service"')
    )
    (row,) = _listeners(routed)
    assert (row["table"], row["pid"], row["cgroup"]) == ("shop", process.pid, child.relative)
    assert _serves(wired, routed) == "wan"


UDP = """
import errno, json, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
connected, free = socket.socket(type=2), socket.socket(type=2)
connected.connect((address, port))
print("ready", flush=True)
sys.stdin.readline()
def tried(what, *arguments):
    try:
        what(*arguments)
        return "sent"
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps([tried(free.sendto, b"x", (address, port)), tried(connected.send, b"x"),
                  tried(connected.connect, (address, port))]), flush=True)
"""


def test_udp_sockets_from_before_are_refused_what_they_ask_for_anew(wired):
    """What a connect() of before has allowed stays allowed."""
    process = server(wired.client, wired.client_cgroup, UDP, wired.server.ip4, "9")
    policy = '[[rules]]\ncgroup = "{cgroup}"\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "reject"\n'
    wired.attach_client(policy)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == '["EPERM", "sent", "EPERM"]\n'
