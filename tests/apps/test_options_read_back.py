# SPDX-License-Identifier: Apache-2.0
"""What a program has set on its socket before connect() or listen() it reads back when a user
stack carries it.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from sitefixtures import TAP, Site
from talking import program, server

from lab import Cgroup, Host

PORT = 7330

COMMON = """
import json, os, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
TOS = (socket.IPPROTO_IPV6, 67) if family == socket.AF_INET6 else (socket.IPPROTO_IP, 1)
TTL = (socket.IPPROTO_IPV6, 16) if family == socket.AF_INET6 else (socket.IPPROTO_IP, 2)
NUMBERS = {
    "SO_MARK": (1, 36, 0x2000), "SO_PRIORITY": (1, 12, 5), "SO_RCVBUF": (1, 8, 20000), "SO_SNDBUF": (1, 7, 30000),
    "SO_MAX_PACING_RATE": (1, 47, 10_000_000), "TOS": (*TOS, 0x48), "TTL": (*TTL, 77), "TCP_NODELAY": (6, 1, 1),
    "TCP_USER_TIMEOUT": (6, 18, 9000), "TCP_KEEPIDLE": (6, 4, 33), "TCP_KEEPINTVL": (6, 5, 7), "TCP_KEEPCNT": (6, 6, 3),
    "TCP_SYNCNT": (6, 7, 4), "TCP_NOTSENT_LOWAT": (6, 25, 40000), "TCP_WINDOW_CLAMP": (6, 10, 60000),
    "TCP_QUICKACK": (6, 12, 1), "TCP_THIN_LINEAR_TIMEOUTS": (6, 16, 1), "SO_KEEPALIVE": (1, 9, 1),
}
def make():
    s = socket.socket(family)
    s.setsockopt(6, 13, sys.argv[3].encode())  # TCP_CONGESTION
    for level, name, value in NUMBERS.values():
        s.setsockopt(level, name, value)
    return s
def told(s):
    numbers = {name: s.getsockopt(level, option) for name, (level, option, _) in NUMBERS.items()}
    numbers["TCP_CONGESTION"] = s.getsockopt(6, 13, 16).rstrip(b"\\0").decode()
    print(json.dumps(numbers), flush=True)
"""
SERVE = """
s = make()
s.setsockopt(1, 2, 1)
s.bind((address, port))
s.listen()
print("ready", flush=True)
c, _ = s.accept()
c.sendall(c.recv(1000))
told(c)
c.recv(1)
"""
TALK = """
s = make()
s.settimeout(30)
s.connect((address, port))
s.sendall(b"x")
s.recv(1)
told(s)
"""


def _told(one: subprocess.Popen[str]) -> dict[str, Any]:
    assert one.stdout is not None
    found: dict[str, Any] = json.loads(one.stdout.readline())
    return found


def _both(site: Site, family: str, congestion: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What client and server read back."""
    arguments = (getattr(site.server, family), str(PORT), congestion)

    def start(start_one: Any, host: Host, cgroup: Cgroup, script: str) -> Any:
        return start_one(host, cgroup, COMMON + script, *arguments)

    serving = start(server, site.server, site.server_cgroup, SERVE)
    talking = start(program, site.client, site.client_cgroup, TALK)
    try:
        return _told(talking), _told(serving)
    finally:
        for one in (talking, serving):
            one.kill()
            one.wait()


def _usual(site: Site, congestion: str) -> None:
    for host in (site.client, site.server):
        host.sysctl("net.ipv4.tcp_congestion_control", congestion)


@pytest.mark.parametrize("side", ["client", "server"])
def test_it_is_what_was_set(wired: Site, side: str) -> None:
    families = ("ip4", "ip6")
    _usual(wired, "reno")
    without = {family: _both(wired, family, "cubic") for family in families}
    assert without["ip4"][0]["TCP_CONGESTION"] == without["ip6"][1]["TCP_CONGESTION"] == "cubic"
    routed = wired.attach_client(TAP) if side == "client" else wired.attach_server(TAP)
    for family in families:
        now = _both(wired, family, "cubic")[side == "server"]
        told = without[family][side == "server"]
        assert {name: (now[name], told[name]) for name in told if now[name] != told[name]} == {}
    counted = routed.ask_stack("wan")
    assert counted["core_active_open"] + counted["core_passive_open"] == len(families)
