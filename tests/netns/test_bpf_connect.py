# SPDX-License-Identifier: Apache-2.0
"""cgroup/connect4 and connect6 in the kernel: which stack is chosen, and what that does to
a program's sockets.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
from bpf_lab import (
    PATIENT,
    SO_MAX_PACING_RATE,
    Agent,
    Bench,
    Policy,
    bench,
    flip,
    patience,
    process_full,
    processes_up,
)
from connecting import Serve, carried, chosen, connected, decision, places, serve
from seat_lab import connect, mac_of

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader import compile as compiling
from dmm_ebpf.loader import programs
from lab import Cgroup

__all__ = ["bench", "serve"]

KERNEL, USER, REJECT = C.DMM_STACK_KERNEL, C.DMM_STACK_USER, C.DMM_STACK_REJECT
SO_PRIORITY = 12


def test_without_a_policy_sockets_are_only_observed(bench: Bench) -> None:
    before = bench.agent("open('/proc/sys/net/ipv4/tcp_congestion_control').read().strip()")
    name = connected(bench, bench.b.ip4)
    made = decision(bench, name)
    assert (made.generation, made.stack, made.rule, made.table) == (0, 0, 0, 0)
    assert made.route == C.DMM_ROUTE_NONE and made.direction == C.DMM_DIR_CONNECT
    assert made.pid == bench.agent.pid and made.cgroup_id == cgroups.cgroup_id(bench.cgroup.path)
    assert bench.agent.congestion(name) == before and bench.agent.mark(name) == 0
    assert bench.count(C.DMM_CNT_CONNECT) == 1


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_kernel_stack_sets_the_socket_options(bench: Bench, family: str) -> None:
    flags = (
        C.DMM_SET_CONGESTION
        | C.DMM_SET_DSCP
        | C.DMM_SET_MARK
        | C.DMM_SET_PACING
        | C.DMM_SET_PRIORITY
    )
    policy = (
        Policy()
        .rule(7)
        .stack(
            3,
            KERNEL,
            flags=flags,
            congestion=b"reno",
            dscp=18,
            mark=0x5,
            mark_mask=0xF,
            max_pacing_rate_Bps=125_000_000,
            priority=4,
        )
    )
    address = getattr(bench.b, family)
    policy.route(7, "0.0.0.0/0", 3, route=11).route(7, "::/0", 3, route=12).apply(bench.attached)
    agent = bench.agent
    agent.open("x", socket.AF_INET if family == "ip4" else socket.AF_INET6)
    agent("s['x'].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x1230)")
    agent.connect("x", address, bench.port)
    assert agent.congestion("x") == "reno"
    assert agent.tos("x", ipv6=family == "ip6") == 18 << 2
    assert agent.mark("x") == 0x1235
    assert agent.option("x", SO_MAX_PACING_RATE) == 125_000_000
    assert agent.option("x", SO_PRIORITY) == 4
    made = decision(bench, "x")
    assert (made.stack, made.wanted, made.rule, made.table) == (3, 3, 1, 7)
    assert made.route == (11 if family == "ip4" else 12)
    assert bench.count(C.DMM_CNT_SOCKOPT_FAILED) == 0


def test_user_stack_sets_congestion_and_nothing_else(bench: Bench, serve: Serve) -> None:
    Policy().rule(1).user(5).route(1, "0.0.0.0/0", 5).route(1, "::/0", 5).apply(bench.attached)
    seats = serve(5)
    for address in (bench.b.ip4, bench.b.ip6):
        name = carried(bench, seats, address)
        assert bench.agent.mark(name) == 0
        assert bench.agent.congestion(name) == "reno"
        made = decision(bench, name)
        assert (made.stack, made.taken, made.why) == (5, 1, 0)


def test_a_congestion_control_that_the_program_has_chosen_stays(bench: Bench, serve: Serve) -> None:
    usual = bench.agent("open('/proc/sys/net/ipv4/tcp_congestion_control').read().strip()")
    other = next(name for name in ("cubic", "reno") if name != usual)
    seats = serve(5)
    for told in (
        usual,
        "none",
    ):  # as in a container whose namespace has another than the instance's
        policy = Policy().rule(1).user(5, congestion=other.encode(), usual=told.encode())
        policy.route(1, "0.0.0.0/0", 5).apply(bench.attached)
        assert bench.agent.congestion(carried(bench, seats, bench.b.ip4)) == other
        bench.agent.open(told)
        bench.agent(f"s[{told!r}].setsockopt(6, 13, {usual.encode()!r})")  # TCP_CONGESTION
        connect(bench.agent, seats, mac_of(bench.a), told, bench.b.ip4, bench.port)
        assert bench.agent.congestion(told) == usual


@pytest.mark.parametrize("by", ["kernel", "user"])
def test_when_a_silent_peer_is_dead_says_the_stack_unless_the_program_has(
    bench: Bench, serve: Serve, by: str
) -> None:
    policy, seats = Policy().rule(1).route(1, "0.0.0.0/0", 5), serve(5) if by == "user" else []
    policy.stack(5, KERNEL if by == "kernel" else C.DMM_STACK_USER, **PATIENT).apply(bench.attached)
    agent = bench.agent

    def told(name: str, *own: tuple[int, int]) -> list[int]:
        agent.open(name)
        for option, value in own:
            agent(f"s[{name!r}].setsockopt(6, {option}, {value})")
        if seats:
            connect(agent, seats, mac_of(bench.a), name, bench.b.ip4, bench.port)
            assert decision(bench, name).taken
        else:
            agent.connect(name, bench.b.ip4, bench.port)
        return patience(agent, name)

    assert told("none") == [5000, 20, 4, 75, 1]
    for name, value in {
        "time": 300,
        "intvl": 9,
        "probes": 3,
    }.items():  # as a container may have them
        bench.a.sysctl(f"net.ipv4.tcp_keepalive_{name}", str(value))
    assert told("elsewhere") == [5000, 20, 4, 9, 1]
    assert told("same", (socket.TCP_KEEPIDLE, 300)) == [5000, 300, 4, 9, 1]
    for name, value in {"time": 7200, "intvl": 75, "probes": 9}.items():
        bench.a.sysctl(f"net.ipv4.tcp_keepalive_{name}", str(value))
    own = [(socket.TCP_USER_TIMEOUT, 900), (socket.TCP_KEEPIDLE, 33), (socket.TCP_KEEPCNT, 2)]
    assert told("own", *own) == [900, 33, 2, 75, 1]
    agent("s['own'].setsockopt(6, 18, 0); s['own'].setsockopt(1, 9, 0)")
    assert patience(agent, "own") == [0, 33, 2, 75, 0]
    assert bench.count(C.DMM_CNT_SOCKOPT_FAILED) == 0


def test_connections_are_spread_over_the_processes_of_a_stack(bench: Bench, serve: Serve) -> None:
    Policy().rule(1).user(5).route(1, "0.0.0.0/0", 5).route(1, "::/0", 5).apply(bench.attached)
    at = places(serve(5, 3))

    def counts(count: int) -> list[int]:
        taken = chosen(bench, count)
        return [taken.count(process) for process in range(3)]

    spread = counts(30)
    assert sum(spread) == 30 and min(spread) >= 6, spread
    processes_up(bench.attached, 5, 0b101, at)
    first, second, third = counts(20)
    assert second == 0 and first and third
    processes_up(bench.attached, 5, 0b100, at)
    assert counts(4) == [0, 0, 4]


def test_the_mark_of_the_program_stays(bench: Bench, serve: Serve) -> None:
    Policy().rule(1).user(5).route(1, "0.0.0.0/0", 5).apply(bench.attached)
    seats = serve(5)
    bench.agent.open("x")
    bench.agent("s['x'].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x7ff0_1234)")
    connect(bench.agent, seats, mac_of(bench.a), "x", bench.b.ip4, bench.port)
    assert bench.agent.mark("x") == 0x7FF01234 and decision(bench, "x").taken


def test_v4_mapped_destination_takes_the_ipv4_routes(bench: Bench, serve: Serve) -> None:
    policy = (
        Policy().rule(1).user(2).stack(3, KERNEL, flags=C.DMM_SET_CONGESTION, congestion=b"reno")
    )
    policy.route(1, f"{bench.b.ip4}/32", 2, route=4).route(1, "::/0", 3, route=6).apply(
        bench.attached
    )
    seats = serve(2)
    bench.agent.open("x", socket.AF_INET6)
    connect(bench.agent, seats, mac_of(bench.a), "x", f"::ffff:{bench.b.ip4}", bench.port)
    flow = bench.flow(bench.agent.cookie("x"))
    assert flow is not None
    assert (flow.decision.stack, flow.decision.taken, flow.decision.route) == (2, 1, 4)
    assert flow.pair.family == socket.AF_INET


def test_dscp_of_a_v4_mapped_destination_is_ipv4s(bench: Bench) -> None:
    policy = Policy().rule(1).stack(3, KERNEL, flags=C.DMM_SET_DSCP, dscp=46)
    policy.route(1, "0.0.0.0/0", 3).apply(bench.attached)
    bench.agent.open("x", socket.AF_INET6)
    bench.agent.connect("x", f"::ffff:{bench.b.ip4}", bench.port)
    assert decision(bench, "x").stack == 3
    assert bench.agent.tos("x") == 46 << 2


@pytest.fixture(params=["reads the task", "asks helpers"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Named before bench in a test, so that it is in force when the programs are compiled."""
    if request.param == "asks helpers":
        monkeypatch.setattr(compiling, "features", lambda: ("DMM_SOCKOPS_CURRENT",))
    else:
        assert any(name.startswith("DMM_TASK_COMM=") for name in programs.defines())
    return str(request.param)


