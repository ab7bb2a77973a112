# SPDX-License-Identifier: Apache-2.0
"""rd.endflows: the sockets that a dead process has carried are reset, by 5-tuple and by record,
and no others.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from bpf_lab import Bench, Policy, bench, processes_up
from seat_lab import RST, Seat, connect, mac_of, pair, serve_nic, two_seats

from dmm_ebpf import abi
from dmm_ebpf.rd.director import endflows
from dmm_ebpf.rd.director.rundir import StackState

__all__ = ["bench"]

STACK = 5


@pytest.fixture
def seats(bench: Bench) -> Iterator[list[Seat]]:
    """Two processes of stack 5, to which all goes that a connects to."""
    serve_nic(bench.a, bench.attached)
    policy = Policy().rule(1).user(STACK).route(1, "0.0.0.0/0", STACK).route(1, "::/0", STACK)
    policy.apply(bench.attached)
    with two_seats(bench.a, bench.attached, STACK) as made:
        yield made


def carried(bench: Bench, seats: list[Seat], seat: Seat, name: str, address: str = "") -> None:
    """A connection of the agent's that this process has opened."""
    processes_up(bench.attached, STACK, 1 << seat.process, [one.seat for one in seats])
    address = address or bench.b.ip4
    bench.agent.open(name, socket.AF_INET6 if ":" in address else socket.AF_INET)
    connect(bench.agent, seats, mac_of(bench.a), name, address, bench.port)


def record(seat: Seat) -> StackState:
    """Of the process, as state.json has it."""
    return StackState("wan", STACK, seat.seat - 1, process=seat.process)


def end(bench: Bench, seat: Seat) -> int:
    """What rd.processes does when the process is gone."""
    maps, who = bench.attached.maps, record(seat)
    owned, served = endflows.owned_by(maps, who), endflows.served_by(maps, who)
    return bench.a.call(endflows.end, maps, owned, served)


def lives(bench: Bench, name: str) -> bool:
    """Whether the app's socket is still a connection."""
    try:
        bench.agent(f"s[{name!r}].setblocking(False); s[{name!r}].recv(1)")
    except BlockingIOError:
        return True
    except ConnectionAbortedError:
        return False
    raise AssertionError("the connection has ended by itself")


def local_pair(bench: Bench, name: str) -> bytes:
    """The flow of a socket of the agent's."""
    local, lport = bench.agent(f"s[{name!r}].getsockname()[:2]")
    remote, rport = bench.agent(f"s[{name!r}].getpeername()[:2]")
    local, remote = (text.removeprefix("::ffff:") for text in (local, remote))
    return pair(local, lport, remote, rport)


def test_a_dead_processs_flows_are_reset_and_anothers_live(bench: Bench, seats: list[Seat]) -> None:
    for name, address in (
        ("v4", bench.b.ip4),
        ("v6", bench.b.ip6),
        ("mapped", f"::ffff:{bench.b.ip4}"),
    ):
        carried(bench, seats, seats[0], name, address)
    carried(bench, seats, seats[1], "other")
    assert end(bench, seats[0]) == 3
    assert [lives(bench, name) for name in ("v4", "v6", "mapped", "other")] == [False] * 3 + [True]
    kept = [key for key, _ in bench.attached.maps["xdp_flows"].items()]
    assert kept == [local_pair(bench, "other")]
    assert end(bench, seats[0]) == 0


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_by_the_pair_alone(bench: Bench, seats: list[Seat], family: str) -> None:
    """A socket without a record, of a program outside the cgroup; what is the process's gets
    no further meanwhile.
    """
    address = getattr(bench.b, family)
    peer_of = {}
    for name in ("its", "kernels"):
        sock = bench.a.call(socket.create_connection, (address, bench.port), 10)
        peer_of[name] = (sock, bench.far.accept()[0])
    sock, peer = peer_of["its"]
    flow = pair(*sock.getsockname()[:2], *sock.getpeername()[:2])
    entry = abi.new("dmm_xdp_flow", stack=STACK, seat=seats[0].seat)
    bench.attached.maps["xdp_flows"].update(flow, abi.pack(entry))
    assert endflows.served_by(bench.attached.maps, record(seats[0])) == {}
    assert end(bench, seats[0]) == 1
    with pytest.raises(ConnectionAbortedError):
        sock.recv(1)
    reset = [one for one in seats[0].segments() if one.flags & RST]
    assert len(reset) == 1, (
        "the reset went to the process's device, not to a peer that knows other numbers"
    )
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    sock, peer = peer_of["kernels"]
    sock.sendall(b"alive")
    peer.settimeout(10)
    assert peer.recv(10) == b"alive"
    for one in (end for ends in peer_of.values() for end in ends):
        one.close()


def test_by_the_record_alone(bench: Bench, seats: list[Seat]) -> None:
    """Behind a translation the process owns another 5-tuple than the socket has."""
    carried(bench, seats, seats[0], "x")
    carried(bench, seats, seats[1], "other")
    there, entry = (
        local_pair(bench, "x"),
        bench.attached.maps["xdp_flows"].lookup(local_pair(bench, "x")),
    )
    assert entry is not None
    translated = pair("192.0.2.77", 1, bench.b.ip4, bench.port)
    bench.attached.maps["xdp_flows"].delete(there)
    bench.attached.maps["xdp_flows"].update(translated, entry)
    assert endflows.served_by(bench.attached.maps, record(seats[0])).keys() == {
        bench.agent.cookie("x")
    }
    assert end(bench, seats[0]) == 1
    assert (lives(bench, "x"), lives(bench, "other")) == (False, True)
    assert bench.attached.maps["xdp_flows"].lookup(translated) is None


def test_all_of_an_instance(bench: Bench, seats: list[Seat]) -> None:
    for seat, name in zip(seats, ("x", "y"), strict=True):
        carried(bench, seats, seat, name)
    processes_up(bench.attached, STACK, 0, [one.seat for one in seats])
    bench.agent.open("kernels")
    bench.agent.connect("kernels", bench.b.ip4, bench.port)
    maps = bench.attached.maps
    assert bench.a.call(endflows.end, maps, endflows.owned_by(maps), endflows.served_by(maps)) == 2
    assert [lives(bench, name) for name in ("x", "y", "kernels")] == [False, False, True]


def test_a_flow_that_was_only_asked_for_is_nobodys(bench: Bench, seats: list[Seat]) -> None:
    """Its SYN has not come to the process yet: a new one, or the kernel, may still serve it."""
    processes_up(bench.attached, STACK, 1, [one.seat for one in seats])
    chain = "add table inet t; add chain inet t c { type filter hook output priority 0; }; "
    bench.a.run(["nft", chain + "add rule inet t c tcp flags syn drop"])
    bench.agent.open("x")
    bench.agent("s['x'].setblocking(False)")
    bench.agent(f"s['x'].connect_ex(({bench.b.ip4!r}, {bench.port}))")
    flow = bench.flow(bench.agent.cookie("x"))
    assert flow is not None and (flow.decision.stack, flow.decision.taken) == (STACK, 0)
    assert endflows.served_by(bench.attached.maps, record(seats[0])) == {}
