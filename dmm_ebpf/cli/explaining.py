# SPDX-License-Identifier: Apache-2.0
"""What `policy explain` does: the way to the answer of `route get`, by a policy file, or by what an
instance has in force.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.cli import actions, gather, output, policytools, tables
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.records.record import known
from dmm_ebpf.show import units

if TYPE_CHECKING:
    from dmm_ebpf.rd.policy.evaluate import Query
    from dmm_ebpf.rd.policy.model import Policy
    from dmm_ebpf.records.policy import (
        Explained,
        Mismatch,
        RouteAnswer,
        RouteOutcome,
        RouteRow,
        RuleSeen,
    )
    from dmm_ebpf.records.status import Status

_ROUTE: dict[RouteOutcome, str] = {
    "decides": "decides",
    "protocol": "is for another protocol",
    "ports": "names other ports",
    "shorter prefix": "a longer prefix comes first",
    "wider ports": "an exact port comes before a range, and a range before every port",
    "any protocol": "a route that names the protocol comes first",
    "same": "the same as the one that decides, and behind it",
}


def policy_explain(
    query: dict[str, Any], *, policy: Path | None, instance: str | None, as_json: bool
) -> None:
    """Print how the answer comes about. UsageError: nothing that can be asked."""
    if policy is None:
        told = _of_instance(gather.the_instance(instance), query)
    elif instance is None:
        told = _of_file(policy, query)
    else:
        raise UsageError("explain a route", why="--policy and --instance exclude each other")
    if as_json:
        output.print_json(told)
        return
    for rule in told.rules:
        _print_rule(rule, told.answer)
    if told.left:
        print(f"{tables.count(told.left, 'rules')} more not looked at")
    actions.print_answer(told.answer, query)


def _beside(policy: Policy, rows: Iterable[RouteRow]) -> Policy:
    """With these routes beside it."""
    from dmm_ebpf.rd.policy.livetable import FleetRoutes, LiveRoute, LiveRoutes
    from dmm_ebpf.rd.policy.routes import Match
    from dmm_ebpf.rd.policy.values import parse_ports, parse_prefix, parse_protocol

    made = []
    for number, row in enumerate(rows):
        match = Match(
            parse_protocol(row.proto or "any"), parse_ports(row.ports) if row.ports else ()
        )
        (prefix,) = parse_prefix(row.to)
        place = row.where or "" if row.fleet else ""
        made.append(LiveRoute(number, row.table, prefix, match, row.stack, place))
    fleet = FleetRoutes(one for one in made if one.place)
    return replace(policy, fleet=fleet).with_live(LiveRoutes(o for o in made if not o.place))


def _of_file(file: Path, query: dict[str, Any]) -> Explained:
    from dmm_ebpf.rd.director.executables import by_file
    from dmm_ebpf.rd.director.groups import known_cgroup
    from dmm_ebpf.rd.policy import evaluate
    from dmm_ebpf.rd.policy.explain import explain

    policy, asked = actions.load_policy(file), evaluate.Query.from_params(query)
    known_cgroup(policy, asked)
    asked = by_file(policy, asked)
    return explain(policy, asked, evaluate.answer(policy, asked))


def _of_instance(name: str, query: dict[str, Any]) -> Explained:
    """With what the instance takes for what was not asked. DmmError: its routes are not to be had
    any more.
    """
    from dmm_ebpf.rd.api import client
    from dmm_ebpf.rd.policy.explain import explain

    with client.Client(name) as rd:
        answer = rd.route_get(**query)
        status = rd.status()
        director = status.pid
        policy = _with_elements(policytools.in_force(rd), status)
        beside = policytools.routes_beside(rd)
    if beside:
        policy = _beside(policy, beside)
    if answer.why == "outside":
        policy = replace(policy, rules=())  # none is looked at
    told = explain(policy, _asked(policy, query, answer, director), answer)
    routes = (
        rule.routes[0].route for rule in told.rules if rule.outcome == "decides" and rule.routes
    )
    if next(routes, None) != answer.route:
        said = "sets and files" if policy.sets else "files"
        raise DmmError(
            f"explain what instance {name} decides",
            why=f"its route is {answer.route or 'none'}, and the {said} of its policy say another now",
            hint="apply the policy again, or ask the file with --policy",
        )
    return told


def _with_elements(policy: Policy, status: Status) -> Policy:
    """With what its sets have where the instance is, and its hostnames to the director."""
    from dmm_ebpf.hal.netns import NetNS
    from dmm_ebpf.rd.director import sets

    if not policy.sets:
        return policy
    with NetNS.from_arg(status.pid) as netns:
        found = netns.run_in(lambda: sets.of_rows(policy, status.sets or ()))
        return sets.filled(policy, found)


def _asked(
    policy: Policy, query: dict[str, Any], answer: RouteAnswer, director: int | None
) -> Query:
    """The question as the instance understands it."""
    from dmm_ebpf.hal.netns import NetNS
    from dmm_ebpf.rd.director.executables import by_file
    from dmm_ebpf.rd.director.routeget import netns_of
    from dmm_ebpf.rd.policy.evaluate import Query

    asked = by_file(policy, Query.from_params(query | (known(answer.assumed) or {})))
    if any(rule.every("netns") for rule in policy.rules):
        with NetNS.from_arg(director) as netns:
            asked = replace(asked, netns=netns_of(policy, netns.cookie))
    return asked


def _print_rule(rule: RuleSeen, answer: RouteAnswer) -> None:
    print(f"rule {units.clean(rule.rule)}\n    {units.clean(_outcome(rule, answer))}")
    for one in rule.routes:
        words = f"{one.route} -> {one.stack}: {_ROUTE[one.outcome]} ({one.where})"
        print(f"        {units.clean(words)}")
    if rule.more:
        print(f"        and {tables.count(rule.more, 'routes')} more")


def _outcome(rule: RuleSeen, answer: RouteAnswer) -> str:
    if rule.outcome == "no match":
        return f"does not match: {'; '.join(map(_mismatch, rule.mismatches))}"
    if rule.outcome == "no route":
        has = "no route for the flow" if rule.routes else "no route to the address"
        return f"matches, but its table {rule.table} has {has}"
    if rule.outcome == "decides" and rule.table is not None:
        return f"matches, and its table {rule.table} has a route"
    return {
        "decides": f"matches, and lets the program choose {answer.wanted}",
        "no table": "matches, and leads to no table: it only lets programs choose",
        "no choice": f"does not let programs choose {answer.wanted}",
        "no labels": "is for some hosts of a fleet, and the policy does not say this one's labels",
    }[rule.outcome]


def _mismatch(one: Mismatch) -> str:
    if one.what == "not":
        return f"it is not for {one.wanted}{'' if one.given else ', which was not said'}"
    if one.given is None:
        option = tables.option_of(one.what)
        return f"it asks for {one.what} {one.wanted}, and none was said ({option})"
    return f"{one.what} is {one.given}, and it asks for {one.wanted}"
