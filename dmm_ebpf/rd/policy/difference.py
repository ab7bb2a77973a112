# SPDX-License-Identifier: Apache-2.0
"""In what two policies differ, by what they mean and not by how they are written.

Owns difference(): stacks by name and key, rules in their order, routes as a set, since the order of
a table's routes means nothing (routes.py). Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from dmm_ebpf.rd.policy.model import BUILT_IN, Policy, Stack
from dmm_ebpf.rd.policy.routes import Route, RouteTable, route_text
from dmm_ebpf.records.policy import Change, Sign


def difference(old: Policy, new: Policy) -> Iterator[Change]:
    """Stacks first, then rules, then routes by table; nothing when both mean the same. An nft set
    is compared by its name, whatever it has.
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
    return f'"{value}"' if isinstance(value, str) else str(value)


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


def _route_set(table: RouteTable | None) -> dict[tuple[Any, ...], None]:
    if table is None:
        return {}
    sets = ((s.to, table.matches[s.match], table.stack_names[s.stack]) for s in table.sets)
    return dict.fromkeys([*map(_key, table), *sets])


def _key(route: Route) -> tuple[Any, ...]:
    return (route.prefix, route.match, route.stack)


def _routes(name: str, old: RouteTable | None, new: RouteTable | None) -> Iterator[Change]:
    before, after = _route_set(old), _route_set(new)
    signs: tuple[tuple[Sign, dict[tuple[Any, ...], None], dict[tuple[Any, ...], None]], ...] = (
        ("-", before, after),
        ("+", after, before),
    )
    for sign, mine, other in signs:
        for to, match, stack in mine:
            if (to, match, stack) not in other:
                text = f"{route_text(to, match)} -> {stack} (table {name})"
                yield Change(sign, "route", text)
