# SPDX-License-Identifier: Apache-2.0
"""What an instance has learnt of paths, told to other hosts by etcd, and what others tell: where
the policy says share, and not at all elsewhere.

Own experience alone is told, never what others have told: no word comes back as another's. It
stands under the instance's lease. All of it is bounded, in size (shared.MOST_PREFIXES for each
adaptive route, MOST_BYTES) and in rate: each EVERY_S an instance tells what has changed, looks who
tells something new, without the values, and reads MOST_READ of them, drawn by lot.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dmm_ebpf.central import layout
from dmm_ebpf.central.client import Delete, Put
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.adaptive import shared
from dmm_ebpf.rd.adaptive.shared import UnlikelyError

if TYPE_CHECKING:
    from dmm_ebpf.central.client import Item
    from dmm_ebpf.central.fleet import Fleet
    from dmm_ebpf.rd.adaptive.paths import Paths
    from dmm_ebpf.rd.sources.served import Served

EVERY_S = 20.0
MOST_READ = 16
MOST_BYTES = layout.MAX_VALUE_BYTES
log = logging.getLogger("dmm-ebpf")


class Learnt:
    """Of one instance. lease: of what it says of itself; 0: none yet. Lives in its event loop."""

    def __init__(self, fleet: Fleet, instance: Served, host: str, lease: Callable[[], int]) -> None:
        self._fleet = fleet
        self._instance = instance
        self._lease = lease
        self._key = layout.learnt_key(host, instance.state.instance)
        self._said: tuple[int, bytes] = (0, b"")  # under which lease, and what
        self._read: dict[str, int] = {}  # the revision of what each other one told
        self._refused: dict[str, str] = {}

    async def run(self) -> None:
        """Tell and hear until cancelled."""
        while True:
            # Thousands of hosts must not come at once.
            await asyncio.sleep(EVERY_S * random.uniform(0.8, 1.2))
            try:
                paths = self._instance.adaptive.sharing
                await self._tell(paths)
                await self._hear(paths)
            except DmmError as error:
                log.info("what is learnt of paths could not be shared: %s", error)
            except Exception:
                log.exception("what is learnt of paths could not be shared; it is tried again")

    # -- own --

    async def _tell(self, paths: dict[str, Paths]) -> None:
        lease, now = self._lease(), time.monotonic()
        if not paths:
            if self._said[1]:
                await self._fleet.commit([], [Delete(self._key)])
                self._said = (0, b"")
            return
        routes = {name: one.told(now) for name, one in paths.items()}
        value = json.dumps({"format": layout.FORMAT, "routes": routes}).encode()
        if not lease or (lease, value) == self._said:
            return
        if len(value) > MOST_BYTES:
            log.warning("what is learnt of paths has %d KiB, and is not told", len(value) >> 10)
            return
        await self._fleet.commit([], [Put(self._key, value, lease)])
        self._said = (lease, value)

    # -- others' --

    async def _hear(self, paths: dict[str, Paths]) -> None:
        if not paths:
            self._read.clear()
            return
        listed = await self._fleet.find(layout.LEARNT, prefix=True, keys_only=True)
        others = {one.key: one.revision for one in listed.items if one.key != self._key}
        for key in set(self._read) - set(others):
            self._forget(paths, key)
        news = [key for key, revision in others.items() if self._read.get(key) != revision]
        for key in random.sample(news, min(len(news), MOST_READ)):
            found = await self._fleet.find(key)
            for one in found.items:
                self._read[key] = one.revision
                self._take(paths, one)

    def _forget(self, paths: dict[str, Paths], key: str) -> None:
        self._read.pop(key, None)
        self._refused.pop(key, None)
        for one in paths.values():
            one.tree.shared.take(_host(key), {})

    def _take(self, paths: dict[str, Paths], item: Item) -> None:
        """All that one host tells, or, if anything of it cannot be, nothing."""
        now = time.monotonic()
        try:
            routes = _routes(item)
            told = {
                name: shared.read(routes[name], one.choice.candidates, now)
                for name, one in paths.items()
                if name in routes
            }
        except (DmmError, UnlikelyError) as error:
            why = error.why if isinstance(error, DmmError) else str(error)
            if self._refused.get(item.key) != why:
                log.warning("what %s tells of paths is left out: %s", _host(item.key), why)
            self._refused[item.key] = why
            told = {}
        else:
            self._refused.pop(item.key, None)
        for name, one in paths.items():
            one.tree.shared.take(_host(item.key), told.get(name, {}))


def _routes(item: Item) -> dict[str, Any]:
    """Raises LayoutError."""
    routes = layout.read_report(item.key, item.value).get("routes")
    if not isinstance(routes, dict):
        raise layout.refused(item.key, "it tells of no routes")
    return routes


def _host(key: str) -> str:
    return key.removeprefix(layout.LEARNT)
