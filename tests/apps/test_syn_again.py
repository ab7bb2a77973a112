# SPDX-License-Identifier: Apache-2.0
"""SYNs for a connection that the kernel has already when policy comes to give them to a user stack:
they stay the kernel's, and say nothing of how full the stack is.
"""

from __future__ import annotations

import re

import pytest
from sitefixtures import TAP, XDP, Site
from talking import PORT, Talker, echo

from lab import wait_for

BY = {"tap": TAP, "af_xdp": XDP}
DEAF = """
add table inet t
add chain inet t in { type filter hook input priority 0; }
add rule inet t in tcp flags & (syn | ack) == syn | ack drop
add chain inet t out { type filter hook output priority 0; }
add rule inet t out tcp flags & (syn | ack) == syn counter
"""
# Connects, and dies without a word: its RST does not leave.
DIES = """
import socket, struct, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", int(sys.argv[3])))
s.settimeout(30)
s.connect((sys.argv[1], int(sys.argv[2])))
print(s.makefile("rb").readline() and "open", flush=True)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""
MUTE = """
add table inet t
add chain inet t out { type filter hook output priority 0; }
add rule inet t out tcp flags & rst == rst drop
"""
SILENT = "delete table inet t"


def routed_to_kernel(policy: str) -> str:
    return policy.replace('stack = "wan"', 'stack = "lan"')


def address(site: Site, family: str) -> str:
    return str(getattr(site.server, family))


def syns(site: Site) -> int:
    """How many the client has sent since it is deaf."""
    told = site.client.run(["nft", "list", "chain", "inet", "t", "out"]).stdout
    found = re.search(r"packets (\d+)", told)
    assert found
    return int(found[1])


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("io", BY)
def test_one_whose_answer_was_lost(wired: Site, io: str, family: str) -> None:
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_server(routed_to_kernel(BY[io]))
    wired.client.run(["nft", DEAF])
    to = address(wired, family)
    early = Talker(wired.client, wired.client_cgroup, to, wait=False)
    asked = ["ss", "-Htn", "state", "syn-recv"]
    wait_for(lambda: str(PORT) in wired.server.run(asked).stdout, 10, "the server to answer")
    routed.apply(BY[io])
    sent = syns(wired)
    wait_for(lambda: syns(wired) > sent, 20, "the SYN to be sent again")
    assert routed.stack("wan")["full"] == []
    assert routed.ask_stack("wan")["connections"] == 0
    wired.client.run(["nft", SILENT])
    early.answer()
    assert early.says("send 300000") == "True"
    late = Talker(wired.client, wired.client_cgroup, to)
    assert late.says("send 300000") == "True"
    told = [(one["stack"], one["wanted"], one["why"]) for one in routed.flows(direction="listen")]
    assert sorted(told) == [("kernel", "wan", "peer"), ("wan", "wan", "")]


@pytest.mark.parametrize("io", BY)
def test_one_of_a_client_that_has_lost_its_connection(wired: Site, python, io: str) -> None:
    """RFC 9293 section 3.5.1: the server's end is open, and an ACK asks about it."""
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_server(routed_to_kernel(BY[io]))
    words = (DIES, wired.server.ip4, str(PORT), "7400")
    wired.client.run(["nft", MUTE])
    assert python(wired.client, wired.client_cgroup, *words) == "open"
    wired.client.run(["nft", SILENT])
    assert [one["stack"] for one in routed.flows(dport=7400)] == ["lan"]
    routed.apply(BY[io])
    assert python(wired.client, wired.client_cgroup, *words) == "open"
    assert routed.stack("wan")["counters"]["passive_open"] == 1
    assert routed.stack("wan")["full"] == []
