# SPDX-License-Identifier: Apache-2.0
"""How a policy comes to its answer about one flow: which rules were looked at and why each did not
match, and which routes its table had for the peer.

Goes the way of evaluate.py with its functions, and tells of each step; the tests hold the two ends
against each other. Pure.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dmm_ebpf import records
from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.evaluate import (
    CONDITIONS,
    Query,
    holds,
    how_specific,
    known_fact,
    lets_choose,
    rule_matches,
)
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.routes import RouteTable
from dmm_ebpf.rd.policy.rule import (
    DIRECTIONS,
    Conditions,
    Rule,
    exception_text,
    values_text,
)
from dmm_ebpf.rd.policy.values import parse_address
from dmm_ebpf.records.policy import Mismatch, RouteOutcome, RouteSeen, RuleOutcome, RuleSeen

MAX_ROUTES = 50  # of a table that are told of

# By the component of a rank in which a route is behind the one that decides.
_NOTHING = Conditions()
_BEHIND: tuple[RouteOutcome, ...] = ("shorter prefix", "wider ports", "any protocol", "same")


def explain(
    policy: Policy, query: Query, answer: records.policy.RouteAnswer
) -> records.policy.Explained:
    """The way to the answer that policy, or an instance with it, gives to query, whose address
    is one.
    """
    number = lets_choose(policy, query, query.choice) if query.choice is not None else 0
    steps = _to_choice(policy, query, number) if number else _to_route(policy, query)
    rules = list(steps)
    return records.policy.Explained(answer, rules, len(policy.rules) - len(rules))


def _to_choice(policy: Policy, query: Query, number: int) -> Iterator[RuleSeen]:
    """To the rule of that number, which lets the program have its choice."""
    for index, rule in enumerate(policy.rules[:number]):
        if query.choice not in rule.choose:
            yield _seen(policy, index, "no choice")
        else:
            yield _unmatched(policy, index, query) or _seen(policy, index, "decides")


def _to_route(policy: Policy, query: Query) -> Iterator[RuleSeen]:
    for index, rule in enumerate(policy.rules):
        unmatched = _unmatched(policy, index, query)
        if unmatched or not rule.table:
            yield unmatched or _seen(policy, index, "no table")
            continue
        routes = list(_routes(policy, rule.table, query))
        decides = bool(routes) and routes[0].outcome == "decides"
        yield replace(
            _seen(policy, index, "decides" if decides else "no route"),
            table=rule.table,
            routes=routes[:MAX_ROUTES],
            more=max(0, len(routes) - MAX_ROUTES),
        )
        if decides or query.direction == C.DMM_DIR_LISTEN:
            return


def _seen(policy: Policy, index: int, outcome: RuleOutcome) -> RuleSeen:
    return RuleSeen(policy.rule_text(index), index + 1, outcome, [], None, [], 0)


def _unmatched(policy: Policy, index: int, query: Query) -> RuleSeen | None:
    """None: the rule matches."""
    rule = policy.rules[index]
    if rule.hosts is not None and policy.labels is None:
        return _seen(policy, index, "no labels")
    if rule_matches(rule, query):
        return None
    told = _mismatches(rule, query, policy.as_written.rules[index])
    return replace(_seen(policy, index, "no match"), mismatches=list(told))


def _mismatches(rule: Rule, query: Query, written: Rule) -> Iterator[Mismatch]:
    """What of a rule that does not match is not so. Of another direction no more than that.
    written: the rule with its sets by name.
    """
    if not rule.direction & query.direction:
        yield Mismatch("direction", _directions(rule.direction), _directions(query.direction))
        return
    for key, values in rule.asked():
        if holds(replace(_NOTHING, **{key: values}), query) is not True:
            given = known_fact(query, key)
            told = None if given is None else _given(key, given)
            yield Mismatch(key, values_text(key, values).replace(",", " or "), told)
    for one in rule.excepted:
        said = holds(one, query)
        if said is not False:
            text = exception_text(one)
            yield Mismatch("not", text, text if said else None)
    for key in ("source", "in_interface"):
        wanted, given = getattr(rule, CONDITIONS[key]), getattr(query, key)
        alone = Rule(direction=rule.direction, **{CONDITIONS[key]: wanted})
        if wanted is not None and not rule_matches(alone, query):
            named = getattr(written, CONDITIONS[key])
            yield Mismatch(key, " or ".join(map(str, named)), given)


def _directions(bits: int) -> str:
    return " or ".join(name for name, bit in DIRECTIONS.items() if bits & bit)


def _given(key: str, value: Any) -> str:
    if key == "executable":  # with other paths of the same file behind it
        return str(value[0])
    return f"{value:#x}" if key == "mark" and isinstance(value, int) else str(value)


def _routes(policy: Policy, name: str, query: Query) -> Iterator[RouteSeen]:
    """Those whose prefix contains the peer's address: the one that decides, if any does, then the
    others by rank, then those that do not fit the flow; of each the longer prefix first.
    """
    family, addr = parse_address(query.addr)
    ranked: list[tuple[tuple[int, int, int, tuple[int, int]], RouteTable]] = []
    passed: list[tuple[RouteTable, int]] = []
    for table in policy.tables_of(name):
        for index in bulk.containing(table, family, addr):
            specific = how_specific(table.matches[table.match[index]], query.proto, query.port)
            if specific is None:
                passed.append((table, index))
            else:
                rank = (table.lengths[index], *specific, (table.precedence, -index))
                ranked.append((rank, table))
    ranked.sort(key=operator.itemgetter(0), reverse=True)
    for rank, table in ranked:
        yield _route(table, -rank[-1][1], _behind(rank, ranked[0][0]))
    for table, index in sorted(passed, key=lambda one: -one[0].lengths[one[1]]):
        proto = table.matches[table.match[index]].proto
        other = proto and proto != query.proto
        yield _route(table, index, "protocol" if other else "ports")


def _behind(rank: tuple[object, ...], best: tuple[object, ...]) -> RouteOutcome:
    for one, first, outcome in zip(rank, best, _BEHIND, strict=True):
        if one != first:
            return outcome
    return "decides"


def _route(table: RouteTable, index: int, outcome: RouteOutcome) -> RouteSeen:
    route = table[index]
    return RouteSeen(route.text(), route.stack, route.where, outcome)
