# SPDX-License-Identifier: Apache-2.0
"""What has to stand on the host while an instance is attached: looked at, put back, and told where
it cannot be.

Others change the host as well: a service manager sets settings back, an administrator takes a
device down. Each thing that has to stand is an Item, which knows how it should be and how to mend
it; what the items are is said by those that need them (standing.py). The guard looks at all of them
once a second, and at once when the kernel tells that a device, a tc filter or a default route has
changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from dmm_ebpf import records
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import leading, netlink
from dmm_ebpf.rd.director.news import News

LOOK_S = 1.0
QUIET_S = 60.0  # what somebody breaks again and again is logged once in so long
_GROUPS = 0x1 | 0x8  # LINK, TC

log = logging.getLogger("dmm-ebpf")


class Item(ABC):
    """One thing that has to stand. what: its name, the same for as long as it is the same thing."""

    def __init__(self, what: str) -> None:
        self.what = what

    @abstractmethod
    def look(self) -> str:
        """Why it is not as it should be, as the rest of "WHAT: ..."; empty if all is well, or
        if nothing has to stand any more. Runs in a thread, each second: cheap. What it raises
        is a reason too.
        """

    @abstractmethod
    async def mend(self) -> None:
        """Puts it right, as far as that can be done; what it raises is shown too."""


class Guard:
    """Looks after the items of one instance. Lives in its event loop and network namespace."""

    def __init__(self, items: Callable[[], Iterable[Item]]) -> None:
        """items: what has to stand now."""
        self._items = items
        self._missing: dict[str, records.status.Missing] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._news = News()
        self._looked = asyncio.Event()

    async def known(self) -> None:
        """Until everything has been looked at once, so that missing() tells of all;
        LOOK_S at most.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._looked.wait()

    def missing(self) -> list[records.status.Missing]:
        """What does not stand and could not be put back."""
        return list(self._missing.values())

    def look_soon(self) -> None:
        """Something has changed on the host."""
        self._news.tell()

    async def run(self) -> None:
        """Guard until cancelled."""
        with self._news.heard_by([netlink.event_socket(_GROUPS), leading.events()]):
            while True:
                await self.look()
                await self._news.wait(LOOK_S)

    async def look(self) -> None:
        """Look at every item once, and mend."""
        items = list(self._items())
        found = {}
        for item, why in zip(items, await asyncio.to_thread(_look_at_all, items), strict=True):
            if why and (left := await self._mend(item, why)):
                before = self._missing.get(item.what)
                since = before.since if before else round(time.time(), 3)
                found[item.what] = records.status.Missing(item.what, left, since)
        for what in self._missing.keys() - found.keys():
            log.info("%s: all is well again", what)
        self._missing = found
        self._looked.set()

    async def _mend(self, item: Item, why: str) -> str:
        """Why it still is not as it should be; empty: it has been put right."""
        try:
            await item.mend()
        except (DmmError, OSError) as error:
            left = why if str(error) in why else f"{why}; {error}"
        else:
            left = await asyncio.to_thread(_look, item)
        self._tell(item.what, left or why, mended=not left)
        return left

    def _tell(self, what: str, why: str, *, mended: bool) -> None:
        now = time.monotonic()
        if self._told.get((what, why), -QUIET_S) + QUIET_S > now:
            return
        self._told = {key: at for key, at in self._told.items() if at + QUIET_S > now}
        self._told[what, why] = now
        log.warning("%s: %s%s", what, why, "; it was put right" if mended else "")


def _look_at_all(items: Iterable[Item]) -> list[str]:
    return [_look(item) for item in items]


def _look(item: Item) -> str:
    try:
        return item.look()
    except (DmmError, OSError) as error:
        return str(error)
