# SPDX-License-Identifier: Apache-2.0
"""Listeners: published and withdrawn, the table that serves them, and the stack of
what they accept.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from bpf_lab import PATIENT, Agent, Bench, Policy, bench, listener_key, patience
from seat_lab import ACK, SYN, Seat, Segment, mac_of, serve_nic

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader import compile as compiling
from dmm_ebpf.rd.director.flows import pair_text
from lab.waiting import wait_for

__all__ = ["bench"]

KERNEL, USER = C.DMM_STACK_KERNEL, C.DMM_STACK_USER


@contextmanager
def client(bench: Bench, port: int, address: str = "") -> Iterator[socket.socket]:
    """A connection from the far host, accepted by the agent as x."""
    with bench.b.call(lambda: socket.create_connection((address or bench.a.ip4, port), 10)) as peer:
        bench.agent.accept("l", "x")
        yield peer


def decision(bench: Bench):
    """Of the accepted socket x."""
    flow = bench.flow(bench.agent.cookie("x"))
    assert flow is not None
    return flow.decision


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1", "::1", "own4", "own6"])
def test_published_under_its_address_and_withdrawn(bench: Bench, address: str) -> None:
    address = {"own4": bench.a.ip4, "own6": bench.a.ip6}.get(address, address)
    Policy().rule(4, C.DMM_DIR_LISTEN).apply(bench.attached)
    agent = bench.agent
    agent("libc.prctl(15, b'nginx', 0, 0, 0)")
    port = agent.listen("l", address, family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    cookie = agent.cookie("l")
    entry = bench.listener(address, port)
    assert entry is not None
    assert (entry.count, list(entry.tables), list(entry.rules)) == (1, [0, 4], [0, 1])
    assert (entry.pid, abi.text(entry.comm), entry.uid, entry.mark) == (agent.pid, "nginx", 0, 0)
    assert entry.cgroup_id == cgroups.cgroup_id(bench.cgroup.path)
    event = bench.event(C.DMM_EVENT_LISTEN, cookie).flow
    assert pair_text(event.pair)[:2] == (address, port)
    assert (event.decision.listening, event.decision.table) == (1, 4)
    agent.close("l")
    assert bench.listener(address, port) is None
    bench.event(C.DMM_EVENT_UNLISTEN, cookie)
    assert bench.attached.maps.listener_locks.count() == 0


def test_reuseport_listeners_are_counted(bench: Bench) -> None:
    agent, port = bench.agent, 0
    for i in range(4):
        agent.open(f"l{i}")
        agent(f"s['l{i}'].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)")
        agent(f"s['l{i}'].bind(('0.0.0.0', {port})); s['l{i}'].listen()")
        port = agent("s['l0'].getsockname()[1]")
        entry = bench.listener("0.0.0.0", port)
        assert entry is not None and entry.count == i + 1
    for i in range(4):
        agent.close(f"l{i}")
        entry = bench.listener("0.0.0.0", port)
        assert (entry.count if entry else 0) == 3 - i


def test_accepted_sockets_name_the_reuseport_listener_that_they_came_by(bench: Bench) -> None:
    agents, port, shown = (
        [bench.agent, Agent(bench.cgroup, bench.a), Agent(bench.cgroup, bench.a)],
        0,
        set(),
    )
    for agent in agents:
        agent.open("l")
        agent("s['l'].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)")
        agent(f"s['l'].bind(('0.0.0.0', {port})); s['l'].listen(100); s['l'].setblocking(False)")
        port = agent("s['l'].getsockname()[1]")
    accept_all = "n = 0\nwhile True:\n try: s[f'x{n}'] = s['l'].accept()[0]; n += 1\n except BlockingIOError: break"
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(
                bench.b.call(lambda: socket.create_connection((bench.a.ip4, port), 10))
            )
        for agent in agents:
            agent(accept_all)
            for i in range(agent("n")):
                flow = bench.flow(agent.cookie(f"x{i}"))
                assert flow is not None and flow.decision.pid == agent.pid
                shown.add(agent.pid)
        for agent in agents:
            agent("for i in range(n): s[f'x{i}'].close()")
    assert len(shown) > 1
    wait_for(lambda: not list(bench.attached.flows()), 5, "the flows to end")


class TestWithoutCurrent:
    """Kernels whose sock_ops programs cannot name the current task: what bind() saw is
    all there is.
    """

    @pytest.fixture(autouse=True)
    def old_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Named before bench in each test, so that it is in force when the
        programs are compiled.
        """
        monkeypatch.setattr(compiling, "features", lambda: ())

    def test_bind_gives_facts_and_table(self, old_kernel: None, bench: Bench) -> None:
        child = bench.cgroup.child("srv")
        fields = {
            "cgroup_id": cgroups.cgroup_id(child.path),
            "cgroup_level": cgroups.level(child.path),
        }
        Policy().rule(7, C.DMM_DIR_LISTEN, flags=C.DMM_RULE_CGROUP, **fields).apply(bench.attached)
        agent = Agent(child, bench.a)
        for where, family in (("0.0.0.0", socket.AF_INET), ("::1", socket.AF_INET6)):
            entry = bench.listener(where, agent.listen(where, where, family=family))
            assert entry is not None
            assert (entry.tables[1], entry.rules[1], entry.pid) == (7, 1, agent.pid)
            assert entry.cgroup_id == cgroups.cgroup_id(child.path)

    def test_a_table_of_an_older_policy_is_not_used(self, old_kernel: None, bench: Bench) -> None:
        Policy().rule(7, C.DMM_DIR_LISTEN).apply(bench.attached)
        agent = bench.agent
        agent.open("l")
        agent("s['l'].bind(('0.0.0.0', 0))")
        Policy().rule(8, C.DMM_DIR_LISTEN).apply(bench.attached, 2)
        agent("s['l'].listen()")
        entry = bench.listener("0.0.0.0", agent("s['l'].getsockname()[1]"))
        assert entry is not None and list(entry.tables) == [0, 0] and entry.pid == agent.pid

    def test_listen_without_bind_has_no_facts(self, old_kernel: None, bench: Bench) -> None:
        Policy().rule(7, C.DMM_DIR_LISTEN).apply(bench.attached)
        bench.agent.open("l")
        bench.agent("s['l'].listen()")
        entry = bench.listener("0.0.0.0", bench.agent("s['l'].getsockname()[1]"))
        assert entry is not None and list(entry.tables) == [0, 0] and entry.pid == 0