def test_a_record_says_who_connected(kernel: str, bench: Bench) -> None:
    child = bench.cgroup.child("till")
    agent = Agent(child, bench.a)
    agent("libc.prctl(15, b'a name too long', 0, 0, 0)")
    agent("libc.prctl(15, b'till', 0, 0, 0); os.setresuid(1234, 1234, 0)")
    inside = cgroups.cgroup_id(child.path)
    flags, level = C.DMM_RULE_CGROUP | C.DMM_RULE_COMM, cgroups.level(child.path)
    policy = Policy().rule(2, flags=flags, cgroup_id=inside, cgroup_level=level, comm=b"till")
    policy.route(2, "0.0.0.0/0", 0).apply(bench.attached)
    connect = f"s['x'].connect(({bench.b.ip4!r}, {bench.port}))"
    rename = "libc.prctl(15, b'a thread', 0, 0, 0)"
    threads = [
        f"t = __import__('threading').Thread(target=lambda: ({pre}, {connect})); t.start(); t.join()"
        for pre in ("0", rename)
    ]
    for how in (connect, *threads):
        if kernel == "asks helpers" and how == threads[1]:
            continue
        agent.open("x")
        agent(how)
        made = decision(bench, "x", agent)
        assert (made.pid, made.uid, made.cgroup_id) == (agent.pid, 1234, inside)
        assert bytes(abi.ffi.buffer(made.comm)) == b"till".ljust(16, b"\0") and made.rule == 1
    port = agent.listen("l", "127.0.0.1")
    entry = bench.listener("127.0.0.1", port)
    assert entry is not None and (entry.pid, entry.uid, entry.cgroup_id) == (
        agent.pid,
        1234,
        inside,
    )
    assert abi.text(entry.comm) == "till"


