# SPDX-License-Identifier: Apache-2.0
"""A request for other live routes (`dmm-ebpf route add` and the like): what it asks for, why it is
refused, and the way that it takes.

Routes alone are put in force beside the policy, whose routes nobody looks at (liveroutes.py). What
needs more than that, the processes of a stack that no route has named yet, or programs that look at
datagrams, is put in force with the policy, as another one would be.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dmm_ebpf import records
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.loader.spec import Maps
from dmm_ebpf.rd.director import sync
from dmm_ebpf.rd.director.generations import Generations
from dmm_ebpf.rd.director.liveroutes import Edit, Live
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.rd.policy.compile import datagrams_of
from dmm_ebpf.rd.policy.livetable import (
    MOST_LIVE,
    Key,
    LiveRoute,
    LiveRoutes,
    contradiction,
    find_written,
)
from dmm_ebpf.rd.policy.model import Policy, UserStack
from dmm_ebpf.rd.policy.routes import Match, RouteTable, route_text
from dmm_ebpf.rd.policy.rule import REFUSING
from dmm_ebpf.rd.policy.values import (
    PROTOCOL_NAMES,
    Prefix,
    ValueRefusedError,
    parse_ports,
    parse_prefix,
    parse_protocol,
    ports_text,
    shown,
)

VERBS = ("add", "replace", "del")
MOST_GENERATIONS = 4096  # of one policy that are known, unless flows have more
MOST_AT_ONCE = 4096  # routes of one request
_PAGE = 2048


@dataclass(frozen=True)
class Changing:
    """What an instance has, whose policy nobody else changes now. apply: puts it in force anew,
    with the live routes that there are. took: called when it has other elements.
    used: the generations under which an open flow was decided.
    """

    state: State
    policy: Policy | None
    maps: Maps
    live: Live
    generations: Generations
    apply: Callable[[Policy], Awaitable[int]]
    took: Callable[[Policy], object]
    used: Callable[[], set[int]]


async def change(here: Changing, params: Mapping[str, Any]) -> records.policy.RoutesChanged:
    """Do what is asked. DmmError: it cannot be; then nothing has changed."""
    began, policy, verb = time.monotonic(), here.policy, params.get("verb")
    if policy is None:
        why = "the instance has no policy, and so no table and no stack"
        raise UsageError("change a route", why=why, hint="apply one: dmm-ebpf policy apply FILE")
    edit = here.live.everything() if verb == "flush" else _edit(here.live, policy, params)
    if not edit.put and not edit.drop:
        generation = here.state.generation
    elif is_more_than_routes(here, edit, policy):
        generation = await with_policy(here, edit, policy)
    else:
        generation = await beside_policy(here, edit)
    took = round(1000 * (time.monotonic() - began), 3)
    instance = here.state.instance
    added, removed = ([row(instance, one) for one in part] for part in edit)
    return records.policy.RoutesChanged(
        instance, generation, added, removed, len(here.live.routes), took
    )


def is_more_than_routes(here: Changing, edit: Edit, policy: Policy) -> bool:
    """Whether it takes the whole policy."""
    put = LiveRoutes(edit.put)
    head = here.maps.heads[here.state.generation & 1]
    asked = datagrams_of(policy, put) & ~int(head.datagrams)
    lacking = (
        name not in policy.stacks or isinstance(policy.stacks[name], UserStack)
        for name in set(put.stacks) - set(policy.routed_stacks())
    )
    return bool(asked) or any(lacking)


async def with_policy(here: Changing, edit: Edit, policy: Policy) -> int:
    """In the journal before it is in force: else a director that is killed right behind that would
    leave a route that the next one knows nothing of.
    """
    here.live.journal.append(here.state.generation, edit)
    here.live.note(edit)
    try:
        return await here.apply(policy)
    except BaseException:
        here.live.note(edit.undo())
        with contextlib.suppress(DmmError):  # it is as if the director were killed here
            here.live.journal.append(here.state.generation, edit.undo())
        raise


async def beside_policy(here: Changing, edit: Edit) -> int:
    """Put it in force; the generation that it is."""
    before = sync.current_generation(here.maps)
    generation = await here.live.put_in_force(edit, before)
    switch(here, before, generation)
    here.live.note(edit)
    return generation


def switch(here: Changing, before: int, generation: int) -> None:
    """Put in force what is written beside the policy for that generation."""
    sync.set_generation(here.maps, generation)
    here.live.left(before, generation)
    here.state.generation = generation
    here.generations.again(generation, before)
    if len(here.generations) > MOST_GENERATIONS:
        here.generations.keep({generation} | here.used())


# -- what a request asks for --


def _edit(live: Live, policy: Policy, params: Mapping[str, Any]) -> Edit:
    verb, rows = params.get("verb"), params.get("routes")
    if verb not in VERBS or not isinstance(rows, list) or not 0 < len(rows) <= MOST_AT_ONCE:
        why = f"expected {', '.join(VERBS)} or flush, and 1 to {MOST_AT_ONCE} routes"
        raise UsageError("change a route", why=why)
    put: dict[Key, LiveRoute] = {}
    drop: dict[Key, LiveRoute] = {}
    seen: set[Key] = set()
    for one in (one for said in rows for one in _asked(verb, said, policy)):
        if one.key in seen:
            raise UsageError(_what(verb, one), why="the request names it twice")
        seen.add(one.key)
        there = live.routes.routes.get(one.key)
        _check(verb, one, there, live, policy)
        if there is not None and there.stack == one.stack and verb == "replace":
            continue
        if there is not None:
            drop[one.key] = there
        if verb != "del":
            put[one.key] = one._replace(number=live.next_number + len(put))
    edit = Edit(tuple(put.values()), tuple(drop.values()))
    _check_all(live, verb, edit)
    return edit


def _asked(verb: str, said: object, policy: Policy) -> list[LiveRoute]:
    """One route of a request; of "default" both."""
    if not isinstance(said, dict):
        raise UsageError("change a route", why=f"{shown(said)} is no route")
    row = {key: said.get(key) for key in ("to", "proto", "ports", "stack", "table")}
    for key, value in row.items():
        if value is not None and not isinstance(value, str):
            raise UsageError("change a route", why=f"{key} {shown(value)} is no text")
    what = f"{verb} the route to {row['to']}"
    try:
        prefixes = parse_prefix(row["to"] or "")
        ports = parse_ports(row["ports"]) if row["ports"] else ()
        match = Match(parse_protocol((row["proto"] or "any").lower()), ports)
    except ValueRefusedError as error:
        raise UsageError(what, why=error.why, hint=error.hint) from None
    table, stack = (
        _table_of(what, row["table"], policy),
        _stack_of(what, verb, row["stack"], policy),
    )
    return [LiveRoute(0, table, prefix, match, stack) for prefix in prefixes]


def _table_of(what: str, named: str | None, policy: Policy) -> str:
    written = [name for name, table in policy.tables.items() if not table.is_action]
    if named is None and len(written) == 1:
        return written[0]
    known = ", ".join(written) or "none"
    if named is None:
        why = f"the policy in force has {len(written)} tables, and none is named"
        raise UsageError(what, why=why, hint=f"say table and one of {known}")
    if named not in written:
        why = f"the policy in force has no table {shown(named)}"
        raise UsageError(what, why=why, hint=f"known are {known}")
    return named


def _stack_of(what: str, verb: str, named: str | None, policy: Policy) -> str:
    known = list(dict.fromkeys([*policy.stacks, *REFUSING]))
    if named is None and verb == "del":
        return ""
    if named is None:
        raise UsageError(
            what, why="no stack is named", hint=f"say stack and one of {', '.join(known)}"
        )
    if named not in known:
        why = f"the policy in force has no stack {shown(named)}"
        raise UsageError(what, why=why, hint=f"known are {', '.join(known)}")
    return named


def _check(verb: str, one: LiveRoute, there: LiveRoute | None, live: Live, policy: Policy) -> None:
    """Whether it is there, or not, as the verb wants it."""
    table = policy.tables[one.table]
    if verb == "add" and there is not None:
        why = f"it exists (EEXIST), with stack {there.stack}"
        raise UsageError(_what(verb, one), why=why, hint="route replace changes it")
    if verb == "add" and (index := find_written(table, one.prefix, one.match)) is not None:
        why = f"it exists (EEXIST): {table.where(index)} has it, with stack {table[index].stack}"
        hint = "route replace puts a live route in its place"
        raise UsageError(_what(verb, one), why=why, hint=hint)
    if verb == "del" and there is None:
        why, hint = _whose(one, live, policy)
        raise UsageError(_what(verb, one), why=why, hint=hint)
    if verb == "del" and there is not None and one.stack not in {"", there.stack}:
        why = f"it leads to stack {there.stack} (ESRCH)"
        raise UsageError(_what(verb, one), why=why, hint="name that one, or leave the stack out")


def _whose(one: LiveRoute, live: Live, policy: Policy) -> tuple[str, str]:
    """Why a route is not there to be deleted, and what to do: it may be another's."""
    table = policy.tables[one.table]
    index = find_written(table, one.prefix, one.match)
    if index is not None:
        why = f"it is the policy's own, {table.where(index)}, and no live one"
        return why, "change the policy, or route replace it"
    fleets = live.fleet.routes.get(one.key)
    if fleets is not None:
        why = f"it is the fleet's, {fleets.place} in etcd, and no live one"
        return why, "change it there for all hosts, or route replace it on this one"
    for number, named in enumerate(table.sets):
        has = policy.elements.get(named.to, ())
        if table.matches[named.match] == one.match and one.prefix in has:
            why = f"it is what {named.to} has now, by {table.where_set(number)}, and no live one"
            return why, "change that set or name, or route replace it"
    return "there is no such live route (ESRCH)", "dmm-ebpf route show --live lists them"


