# SPDX-License-Identifier: Apache-2.0
"""An operator's watch over the paths of hosts during a roll-out: it has them count, takes their
figures before a push and after each step, and says in what they are worse.

The request stands under a lease that is renewed meanwhile, so hosts stop counting when the operator
goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict

from dmm_ebpf.central import layout
from dmm_ebpf.central.client import Delete, Put
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.central.paths import Figures, Watch, tells, worse
from dmm_ebpf.errors import DmmError

TTL_S = 15
KEEP_S = 5.0
MOST_EVERY_S = 5.0
LEAST_REPORTS = 3  # in the time that is watched
FIRST_WITHIN_S = 20.0  # so long hosts may take to begin

Name = tuple[str, str]  # host and instance


class PathWatch:
    """Made by watching(). seconds: how long each look takes."""

    def __init__(self, fleet: Fleet, seconds: float) -> None:
        self._fleet = fleet
        self.seconds = seconds
        self._before: dict[Name, Figures] = {}

    async def take_before(self, names: Sequence[Name]) -> None:
        """How it is now, of these hosts: takes that long. A host that tells nothing is not
        compared.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WITHIN_S):
                while not set(names) <= set(await self._figures()):
                    await asyncio.sleep(0.2)
        self._before = await self._during()

    async def worse(self, names: Sequence[Name]) -> tuple[list[str], list[str]]:
        """What is worse now than it was before, host by host, and which hosts have too little to
        tell: takes that long.
        """
        after = await self._during()
        bad, silent = [], []
        for name in names:
            before, now = self._before.get(name, Figures()), after.get(name, Figures())
            label = f"{name[0]}, instance {name[1]}"
            bad += [f"{label}: {one}" for one in worse(before, now)]
            silent += [] if tells(before, now) else [label]
        return bad, silent

    async def _during(self) -> dict[Name, Figures]:
        first = await self._figures()
        await asyncio.sleep(self.seconds)
        last = await self._figures()
        return {name: last[name].since(first.get(name, Figures())) for name in last}

    async def _figures(self) -> Mapping[Name, Figures]:
        found = await self._fleet.find(layout.PATHS, prefix=True)
        told = {}
        for one in found.items:
            host, _, instance = one.key.removeprefix(layout.PATHS).partition("/")
            with contextlib.suppress(DmmError):  # a stranger's word
                told[host, instance] = Figures.read(one.key, one.value)
        return told


@contextlib.asynccontextmanager
async def watching(
    fleet: Fleet, steps: Sequence[str], seconds: float
) -> AsyncIterator[PathWatch | None]:
    """While it is open, hosts that steps select count; None, and nothing is asked, for 0 s."""
    if not seconds:
        yield None
        return
    lease = await fleet.etcd.grant(TTL_S)
    watch = Watch(list(steps), min(MOST_EVERY_S, seconds / LEAST_REPORTS))
    await fleet.commit([], [Put(layout.WATCH, json.dumps(asdict(watch)).encode(), lease)])
    keeping = asyncio.ensure_future(_keep(fleet, lease))
    try:
        yield PathWatch(fleet, seconds)
    finally:
        keeping.cancel()
        with contextlib.suppress(DmmError):
            await fleet.commit([], [Delete(layout.WATCH)])
            await fleet.etcd.revoke(lease)


async def _keep(fleet: Fleet, lease: int) -> None:
    while True:
        await asyncio.sleep(KEEP_S)
        with contextlib.suppress(DmmError):
            await fleet.etcd.keep(lease)
