# SPDX-License-Identifier: Apache-2.0
"""What rules ask of a socket, by real ones: lists, `not`, local port, the device that it is bound
to, and what each rule's action refuses. For policies at random the programs decide as the evaluator
does, and so does who looks at listeners again when a policy changes.
"""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path
from typing import Any

import pytest
from bpf_lab import Agent, Bench, bench

from dmm_ebpf.abi import C
from dmm_ebpf.hal import nic
from dmm_ebpf.rd.director import globbed, groups
from dmm_ebpf.rd.director.sync import apply
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.model import Policy

__all__ = ["bench"]

UIDS, MARKS, DSCPS = (0, 33, 1000, 1500), (0, 0x10, 0x30), (0, 10)
GIDS = (0, 44, 2000)
COMMS, PORTS = ("shop", "till"), (0, 7001, 7002, 7010)
CHOICES: dict[str, list[str]] = {
    "uid": ["0", "33", '"1000-1999"'],
    "gid": ["0", "44", '"40-1999"'],
    "comm": ['"shop"', '"till"'],
    "mark": ["0", '"0x10"', '"0x10/0x10"'],
    "dscp": ["0", '"af11"'],
    "local_port": ["7001", '"7001, 7010"', '"1-7002"'],
}


def in_force(bench: Bench, text: str, ids: IdSpace) -> tuple[Policy, int]:
    """Put the policy in force; it, and its generation."""
    parsed = policy.parse(text, source="random", base=Path("/"))
    compiled = bench.a.call(
        lambda: compile_policy(
            parsed, ids, groups.lookup, device_lookup=lambda name: nic.ifindex_of(name) or 0
        )
    )
    attached = bench.attached
    generation = apply(attached.maps, compiled, listener_set=attached.set_listener_table)
    globbed.Globbed(attached.maps).put(generation & 1, globbed.find(compiled.globs).ids)
    return parsed, generation


def conditions(chance: random.Random, own: dict[str, list[str]], likely: float) -> list[str]:
    """Of a rule or an exception, as TOML writes them. own: in place of CHOICES, [] of none."""
    found = []
    for key, values in (CHOICES | own).items():
        if not values:
            continue
        if chance.random() < likely:
            some = chance.sample(values, chance.randint(1, min(2, len(values))))
            listed = len(some) > 1 and key != "local_port"
            value = f"[{', '.join(some)}]" if listed else some[0]
            found.append(f"{key} = {value}")
    return found


def a_policy(chance: random.Random, own: dict[str, list[str]]) -> str:
    text = '[stacks.k]\nkind = "kernel"\n[[tables.t.routes]]\nto = "default"\nstack = "k"\n'
    for _ in range(chance.randint(2, 8)):
        leads = chance.choice(['table = "t"', 'table = "t"', 'action = "prohibit"'])
        lines = [leads, *conditions(chance, own, 0.3)]
        excepted = [conditions(chance, own, 0.4) for _ in range(chance.randint(0, 2))]
        tables = [f"{{ {', '.join(one)} }}" for one in excepted if one]
        if tables:
            lines.append(f"not = [{', '.join(tables)}]")
        text += "\n".join(["[[rules]]", *lines, ""])
    return text


def facts(chance: random.Random, bench: Bench) -> dict[str, Any]:
    return {
        "uid": chance.choice(UIDS),
        "gid": chance.choice(GIDS),
        "mark": chance.choice(MARKS),
        "dscp": chance.choice(DSCPS),
        "comm": chance.choice(COMMS),
        "local_port": chance.choice(PORTS),
        "interface": chance.choice(["", bench.a.nic.name]),
    }


def opened(agent: Agent, name: str, kind: int, of: dict[str, Any]) -> None:
    """A socket that is as facts() say, and then the program that has it."""
    agent.open(name, kind=kind)
    sock = f"s[{name!r}]"
    agent(f"{sock}.setsockopt(1, socket.SO_REUSEADDR, 1)")
    agent(f"{sock}.setsockopt(1, socket.SO_LINGER, struct.pack('ii', 1, 0))")
    agent(f"{sock}.setsockopt(1, socket.SO_MARK, {of['mark']})")
    agent(f"{sock}.setsockopt(0, socket.IP_TOS, {of['dscp'] << 2})")
    if of["interface"]:
        agent(f"{sock}.setsockopt(1, socket.SO_BINDTODEVICE, {of['interface']!r}.encode())")
    if of["local_port"]:
        agent(f"{sock}.bind(('0.0.0.0', {of['local_port']}))")
    agent(f"libc.prctl(15, {of['comm']!r}.encode(), 0, 0, 0)")
    agent(f"os.setresgid({of['gid']}, 0, 0)")
    agent(f"os.setresuid({of['uid']}, {of['uid']}, 0)")


