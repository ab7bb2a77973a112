# SPDX-License-Identifier: Apache-2.0
"""cgroup/setsockopt and getsockopt in the kernel: a program chooses its stack, and is told who
serves it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest
from bpf_lab import Agent, Bench, Policy, bench, flip, follow
from connecting import Serve, decision, serve
from seat_lab import connect, mac_of

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader import restore

__all__ = ["bench", "serve"]

KERNEL, USER = C.DMM_STACK_KERNEL, C.DMM_STACK_USER
BOTH = C.DMM_DIR_CONNECT | C.DMM_DIR_LISTEN
LAN, WAN, BARE = 3, 5, 9


def _policy(choose: int = 1 << LAN | 1 << WAN, directions: int = BOTH, **fields: Any) -> Policy:
    """Everybody may choose lan and wan, or those of choose; nothing is routed."""
    policy = Policy().rule(0, directions, choose=choose, **fields)
    policy.stack(LAN, KERNEL, flags=C.DMM_SET_DSCP, dscp=18, name=b"lan")
    return policy.user(WAN, name=b"wan").stack(BARE, 0, name=b"bare")


def _apply(bench: Bench, policy: Policy, generation: int = 1) -> None:
    policy.apply(bench.attached, generation)
    follow(bench.attached, C.DMM_CONTROL_EVENTS | C.DMM_CONTROL_CHOICE)


def _hook(attached: loader.Attached) -> None:
    """What a policy with choose puts on the cgroup besides."""
    attached.asked |= C.DMM_CONTROL_CHOICE
    restore.hook(attached, cgroups.place(str(attached.cgroup)))


@pytest.fixture(autouse=True)
def hooked(bench: Bench) -> None:
    """The programs for socket options are there."""
    _hook(bench.attached)


def _choose(agent: Agent, name: str, stack: str | bytes) -> None:
    value = stack.encode() if isinstance(stack, str) else stack
    agent(f"s[{name!r}].setsockopt({C.SOL_DMM}, {C.DMM_STACK}, {value!r})")


def _stack(agent: Agent, name: str, room: int = 32) -> str:
    raw = f"s[{name!r}].getsockopt({C.SOL_DMM}, {C.DMM_STACK}, {room})"
    return str(agent(f"{raw}.decode()"))


def _serving(agent: Agent, name: str) -> tuple[str, str, int, int]:
    size = abi.sizeof("dmm_serving")
    raw = agent(f"s[{name!r}].getsockopt({C.SOL_DMM}, {C.DMM_SERVING}, {size}).hex()")
    told = abi.unpack("dmm_serving", bytes.fromhex(raw))
    return abi.text(told.stack), abi.text(told.wanted), told.why, told.choice


def _refused(agent: Agent, name: str, stack: str | bytes) -> str:
    with pytest.raises(OSError) as raised:
        _choose(agent, name, stack)
    return errno.errorcode[raised.value.errno or 0]


def test_a_program_has_the_kernel_stack_that_it_chooses(bench: Bench) -> None:
    _apply(bench, _policy())
    agent = bench.agent
    agent.open("x")
    _choose(agent, "x", "lan")
    assert _stack(agent, "x") == "lan\0"
    assert _serving(agent, "x") == ("", "lan", 0, C.DMM_CHOICE_TAKEN)
    agent.connect("x", bench.b.ip4, bench.port)
    assert agent.tos("x") == 18 << 2
    made = decision(bench, "x")
    assert (made.stack, made.wanted, made.rule, made.table) == (LAN, LAN, 1, 0)
    assert (made.choice, made.chosen, made.route) == (C.DMM_CHOICE_TAKEN, LAN, C.DMM_ROUTE_NONE)
    assert _serving(agent, "x") == ("lan", "lan", 0, C.DMM_CHOICE_TAKEN)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_program_has_the_user_stack_that_it_chooses(
    bench: Bench, serve: Serve, family: str
) -> None:
    _apply(bench, _policy())
    seats, agent = serve(WAN), bench.agent
    agent.open("x", socket.AF_INET6 if family == "ip6" else socket.AF_INET)
    _choose(agent, "x", "wan")
    connect(agent, seats, mac_of(bench.a), "x", getattr(bench.b, family), bench.port)
    made = decision(bench, "x")
    assert (made.stack, made.taken, made.choice) == (WAN, 1, C.DMM_CHOICE_TAKEN)
    assert _stack(agent, "x") == "wan\0"


def test_a_chosen_stack_that_is_down_falls_back_and_the_program_is_told(bench: Bench) -> None:
    _apply(bench, _policy())
    agent = bench.agent
    agent.open("x")
    _choose(agent, "x", "wan")
    agent.connect("x", bench.b.ip4, bench.port)
    assert decision(bench, "x").why == C.DMM_WHY_DOWN
    assert _serving(agent, "x")[1:] == ("wan", C.DMM_WHY_DOWN, C.DMM_CHOICE_TAKEN)


def test_what_may_not_be_chosen(bench: Bench) -> None:
    _apply(bench, _policy(choose=1 << LAN))
    agent = bench.agent
    for name in "xyz":
        agent.open(name)
    assert _refused(agent, "x", "wan") == "EPERM"
    assert _refused(agent, "y", "bare") == "EPERM"
    for unknown in ("win", "la", "lanx", "l" * 31, "l" * 32, "l" * 5000):
        assert _refused(agent, "y", unknown) == "ENOENT"
    agent.connect("x", bench.b.ip4, bench.port)
    made = decision(bench, "x")
    assert (made.choice, made.chosen, made.stack) == (C.DMM_CHOICE_REFUSED, WAN, 0)
    for after in ("lan", "wan", "win"):
        assert _refused(agent, "x", after) == "EISCONN"
    # A refusal leaves what was chosen before.
    _choose(agent, "z", b"lan\0")
    assert _refused(agent, "z", "wan") == "EPERM"
    agent.connect("z", bench.b.ip4, bench.port)
    assert decision(bench, "z").stack == LAN


def test_a_listener_that_listens_chooses_too_late(bench: Bench) -> None:
    _apply(bench, _policy())
    bench.agent.listen("l", "0.0.0.0")
    assert _refused(bench.agent, "l", "lan") == "EISCONN"


@pytest.mark.parametrize("value", [b"", b"\0"])
def test_an_empty_name_takes_a_choice_back(bench: Bench, value: bytes) -> None:
    _apply(bench, _policy())
    bench.agent.open("x")
    _choose(bench.agent, "x", "lan")
    _choose(bench.agent, "x", value)
    assert _stack(bench.agent, "x") == "\0"
    bench.agent.connect("x", bench.b.ip4, bench.port)
    made = decision(bench, "x")
    assert (made.stack, made.choice) == (0, C.DMM_CHOICE_NONE)


def test_only_whom_a_rule_names_may_choose(bench: Bench) -> None:
    _apply(bench, _policy(flags=C.DMM_RULE_MARK, mark=7, mark_mask=0xFF))
    bench.agent.open("x")
    assert _refused(bench.agent, "x", "lan") == "EPERM"
    bench.agent(f"s['x'].setsockopt(socket.SOL_SOCKET, {socket.SO_MARK}, 7)")
    _choose(bench.agent, "x", "lan")


def test_a_rule_for_listeners_lets_no_connect_have_it(bench: Bench) -> None:
    _apply(bench, _policy(directions=C.DMM_DIR_LISTEN))
    bench.agent.open("x")
    _choose(bench.agent, "x", "lan")
    bench.agent.connect("x", bench.b.ip4, bench.port)
    made = decision(bench, "x")
    assert (made.stack, made.choice, made.chosen) == (0, C.DMM_CHOICE_REFUSED, LAN)


def test_a_choice_is_asked_of_the_rules_again_when_they_have_changed(bench: Bench) -> None:
    _apply(bench, _policy())
    agent = bench.agent
    for name in "xy":
        agent.open(name)
        _choose(agent, name, "lan")
    _policy(choose=1 << WAN).apply(bench.attached, 2)
    agent.connect("x", bench.b.ip4, bench.port)
    assert (decision(bench, "x").stack, decision(bench, "x").choice) == (0, C.DMM_CHOICE_VOID)
    _policy().apply(bench.attached, 3)
    agent.connect("y", bench.b.ip4, bench.port)
    assert (decision(bench, "y").stack, decision(bench, "y").choice) == (LAN, C.DMM_CHOICE_TAKEN)


def test_a_number_that_is_another_stack_s_by_now_is_no_choice(bench: Bench) -> None:
    _apply(bench, _policy())
    bench.agent.open("x")
    _choose(bench.agent, "x", "lan")
    other = Policy().rule(0, BOTH, choose=1 << LAN).stack(LAN, KERNEL, name=b"other")
    other.apply(bench.attached, 2)
    bench.agent.connect("x", bench.b.ip4, bench.port)
    assert decision(bench, "x").choice == C.DMM_CHOICE_VOID


def test_accepted_connections_have_their_listener_s_choice(bench: Bench) -> None:
    _apply(bench, _policy())
    agent = bench.agent
    agent.open("l")
    _choose(agent, "l", "lan")
    agent("s['l'].bind(('0.0.0.0', 0)); s['l'].listen()")
    port = agent("s['l'].getsockname()[1]")
    found = bench.listener("0.0.0.0", port)
    assert (found.chosen[1], found.wish, found.rules[1], found.tables[1]) == (
        LAN + 1,
        LAN + 1,
        1,
        0,
    )
    with bench.b.call(lambda: socket.create_connection((bench.a.ip4, port), 10)):
        agent.accept("l", "a")
        made = decision(bench, "a")
        assert (made.stack, made.choice, made.chosen) == (LAN, C.DMM_CHOICE_TAKEN, LAN)
        assert agent.tos("a") == 18 << 2 and _stack(agent, "a") == "lan\0"
    assert _stack(agent, "l") == "lan\0"


def test_who_serves_is_told_to_programs_that_have_chosen_nothing(bench: Bench) -> None:
    policy = _policy().rule(1).route(1, "0.0.0.0/0", LAN)
    _apply(bench, policy)
    bench.agent.open("x")
    assert _stack(bench.agent, "x") == "\0"
    assert _serving(bench.agent, "x") == ("", "", 0, C.DMM_CHOICE_NONE)
    bench.agent.connect("x", bench.b.ip4, bench.port)
    assert _stack(bench.agent, "x") == "lan\0" and _stack(bench.agent, "x", 2) == "la"
    assert _serving(bench.agent, "x") == ("lan", "lan", 0, C.DMM_CHOICE_NONE)


def test_other_options_are_the_kernel_s(bench: Bench) -> None:
    """Also longer ones than a program is shown, and unknown ones of the level."""
    _apply(bench, _policy())
    agent = bench.agent
    agent.open("x")
    for option, value in ((2, b"x"), (3, b"lan"), (-1, b"")):
        with pytest.raises(OSError) as raised:
            agent(f"s['x'].setsockopt({C.SOL_DMM}, {option}, {value!r})")
        assert raised.value.errno == errno.ENOPROTOOPT
    with pytest.raises(OSError) as raised:
        agent(f"s['x'].getsockopt({C.SOL_DMM}, 3, 32)")
    assert raised.value.errno in {errno.ENOPROTOOPT, errno.EOPNOTSUPP}
    agent(f"s['x'].setsockopt(6, {socket.TCP_CONGESTION}, b'reno'.ljust(9000, b'\\0'))")
    assert agent.congestion("x") == "reno"
    agent("import ctypes as c; n = c.c_uint(9000); b = c.create_string_buffer(9000)")
    asked = f"libc.getsockopt(s['x'].fileno(), 6, {socket.TCP_INFO}, b, c.byref(n))"
    assert agent(asked) == 0 and 100 < agent("n.value") < 1000
    # A pointer behind the pointer: struct sock_fprog of one "accept".
    agent("b = c.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0xffff))")
    agent("s['x'].setsockopt(1, 26, struct.pack('HxxxxxxP', 1, c.addressof(b)))")


def test_without_a_policy_there_is_no_such_option(bench: Bench) -> None:
    bench.agent.open("x")
    assert _refused(bench.agent, "x", "lan") == "ENOPROTOOPT"


def test_of_two_instances_the_innermost_that_lets_it_keeps_the_choice(bench: Bench) -> None:
    """Without one, the innermost says why; who serves is told by the innermost."""
    name = f"n{os.getpid()}"
    child = bench.cgroup.child("inner")
    cookie = bench.attached.maps.control[0].netns_cookie
    agent = Agent(child, bench.a)
    inner = loader.attach(name, child.path, netns_cookie=cookie)
    try:
        _apply(bench, _policy())
        own = Policy().rule(0, BOTH, choose=1 << 2).stack(2, KERNEL, name=b"own")
        own.stack(LAN, KERNEL, name=b"lan").apply(inner)
        _hook(inner)
        follow(inner, C.DMM_CONTROL_CHOICE)
        for one in "xyz":
            agent.open(one)
        _choose(agent, "x", "own")
        _choose(agent, "y", "lan")
        assert _refused(agent, "z", "nobody") == "ENOENT"
        assert _refused(agent, "z", "bare") == "ENOENT"
        for one in "xy":
            agent.connect(one, bench.b.ip4, bench.port)
        assert [decision(bench, one, agent).choice for one in "xy"] == [
            C.DMM_CHOICE_NONE,
            C.DMM_CHOICE_TAKEN,
        ]
        assert _stack(agent, "x") == "own\0"
    finally:
        inner.close()
        loader.detach(name)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_rules_by_the_socket_s_own_dscp(bench: Bench, family: int) -> None:
    policy = Policy().rule(1, BOTH, flags=C.DMM_RULE_DSCP, dscp=46)
    policy.stack(LAN, KERNEL, name=b"lan").route(1, "0.0.0.0/0", LAN).route(1, "::/0", LAN)
    policy.apply(bench.attached)
    follow(bench.attached, C.DMM_CONTROL_EVENTS | C.DMM_CONTROL_DSCP)
    agent = bench.agent
    level, option = (0, 1) if family == socket.AF_INET else (41, 67)  # IP_TOS, IPV6_TCLASS
    where = bench.b.ip4 if family == socket.AF_INET else bench.b.ip6
    for name, tos in (("ef", 46 << 2), ("other", 44 << 2)):
        agent.open(name, family)
        agent(f"s[{name!r}].setsockopt({level}, {option}, {tos})")
        agent.connect(name, where, bench.port)
    assert [decision(bench, name).stack for name in ("ef", "other")] == [LAN, 0]
    agent.open("l", family)
    anywhere = "0.0.0.0" if family == socket.AF_INET else "::"
    agent(f"s['l'].setsockopt({level}, {option}, {46 << 2}); s['l'].bind(({anywhere!r}, 0))")
    port = agent("s['l'].listen(), s['l'].getsockname()[1]")[1]
    found = bench.listener(anywhere, port)
    assert (found.tables[1], found.dscp) == (1, 46)


def test_the_flag_of_the_generation_is_not_needed_to_refuse(bench: Bench) -> None:
    _policy(choose=0).write(bench.attached, 1)
    flip(bench.attached, 1)
    bench.agent.open("x")
    assert _refused(bench.agent, "x", "lan") == "EPERM"


def test_the_struct_is_that_of_the_header(bench: Bench) -> None:
    assert abi.sizeof("dmm_serving") == struct.calcsize("32s32sII")
