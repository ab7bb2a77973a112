# SPDX-License-Identifier: Apache-2.0
"""A fleet's single routes beside the policy in force: they mean what they would if they were
written in it, and a change of one leaves a million others alone.

What a policy would refuse, or takes more than routes, does not go here (NotBesideError): then they
are read and compiled with the policy, which also tells what is wrong with them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dmm_ebpf.rd.director.liveroutes import Edit
from dmm_ebpf.rd.director.routechange import Changing, beside_policy, is_more_than_routes
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.livetable import (
    MOST_FLEET,
    FleetRoutes,
    Key,
    LiveRoute,
    add_to,
)
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.routes import RouteTable
from dmm_ebpf.rd.policy.rule import REFUSING
from dmm_ebpf.rd.policy.values import Prefix
from dmm_ebpf.threads import in_thread

_FEW = 8  # prefixes; for more of them the whole table is looked through once


class NotBesideError(Exception):
    """They cannot stand beside that policy."""


def beside(policy: Policy, wanted: Sequence[LiveRoute], first_number: int) -> Policy:
    """A policy that is to come in force, with them beside it. NotBesideError."""
    made = FleetRoutes()
    keyed = _keyed(wanted)
    made.change((one._replace(number=first_number + n) for n, one in enumerate(keyed.values())), ())
    _check(policy, made, made.routes.values())
    return replace(policy, fleet=made)


async def change(here: Changing, wanted: Sequence[LiveRoute]) -> None:
    """Have these beside the policy in force, and no others; their numbers are to be given.
    NotBesideError, DmmError: it cannot be; then nothing has changed.
    """
    policy = here.policy
    if policy is None or policy.fleet is not here.live.fleet:
        raise NotBesideError("it has none beside it")
    keyed, there = _keyed(wanted), here.live.fleet.routes
    drop = [one for key, one in there.items() if not _is_same(one, keyed.get(key))]
    gone = {one.key for one in drop}
    put = [one for key, one in keyed.items() if key not in there or key in gone]
    if not put and not drop:
        return
    first, fleet = here.live.next_number, policy.fleet
    lacking = {one.table for one in put} - set(fleet.indexes)
    for table in (policy.tables[name] for name in lacking if name in policy.tables):
        fleet.indexes[table.name] = await in_thread(bulk.Prefixes, table)
    edit = Edit(tuple(one._replace(number=first + n) for n, one in enumerate(put)), tuple(drop))
    after = FleetRoutes(one for key, one in there.items() if key not in gone)
    after.indexes = fleet.indexes
    after.change(edit.put, ())
    if len(edit.put) > _FEW:
        await in_thread(_check, policy, after, edit.put)
    else:
        _check(policy, after, edit.put)
    if is_more_than_routes(here, edit, policy):
        raise NotBesideError("a stack is not there yet")
    await beside_policy(here, edit)


def _keyed(wanted: Iterable[LiveRoute]) -> dict[Key, LiveRoute]:
    """Each once. NotBesideError: two contradict."""
    found: dict[Key, LiveRoute] = {}
    for one in wanted:
        if found.setdefault(one.key, one).stack != one.stack:
            raise NotBesideError(f"{one.place} contradicts {found[one.key].place}")
    if len(found) > MOST_FLEET:
        raise NotBesideError(f"there are more than {MOST_FLEET}")
    return found


def _is_same(one: LiveRoute, other: LiveRoute | None) -> bool:
    return other is not None and (one.stack, one.place) == (other.stack, other.place)


def _check(policy: Policy, fleet: FleetRoutes, new: Iterable[LiveRoute]) -> None:
    """Whether the policy would take new, which are among fleet."""
    names = {*policy.stacks, *REFUSING}
    prefixes: dict[str, set[Prefix]] = {}
    for one in new:
        table = policy.tables.get(one.table)
        if table is None or table.is_action or one.stack not in names:
            raise NotBesideError(f"{one.place} has no table or no stack")
        prefixes.setdefault(one.table, set()).add(one.prefix)
    for name, at in prefixes.items():
        trials = (
            _few(policy.tables[name], fleet, at) if len(at) <= _FEW else _whole(policy, name, fleet)
        )
        for trial in trials:
            trial.index_duplicates()
            if trial.contradiction() is not None:
                raise NotBesideError(f"a route of table {name} contradicts another")


def _few(
    written: RouteTable, fleet: FleetRoutes, prefixes: Iterable[Prefix]
) -> Iterable[RouteTable]:
    """For each prefix, all that is there."""
    index = fleet.indexes.get(written.name) or bulk.Prefixes(written)
    for prefix in prefixes:
        trial = RouteTable(written.name)
        for route in _group(written, index.first(prefix.family, prefix.addr, prefix.length)):
            match = trial.intern_match(written.matches[written.match[route]])
            stack = trial.intern_stack(written.stack_names[written.stack[route]])
            trial.add(prefix, match, stack, 0)
        yield add_to(trial, fleet.of_prefix(written.name, prefix))


def _group(written: RouteTable, first: int) -> list[int]:
    """The routes of a prefix, by the first of them; without elements of sets."""
    if first == bulk.NO_ROUTE:
        return []
    there = [first] if written.links is None else bulk.chain(written.links, first)
    return [route for route in there if route < written.written]


def _whole(policy: Policy, name: str, fleet: FleetRoutes) -> Iterable[RouteTable]:
    """A table with all of a fleet's."""
    trial = copy.deepcopy(policy.as_written.tables[name])
    yield add_to(trial, (one for one in fleet.routes.values() if one.table == name))
