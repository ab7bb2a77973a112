# SPDX-License-Identifier: Apache-2.0
"""MPTCP sockets in the kernel's hooks: subflows end without a release hook, and a worker of
the kernel's joins.
"""

from __future__ import annotations

import json
import socket

import pytest
from bpf_lab import Bench, Policy, bench

from dmm_ebpf.abi import C
from lab.waiting import wait_for

__all__ = ["bench"]

MPTCP = 262
OPEN = "s[{name!r}] = socket.socket({family}, socket.SOCK_STREAM, 262)"
JOINED = "MPTcpExtMPJoinSynAckRx"


def _open(bench: Bench, name: str, family: int = socket.AF_INET) -> None:
    bench.agent(OPEN.format(name=name, family=int(family)))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_refused_and_unroutable_connections_leave_no_record(bench: Bench, family: int) -> None:
    far, nowhere = (
        (bench.b.ip4, "203.0.113.9") if family == socket.AF_INET else (bench.b.ip6, "2001:db8:9::9")
    )
    version = "-6" if family == socket.AF_INET6 else "-4"
    bench.a.run(["ip", version, "route", "add", "unreachable", nowhere])
    for address in (far, nowhere):
        for number in range(20):
            _open(bench, f"x{number}", family)
            with pytest.raises(OSError):
                bench.agent(f"s['x{number}'].connect(({address!r}, 9))")
            bench.agent.close(f"x{number}")
    wait_for(lambda: bench.flows() == [], 10, "no record to be left")


def test_an_open_connection_has_a_record_until_it_ends(bench: Bench) -> None:
    Policy().rule(1).stack(3, C.DMM_STACK_KERNEL).route(1, "0.0.0.0/0", 3).apply(bench.attached)
    _open(bench, "x")
    bench.agent.connect("x", bench.b.ip4, bench.port)
    (flow,) = bench.flows()
    assert (flow.decision.stack, flow.decision.pid) == (3, bench.agent.pid)
    accepted, _ = bench.far.accept()
    bench.agent.close("x")
    accepted.close()
    wait_for(lambda: bench.flows() == [], 10, "the record to end with the flow")


def _joined(bench: Bench) -> int:
    shown = bench.a.run(["nstat", "-jasz", JOINED]).stdout
    return int(json.loads(shown)["kernel"][JOINED])


def test_a_join_by_the_kernels_worker_is_not_decided_for_anybody(bench: Bench) -> None:
    """The worker has no name, user or cgroup that a rule for the application could match; the
    last rule refuses.
    """
    policy = Policy().rule(1, flags=C.DMM_RULE_COMM, comm=b"python3").rule(2)
    bench.agent("libc.prctl(15, b'python3', 0, 0, 0)")
    policy.stack(3, C.DMM_STACK_KERNEL).stack(9, C.DMM_STACK_REJECT)
    policy.route(1, "0.0.0.0/0", 3).route(2, "0.0.0.0/0", 9).apply(bench.attached)
    second = f"{bench.a.ip4.rpartition('.')[0]}.77"
    bench.a.ip(f"addr add {second}/24 dev {bench.a.nic.name}")
    for host in (bench.a, bench.b):
        host.run(["ip", "mptcp", "limits", "set", "subflow", "2", "add_addr_accepted", "2"])
    bench.a.run(["ip", "mptcp", "endpoint", "add", second, "dev", bench.a.nic.name, "subflow"])

    def listen() -> socket.socket:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
        listening.bind(("", 0))
        listening.listen()
        return listening

    with bench.b.call(listen) as far:
        _open(bench, "x")
        bench.agent.connect("x", bench.b.ip4, far.getsockname()[1])
        accepted, _ = far.accept()
        with accepted:
            bench.agent("s['x'].sendall(b'x' * 1000)")
            assert accepted.recv(2000)
            accepted.sendall(b"y")
            wait_for(lambda: _joined(bench) == 1, 10, "the second subflow to join")
            assert bench.count(C.DMM_CNT_CONNECT_REJECT) == 0
            assert len(bench.flows()) == 1
            bench.agent.close("x")
    wait_for(lambda: bench.flows() == [], 10, "no record to be left")
