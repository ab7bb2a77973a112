# SPDX-License-Identifier: Apache-2.0
"""Which of nested instances carries a socket: each of them has hooks on it, and a record of it.

It is the one whose user stack has it; without one that whose rule had a route for it; of several,
or of none, the upper, whose options count. There alone it is counted.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from dmm_ebpf import loader
from dmm_ebpf.abi import Struct
from dmm_ebpf.errors import DmmError, NotAttachedError
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.loader import Maps
from dmm_ebpf.rd.director import flows
from dmm_ebpf.rd.director.nested import nested
from dmm_ebpf.rd.director.rundir import RunDir, marks


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
        for flow in _flows_of(other.instance):
            claim = _claim(flow, other.cgroup, other.instance)
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


class Following:
    """Which other instance carries the sockets that events tell of, while somebody follows
    an instance. Its last look at what instances there are holds until that changes.
    """

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._seen: object = None
        self._cgroup = ""
        self._others: list[tuple[str, str, Maps]] = []  # name, cgroup, maps

    def carriers(self, records: Sequence[Struct]) -> dict[int, str]:
        """As carriers(), for open sockets and those that have just ended. What
        cannot be read tells nothing.
        """
        with contextlib.suppress(DmmError, OSError):
            self._look()
        found = {}
        for flow in records:
            best = own = _claim(flow, self._cgroup, self._instance)
            for name, cgroup, maps in self._others:
                other = loader.flow_of(maps, flow.cookie)
                if other is not None:
                    best = max(best, _claim(other, cgroup, name))
            if best != own:
                found[flow.cookie] = best.name
        return found

    def close(self) -> None:
        """Forget what was seen."""
        others, self._others, self._seen = self._others, [], None
        for _, _, maps in others:
            _close(maps)

    def _look(self) -> None:
        seen = marks()
        if seen == self._seen:
            return
        self.close()
        mine = RunDir(self._instance).load()
        self._cgroup = mine.cgroup if mine else ""
        for other in nested(self._instance) if mine else ():
            name = other.instance
            with contextlib.suppress(NotAttachedError):
                maps = loader.open_maps(name)
                if "flows" in maps and "more_flows" in maps:
                    self._others.append((name, other.cgroup, maps))
        self._seen = seen


def _claim(flow: Struct, cgroup: str, name: str) -> _Claim:
    decision = flow.decision
    return _Claim(bool(decision.taken), bool(decision.rule), -len(cgroup.split("/")), name)


def _flows_of(instance: str) -> Iterator[Struct]:
    maps = loader.open_maps(instance)
    try:
        yield from loader.flow_records(maps)
    finally:
        _close(maps)


def _close(maps: Maps) -> None:
    for one in maps.values():
        one.close()
