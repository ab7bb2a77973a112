# SPDX-License-Identifier: Apache-2.0
"""What stands beside a policy as the overlay takes it: live routes, and what sets have. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.compile import route_bases
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.livetable import LiveRoute
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.named import Named
from dmm_ebpf.rd.policy.overlay import Own, Place
from dmm_ebpf.rd.policy.rule import REFUSING
from dmm_ebpf.rd.policy.values import Prefix

Owned = tuple[Place, Own]


def stays(table: str, stack: str, policy: Policy) -> bool:
    """Whether a live route of that table and stack can stand beside a policy."""
    return table in policy.tables and (stack in policy.stacks or stack in REFUSING)


def of_live(one: LiveRoute, ids: IdSpace) -> Owned:
    """A live route, or a fleet's."""
    origin = C.DMM_RANK_POLICY if one.place else C.DMM_RANK_LIVE
    own = Own(one.match, ids.stack(one.stack), one.recorded, origin, one.number)
    return Place.of(ids.table(one.table), one.prefix), own


def of_elements(
    policy: Policy, ids: IdSpace, contents: Mapping[Named, Iterable[Prefix]]
) -> Iterator[Owned]:
    """The routes that a policy's sets are by these elements, each of which stands there once."""
    tables = policy.as_written.tables.values()
    for table, base in zip(tables, route_bases(policy), strict=True):
        for index, one in enumerate(table.sets):
            prefixes = contents.get(one.to)
            if not prefixes:
                continue
            name = table.stack_names[one.stack]
            stack = ids.stack(name) | C.DMM_STACK_ADAPTIVE * (name in policy.autos)
            match, route = table.matches[one.match], base + table.written + index
            own = Own(match, stack, route, 0, index)
            for prefix in prefixes:
                yield Place.of(ids.table(table.name), prefix), own
