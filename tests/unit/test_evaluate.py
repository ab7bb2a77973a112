# SPDX-License-Identifier: Apache-2.0
"""Verdicts as docs/policy.md promises them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmm_ebpf.abi import C
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get

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
        (Query("2001:db8::1", 443, 17), "b", "kernel"),
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
    """User stacks carry TCP between hosts; reject is for connect()."""
    text = '[stacks.b]\nkind = "user"\n[[rules]]\ntable = "t"\n'
    for to, name in (("default", "b"), ("192.0.2.0/24", "reject")):
        text += f'[[tables.t.routes]]\nto = "{to}"\nstack = "{name}"\n'
    verdict = route_get(policy.parse(text, source="policy.toml", base=Path("/")), query)
    assert (verdict.wanted, verdict.stack) == (wanted, stack)
    assert (verdict.why is None) == (wanted == stack)


def test_from_params_and_to_dict() -> None:
    query = Query.from_params(
        {"addr": "10.1.2.3", "port": None, "proto": "tcp", "cgroup": None, "uid": 5}
    )
    assert query == Query("10.1.2.3", uid=5)
    answer = route_get(
        POLICY, Query.from_params({"addr": "10.1.2.3", "port": 443, "direction": "connect"})
    ).to_dict()
    assert answer == {
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
    ],
)
def test_params_refused(params: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="cannot ask for a route"):
        Query.from_params(params)