def done(agent: Agent, name: str) -> None:
    agent("os.setresuid(0, 0, 0)")
    agent("os.setresgid(0, 0, 0)")
    agent.close(name)


def error_of(agent: Agent, call: str) -> int:
    try:
        agent(call)
    except OSError as error:
        return int(error.errno or 0)
    return 0


@pytest.mark.parametrize("seed", range(5))
def test_random_rules_are_evaluated(bench: Bench, seed: int) -> None:
    chance, ids, peer = random.Random(seed), IdSpace(), bench.b.ip4
    child = bench.cgroup.child("deep")
    agents = {group.relative: Agent(group, bench.a) for group in (bench.cgroup, child)}
    own = {
        "cgroup": [f'"{path}"' for path in (*agents, "/*", "/*/[a-d]?*p", "/*/*/*")],
        "interface": [f'"{bench.a.nic.name}"', '"lo"'],
    }
    decided: set[int] = set()
    for _ in range(4):
        parsed, generation = in_force(bench, a_policy(chance, own), ids)
        for _ in range(8):
            path, of = chance.choice(list(agents)), facts(chance, bench)
            agent, query = agents[path], Query(peer, bench.port, cgroup=path, **of)
            wanted = route_get(parsed, query)
            decided.add(wanted.rule)
            opened(agent, "t", socket.SOCK_STREAM, of)
            refused = errno.EACCES if wanted.stack == "prohibit" else 0
            call = f"s['t'].settimeout(10); s['t'].connect(({peer!r}, {bench.port}))"
            assert error_of(agent, call) == refused, (parsed.text, query)
            if not refused:
                flow = bench.flow(agent.cookie("t"))
                assert flow is not None
                made = flow.decision
                assert (made.generation, made.rule) == (generation, wanted.rule), (
                    parsed.text,
                    query,
                )
            done(agent, "t")
    assert len(decided) > 3


@pytest.mark.parametrize("seed", range(3))
def test_datagrams_that_name_their_peer_are_refused_by_the_same_rules(
    bench: Bench, seed: int
) -> None:
    chance, ids, agent = random.Random(seed), IdSpace(), bench.agent
    # The DSCP of such a datagram is not known.
    own = {"interface": [f'"{bench.a.nic.name}"'], "dscp": []}
    seen: set[int] = set()
    for _ in range(4):
        parsed, _ = in_force(bench, a_policy(chance, own), ids)
        for _ in range(6):
            of = facts(chance, bench)
            path = bench.cgroup.relative
            query = Query(bench.b.ip4, 9, socket.IPPROTO_UDP, cgroup=path, **of)
            refused = errno.EACCES if route_get(parsed, query).stack == "prohibit" else 0
            opened(agent, "u", socket.SOCK_DGRAM, of)
            call = f"s['u'].sendto(b'x', ({bench.b.ip4!r}, 9))"
            assert error_of(agent, call) == refused, (parsed.text, query)
            done(agent, "u")
            seen.add(refused)
    assert len(seen) == 2


def test_a_listeners_port_and_lists_hold_when_it_begins_and_when_a_policy_changes(
    bench: Bench,
) -> None:
    ids, agent = IdSpace(), bench.agent
    head = '[[tables.t.routes]]\nto = "default"\nstack = "kernel"\n'
    rules = (
        '[[rules]]\nlocal_port = "7100-7199"\nnot = [{ local_port = 7101 }, { comm = "till" }]\n'
        'direction = "listen"\ntable = "t"\n',
        '[[rules]]\nuid = [33, 0]\nlocal_port = [7101, 7201]\ntable = "t"\n',
    )
    for order in (rules, rules[::-1]):
        parsed, generation = in_force(bench, head + "".join(order), ids)
        for number, (port, comm) in enumerate(
            ((7100, "shop"), (7101, "shop"), (7102, "till"), (7201, "till"), (7202, "shop"))
        ):
            name = f"l{number}"
            if generation == 1:
                agent(f"libc.prctl(15, {comm!r}.encode(), 0, 0, 0)")
                agent.listen(name, "0.0.0.0", port)
            query = Query(
                bench.b.ip4,
                port,
                direction=C.DMM_DIR_LISTEN,
                cgroup=bench.cgroup.relative,
                comm=comm,
                uid=0,
                mark=0,
            )
            wanted = route_get(parsed, query)
            found = bench.listener("0.0.0.0", port)
            assert found is not None
            assert found.rules[generation & 1] == wanted.rule, (port, comm)
            assert bool(found.tables[generation & 1]) == bool(wanted.rule)