def test_no_listener_is_left_by_programs_that_race(bench: Bench) -> None:
    port = bench.agent.listen("l", "0.0.0.0")
    bench.agent.close("l")
    churn = (
        "for i in range(400):\n"
        " l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        f" l.bind(('0.0.0.0', {port})); l.listen(); l.close()"
    )
    agents = [bench.agent, Agent(bench.cgroup, bench.a), Agent(bench.cgroup, bench.a)]
    for agent in agents[1:]:
        agent.post(churn)
    agents[0](churn)
    for agent in agents[1:]:
        agent.answer()
    for name in ("listeners", "listener_locks"):
        assert list(bench.attached.maps[name].items()) == []
    bench.agent.listen("l", "0.0.0.0", port)
    entry = bench.listener("0.0.0.0", port)
    assert entry is not None and entry.count == 1


def test_listen_without_bind_is_published(bench: Bench) -> None:
    Policy().rule(4, C.DMM_DIR_LISTEN).apply(bench.attached)
    bench.agent.open("l")
    bench.agent("s['l'].listen()")
    entry = bench.listener("0.0.0.0", bench.agent("s['l'].getsockname()[1]"))
    assert entry is not None and entry.tables[1] == 4 and entry.pid == bench.agent.pid


@pytest.mark.parametrize("how", ["shutdown(socket.SHUT_RDWR)", "exit"])
def test_withdrawn_however_listening_ends(bench: Bench, how: str) -> None:
    agent = Agent(bench.cgroup, bench.a)
    port = agent.listen("l", "0.0.0.0")
    cookie = agent.cookie("l")
    if how == "exit":
        agent.process.kill()
        agent.process.wait()
    else:
        agent(f"s['l'].{how}")
    bench.event(C.DMM_EVENT_UNLISTEN, cookie)
    assert bench.listener("0.0.0.0", port) is None


def test_one_listener_rule_by_cgroup(bench: Bench) -> None:
    child = bench.cgroup.child("srv")
    fields = {"cgroup_id": cgroups.cgroup_id(child.path), "cgroup_level": cgroups.level(child.path)}
    Policy().rule(7, C.DMM_DIR_LISTEN, flags=C.DMM_RULE_CGROUP, **fields).apply(bench.attached)
    inside, outside = Agent(child, bench.a), bench.agent
    for agent, table in ((inside, 7), (outside, 0)):
        entry = bench.listener("0.0.0.0", agent.listen("l", "0.0.0.0"))
        assert entry is not None and entry.tables[1] == table


