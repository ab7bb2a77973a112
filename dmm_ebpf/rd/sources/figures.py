# SPDX-License-Identifier: Apache-2.0
"""What an instance counts of its paths while an operator watches a roll-out, and tells etcd.

Nobody asks most of the time, and then it costs nothing. While it is asked, each look takes the
flows that are open: what they have sent and sent again since the last look, and their round trips,
of at most MOST_FLOWS; and what the kernel counts of connect() calls (/proc/net/snmp of the network
namespace, Documentation/networking/snmp_counter.rst). What opens and ends between two looks is
counted by the latter alone. The key goes with the instance's lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf.central import layout
from dmm_ebpf.central.client import Delete, Put
from dmm_ebpf.central.paths import Figures, Watch
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.policy.hosts import Labels, parse_selector
from dmm_ebpf.rd.policy.values import ValueRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmm_ebpf.central.client import Item
    from dmm_ebpf.central.fleet import Fleet
    from dmm_ebpf.rd.sources.served import Served
    from dmm_ebpf.records.flow import Flow

MOST_FLOWS = 5_000
_SNMP = Path("/proc/self/net/snmp")
log = logging.getLogger("dmm-ebpf")


def connects(text: str) -> tuple[int, int]:
    """ActiveOpens and AttemptFails of /proc/net/snmp: connect() calls, and those that failed."""
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Tcp:"))
    counts = dict(zip(names, values, strict=True))
    return int(counts["ActiveOpens"]), int(counts["AttemptFails"])


class PathFigures:
    """Of one instance. lease: of what it says of itself; 0: none yet. Lives in its event loop."""

    def __init__(
        self, fleet: Fleet, instance: Served, who: tuple[str, Labels], lease: Callable[[], int]
    ) -> None:
        self._fleet = fleet
        self._instance = instance
        self._host, self._labels = who
        self._lease = lease
        self._asked: Watch | None = None
        self._changed = asyncio.Event()
        self._key = layout.paths_key(self._host, instance.state.instance)

    def ask(self, item: Item | None) -> None:
        """What stands at layout.WATCH now; None: nobody watches."""
        asked = None
        if item is not None:
            with contextlib.suppress(DmmError, ValueRefusedError):
                watch = Watch.read(item.key, item.value)
                meant = any(parse_selector(one).holds(self._labels) for one in watch.steps)
                asked = watch if meant else None
        if asked != self._asked:
            self._asked = asked
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._asked is not None:
                await self._report(self._asked.every_s)

    async def _report(self, every_s: float) -> None:
        """Until something else is asked."""
        look = _Look(self._instance)
        while not self._changed.is_set():
            try:
                figures = await look.again()
                if lease := self._lease():
                    await self._fleet.commit([], [Put(self._key, figures.write(), lease)])
            except DmmError as error:
                log.info("the figures of paths could not be told: %s", error)
            except Exception:
                log.exception("the figures of paths could not be told; it is tried again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._changed.wait()
        try:
            await self._fleet.commit([], [Delete(self._key)])
        except DmmError as error:
            log.info("the figures of paths could not be taken away: %s", error)
        except Exception:
            log.exception("the figures of paths could not be taken away; they go with the lease")


class Flows:
    """What open flows have sent and sent again, from the first look on."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] | None = None  # by cookie, at the last look
        self._looked = self._began = 0.0
        self._now: dict[int, tuple[int, int]] = {}

    def begin(self, now: float) -> None:
        """A look begins; by the clock of age_s."""
        self._began = now
        self._now = {}

    def add(self, sums: Figures, one: Flow) -> Figures:
        """sums, with what this one has done since the last look."""
        if one.proto != "tcp" or not one.cookie:
            return sums
        bytes_now = self._now[one.cookie] = one.bytes_sent, one.retransmits
        since = (self._known or {}).get(one.cookie)
        if since is None:
            # One that was open then, and not among those that were looked at, has no past here.
            is_new = self._known is not None and one.age_s < self._began - self._looked
            since = (0, 0) if is_new else bytes_now
        return replace(
            sums,
            sent_bytes=sums.sent_bytes + max(0, bytes_now[0] - since[0]),
            retransmits=sums.retransmits + max(0, bytes_now[1] - since[1]),
            trips=sums.trips + (1 if one.srtt_us else 0),
            trip_us=sums.trip_us + one.srtt_us,
        )

    def end(self) -> None:
        """The look is over."""
        self._known, self._looked = self._now, self._began

    def is_enough(self) -> bool:
        """Whether as many were looked at as may be."""
        return len(self._now) >= MOST_FLOWS


class _Look:
    """What is counted from its first look on."""

    def __init__(self, instance: Served) -> None:
        self._instance = instance
        self._flows = Flows()
        self._connects: tuple[int, int] | None = None
        self._sums = Figures()

    async def again(self) -> Figures:
        sums, flows = self._sums, self._flows
        flows.begin(time.monotonic())
        async for page in self._instance.list_flows():
            for one in page:
                sums = flows.add(sums, one)
            if flows.is_enough():
                break
        flows.end()
        opens, failed = connects(await asyncio.to_thread(_SNMP.read_text))
        before, self._connects = self._connects or (opens, failed), (opens, failed)
        self._sums = replace(
            sums,
            reports=sums.reports + 1,
            opens=sums.opens + max(0, opens - before[0]),
            failed=sums.failed + max(0, failed - before[1]),
        )
        return self._sums