def _check_all(live: Live, verb: str, edit: Edit) -> None:
    """Whether what would be there then can be."""
    if len(live.routes) + len(edit.put) - len(edit.drop) > MOST_LIVE:
        why = f"an instance has at most {MOST_LIVE} live routes"
        raise DmmError(f"{verb} routes", why=why, hint="put them in the policy")
    dropped = {one.key for one in edit.drop}
    wanted: dict[tuple[str, Prefix], list[LiveRoute]] = {}
    for one in edit.put:
        wanted.setdefault((one.table, one.prefix), []).append(one)
    for at, routes in wanted.items():
        there = [one for one in live.routes.of_prefix(*at) if one.key not in dropped]
        listed = [*there, *routes]
        found = contradiction(listed) if len(listed) > 1 else None
        if found is not None:
            first, second = listed[found.first], listed[found.second]
            why = f"the live route {first.text()} sends port {found.first_port} to stack {first.stack}"
            hint = "delete that one first, or name other ports"
            raise UsageError(_what(verb, second), why=why, hint=hint)


def _what(verb: str, one: LiveRoute) -> str:
    return f"{verb} the route {route_text(one.prefix, one.match)} of table {one.table}"


# -- as listings have routes --


def row(instance: str, one: LiveRoute) -> records.policy.RouteRow:
    """A live route."""
    return _row(instance, one.prefix, one.match, one.stack, one.table)