def test_fallback_while_the_user_stack_is_down(bench: Bench, serve: Serve) -> None:
    policy = Policy().rule(1).user(5, fallback=3).route(1, "0.0.0.0/0", 5)
    policy.stack(3, KERNEL, flags=C.DMM_SET_CONGESTION, congestion=b"reno").apply(bench.attached)
    down = connected(bench, bench.b.ip4)
    made = decision(bench, down)
    assert (made.stack, made.wanted, made.why) == (3, 5, C.DMM_WHY_DOWN)
    assert bench.agent.congestion(down) == "reno" and bench.agent.mark(down) == 0
    assert bench.count(C.DMM_CNT_CONNECT_FALLBACK) == 1
    seats = serve(5)
    assert decision(bench, carried(bench, seats, bench.b.ip4)).stack == 5
    processes_up(bench.attached, 5, 0, places(seats))
    assert decision(bench, connected(bench, bench.b.ip4)).stack == 3


def test_fallback_while_the_user_stack_is_full(bench: Bench, serve: Serve) -> None:
    policy = Policy().rule(1).user(5, fallback=3).route(1, "0.0.0.0/0", 5)
    policy.stack(3, KERNEL, flags=C.DMM_SET_CONGESTION, congestion=b"reno").apply(bench.attached)
    seats = serve(5)
    process_full(bench.attached, 4, 0, C.DMM_FULL_MEMORY)  # another stack
    process_full(bench.attached, 5, 1, C.DMM_FULL_MEMORY)  # a process that the stack does not have
    before = carried(bench, seats, bench.b.ip4)
    assert decision(bench, before).stack == 5
    process_full(bench.attached, 5, 0, C.DMM_FULL_MEMORY)
    full = connected(bench, bench.b.ip4)
    made = decision(bench, full)
    assert (made.stack, made.wanted, made.why) == (3, 5, C.DMM_WHY_FULL)
    assert bench.agent.congestion(full) == "reno" and bench.agent.mark(full) == 0
    assert decision(bench, before).stack == 5
    assert bench.count(C.DMM_CNT_CONNECT_FULL) == 1
    assert bench.count(C.DMM_CNT_CONNECT_FALLBACK) == 0
    process_full(bench.attached, 5, 0, 0)
    assert decision(bench, carried(bench, seats, bench.b.ip4)).stack == 5


