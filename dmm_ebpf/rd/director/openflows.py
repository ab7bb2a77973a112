# SPDX-License-Identifier: Apache-2.0
"""The open flows of an instance: of sockets, of containers, and those that the host forwards."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from dmm_ebpf import abi, records
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.hal import nic
from dmm_ebpf.hal.sockdiag import TcpSocket
from dmm_ebpf.loader import Attached, Maps
from dmm_ebpf.rd.director import away, carriers, flows
from dmm_ebpf.rd.director.datagrams import Datagrams
from dmm_ebpf.rd.director.earlier import Earlier
from dmm_ebpf.rd.director.live import with_sockets
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.threads import in_thread

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.stacks import StackManager

ROWS_AT_ONCE = 500  # of a long listing; then others have a turn


class OpenFlows:
    """Read from the maps, from sock_diag and from the stack processes, when somebody asks."""

    def __init__(
        self, attached: Attached, state: State, earlier: Earlier, stacks: StackManager
    ) -> None:
        self._attached = attached
        self._state = state
        self._earlier = earlier
        self._stacks = stacks
        self._datagrams = Datagrams(attached.maps)

    async def by_stack(self) -> Counter[int]:
        """How many each stack has, by its number."""
        passing = list(passing_of(self._attached.maps).values())
        records_now = records_of(self._attached, self._earlier)
        counts = await in_thread(carriers.by_stack, self._state.instance, records_now, passing)
        counts.update(flow.decision.stack for flow in await self._exchanges())
        return counts

    def generations(self) -> set[int]:
        """Under which one was decided."""
        return {one.generation for one in self._decisions()}

    def busy_stacks(self) -> set[int]:
        """Those that one has, or a listener's program has chosen, by their numbers."""
        wished = (one.wish - 1 for one in self._attached.maps.listeners.views() if one.wish)
        return {n for one in self._decisions() for n in (one.stack, one.wanted)}.union(wished)

    def _decisions(self) -> Iterator[Struct]:
        return (abi.copy(flow.decision) for flow in self._attached.flows())

    async def pages(self, names: flows.Names) -> AsyncIterator[list[records.flow.Flow]]:
        """Every one, in pages, so that neither a hundred thousand of them nor the time they take
        are in anybody's way.

        Each row is as its socket was when its page was made. A flow that opens or ends meanwhile
        may be missing.
        """
        now_ns = time.monotonic_ns()
        await in_thread(self._earlier.prune)
        noted = {flow.cookie: flow for flow in records_of(self._attached, self._earlier)}
        passing = passing_of(self._attached.maps)
        exchanges = await self._exchanges()
        if not noted and not passing and not exchanges:
            return
        outer = await flows.legs_of(self._stacks.connections())
        others = await in_thread(carriers.carriers, self._state.instance, list(noted.values()))
        cookies = dict(noted) if self._state.containers else {}
        elsewhere = (
            await in_thread(away.sockets, cookies, self._state.netns_cookie) if cookies else {}
        )

        known = flows.Known(
            self._state.instance, names, now_ns, outer, others, self._state.netns_cookie
        )
        live = ((flow, here or elsewhere.get(flow.cookie)) for flow, here in with_sockets(noted))
        rows = itertools.chain(
            rows_of(live, passing, known, self._state.netns_cookie),
            (flows.of_datagrams(flow, known) for flow in exchanges),
        )
        page: list[records.flow.Flow] = []
        for row in rows:
            page.append(row)
            if len(page) >= ROWS_AT_ONCE:
                yield page
                page = []
                await asyncio.sleep(0)
        if page:
            yield page

    async def _exchanges(self) -> list[Struct]:
        """The struct dmm_flow of every exchange of datagrams that a route gives to a user stack."""
        return await in_thread(lambda: list(self._datagrams.open()))


def rows_of(
    live: Iterable[tuple[Struct, TcpSocket | None]],
    passing: Mapping[flows.Pair, Struct],
    known: flows.Known,
    home: int,
) -> Iterator[records.flow.Flow]:
    """Each flow of live, its struct dmm_flow and its socket if there is one, and of passing_of().
    home: the cookie of the instance's network namespace.
    """
    at_nic = {one.cookie: pair for pair, one in passing.items() if one.cookie}
    for flow, socket in live:
        kind: records.flow.FlowKind = "socket" if flow.netns_cookie == home else "container"
        row = flows.of_socket(flow, socket, known, kind=kind, at_nic=at_nic.get(flow.cookie))
        if row is not None:
            yield row
    for pair, one in passing.items():
        if not one.cookie:
            yield flows.of_others(one, nic.name_of(one.ifindex), pair, known)


def records_of(attached: Attached, earlier: Earlier) -> Iterator[Struct]:
    """The struct dmm_flow of every socket that is known of."""
    return itertools.chain(attached.flows(), earlier.connections())


def passing_of(maps: Maps) -> dict[flows.Pair, Struct]:
    """The struct dmm_forwarded of what user stacks carry for others, by the flow as the NIC
    has it.
    """
    found = {}
    for pair, one in maps.forwarded.items():
        if one.state != C.DMM_FORWARDED_TAKEN or (owned := maps.xdp_flows.get(pair)) is None:
            continue
        if not owned.orphan:
            found[flows.pair_text(pair)] = one
    return found
