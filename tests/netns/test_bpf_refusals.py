# SPDX-License-Identifier: Apache-2.0
"""What a rejecting stack refuses, and by which errno: connections, and datagrams in every way
that one can be sent.
"""

from __future__ import annotations

import errno
import socket

import pytest
from bpf_lab import Agent, Bench, Policy, bench

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.rule import REFUSING

__all__ = ["bench"]

REJECT, KERNEL = C.DMM_STACK_REJECT, C.DMM_STACK_KERNEL
PORT, OTHER = 5000, 5001
SEND = {
    "sendto": "s['u'].sendto(b'x', ({addr!r}, {port}))",
    "sendmsg": "s['u'].sendmsg([b'x'], [], 0, ({addr!r}, {port}))",
    "of another than the connected peer": (
        "s['u'].connect(({addr!r}, {other})); s['u'].sendto(b'x', ({addr!r}, {port}))"
    ),
    "after connect() was undone": (
        "s['u'].connect(({addr!r}, {other})); libc.connect(s['u'].fileno(), bytes(28), 28);"
        " s['u'].sendto(b'x', ({addr!r}, {port}))"
    ),
    "of a bound socket": "s['u'].bind(('', 0)); s['u'].sendto(b'x', ({addr!r}, {port}))",
    "of a socket that is bound to a device": (
        "s['u'].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, {nic!r}.encode());"
        " s['u'].sendto(b'x', ({addr!r}, {port}))"
    ),
}
PEERS = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "v4-mapped": socket.AF_INET6}


def _policy(refusal: int = 0) -> Policy:
    policy = Policy().rule(1).stack(9, REJECT, refusal=refusal)
    for prefix in ("0.0.0.0/0", "::/0"):
        policy.route(1, prefix, 0, portset=1)
    return policy.ports(1, PORT, 16, 9, route=1, proto=17).ports(1, 443, 16, 9, route=2)


def _address(bench: Bench, peer: str) -> str:
    return {"ipv4": bench.b.ip4, "ipv6": bench.b.ip6, "v4-mapped": f"::ffff:{bench.b.ip4}"}[peer]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("way", SEND)
def test_a_datagram_is_refused(bench: Bench, way: str, peer: str) -> None:
    _policy().apply(bench.attached)
    agent, addr = bench.agent, _address(bench, peer)
    agent.open("u", PEERS[peer], socket.SOCK_DGRAM)
    with pytest.raises(PermissionError):
        agent(SEND[way].format(addr=addr, port=PORT, other=OTHER, nic=bench.a.nic.name))
    assert bench.count(C.DMM_CNT_DATAGRAM_REJECT) == 1
    agent(f"s['u'].sendto(b'x', ({addr!r}, {OTHER}))")
    assert bench.flows() == []


@pytest.mark.parametrize("refusal", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EINVAL])
def test_the_errno_is_the_policys(bench: Bench, refusal: int) -> None:
    _policy(refusal).apply(bench.attached)
    agent = bench.agent
    for number, (family, addr) in enumerate(
        ((socket.AF_INET, bench.b.ip4), (socket.AF_INET6, bench.b.ip6))
    ):
        agent.open(f"u{number}", family, socket.SOCK_DGRAM)
        agent.open(f"t{number}", family)
        for call in (
            f"s['u{number}'].sendto(b'x', ({addr!r}, {PORT}))",
            f"s['u{number}'].connect(({addr!r}, {PORT}))",
            f"s['t{number}'].connect(({addr!r}, 443))",
        ):
            with pytest.raises(OSError) as raised:
                agent(call)
            assert raised.value.errno == refusal, call
    assert bench.flows() == []


def _errors(agent: Agent, addr: str, family: socket.AddressFamily) -> list[int | None]:
    """The errno of each way to speak to such a peer."""
    agent.open("t", family)
    agent.open("u", family, socket.SOCK_DGRAM)
    agent.open("v", family, socket.SOCK_DGRAM)
    found = []
    for call in (
        f"s['t'].connect(({addr!r}, 443))",
        f"s['u'].sendto(b'x', ({addr!r}, {PORT}))",
        f"s['u'].sendmsg([b'x'], [], 0, ({addr!r}, {PORT}))",
        f"s['v'].connect(({addr!r}, {PORT}))",
    ):
        try:
            agent(call)
            found.append(None)
        except OSError as error:
            found.append(error.errno)
    for name in ("t", "u", "v"):
        agent.close(name)
    return found


@pytest.mark.parametrize("kind", [name for name in REFUSING if name != "reject"])
def test_errors_are_those_of_the_kernels_routes_of_that_type(bench: Bench, kind: str) -> None:
    for peer in ("203.0.113.9", "2001:db8:113::9"):
        family = socket.AF_INET6 if ":" in peer else socket.AF_INET
        bench.a.ip(f"route add {kind} {peer}")
        kernels = _errors(bench.agent, peer, family)
        bench.a.ip(f"route del {kind} {peer}")
        Policy().rule(1).stack(9, REJECT, refusal=getattr(errno, REFUSING[kind])).route(
            1, f"{peer}/{128 if ':' in peer else 32}", 9
        ).apply(bench.attached)
        assert _errors(bench.agent, peer, family) == kernels == [kernels[0]] * 4
        assert kernels[0] == getattr(errno, REFUSING[kind])
        Policy().apply(bench.attached, 2)


def test_datagrams_are_looked_at_only_where_a_route_refuses(bench: Bench) -> None:
    policy = Policy().rule(1).stack(9, KERNEL).route(1, "0.0.0.0/0", 9)
    policy.apply(bench.attached)
    bench.agent.open("u", kind=socket.SOCK_DGRAM)
    bench.agent(f"s['u'].sendto(b'x', ({bench.b.ip4!r}, {PORT}))")
    assert bench.count(C.DMM_CNT_DATAGRAM_REJECT) == 0
