# SPDX-License-Identifier: Apache-2.0
"""Which of nested instances carries a socket: each of them has hooks on it, and a record of it.

It is the one whose user stack has it; without one that whose rule had a route for it; of several,
or of none, the upper, whose options count. There alone it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dmm_ebpf import loader
from dmm_ebpf.abi import Struct
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.rd.director import flows
from dmm_ebpf.rd.director.nested import nested
from dmm_ebpf.rd.director.rundir import RunDir

NESTED = "nested"


class _Claim(NamedTuple):
    """Of several instances that have a socket the one with the greatest carries it."""

    taken: bool
    ruled: bool
    height: int  # above the root it falls
    name: str


def carriers(instance: str, records: Iterable[Struct]) -> dict[int, str]:
    """Which other instance carries a socket, by its cookie, of those that this instance has a
    `struct dmm_flow` of. DmmError as all_states().
    """
    others = nested(instance)
    if not others or (mine := RunDir(instance).load()) is None:
        return {}
    own = {flow.cookie: _claim(flow, mine.cgroup, instance) for flow in records}
    best: dict[int, _Claim] = {}
    for other in others:
        for flow in _flows_of(other["instance"]):
            claim = _claim(flow, other["cgroup"], other["instance"])
            if flow.cookie in own and claim > best.get(flow.cookie, own[flow.cookie]):
                best[flow.cookie] = claim
    return {cookie: claim.name for cookie, claim in best.items()}


def by_stack(instance: str, records: Iterable[Struct], forwarded: Iterable[Struct]) -> Counter[int]:
    """flows.by_stack() of those that no other instance carries. DmmError as all_states()."""
    return flows.by_stack(carried_here(instance, records), forwarded, sockdiag.open_cookies)


def carried_here(instance: str, records: Iterable[Struct]) -> list[Struct]:
    """The records without those of sockets that another instance carries.
    DmmError as all_states().
    """
    known = list(records)
    away = carriers(instance, known)
    return [flow for flow in known if flow.cookie not in away] if away else known


def told(instance: str, records: Iterable[Struct]) -> dict[int, dict[str, str]]:
    """What a listing of this instance says of the sockets that another one carries, by cookie."""
    return {
        cookie: {"why": NESTED, "carrier": name}
        for cookie, name in carriers(instance, records).items()
    }


def _claim(flow: Struct, cgroup: str, name: str) -> _Claim:
    decision = flow.decision
    return _Claim(bool(decision.taken), bool(decision.rule), -len(cgroup.split("/")), name)


def _flows_of(instance: str) -> Iterator[Struct]:
    maps = loader.open_maps(instance)
    try:
        yield from loader.flow_records(maps)
    finally:
        for one in maps.values():
            one.close()
