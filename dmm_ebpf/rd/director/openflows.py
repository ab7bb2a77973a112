# SPDX-License-Identifier: Apache-2.0
"""The open flows of an instance: of sockets, of containers, and those that the host forwards."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

from dmm_ebpf.abi import C, Struct
from dmm_ebpf.hal import nic
from dmm_ebpf.loader import Attached
from dmm_ebpf.rd.director import away, carriers, flows
from dmm_ebpf.rd.director.earlier import Earlier
from dmm_ebpf.rd.director.live import with_sockets
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.rd.director.stacks import StackManager
from dmm_ebpf.threads import in_thread

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

    async def by_stack(self) -> Counter[int]:
        """How many each stack has, by its number."""
        passing = list(self._passing().values())
        return await in_thread(carriers.by_stack, self._state.instance, self._records(), passing)

    async def pages(self, names: flows.Names) -> AsyncIterator[list[dict[str, Any]]]:
        """Every one, in pages, so that neither a hundred thousand of them nor the time they take
        are in anybody's way.

        Each row is as its socket was when its page was made. A flow that opens or ends meanwhile
        may be missing.
        """
        now_ns = time.monotonic_ns()
        await in_thread(self._earlier.prune)
        records = {flow.cookie: flow for flow in self._records()}
        passing = self._passing()
        if not records and not passing:
            return
        at_nic = {one.cookie: pair for pair, one in passing.items() if one.cookie}
        outer = {}
        async for c in self._stacks.connections():
            outer[(c["laddr"], c["lport"], c["raddr"], c["rport"])] = c
        others = await in_thread(carriers.told, self._state.instance, list(records.values()))
        cookies = dict(records) if self._state.containers else {}
        elsewhere = (
            await in_thread(away.sockets, cookies, self._state.netns_cookie) if cookies else {}
        )

        def of_socket(flow: Struct, here: dict[str, Any] | None) -> dict[str, Any] | None:
            live = here or elsewhere.get(flow.cookie)
            row = flows.flow_dict(flow, self._state.instance, names, now_ns) | others.get(
                flow.cookie, {}
            )
            if flow.netns_cookie != self._state.netns_cookie:
                row["kind"] = flows.CONTAINER
            return flows.merge(row, live, outer, at_nic.get(flow.cookie))

        def of_others(pair: flows.Pair, one: Struct) -> dict[str, Any] | None:
            device = nic.name_of(one.ifindex)
            row = flows.forwarded_dict(one, self._state.instance, names, device, now_ns)
            return flows.merge(row, None, outer, pair)

        rows = itertools.chain(
            itertools.starmap(of_socket, with_sockets(records)),
            (of_others(pair, one) for pair, one in passing.items() if not one.cookie),
        )
        page: list[dict[str, Any]] = []
        for row in rows:
            if row is not None:
                page.append(row)
            if len(page) >= ROWS_AT_ONCE:
                yield page
                page = []
                await asyncio.sleep(0)
        if page:
            yield page

    def _records(self) -> Iterator[Struct]:
        """The struct dmm_flow of every socket that is known of."""
        return itertools.chain(self._attached.flows(), self._earlier.connections())

    def _passing(self) -> dict[flows.Pair, Struct]:
        """The struct dmm_forwarded of what user stacks carry for others, by the flow as the
        NIC has it.
        """
        maps = self._attached.maps
        found = {}
        for pair, one in maps.forwarded.items():
            if one.state != C.DMM_FORWARDED_TAKEN or (owned := maps.xdp_flows.get(pair)) is None:
                continue
            if not owned.orphan:
                found[flows.pair_text(pair)] = one
        return found