def test_a_full_process_leaves_new_flows_to_those_with_room(bench: Bench, serve: Serve) -> None:
    Policy().rule(1).user(5).route(1, "0.0.0.0/0", 5).apply(bench.attached)
    at = places(serve(5, 3))
    process_full(bench.attached, 5, 0, C.DMM_FULL_CONNECTIONS)
    assert set(chosen(bench, 20)) == {1, 2}
    process_full(bench.attached, 5, 2, C.DMM_FULL_CONNECTIONS)
    assert set(chosen(bench, 8)) == {1}
    processes_up(bench.attached, 5, 0b101, at)
    assert set(chosen(bench, 4)) == {-1}
    assert bench.count(C.DMM_CNT_CONNECT_FULL) == 4


def test_fallback_may_reject_and_goes_one_level_deep(bench: Bench) -> None:
    policy = Policy().rule(1).user(5, fallback=6).user(6, fallback=7).stack(7, REJECT)
    policy.route(1, "0.0.0.0/0", 5).route(1, "::/0", 6).apply(bench.attached)
    made = decision(bench, connected(bench, bench.b.ip4))
    assert (made.stack, made.wanted) == (0, 5)
    with pytest.raises(PermissionError):
        connected(bench, bench.b.ip6)


def test_reject_is_eperm_and_leaves_nothing(bench: Bench) -> None:
    Policy().rule(1).stack(9, REJECT).route(1, f"{bench.b.ip4}/32", 9).apply(bench.attached)
    with pytest.raises(PermissionError) as raised:
        connected(bench, bench.b.ip4)
    assert raised.value.errno == errno.EPERM
    assert bench.flows() == []
    assert bench.count(C.DMM_CNT_CONNECT_REJECT) == 1
    assert decision(bench, connected(bench, bench.b.ip6)).stack == 0


def test_first_rule_whose_table_has_a_route_wins(bench: Bench) -> None:
    policy = Policy().rule(1).rule(2).rule(3)
    for number in (1, 2, 3):
        policy.stack(number, KERNEL)
    policy.route(1, "192.0.2.0/24", 1).route(1, f"{bench.b.ip4}/32", 1, route=C.DMM_ROUTE_NONE)
    policy.route(2, f"{bench.b.ip4}/32", 2, route=20).route(3, "0.0.0.0/0", 3, route=30).apply(
        bench.attached
    )
    made = decision(bench, connected(bench, bench.b.ip4))
    assert (made.rule, made.table, made.route, made.stack) == (2, 2, 20, 2)


