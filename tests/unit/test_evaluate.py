# SPDX-License-Identifier: Apache-2.0
"""Verdicts as docs/policy.md promises them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from dmm_ebpf.abi import C
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.records.record import ABSENT, to_json

POLICY = policy.parse(
    """
[stacks.a]
kind = "kernel"
[stacks.b]
kind = "user"
[[rules]]
name = "first"
cgroup = "/shop"
uid = "1000-1999"
table = "one"
[[rules]]
table = "two"
[[tables.one.routes]]
to = "10.1.0.0/16"
ports = "443"
stack = "b"
[[tables.two.routes]]
to = "10.0.0.0/8"
ports = "400-500"
stack = "a"
[[tables.two.routes]]
to = "10.0.0.0/8"
proto = "tcp"
ports = "443"
stack = "b"
[[tables.two.routes]]
to = "10.1.0.0/16"
proto = "udp"
stack = "reject"
[[tables.two.routes]]
to = "2001:db8::/32"
stack = "b"
""",
    source="policy.toml",
    base=Path("/"),
)


@pytest.mark.parametrize(
    ("query", "stack", "rule", "route"),
    [
        (Query("10.1.2.3", 443, cgroup="/shop/x", uid=1000), "b", 1, "10.1.0.0/16 port 443"),
        (Query("10.1.2.3", 444, cgroup="/shop/x", uid=1000), "a", 2, "10.0.0.0/8 port 400-500"),
        (Query("10.1.2.3", 443, cgroup="/shopping", uid=1000), "b", 2, "10.0.0.0/8 tcp 443"),
        (Query("10.1.2.3", 443, cgroup="/shop"), "b", 2, "10.0.0.0/8 tcp 443"),
        (Query("10.1.2.3", 443, 17), "reject", 2, "10.1.0.0/16 udp"),
        (Query("10.2.2.3", 443, 17), "a", 2, "10.0.0.0/8 port 400-500"),
        (Query("10.2.2.3", 80), "kernel", 0, None),
        (Query("10.2.2.3"), "kernel", 0, None),
        (Query("::ffff:10.2.2.3", 443), "b", 2, "10.0.0.0/8 tcp 443"),
        (Query("2001:db8::1"), "b", 2, "2001:db8::/32"),
        (Query("2001:db9::1"), "kernel", 0, None),
    ],
)
def test_verdict(query: Query, stack: str, rule: int, route: str | None) -> None:
    verdict = route_get(POLICY, query)
    assert (verdict.stack, verdict.rule, verdict.route) == (stack, rule, route)
    assert verdict.table == (None, "one", "two")[rule]


def test_an_action_refuses_what_connects_and_leaves_listeners_to_the_next_rule() -> None:
    text = (
        '[stacks.b]\nkind = "user"\n[[rules]]\nuid = 7\naction = "prohibit"\n'
        '[[rules]]\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "b"\n'
    )
    parsed = policy.parse(text, source="policy.toml", base=Path("/"))
    for proto in (6, 17):
        for addr in ("10.1.2.3", "2001:db8::1", "127.0.0.1"):
            verdict = route_get(parsed, Query(addr, 443, proto, uid=7))
            assert (verdict.stack, verdict.rule, verdict.why) == ("prohibit", 1, None)
    verdict = route_get(parsed, Query("10.1.2.3", 443, uid=7, direction=C.DMM_DIR_LISTEN))
    assert (verdict.stack, verdict.rule) == ("b", 2)
    assert route_get(parsed, Query("10.1.2.3", 443, uid=8)).stack == "b"


CONDITIONS = policy.parse(
    """