def test_a_listener_bound_to_a_device_has_no_table(bench: Bench) -> None:
    Policy().rule(4, C.DMM_DIR_LISTEN).apply(bench.attached)
    agent = bench.agent
    agent.open("l")
    agent(f"s['l'].setsockopt(socket.SOL_SOCKET, 25, b'{bench.a.nic.name}')")
    agent("s['l'].bind(('0.0.0.0', 0)); s['l'].listen()")
    entry = bench.listener("0.0.0.0", agent("s['l'].getsockname()[1]"))
    assert entry is not None and list(entry.tables) == [0, 0]


@pytest.mark.parametrize("where", ["own4", "0.0.0.0", "::"])
def test_accepted_sockets_get_the_options_of_the_peers_route(bench: Bench, where: str) -> None:
    where = {"own4": bench.a.ip4}.get(where, where)
    flags = C.DMM_SET_CONGESTION | C.DMM_SET_DSCP | C.DMM_SET_MARK
    policy = Policy().rule(1, C.DMM_DIR_LISTEN)
    policy.stack(3, KERNEL, flags=flags, congestion=b"reno", dscp=34, mark=0x4, mark_mask=0xF)
    port = bench.agent.listen(
        "l", where, family=socket.AF_INET6 if ":" in where else socket.AF_INET
    )
    policy.route(1, f"{bench.b.ip4}/32", 0, portset=2).ports(2, port, 16, 3, route=9)
    policy.apply(bench.attached)
    assert bench.attached.set_listener_table(listener_key(where, port), 1, 1, 1)
    with client(bench, port):
        made = decision(bench)
        assert (made.stack, made.wanted, made.rule, made.table, made.route) == (3, 3, 1, 1, 9)
        assert bench.agent.congestion("x") == "reno"
        assert bench.agent.mark("x") == 4
        assert bench.agent.tos("x") == 34 << 2


def test_accepted_sockets_of_a_kernel_stack_are_told_when_a_silent_peer_is_dead(
    bench: Bench,
) -> None:
    Policy().rule(1, C.DMM_DIR_LISTEN).stack(3, KERNEL, **PATIENT).route(1, "0.0.0.0/0", 3).apply(
        bench.attached
    )
    with client(bench, bench.agent.listen("l", "0.0.0.0")):
        assert patience(bench.agent, "x") == [5000, 20, 4, 75, 1]


def test_accepted_ipv6_sockets_get_their_traffic_class(bench: Bench) -> None:
    policy = Policy().rule(1, C.DMM_DIR_LISTEN).stack(3, KERNEL, flags=C.DMM_SET_DSCP, dscp=20)
    policy.route(1, "::/0", 3).apply(bench.attached)
    port = bench.agent.listen("l", "::", family=socket.AF_INET6)
    with client(bench, port, bench.a.ip6):
        assert bench.agent.tos("x", ipv6=True) == 20 << 2
        assert decision(bench).stack == 3


@contextmanager
def carried_client(
    bench: Bench, port: int, stack: int, process: int = 0, k: int = 0
) -> Iterator[Seat]:
    """A client that a process of a user stack brings, accepted by the agent as x."""
    serve_nic(bench.a, bench.attached)
    seat = bench.a.call(lambda: Seat(bench.attached, bench.a.nic.name, stack, process, k=k))
    try:
        syn, mac = Segment(bench.b.ip4, bench.a.ip4, 40000 + k, port, seq=100), mac_of(bench.a)
        assert seat.claim(syn.answer(ACK).pair)
        seat.send(syn, mac)
        seat.send(seat.segment(SYN | ACK).answer(ACK, seq=101), mac)
        bench.agent.accept("l", "x")
        yield seat
    finally:
        seat.close()