def test_longest_prefix_wins(bench: Bench) -> None:
    policy = Policy().rule(1).stack(1, KERNEL).stack(2, KERNEL).stack(3, KERNEL)
    policy.route(1, "0.0.0.0/0", 1).route(1, f"{bench.b.ip4.rpartition('.')[0]}.0/24", 2)
    policy.route(1, f"{bench.b.ip4}/32", 3).route(1, "::/0", 1).route(1, f"{bench.b.ip6}/128", 2)
    policy.apply(bench.attached)
    assert decision(bench, connected(bench, bench.b.ip4)).stack == 3
    assert decision(bench, connected(bench, bench.b.ip6)).stack == 2


def test_port_blocks_decide_when_the_prefix_has_a_port_set(bench: Bench) -> None:
    policy = Policy().rule(1).rule(2)
    for number in (1, 2, 3, 4):
        policy.stack(number, KERNEL)
    policy.route(1, "0.0.0.0/0", 0, portset=8).route(2, "0.0.0.0/0", 4, route=40)
    policy.ports(8, bench.port, 16, 1, route=10).ports(8, 17, 16, 2, route=20, proto=17)
    policy.ports(9, bench.port, 16, 3, route=30).apply(bench.attached)
    made = decision(bench, connected(bench, bench.b.ip4))
    assert (made.stack, made.route, made.rule) == (1, 10, 1)
    range_policy = (
        Policy().rule(1).rule(2).stack(2, KERNEL).stack(4, KERNEL).route(2, "0.0.0.0/0", 4)
    )
    block = bench.port & ~0xFF
    range_policy.route(1, "0.0.0.0/0", 0, portset=8).ports(8, block, 8, 2, route=5).apply(
        bench.attached, 2
    )
    assert decision(bench, connected(bench, bench.b.ip4)).stack == 2
    miss = (
        Policy().rule(1).rule(2).stack(2, KERNEL).stack(4, KERNEL).route(2, "0.0.0.0/0", 4, route=6)
    )
    miss.route(1, "0.0.0.0/0", 0, portset=8).ports(8, bench.port ^ 1, 16, 2, route=5)
    miss.apply(bench.attached, 3)
    made = decision(bench, connected(bench, bench.b.ip4))
    assert (made.stack, made.rule) == (4, 2)


def test_rules_select_by_uid_comm_mark_netns(bench: Bench) -> None:
    name = connected(bench, bench.b.ip4)
    cookie = decision(bench, name)  # generation 0: facts only
    netns = bench.flow(bench.agent.cookie(name))
    assert cookie.uid == 0 and netns is not None
    policy = Policy()
    policy.rule(1, flags=C.DMM_RULE_UID, uid_first=1000, uid_last=1999)
    policy.rule(2, flags=C.DMM_RULE_COMM, comm=b"shop")
    policy.rule(3, flags=C.DMM_RULE_MARK, mark=0x20, mark_mask=0xF0)
    policy.rule(4, flags=C.DMM_RULE_NETNS, netns_cookie=netns.netns_cookie + 1)
    policy.rule(5, flags=C.DMM_RULE_NETNS, netns_cookie=netns.netns_cookie)
    for number in range(1, 6):
        policy.stack(number, KERNEL).route(number, "0.0.0.0/0", number)
    policy.apply(bench.attached)
    agent = bench.agent
    assert decision(bench, connected(bench, bench.b.ip4)).rule == 5
    agent.open("m")
    agent("s['m'].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0xf2f)")
    agent.connect("m", bench.b.ip4, bench.port)
    assert decision(bench, "m").rule == 3
    agent("libc.prctl(15, b'shop', 0, 0, 0)")
    assert decision(bench, connected(bench, bench.b.ip4)).rule == 2
    agent("libc.prctl(15, b'shopper', 0, 0, 0)")
    assert decision(bench, connected(bench, bench.b.ip4)).rule == 5
    for uid, rule in ((1999, 1), (999, 5), (2000, 5), (1000, 1)):
        agent(f"os.setresuid({uid}, {uid}, 0)")
        name = connected(bench, bench.b.ip4)
        agent("os.setresuid(0, 0, 0)")
        assert decision(bench, name).rule == rule