[stacks.a]
kind = "kernel"
[[rules]]
uid = [33, "1000-1999"]
not = [{ uid = 1500 }, { comm = "curl", mark = 1 }]
table = "t"
[[tables.t.routes]]
to = "default"
stack = "a"
""",
    source="policy.toml",
    base=Path("/"),
)


@pytest.mark.parametrize(
    ("facts", "stack", "unasked"),
    [
        ({"uid": 33, "comm": "x"}, "a", ()),
        ({"uid": 1000, "mark": 0}, "a", ()),
        ({"uid": 1500, "comm": "x"}, "kernel", ()),
        ({"uid": 33, "comm": "curl", "mark": 1}, "kernel", ()),
        ({"uid": 33, "comm": "curl", "mark": 2}, "a", ()),
        ({"uid": 33, "comm": "curl"}, "kernel", ("mark",)),
        ({"uid": 33}, "kernel", ("comm", "mark")),
        ({"comm": "x"}, "kernel", ("uid",)),
        ({"uid": 7}, "kernel", ()),
        ({}, "kernel", ("uid", "comm", "mark")),
    ],
)
def test_what_is_not_said_matches_no_rule_that_asks_or_excepts(
    facts: dict[str, int | str], stack: str, unasked: tuple[str, ...]
) -> None:
    verdict = route_get(CONDITIONS, Query("10.1.2.3", 443, **facts))
    assert verdict.stack == stack
    assert verdict.unasked == ((("1: " + CONDITIONS.rules[0].text(), unasked),) if unasked else ())


def test_a_listeners_own_port_is_the_one_that_is_asked_about() -> None:
    text = '[[rules]]\nlocal_port = 443\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "kernel"\n'
    parsed = policy.parse(text, source="policy.toml", base=Path("/"))
    listens = Query("10.1.2.3", 443, direction=C.DMM_DIR_LISTEN)
    assert [route_get(parsed, q).rule for q in (listens, Query("10.1.2.3", 443))] == [1, 0]
    assert route_get(parsed, Query("10.1.2.3", 80, local_port=443)).rule == 1


def test_listener_has_one_table() -> None:
    """Where connect goes on with the next rule, listen has made its choice."""
    facts = {"cgroup": "/shop", "uid": 1000}
    assert route_get(POLICY, Query("10.1.2.3", 444, **facts)).rule == 2
    verdict = route_get(POLICY, Query("10.1.2.3", 444, direction=C.DMM_DIR_LISTEN, **facts))
    assert (verdict.stack, verdict.table, verdict.rule, verdict.route) == ("kernel", "one", 1, None)


@pytest.mark.parametrize(
    ("query", "wanted", "stack"),
    [
        (Query("2001:db8::1", 443), "b", "b"),
        (Query("2001:db8::1", 443, 17), "b", "b"),
        (Query("2001:db8::1", 443, 17, direction=C.DMM_DIR_LISTEN), "b", "b"),
        (Query("224.0.0.251", 5353, 17), "b", "kernel"),
        (Query("255.255.255.255", 67, 17), "b", "kernel"),
        (Query("ff02::fb", 5353, 17), "b", "kernel"),
        (Query("127.1.2.3", 443), "b", "kernel"),
        (Query("0.0.0.0", 443), "b", "kernel"),
        (Query("::ffff:127.0.0.1", 443), "b", "kernel"),
        (Query("::1", 443), "b", "kernel"),
        (Query("192.0.2.1"), "reject", "reject"),
        (Query("192.0.2.1", direction=C.DMM_DIR_LISTEN), "reject", "kernel"),
        (Query("2001:db8::1", direction=C.DMM_DIR_LISTEN), "b", "b"),
    ],
)
def test_who_can_serve(query: Query, wanted: str, stack: str) -> None:
    """User stacks carry what goes from host to host; reject is for connect()."""
    text = '[stacks.b]\nkind = "user"\nudp = true\n[[rules]]\ntable = "t"\n'
    for to, name in (("default", "b"), ("192.0.2.0/24", "reject")):
        text += f'[[tables.t.routes]]\nto = "{to}"\nstack = "{name}"\n'
    verdict = route_get(policy.parse(text, source="policy.toml", base=Path("/")), query)
    assert (verdict.wanted, verdict.stack) == (wanted, stack)
    assert (verdict.why is None) == (wanted == stack)
    if query.proto == socket.IPPROTO_UDP:
        tcp_alone = policy.parse(text.replace("udp = true\n", ""), source="p", base=Path("/"))
        assert (route_get(tcp_alone, query).stack, route_get(tcp_alone, query).why) == (
            "kernel",
            "udp",
        )


def test_parameters_and_the_answer_as_others_get_them() -> None:
    query = Query.from_params(
        {"addr": "10.1.2.3", "port": None, "proto": "tcp", "cgroup": None, "uid": 5}
    )
    assert query == Query("10.1.2.3", uid=5)
    verdict = route_get(
        POLICY, Query.from_params({"addr": "10.1.2.3", "port": 443, "direction": "connect"})
    )
    assert json.loads(to_json(verdict.answer())) == {
        "stack": "b",
        "wanted": "b",
        "table": "two",
        "rule": "2: all",
        "rule_number": 2,
        "route": "10.0.0.0/8 tcp 443",
        "why": None,
        "unasked": [{"rule": "first", "needs": ["cgroup", "uid"]}],
    }


def test_rules_that_may_match_by_what_was_not_said_are_told() -> None:
    assert route_get(POLICY, Query("10.1.2.3", 443, cgroup="/shop")).unasked == (
        ("first", ("uid",)),
    )
    for told in (
        Query("10.1.2.3", 443, cgroup="/else"),
        Query("10.1.2.3", 443, cgroup="/shop", uid=5),
    ):
        assert route_get(POLICY, told).unasked == ()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"addr": "example.org"},
        {"addr": "::1", "proto": "sctp"},
        {"addr": "::1", "direction": "x"},
        {"addr": "::1", "source": "10.0.0.1"},
        {"addr": "::1", "comm": "sixteen-or-more-"},
    ],
)
def test_params_refused(params: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="cannot ask for a route"):
        Query.from_params(params)


CHOICES = policy.parse(
    """