OF_A_SOCKET = """
[stacks.k]
kind = "kernel"
[[rules]]
mark = "0x40/0xf0"
table = "t"
[[rules]]
dscp = "af11"
table = "t"
[[tables.t.routes]]
to = "default"
stack = "k"
"""
MARKED = ("1, socket.SO_MARK", 0x42)
TOS, CLASS = ("0, socket.IP_TOS", 10 << 2), ("41, socket.IPV6_TCLASS", 10 << 2)
FAMILIES = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6, "mapped": socket.AF_INET6}
BY_FAMILY = [
    *(("ip4", MARKED, 1), ("ip4", TOS, 2), ("ip4", None, 0)),
    *(("ip6", MARKED, 1), ("ip6", CLASS, 2), ("ip6", None, 0)),
    # What such a socket sends is IPv4, whose field is IP_TOS's.
    *(("mapped", MARKED, 1), ("mapped", TOS, 2), ("mapped", CLASS, 0)),
]


def _prepared(bench: Bench, family: str, option: tuple[str, int] | None) -> None:
    bench.agent.open("m", FAMILIES[family])
    if option:
        bench.agent(f"s['m'].setsockopt({option[0]}, {option[1]})")


@pytest.mark.parametrize(("family", "option", "rule"), BY_FAMILY)
def test_a_program_that_can_set_no_more_chooses_by_mark_or_dscp(
    bench: Bench, family: str, option: tuple[str, int] | None, rule: int
) -> None:
    in_force(bench, OF_A_SOCKET, IdSpace())
    peer = f"::ffff:{bench.b.ip4}" if family == "mapped" else getattr(bench.b, family)
    _prepared(bench, family, option)
    bench.agent.connect("m", peer, bench.port)
    flow = bench.flow(bench.agent.cookie("m"))
    assert flow is not None
    assert flow.decision.rule == rule


@pytest.mark.parametrize(
    ("family", "option", "rule"), [one for one in BY_FAMILY if one[0] != "mapped"]
)
@pytest.mark.parametrize("when", ["before it listens", "after, when a policy changes"])
def test_a_listener_is_looked_up_by_its_mark_or_dscp(
    bench: Bench, family: str, option: tuple[str, int] | None, rule: int, when: str
) -> None:
    ids, address = IdSpace(), "::" if family == "ip6" else "0.0.0.0"
    rules = (
        OF_A_SOCKET
        if when == "before it listens"
        else OF_A_SOCKET.replace("[[rules]]", "[[rules]]\nuid = 7")
    )
    _, generation = in_force(bench, rules, ids)
    _prepared(bench, family, option)
    bench.agent(f"s['m'].bind(({address!r}, 7300)); s['m'].listen()")
    found = bench.listener(address, 7300)
    assert found is not None
    if rules != OF_A_SOCKET:
        assert found.rules[generation & 1] == 0
        _, generation = in_force(bench, OF_A_SOCKET, ids)
        found = bench.listener(address, 7300)
        assert found is not None
    assert found.rules[generation & 1] == rule


OF_A_GROUP = """
[stacks.k]
kind = "kernel"
[[rules]]
gid = [44, "2000-2999"]
not = { gid = 2001 }
table = "t"
[[tables.t.routes]]
to = "default"
stack = "k"
"""


@pytest.mark.parametrize("when", ["before it listens", "after, when a policy changes"])
@pytest.mark.parametrize(("gid", "rule"), [(44, 1), (2000, 1), (2001, 0), (0, 0)])
def test_a_listener_is_looked_up_by_its_programs_group(
    bench: Bench, gid: int, rule: int, when: str
) -> None:
    """Of its process's own group: that it is in others besides does not matter."""
    ids = IdSpace()
    rules = OF_A_GROUP if when == "before it listens" else OF_A_GROUP.replace("44", "45")
    in_force(bench, rules.replace("2000-2999", "3000") if rules != OF_A_GROUP else rules, ids)
    bench.agent("os.setgroups([44])")
    bench.agent(f"os.setresgid({gid}, 0, 0)")
    bench.agent.listen("g", "0.0.0.0", 7400)
    bench.agent("os.setresgid(0, 0, 0)")
    _, generation = in_force(bench, OF_A_GROUP, ids)
    found = bench.listener("0.0.0.0", 7400)
    assert found is not None
    assert (found.gid, found.rules[generation & 1]) == (gid, rule)