def test_rule_on_a_cgroup_matches_it_and_what_is_below(bench: Bench, make_cgroup) -> None:
    child = bench.cgroup.child("deep")
    below = child.child("deeper")
    other = bench.cgroup.child("other")
    policy = Policy().rule(
        1,
        flags=C.DMM_RULE_CGROUP,
        cgroup_id=cgroups.cgroup_id(child.path),
        cgroup_level=cgroups.level(child.path),
    )
    policy.stack(1, KERNEL).route(1, "0.0.0.0/0", 1).apply(bench.attached)
    for group, rule in ((child, 1), (below, 1), (other, 0), (bench.cgroup, 0)):
        agent = Agent(group, bench.a)
        assert decision(bench, connected(bench, bench.b.ip4, agent), agent).rule == rule


@pytest.mark.parametrize("n_rules", [1, 64])
def test_the_last_rule_is_reached(bench: Bench, n_rules: int) -> None:
    policy = Policy().stack(1, KERNEL)
    for table in range(1, n_rules):
        policy.rule(table + 1)
    policy.rule(1).route(1, "0.0.0.0/0", 1, route=3).apply(bench.attached)
    made = decision(bench, connected(bench, bench.b.ip4))
    assert (made.rule, made.route, made.stack) == (n_rules, 3, 1)


def test_rules_for_listen_do_not_touch_connect(bench: Bench) -> None:
    Policy().rule(1, C.DMM_DIR_LISTEN).stack(1, KERNEL).route(1, "0.0.0.0/0", 1).apply(
        bench.attached
    )
    assert decision(bench, connected(bench, bench.b.ip4)).rule == 0


def test_the_generation_flips_at_once_and_old_flows_keep_theirs(bench: Bench) -> None:
    for generation, stack in ((1, 1), (2, 2)):
        Policy().rule(1).stack(stack, KERNEL).route(1, "0.0.0.0/0", stack).write(
            bench.attached, generation
        )
    assert decision(bench, connected(bench, bench.b.ip4)).stack == 0
    flip(bench.attached, 1)
    first = connected(bench, bench.b.ip4)
    flip(bench.attached, 2)
    second = connected(bench, bench.b.ip4)
    assert [(decision(bench, n).generation, decision(bench, n).stack) for n in (first, second)] == [
        (1, 1),
        (2, 2),
    ]


def test_loopback_never_goes_to_a_user_stack(bench: Bench, serve: Serve) -> None:
    Policy().rule(1).user(5).route(1, "0.0.0.0/0", 5).route(1, "::/0", 5).apply(bench.attached)
    serve(5)
    agent = bench.agent
    for i, (address, family) in enumerate(
        [("127.0.0.1", socket.AF_INET), ("127.9.9.9", socket.AF_INET), ("0.0.0.0", socket.AF_INET)]
        + [(a, socket.AF_INET6) for a in ("::1", "::", "::ffff:127.0.0.1")]
    ):
        port = agent.listen(f"l{i}", "::", family=socket.AF_INET6)
        agent.open(f"k{i}", family)
        agent.connect(f"k{i}", address, port)
        made = decision(bench, f"k{i}")
        assert (made.stack, made.wanted, made.why) == (0, 5, C.DMM_WHY_SOCKET), address


def test_loopback_takes_kernel_options_and_reject(bench: Bench) -> None:
    policy = Policy().rule(1).stack(2, KERNEL, flags=C.DMM_SET_CONGESTION, congestion=b"reno")
    policy.stack(3, REJECT).route(1, "127.0.0.0/8", 2).route(1, "::1/128", 3).apply(bench.attached)
    port = bench.agent.listen("l", "::", family=socket.AF_INET6)
    bench.agent.open("x")
    bench.agent.connect("x", "127.0.0.1", port)
    assert bench.agent.congestion("x") == "reno"
    bench.agent.open("y", socket.AF_INET6)
    with pytest.raises(PermissionError):
        bench.agent.connect("y", "::1", port)