[stacks.a]
kind = "kernel"
[stacks.b]
kind = "user"
[[rules]]
cgroup = "/shop"
choose = ["b", "kernel"]
[[rules]]
dscp = "ef"
direction = "connect"
table = "one"
choose = ["a"]
[[tables.one.routes]]
to = "10.0.0.0/8"
stack = "a"
""",
    source="policy.toml",
    base=Path("/"),
)


@pytest.mark.parametrize(
    ("query", "stack", "rule", "choice"),
    [
        (Query("10.1.2.3", choice="b", cgroup="/shop"), "b", 1, "taken"),
        (Query("10.1.2.3", choice="b", cgroup="/bar"), "kernel", 0, "refused"),
        (Query("10.1.2.3", choice="b", cgroup="/bar", dscp=46), "a", 2, "refused"),
        (Query("127.0.0.1", choice="b", cgroup="/shop"), "kernel", 1, "taken"),
        (Query("10.1.2.3", choice="kernel", cgroup="/shop", dscp=46), "kernel", 1, "taken"),
        (
            Query("10.1.2.3", choice="a", dscp=46, direction=C.DMM_DIR_LISTEN),
            "kernel",
            0,
            "refused",
        ),
    ],
)
def test_a_program_s_choice(query: Query, stack: str, rule: int, choice: str) -> None:
    got = route_get(CHOICES, query)
    assert (got.stack, got.rule, got.choice) == (stack, rule, choice)


def test_a_rule_without_a_table_is_no_end_of_the_way() -> None:
    got = route_get(CHOICES, Query("10.1.2.3", cgroup="/shop", dscp=46))
    assert (got.stack, got.rule, got.choice) == ("a", 2, ABSENT)


def test_a_choice_of_no_stack_cannot_be_asked_about() -> None:
    with pytest.raises(UsageError, match='has no stack "c"'):
        route_get(CHOICES, Query("10.1.2.3", choice="c"))
