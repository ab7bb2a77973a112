# SPDX-License-Identifier: Apache-2.0
"""What of a policy does nothing, or not what it looks like: rules and routes that are never
reached, stacks and tables that nobody uses, a pattern where none is matched.

Pure, of a policy that is right. A warning is only given for what holds on every host. Rules
are compared with each other, so it is at most DMM_MAX_RULES squared, and routes only where
that stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.evaluate import is_below
from dmm_ebpf.rd.policy.model import BUILT_IN, KernelStack, Policy, RejectStack, Rule, UserStack
from dmm_ebpf.rd.policy.routes import Match, RouteTable, port_rank
from dmm_ebpf.rd.policy.values import PORT_MAX, TCP, UDP, Mark, Prefix, UidRange, is_named

_GLOB = frozenset("*?[")
_MAX_PAIRS = 200_000  # of routes of two tables that are compared with each other
_MAX_GROUP = 64  # of routes of one prefix


@dataclass(frozen=True)
class Warned:
    """place: as in "policy.toml:12". text: what is there, and what becomes of it."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def warnings(policy: Policy) -> Iterator[Warned]:
    """All that there is to warn of, rules first. It may be much: one for each route."""
    if not policy.rules:
        yield Warned(
            policy.source, "it has no rules, so all flows are left to the kernel as they are"
        )
    for index, rule in enumerate(policy.rules):
        yield from _of_rule(policy, index, rule)
    for name, stack in policy.stacks.items():
        if not isinstance(stack, RejectStack):
            yield from _of_stack(policy, name, stack)
    yield from _unused(policy)
    for table in policy.tables.values():
        yield from _of_table(policy, table)


def _of_rule(policy: Policy, index: int, rule: Rule) -> Iterator[Warned]:
    name = policy.rule_text(index)
    if rule.comm is not None and _GLOB & set(rule.comm):
        place = policy.place("rules", index, "comm")
        yield Warned(
            place,
            f'rule {name}: "{rule.comm}" is compared letter by letter, and matches only a process of that name',
        )
    if rule.cgroup is not None and _GLOB & set(rule.cgroup):
        place = policy.place("rules", index, "cgroup")
        yield Warned(
            place, f"rule {name}: {rule.cgroup} is a path, and matches only a cgroup of that name"
        )
    earlier = _shadowed_by(policy, index, rule)
    if earlier:
        names = " and ".join(policy.rule_text(one) for one in earlier)
        yield Warned(
            policy.place("rules", index), f"rule {name} is never reached: {names} comes before it"
        )


def _shadowed_by(policy: Policy, index: int, rule: Rule) -> list[int]:
    """The earlier rules that together decide whatever the rule would; none: it
    may decide something.
    """
    found: list[int] = []
    for direction in (C.DMM_DIR_CONNECT, C.DMM_DIR_LISTEN, C.DMM_DIR_FORWARD):
        if not rule.direction & direction:
            continue
        one = next(
            (i for i in range(index) if _decides(policy, policy.rules[i], rule, int(direction))),
            None,
        )
        if one is None:
            return []
        found.append(one)
    return list(dict.fromkeys(found))


def _decides(policy: Policy, earlier: Rule, rule: Rule, direction: int) -> bool:
    if not earlier.direction & direction or not _takes_in(earlier, rule):
        return False
    # A listener has the table of the first rule that matches, whether that has a route or not.
    return direction == C.DMM_DIR_LISTEN or _covers(
        policy.tables[earlier.table], policy.tables[rule.table]
    )


def _takes_in(wide: Rule, narrow: Rule) -> bool:
    """Whether every flow that narrow matches is matched by wide, too."""
    keys = ("uid", "mark", "cgroup", "comm", "netns", "sources", "in_interface")
    if any(getattr(wide, key) is not None and getattr(narrow, key) is None for key in keys):
        return False
    return (
        (not wide.uid or not narrow.uid or _uids_within(narrow.uid, wide.uid))
        and (not wide.mark or not narrow.mark or _mark_within(narrow.mark, wide.mark))
        and (wide.cgroup is None or is_below(narrow.cgroup, wide.cgroup))
        and (
            not wide.sources
            or all(any(_within(n, w) for w in wide.sources) for n in narrow.sources or ())
        )
        and (
            not wide.in_interface
            or all(_named(n, wide.in_interface) for n in narrow.in_interface or ())
        )
        and wide.comm in {None, narrow.comm}
        and wide.netns in {None, narrow.netns}
    )


def _uids_within(narrow: UidRange, wide: UidRange) -> bool:
    return wide.first <= narrow.first and narrow.last <= wide.last


