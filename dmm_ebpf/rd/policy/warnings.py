# SPDX-License-Identifier: Apache-2.0
"""What of a policy does nothing, or not what it looks like: rules and routes that are never
reached, stacks and tables that nobody uses, a pattern where none is matched.

Pure, of a policy that is right. A warning is only given for what holds on every host. Rules
are compared with each other, so it is at most DMM_MAX_RULES squared, and routes only where
that stays cheap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from dmm_ebpf.abi import C
from dmm_ebpf.kit.names import TRANSPORT, is_plugin
from dmm_ebpf.rd.policy.cgroupglob import implies, is_glob
from dmm_ebpf.rd.policy.model import BUILT_IN, KernelStack, Policy, RejectStack, UserStack
from dmm_ebpf.rd.policy.named import Named
from dmm_ebpf.rd.policy.routes import Match, RouteTable, port_rank, route_text
from dmm_ebpf.rd.policy.rule import Conditions, Rule
from dmm_ebpf.rd.policy.values import PORT_MAX, TCP, UDP, Prefix, is_named
from dmm_ebpf.records.policy import Warned

# Keys of a user stack, and the value that asks for what TCP has, and none that is a plug-in
_TCP_ALONE = {"syn_cookies": "always", "negotiate": "allow", "latency": "low"}
_MAX_PAIRS = 200_000  # of routes of two tables that are compared with each other
_MAX_GROUP = 64  # of routes of one prefix


def warnings(policy: Policy) -> Iterator[Warned]:
    """All that there is to warn of, rules first. It may be much: one for each route."""
    if not policy.rules:
        yield Warned(
            policy.source, "it has no rules, so all flows are left to the kernel as they are"
        )
    for at, told in policy.old_names_told():
        yield Warned(at, told)
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
    for one, path in ((rule, ()), *((one, ("not",)) for one in rule.excepted)):
        for comm in one.comm or ():
            if is_glob(comm):
                why = f'"{comm}" is compared letter by letter, and matches only a process of that name'
                place = policy.place("rules", index, *path, "comm")
                yield Warned(place, f"rule {name}: {why}")
        for value in one.executable or ():
            if is_glob(value):
                why = f"{value} is a path, and matches only a file of that name"
                place = policy.place("rules", index, *path, "executable")
                yield Warned(place, f"rule {name}: {why}")
    if any(_asks_for(rule, one) for one in rule.excepted):
        place = policy.place("rules", index, "not")
        yield Warned(place, f"rule {name} matches nothing: its not takes away all that it is for")
    earlier = _shadowed_by(policy, index, rule)
    if earlier:
        names = " and ".join(f"rule {policy.rule_text(one)}" for one in earlier)
        comes = "comes" if len(earlier) == 1 else "come"
        yield Warned(
            policy.place("rules", index), f"rule {name} is never reached: {names} {comes} before it"
        )


def _shadowed_by(policy: Policy, index: int, rule: Rule) -> list[int]:
    """The earlier rules that together decide whatever the rule would; none: it
    may decide something, or lets programs choose.
    """
    if rule.choose:
        return []
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
    if not earlier.direction & direction or not earlier.table or not _takes_in(earlier, rule):
        return False
    # A listener has the table of the first rule that matches, whether that has a route or not.
    return direction == C.DMM_DIR_LISTEN or _covers(
        policy.tables[earlier.table], policy.tables[rule.table]
    )


def _takes_in(wide: Rule, narrow: Rule) -> bool:
    """Whether every flow that narrow matches is matched by wide, too."""
    if wide.hosts not in {None, narrow.hosts}:
        return False
    if any(one not in narrow.excepted for one in wide.excepted):
        return False
    for key in ("sources", "in_interface"):
        if getattr(wide, key) is not None and getattr(narrow, key) is None:
            return False
    sources = narrow.sources or ()
    if wide.sources and not all(any(_is_from(n, w) for w in wide.sources) for n in sources):
        return False
    names = narrow.in_interface or ()
    if wide.in_interface and not all(_named(n, wide.in_interface) for n in names):
        return False
    return _asks_for(narrow, wide)


# Whether a value of a condition is never so without another
_IMPLIES: dict[str, Callable[[Any, Any], bool]] = {
    "cgroup": implies,
    "uid": lambda narrow, wide: wide.first <= narrow.first and narrow.last <= wide.last,
    "gid": lambda narrow, wide: wide.first <= narrow.first and narrow.last <= wide.last,
    "mark": lambda narrow, wide: (
        wide.mask & ~narrow.mask == 0 and narrow.value & wide.mask == wide.value
    ),
    "local_port": lambda narrow, wide: wide[0] <= narrow[0] and narrow[1] <= wide[1],
}


def _asks_for(narrow: Conditions, wide: Conditions) -> bool:
    """Whether whatever narrow asks for is asked by wide, too."""
    for key, wanted in wide.asked():
        values: tuple[Any, ...] | None = getattr(narrow, key)
        implies: Callable[[Any, Any], bool] = _IMPLIES.get(key, operator.eq)
        if values is None or not all(any(implies(n, w) for w in wanted) for n in values):
            return False
    return True


def _named(pattern: str, patterns: tuple[str, ...]) -> bool:
    """Whether every name of pattern is one of patterns; no only means that it could not be told."""
    return pattern in patterns or (not is_glob(pattern) and is_named(pattern, patterns))


def _is_from(narrow: Prefix | Named, wide: Prefix | Named) -> bool:
    """Whether all of one source is of another; of a set only itself is known to be."""
    if not (isinstance(narrow, Prefix) and isinstance(wide, Prefix)):
        return narrow == wide
    return _within(narrow, wide)


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
    if narrow.sets or len(wide) * len(narrow) > _MAX_PAIRS:
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
    if isinstance(stack, UserStack) and is_plugin(stack.transport, TRANSPORT):
        for key, value in _TCP_ALONE.items():
            if getattr(stack, key) == value and not (stack.udp and key != "syn_cookies"):
                why = f'stack {name}: {key} = "{value}" does nothing with a transport that is a plug-in'
                yield Warned(policy.place("stacks", name, key), why)


def _unused(policy: Policy) -> Iterator[Warned]:
    used = set(policy.routed_stacks())
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
        if not len(table) and not table.sets:
            yield Warned(policy.place("tables", name), f"table {name} has no routes")


def _of_table(policy: Policy, table: RouteTable) -> Iterator[Warned]:
    for group in table.groups():
        for index in _never_best(table, group):
            yield Warned(
                _place(policy, table, index),
                f"table {table.name}: route {table[index].text()} is never reached: others of its prefix take "
                "all that it could",
            )
    users = {
        i
        for i, name in enumerate(table.stack_names)
        if isinstance(named := policy.stacks.get(name), UserStack) and not named.udp
    }
    by_udp = {i for i, match in enumerate(table.matches) if match.proto == UDP}
    if not users or not by_udp:
        return
    for set_index, one in enumerate(table.sets):
        if one.stack in users and one.match in by_udp:
            text = route_text(one.to, table.matches[one.match])
            place = _set_place(policy, table, set_index)
            yield _tcp_alone(table, place, text, one.stack)
    for index, (stack, match) in enumerate(zip(table.stack, table.match, strict=True)):
        # "default" is two routes of one place, which are one behind the other.
        if (
            stack in users
            and match in by_udp
            and not (index and table.where(index) == table.where(index - 1))
        ):
            place = _place(policy, table, index)
            yield _tcp_alone(table, place, table[index].text(), stack)


def _tcp_alone(table: RouteTable, place: str, route: str, stack: int) -> Warned:
    return Warned(
        place,
        f"table {table.name}: route {route} leads to {table.stack_names[stack]}, which carries "
        "TCP alone: the kernel serves it; a stack of ours with udp = true carries UDP, too",
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


def _set_place(policy: Policy, table: RouteTable, index: int) -> str:
    one = table.sets[index]
    if one.inline:
        return policy.place("tables", table.name, "routes", one.origin)
    return table.where_set(index)
