# SPDX-License-Identifier: Apache-2.0
"""Copies of datagrams between two hosts with user stacks, over a path that loses: a program that
knows nothing of it hears more of its answers, and none twice. A host without us sees nothing.
"""

from __future__ import annotations

import json

import pytest
from sitefixtures import Site, with_udp
from talking import server
from test_datagram_programs import ADDRESS, NAME, dnsmasq

from dmm_ebpf.userstack.spec import process_label

PORT = 7400
POLICY = 'kind = "user"\nnegotiate = "allow"\nlatency = "low"\n'
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    s.sendto(*s.recvfrom(2048))
"""
# Asks every 10 ms, by so many sockets in turn, whatever comes back meanwhile; how often each answer
# came.
ASK = """
import collections, json, select, socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sockets = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(int(sys.argv[4]))]
for s in sockets:
    s.connect((sys.argv[1], int(sys.argv[2])))
many, came, number = int(sys.argv[3]), collections.Counter(), 0
due = time.monotonic()
while number < many or time.monotonic() < due + 2:
    left = due - time.monotonic()
    if number < many and left <= 0:
        sockets[number % len(sockets)].send(number.to_bytes(4, "big") * 40)
        number += 1
        due += 0.01
        continue
    wait = left if number < many else due + 2 - time.monotonic()
    for s in select.select(sockets, [], [], max(wait, 0))[0]:
        data = s.recv(2048)
        assert data == data[:4] * 40
        came[int.from_bytes(data[:4], "big")] += 1
print(json.dumps([came[n] for n in range(many)]))
"""


def policy(io: str) -> str:
    return with_udp(io).replace('kind = "user"\n', POLICY)


def came(python, site: Site, address: str, many: int, sockets: int = 1) -> list[int]:
    words = (ASK, address, str(PORT), str(many), str(sockets))
    return json.loads(python(site.client, site.client_cgroup, *words, timeout=120))


def counters(routed) -> dict[str, int]:
    return routed.stack("wan")["counters"]


@pytest.mark.alone("a late copy counts as lost")
@pytest.mark.parametrize(("io", "family"), [("tap", "ip4"), ("tap", "ip6"), ("af_xdp", "ip4")])
def test_more_answers_come_and_none_twice(site, python, io, family) -> None:
    site.wan(rate="100mbit", delay="10ms", loss="12%", seed=3)
    client, peer = site.attach_client(policy(io)), site.attach_server(policy(io))
    server(site.server, site.server_cgroup, ECHO, str(PORT))
    answers = came(python, site, getattr(site.server, family), 1500)
    assert max(answers) == 1
    late = answers[500:]
    # Without copies three quarters come back.
    assert sum(late) >= 0.95 * len(late), (counters(client), counters(peer))
    for routed in (client, peer):
        told = counters(routed)
        assert told["datagram_peers"] == 1
        assert told["datagrams_repaired"] > 60
        assert told["datagram_copies"] > 1000


def test_several_processes_of_each_host_hear_of_their_own(site, python) -> None:
    """Of many exchanges, which they share."""
    site.wan(rate="100mbit", delay="10ms", loss="12%", seed=4)
    several = policy("tap").replace(POLICY, POLICY + "processes = 3\n")
    client, peer = site.attach_client(several), site.attach_server(several)
    server(site.server, site.server_cgroup, ECHO, str(PORT))
    answers = came(python, site, site.server.ip4, 2500, sockets=24)
    assert max(answers) == 1
    late = answers[1000:]
    assert sum(late) >= 0.95 * len(late), (counters(client), counters(peer))
    for routed in (client, peer):
        for number in range(3):
            told = routed.ask_stack(process_label("wan", number))
            assert told["core_datagram_copies"] > 300, (number, told)
            assert told["core_datagrams_repaired"] > 20, (number, told)


def test_a_host_without_us_drops_the_offers(wired, python) -> None:
    routed = wired.attach_client(policy("tap"))
    server(wired.server, wired.server_cgroup, ECHO, str(PORT))
    assert came(python, wired, wired.server.ip4, 100) == [1] * 100
    assert counters(routed)["datagram_copies"] == 3
    assert counters(routed).get("datagram_peers", 0) == 0
    shown = wired.server.run(["cat", "/proc/net/snmp"]).stdout
    names, values = (line.split() for line in shown.splitlines() if line.startswith("Udp:"))
    assert dict(zip(names, values, strict=True))["InCsumErrors"] == "3"


def test_by_default_nothing_is_sent_besides(wired, python) -> None:
    routed = wired.attach_client(with_udp("tap"))
    server(wired.server, wired.server_cgroup, ECHO, str(PORT))
    assert came(python, wired, wired.server.ip4, 50) == [1] * 50
    assert counters(routed).get("datagram_copies", 0) == 0
    shown = wired.server.run(["cat", "/proc/net/snmp"]).stdout
    names, values = (line.split() for line in shown.splitlines() if line.startswith("Udp:"))
    assert dict(zip(names, values, strict=True))["InCsumErrors"] == "0"


def answers(site: Site, first: int, many: int) -> int:
    """How many names a resolver over the path says, each asked for once, by a socket of its own."""
    names = [f"{number}.{NAME}" for number in range(first, first + many)]
    once = ["dig", "+short", "+tries=1", "+time=1", f"@{site.server.ip4}"]
    done = site.client_cgroup.run([*once, *names], host=site.client, check=False)
    return str(done.stdout).splitlines().count(ADDRESS)


def test_a_resolver_answers_the_first_question(site) -> None:
    """By its first packet, though every question has a port of its own: what is known is known of
    the host.
    """
    site.wan(rate="100mbit", delay="10ms", loss="12%", seed=5)
    both = [attach(policy("tap")) for attach in (site.attach_client, site.attach_server)]
    dnsmasq(site.server, site.server_cgroup, "--no-resolv", f"--address=/{NAME}/{ADDRESS}")
    answers(site, 0, 60)  # by which the loss is known
    # Without copies 46 of 60 come back, and 57 once in ten thousand times.
    assert answers(site, 100, 60) >= 57, [counters(routed) for routed in both]
    assert sum(counters(routed)["datagrams_repaired"] for routed in both) > 5