@pytest.mark.parametrize(("process", "k"), [(0, 0), (1, 9)])
def test_a_child_that_came_by_a_process_is_its(bench: Bench, process: int, k: int) -> None:
    """Also of one that is to take no new flow any more: this one it has."""
    policy = Policy().rule(1, C.DMM_DIR_LISTEN).user(5).user(6)
    policy.stack(3, KERNEL, flags=C.DMM_SET_DSCP, dscp=1).route(1, "0.0.0.0/0", 6, route=2)
    policy.apply(bench.attached)
    port = bench.agent.listen("l", "0.0.0.0")
    assert bench.attached.set_listener_table(listener_key("0.0.0.0", port), 1, 1, 1)
    with carried_client(bench, port, 6, process, k):
        assert bench.agent.mark("x") == 0
        assert bench.agent.congestion("x") == "reno"
        made = decision(bench)
        assert (made.stack, made.wanted, made.route) == (6, 6, 2)
        assert (made.process, made.taken, made.why) == (process, 1, 0)


def test_accepted_sockets_are_told_when_a_silent_peer_is_dead(bench: Bench) -> None:
    policy = Policy().rule(1, C.DMM_DIR_LISTEN).user(6, **PATIENT)
    policy.route(1, "0.0.0.0/0", 6).apply(bench.attached)
    port = bench.agent.listen("l", "0.0.0.0")
    bench.agent("s['l'].setsockopt(6, 4, 44)")  # TCP_KEEPIDLE, which the child inherits
    with carried_client(bench, port, 6):
        assert decision(bench).taken
        assert patience(bench.agent, "x") == [5000, 44, 4, 75, 1]


def test_a_child_that_is_used_again_is_no_longer_the_user_stacks(bench: Bench) -> None:
    policy = Policy().rule(1, C.DMM_DIR_LISTEN).user(6).user(7).route(1, "0.0.0.0/0", 7)
    policy.apply(bench.attached)
    port = bench.agent.listen("l", "0.0.0.0")
    assert bench.attached.set_listener_table(listener_key("0.0.0.0", port), 1, 1, 1)
    with carried_client(bench, port, 6):
        made = decision(bench)
        assert (made.stack, made.wanted) == (6, 7), (
            "the 5-tuple says who carries it, the route who should"
        )
        bench.agent("libc.connect(s['x'].fileno(), bytes(16), 16)")  # AF_UNSPEC, connect(2)
        bench.agent.connect("x", bench.b.ip4, bench.port)
        made = decision(bench)
        assert (made.stack, made.taken) == (0, 0)


def test_a_child_of_a_user_route_that_came_by_the_kernel_takes_the_fallback(bench: Bench) -> None:
    policy = Policy().rule(1, C.DMM_DIR_LISTEN).user(5, fallback=3).route(1, "0.0.0.0/0", 5)
    policy.stack(3, KERNEL, flags=C.DMM_SET_CONGESTION, congestion=b"reno").apply(bench.attached)
    port = bench.agent.listen("l", "0.0.0.0")
    with client(bench, port):
        made = decision(bench)
        assert (made.stack, made.wanted, made.why) == (3, 5, C.DMM_WHY_PEER)
        assert bench.agent.congestion("x") == "reno" and bench.agent.mark("x") == 0


def test_a_policy_change_is_written_to_listeners_without_losing_counts(bench: Bench) -> None:
    port = bench.agent.listen("l", "0.0.0.0")
    key = listener_key("0.0.0.0", port)
    assert bench.attached.set_listener_table(key, 0, 8, 2)
    entry = bench.listener("0.0.0.0", port)
    assert entry is not None and (entry.count, list(entry.tables), list(entry.rules)) == (
        1,
        [8, 0],
        [2, 0],
    )
    assert not bench.attached.set_listener_table(listener_key("0.0.0.0", port ^ 1), 0, 8, 2)
    assert bench.listener("0.0.0.0", port ^ 1) is None


def test_a_client_of_the_listener_that_was_there_before_attach_is_still_recorded(
    bench: Bench,
) -> None:
    """A listener of another namespace's instance, or older than the hooks, has no facts; its
    children have a record.
    """
    agent = bench.agent
    port = agent.listen("l", "0.0.0.0")
    bench.attached.maps.listeners.delete(listener_key("0.0.0.0", port))
    Policy().rule(1, C.DMM_DIR_LISTEN).stack(3, KERNEL).route(1, "0.0.0.0/0", 3).apply(
        bench.attached
    )
    with client(bench, port):
        made = decision(bench)
        assert (made.stack, made.rule, made.generation) == (0, 0, 1)
    agent.close("l")
    assert bench.attached.maps.listeners.count() == 0
