# SPDX-License-Identifier: Apache-2.0
"""In what two policies differ, by what they mean and not by how they are written.

Owns difference(): stacks by name and key, rules in their order, routes as a set, since the order of
a table's routes means nothing (routes.py). Pure.
"""

from __future__ import annotations

import difflib
import json
from array import array
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.model import BUILT_IN, Policy, Stack
from dmm_ebpf.rd.policy.named import Named
from dmm_ebpf.rd.policy.routes import Match, Route, RouteTable, route_text
from dmm_ebpf.records.policy import Change, Sign


def difference(old: Policy, new: Policy) -> Iterator[Change]:
    """Stacks first, then rules, then routes by table; nothing when both mean the same. A named
    set is compared by its name, whatever it has.
    """
    old, new = old.as_written, new.as_written
    yield from _stacks(old, new)
    yield from _rules(old, new)
    for name in dict.fromkeys([*old.tables, *new.tables]):
        yield from _routes(name, _written(old, name), _written(new, name))


def _stack_text(name: str, stack: Stack) -> str:
    options = stack.options()
    words = [f"{key} = {_shown(value)}" for key, value in sorted(options.items())]
    return ", ".join([f"{name}: kind = {_shown(stack.kind)}", *words])


def _shown(value: Any) -> str:
    """A value as a policy has it, which TOML writes as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def _stacks(old: Policy, new: Policy) -> Iterator[Change]:
    names = dict.fromkeys([*old.stacks, *new.stacks])
    for name in names:
        before, after = old.stacks.get(name), new.stacks.get(name)
        if before == after or (before or after) == BUILT_IN.get(name):
            continue
        if before is not None:
            yield Change("-", "stack", _stack_text(name, before))
        if after is not None:
            yield Change("+", "stack", _stack_text(name, after))


def _rule_lines(policy: Policy) -> list[str]:
    named = ((rule.name, rule.text(), "" if rule.action else rule.table) for rule in policy.rules)
    return [
        f"{f'{name}: ' if name else ''}{text}{f' -> table {table}' if table else ''}"
        for name, text, table in named
    ]


def _rules(old: Policy, new: Policy) -> Iterator[Change]:
    """A rule that only moved is told of twice: its place decides."""
    before, after = _rule_lines(old), _rule_lines(new)
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    for tag, first, last, new_first, new_last in matcher.get_opcodes():
        if tag == "equal":
            continue
        for index in range(first, last):
            yield Change("-", "rule", f"{index + 1}, {before[index]}")
        for index in range(new_first, new_last):
            yield Change("+", "rule", f"{index + 1}, {after[index]}")


def _written(policy: Policy, name: str) -> RouteTable | None:
    """A table, unless it is an action's, of which the rule tells."""
    table = policy.tables.get(name)
    return None if table is None or table.is_action else table


def _of_sets(table: RouteTable | None) -> dict[tuple[Named, Match, str], None]:
    """The routes to named sets."""
    if table is None:
        return {}
    sets = ((s.to, table.matches[s.match], table.stack_names[s.stack]) for s in table.sets)
    return dict.fromkeys(sets)


def _only_in(mine: RouteTable | None, other: RouteTable | None) -> Iterator[Route]:
    """The routes that mine has, whether once or more often, and other has not."""
    if mine is None:
        return
    told: set[Route] = set()
    for index in range(len(mine)) if other is None else _lacking(other, mine):
        route = mine[index]._replace(where="")
        if route not in told:
            told.add(route)
            yield route


def _lacking(table: RouteTable, other: RouteTable) -> Iterator[int]:
    """The routes of other that table has not: a million, most of them alike, at once."""
    matches = _numbers(table.matches, other.matches)
    stacks = _numbers(table.stack_names, other.stack_names)
    return bulk.Prefixes(table).lack(other, matches, stacks)


def _numbers(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> array[int]:
    """Where each of theirs is among ours."""
    places = {one: number for number, one in enumerate(ours)}
    return array("I", (places.get(one, bulk.NO_ROUTE) for one in theirs))


def _routes(name: str, old: RouteTable | None, new: RouteTable | None) -> Iterator[Change]:
    both: tuple[tuple[Sign, RouteTable | None, RouteTable | None], ...] = (
        ("-", old, new),
        ("+", new, old),
    )
    for sign, mine, other in both:
        for route in _only_in(mine, other):
            yield Change(sign, "route", f"{route.text()} -> {route.stack} (table {name})")
        sets = _of_sets(other)
        for to, match, stack in _of_sets(mine):
            if (to, match, stack) not in sets:
                text = f"{route_text(to, match)} -> {stack} (table {name})"
                yield Change(sign, "route", text)