def test_connected_udp_gets_kernel_options_only(bench: Bench, serve: Serve) -> None:
    policy = (
        Policy()
        .rule(1)
        .user(5)
        .stack(2, KERNEL, flags=C.DMM_SET_DSCP | C.DMM_SET_PRIORITY, dscp=10)
    )
    policy.stacks[2]["priority"] = 6
    policy.route(1, "0.0.0.0/0", 0, portset=1).ports(1, 1000, 16, 2, route=1, proto=17)
    policy.ports(1, 2000, 16, 5, route=2, proto=17).apply(bench.attached)
    serve(5)
    agent = bench.agent
    for name, port in (("u", 1000), ("v", 2000)):
        agent.open(name, kind=socket.SOCK_DGRAM)
        agent(f"s[{name!r}].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)")
        agent.connect(name, bench.b.ip4, port)
    assert agent.tos("u") == 10 << 2 | 2 and agent.option("u", SO_PRIORITY) == 6
    assert agent.tos("v") == 2 and agent.mark("v") == 0
    assert bench.flows() == []


def test_a_reused_socket_is_no_longer_the_user_stacks(bench: Bench, serve: Serve) -> None:
    Policy().rule(1).user(5).route(1, f"{bench.b.ip4}/32", 5).apply(bench.attached)
    seats = serve(5)
    bench.agent.open("x")
    connect(bench.agent, seats, mac_of(bench.a), "x", bench.b.ip4, bench.port)
    assert decision(bench, "x").taken
    # AF_UNSPEC dissolves the association (connect(2)).
    bench.agent("libc.connect(s['x'].fileno(), bytes(16), 16)")
    Policy().apply(bench.attached, 2)
    bench.agent.connect("x", bench.b.ip4, bench.port)
    made = decision(bench, "x")
    assert (made.stack, made.taken, made.why) == (0, 0, 0)
    assert bench.far.accept()[0].getpeername()[1] == bench.agent("s['x'].getsockname()[1]")


def test_other_network_namespaces_are_left_alone(bench: Bench) -> None:
    policy = Policy().rule(1).stack(9, REJECT).route(1, "0.0.0.0/0", 9).route(1, "::/0", 9)
    policy.apply(bench.attached)
    stranger = Agent(bench.cgroup, bench.b)
    for address in ("127.0.0.1", "::1"):
        stranger.open(address, socket.AF_INET6 if ":" in address else socket.AF_INET)
        stranger.connect(address, address, bench.port)
    stranger.listen("l", "127.0.0.1")
    assert bench.count(C.DMM_CNT_CONNECT) == 0
    assert bench.flows() == [] and bench.attached.maps.listeners.count() == 0


def test_programs_outside_the_cgroup_are_left_alone(bench: Bench, make_cgroup) -> None:
    Policy().rule(1).stack(9, REJECT).route(1, "0.0.0.0/0", 9).apply(bench.attached)
    group: Cgroup = make_cgroup()
    outsider = Agent(group, bench.a)
    assert Path(group.path).is_dir()
    connected(bench, bench.b.ip4, outsider)
    assert bench.count(C.DMM_CNT_CONNECT) == 0


def test_an_unknown_congestion_control_is_counted_and_the_rest_applied(bench: Bench) -> None:
    flags = C.DMM_SET_CONGESTION | C.DMM_SET_DSCP
    Policy().rule(1).stack(2, KERNEL, flags=flags, congestion=b"nosuch", dscp=8).route(
        1, "0.0.0.0/0", 2
    ).apply(bench.attached)
    name = connected(bench, bench.b.ip4)
    assert bench.agent.tos(name) == 8 << 2
    assert bench.count(C.DMM_CNT_SOCKOPT_FAILED) == 1