def _row(
    instance: str, to: object, match: Match, stack: str, table: str, **more: Any
) -> records.policy.RouteRow:
    proto = PROTOCOL_NAMES[match.proto] if match.proto else None
    ports = ports_text(match.ports) or None
    return records.policy.RouteRow(instance, str(to), proto, ports, stack, table, **more)


async def listing(here: Changing) -> AsyncIterator[list[records.policy.RouteRow]]:
    """The live routes, then those of the policy in force, some at a time."""
    instance = here.state.instance
    yield [row(instance, one) for one in here.live.routes.routes.values()]
    yield [
        _row(
            *(instance, one.prefix, one.match, one.stack, one.table),
            live=False,
            where=one.place,
            fleet=True,
        )
        for one in here.live.fleet.routes.values()
    ]
    for table in here.policy.tables.values() if here.policy else ():
        for rows in _pages(instance, table):
            yield rows
            await asyncio.sleep(0)


def _pages(instance: str, table: RouteTable) -> Iterator[list[records.policy.RouteRow]]:
    """What a table of a policy says, as it is written: a set is one route."""
    if table.is_action:
        return
    for first in range(0, table.written, _PAGE):
        routes = map(table.__getitem__, range(first, min(first + _PAGE, table.written)))
        yield [
            _row(instance, r.prefix, r.match, r.stack, table.name, live=False, where=r.where)
            for r in routes
        ]
    for number, one in enumerate(table.sets):
        match, stack = table.matches[one.match], table.stack_names[one.stack]
        where = table.where_set(number)
        yield [_row(instance, one.to, match, stack, table.name, live=False, where=where)]
