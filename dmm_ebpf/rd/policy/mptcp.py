# SPDX-License-Identifier: Apache-2.0
"""Where a stack with mptcp may not be named: whether a socket is one of MPTCP's is decided as
socket(2) makes it, when nothing is known but who makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dmm_ebpf.rd.policy.adaptive_route import may_serve
from dmm_ebpf.rd.policy.model import Auto, Stack, UserStack, is_mptcp
from dmm_ebpf.rd.policy.routes import RouteTable
from dmm_ebpf.rd.policy.rule import Rule
from dmm_ebpf.rd.policy.values import shown

EARLY = "whether a socket is one of MPTCP's is decided at socket(2)"
_LATER = ("mark", "dscp", "local_port", "interface")  # what a socket is given after that

Refusal = tuple[tuple[str | int, ...], str, str]  # the key, why, and what to do


def refusals(
    stacks: Mapping[str, Stack],
    tables: Mapping[str, RouteTable],
    autos: Mapping[str, Auto],
    rules: Mapping[int, Rule],
) -> Iterator[Refusal]:
    """All that is wrong with it. rules: by where they stand in the text."""
    multi = {name for name, one in stacks.items() if is_mptcp(one)}
    if not multi:
        return
    for name, stack in stacks.items():
        if isinstance(stack, UserStack) and stack.fallback in multi:
            why = f"{shown(stack.fallback)} has mptcp, and {EARLY}, when no stack is down yet"
            yield ("stacks", name, "fallback"), why, "name a kernel stack without mptcp"
    for table in tables.values():
        yield from _of_table(table, multi, stacks, autos)
    for index, rule in rules.items():
        yield from _of_rule(index, rule, multi, tables)


def _of_table(
    table: RouteTable, multi: set[str], stacks: Mapping[str, Stack], autos: Mapping[str, Auto]
) -> Iterator[Refusal]:
    path = ("tables", table.name)
    for named in table.stack_names:
        if named in autos and (several := multi & set(autos[named].candidates)):
            why = (
                f"the candidate {shown(min(several))} has mptcp, and {EARLY}, before any is chosen"
            )
            yield path, why, "name candidates without mptcp"
            return
    mine = [name for name in table.stack_names if name in multi]
    users = [
        name
        for name in may_serve(table.stack_names, autos)
        if isinstance(stacks.get(name), UserStack)
    ]
    if mine and users:
        why = (
            f"it has routes to {mine[0]}, which has mptcp, and to the user stack {users[0]}, which "
            f"does not carry MPTCP; {EARLY}, before its peer is known"
        )
        yield path, why, "give each a table and a rule of its own"


def _of_rule(
    index: int, rule: Rule, multi: set[str], tables: Mapping[str, RouteTable]
) -> Iterator[Refusal]:
    for name in rule.choose:
        if name in multi:
            why = f"{shown(name)} has mptcp, and {EARLY}, before a program can choose"
            hint = (
                "a program that chooses asks for it itself: socket(…, SOCK_STREAM, IPPROTO_MPTCP)"
            )
            yield ("rules", index, "choose"), why, hint
    if not rule.table or rule.forwards or rule.table not in tables:
        return
    mine = [name for name in tables[rule.table].stack_names if name in multi]
    for key in _LATER if mine else ():
        if getattr(rule, key) is not None:
            why = f"the table leads to {mine[0]}, which has mptcp, and {EARLY}, before it has any"
            yield ("rules", index, key), why, "match by cgroup, uid, gid, comm or executable"