def _mark_within(narrow: Mark, wide: Mark) -> bool:
    return wide.mask & ~narrow.mask == 0 and narrow.value & wide.mask == wide.value


def _named(pattern: str, patterns: tuple[str, ...]) -> bool:
    """Whether every name of pattern is one of patterns; no only means that it could not be told."""
    return pattern in patterns or (not _GLOB & set(pattern) and is_named(pattern, patterns))


def _within(narrow: Prefix, wide: Prefix) -> bool:
    bits = 32 if wide.family == 4 else 128
    shift = bits - wide.length
    return (
        narrow.family == wide.family
        and narrow.length >= wide.length
        and narrow.addr >> shift == wide.addr >> shift
    )


def _covers(wide: RouteTable, narrow: RouteTable) -> bool:
    """Whether wide has a route for every flow for which narrow has one."""
    if wide.name == narrow.name:
        return True
    if len(wide) * len(narrow) > _MAX_PAIRS:
        return False
    routes = list(wide)
    return all(
        any(_within(n.prefix, w.prefix) and _asks_no_more(w.match, n.match) for w in routes)
        for n in narrow
    )


def _asks_no_more(wide: Match, narrow: Match) -> bool:
    if wide.proto not in {0, narrow.proto}:
        return False
    if not wide.ports:
        return True
    asked = narrow.ports or ((0, PORT_MAX),)
    return all(any(a <= first and last <= b for a, b in wide.ports) for first, last in asked)


def _of_stack(policy: Policy, name: str, stack: KernelStack | UserStack) -> Iterator[Warned]:
    if stack.user_timeout_ms is not None and stack.keepalive_probes is not None:
        why = f"stack {name}: keepalive_probes does nothing, since with a user time-out Linux counts no probes"
        yield Warned(policy.place("stacks", name, "keepalive_probes"), why)


def _unused(policy: Policy) -> Iterator[Warned]:
    used = {name for table in policy.tables.values() for name in table.stack_names}
    used |= {stack.fallback for stack in policy.user_stacks().values()}
    for name in policy.stacks:
        if name not in used and name not in BUILT_IN:
            yield Warned(
                policy.place("stacks", name), f"stack {name} is used by no route and no fallback"
            )
    looked_up = {rule.table for rule in policy.rules}
    for name, table in policy.tables.items():
        if name not in looked_up:
            where = ("tables", name, "routes", 0) if table.inline_count else ("tables", name)
            yield Warned(policy.place(*where), f"table {name} is looked up by no rule")
        if not len(table):
            yield Warned(policy.place("tables", name), f"table {name} has no routes")


def _of_table(policy: Policy, table: RouteTable) -> Iterator[Warned]:
    for group in table.duplicates.values():
        for index in _never_best(table, group):
            yield Warned(
                _place(policy, table, index),
                f"table {table.name}: route {table[index].text()} is never reached: others of its prefix take "
                "all that it could",
            )
    users = {
        i for i, name in enumerate(table.stack_names) if isinstance(policy.stacks[name], UserStack)
    }
    by_udp = {i for i, match in enumerate(table.matches) if match.proto == UDP}
    if not users or not by_udp:
        return
    for index, (stack, match) in enumerate(zip(table.stack, table.match, strict=True)):
        # "default" is two routes of one place, which are one behind the other.
        if (
            stack in users
            and match in by_udp
            and not (index and table.where(index) == table.where(index - 1))
        ):
            yield Warned(
                _place(policy, table, index),
                f"table {table.name}: route {table[index].text()} leads to {table.stack_names[stack]}, which carries "
                "TCP alone: the kernel serves it",
            )


def _never_best(table: RouteTable, group: list[int]) -> list[int]:
    """Of routes of one prefix those that are for no protocol and port the best, in the
    order of find_route().
    """
    if len(group) > _MAX_GROUP:
        return []
    spans = [
        (
            index,
            proto,
            first,
            last,
            (port_rank(match.ports, first, last), bool(match.proto), -index),
        )
        for index in group
        for match in (table.matches[table.match[index]],)
        for proto in ((match.proto,) if match.proto else (TCP, UDP))
        for first, last in match.ports or ((0, PORT_MAX),)
    ]
    best: set[int] = set()
    for proto in (TCP, UDP):
        ours = [span for span in spans if span[1] == proto]
        for port in {edge for span in ours for edge in (span[2], span[3] + 1)}:
            there = [span for span in ours if span[2] <= port <= span[3]]
            if there:
                best.add(max(there, key=lambda span: span[4])[0])
    return [index for index in group if index not in best]


def _place(policy: Policy, table: RouteTable, index: int) -> str:
    if index < table.inline_count:
        return policy.place("tables", table.name, "routes", table.origin[index])
    return table.where(index)
