# SPDX-License-Identifier: Apache-2.0
"""The nft sets that routes and rules of an instance's policy name: read before it comes in force,
and followed while it is.

The kernel tells of what is changed by nft (hal/nftsets.py); sets whose elements have time-outs, or
come by rules, are looked at each second. Each change is the same policy with other elements, put in
force whole: a new generation. A set that is not there has no elements, and is waited for.

Invariant: nothing is heard before it is listened for: the socket is open before a set is read. What
cannot be read, or not be put in force, leaves what was; it is told, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf import records
from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.hal import nftsets
from dmm_ebpf.hal.netlink import explained
from dmm_ebpf.rd.policy.locate import describe
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.nftsets import SetName
from dmm_ebpf.rd.policy.values import Prefix
from dmm_ebpf.threads import in_thread

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.instance import Instance

LOOK_S = 1.0  # at sets of whose changes nothing tells
RETRY_S = 5.0
SHARE = 0.1  # of the time that looks may take where nothing has changed
SETTLE_S = 0.02  # the commands of a script come one after the other

log = logging.getLogger("dmm-ebpf")


@dataclass(frozen=True)
class Reading:
    """What came of reading a set; due: when to read it again, though nothing tells of a change."""

    state: records.status.SetState
    prefixes: tuple[Prefix, ...] = ()
    why: str = ""
    due: float | None = None


Readings = Mapping[SetName, Reading]


def read_all(names: Iterable[SetName]) -> dict[SetName, Reading]:
    """Of the thread's network namespace."""
    return {name: _read(name) for name in names}


def _read(name: SetName) -> Reading:
    began = time.monotonic()
    try:
        found = nftsets.read(name)
    except DmmError as e:
        why = "; ".join(filter(None, (e.why, e.hint)))
        if isinstance(e, nftsets.NoAddressesError):
            return Reading("refused", why=why)
        return Reading("unread", why=why, due=began + RETRY_S)
    if found is None:
        return Reading("missing")
    now = time.monotonic()
    due = now + max(LOOK_S, (now - began) / SHARE) if found.restless else None
    return Reading("followed", tuple(Prefix(*one) for one in found.blocks), due=due)


def filled(policy: Policy, readings: Readings) -> Policy:
    """The policy with what its sets have."""
    return policy.with_elements({name: readings[name].prefixes for name in policy.sets})


def rows(policy: Policy, readings: Readings) -> list[records.status.NftSet]:
    """As listings have them."""
    found = ((name, readings[name]) for name in policy.sets)
    return [
        records.status.NftSet(str(name), one.state, len(one.prefixes), one.why)
        for name, one in found
    ]


def errors(policy: Policy, readings: Readings) -> Iterator[PolicyError]:
    """For each route and rule that names what is no set of addresses, or cannot be read."""
    for place, said, name in _named(policy):
        if readings[name].state in {"refused", "unread"}:
            why = f"{said}{name} cannot be used: {readings[name].why}"
            yield PolicyError(f"accept {place}", why=why)


def waiting(policy: Policy, readings: Readings) -> Iterator[records.policy.Warned]:
    """Of each route and rule whose set does not exist."""
    for place, said, name in _named(policy):
        if readings[name].state == "missing":
            yield records.policy.Warned(
                place, f"{said}{name} does not exist on this host, and is waited for"
            )


def _named(policy: Policy) -> Iterator[tuple[str, str, SetName]]:
    """Of each place where a set is named that, how a sentence about it begins, and the set."""
    for number, rule in enumerate(policy.as_written.rules):
        at = ("rules", number, "from")
        for name in rule.source_sets:
            yield policy.place(*at), f"{describe(at)}: ", name
    for table in policy.tables.values():
        for index, one in enumerate(table.sets):
            path = ("tables", table.name, "routes", one.origin, "to")
            if one.inline:
                yield policy.place(*path), f"{describe(path)}: ", one.to
            else:
                yield table.where_set(index), "", one.to


class Sets:
    """Of one instance. Lives in its event loop."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._changes: nftsets.Changes | None = None
        self._readings: dict[SetName, Reading] = {}
        self._stale: set[SetName] = set()
        self._reading = asyncio.Lock()  # else an older reading could take a newer one's place
        self._news = asyncio.Event()
        self._failed = ""  # why what was read last could not be put in force

    async def fill(self, policy: Policy, *, anyhow: bool = False) -> Policy:
        """The policy with what its sets have now. anyhow: also if one is no set of addresses, as it
        may have become while the policy was in force. PolicyError; DmmError: one cannot be read.
        """
        if not policy.sets:
            return policy
        self._listen()
        async with self._reading:
            for name in policy.sets:  # that changes of it are heard
                self._readings.setdefault(name, Reading("missing"))
            found = await in_thread(read_all, policy.sets)
            for name, one in found.items():
                if one.state == "unread":  # what is known of one that is in force stays
                    raise DmmError(f"read {name}", why=one.why)
            self._readings |= found
        wrong = None if anyhow else next(errors(policy, found), None)
        if wrong is not None:
            raise wrong
        return await in_thread(filled, policy, found)

    def follow(self, policy: Policy) -> None:
        """The policy that is in force from now on."""
        self._readings = {name: self._readings[name] for name in policy.sets}
        self._stale &= set(policy.sets)
        # Read again since, while it was about to come in force.
        self._stale |= {
            name
            for name, one in self._readings.items()
            if one.state != "unread" and one.prefixes != policy.elements[name]
        }
        if not policy.sets:
            self.close()
        self._news.set()

    def rows(self) -> list[records.status.NftSet]:
        """Those of the policy in force; empty: it names none."""
        policy = self._instance.policy
        return rows(policy, self._readings) if policy else []

    def close(self) -> None:
        """Hear no more."""
        if self._changes is not None:
            asyncio.get_running_loop().remove_reader(self._changes.fileno())
            self._changes.close()
            self._changes = None

    def _listen(self) -> None:
        if self._changes is None:
            with explained("listen for changes of nft sets"):
                self._changes = nftsets.Changes()
            asyncio.get_running_loop().add_reader(self._changes.fileno(), self._hear)

    def _hear(self) -> None:
        if self._changes is not None:
            names = self._changes.heard(self._readings)
            self._stale |= {SetName(*name) for name in names}
            if self._stale:
                self._news.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next()):
                        await self._news.wait()
                self._news.clear()
                began = time.monotonic()
                try:
                    await self._look()
                except Exception:
                    log.exception("nft sets could not be looked at; they are looked at again")
                    await asyncio.sleep(RETRY_S)
                took = time.monotonic() - began
                await asyncio.sleep(max(SETTLE_S, 2 * took))
        finally:
            self.close()

    def _next(self) -> float | None:
        """When to look at the latest, in the loop's time, which is time.monotonic()."""
        policy = self._instance.policy
        named = policy.sets if policy else ()
        return min((d for d in (self._readings[n].due for n in named) if d), default=None)

    async def _look(self) -> None:
        policy = self._instance.policy
        if policy is None or not policy.sets:
            return
        async with self._reading:
            now = time.monotonic()
            due = {n for n, one in self._readings.items() if one.due is not None and one.due <= now}
            names = (self._stale | due) & set(policy.sets)
            self._stale -= names
            for name, one in (await in_thread(read_all, names)).items():
                if name in self._readings:  # else another policy is in force by now
                    self._take(name, one)
        if self._instance.policy is not policy:
            return
        elements = {name: self._readings[name].prefixes for name in policy.sets}
        if elements != policy.elements:
            await self._apply(policy, await in_thread(policy.with_elements, elements))

    def _take(self, name: SetName, one: Reading) -> None:
        before = self._readings[name]
        if one.state == "unread":
            one = replace(one, prefixes=before.prefixes)
        self._readings[name] = one
        if (one.state, one.why) == (before.state, before.why):
            return
        if one.state in {"refused", "unread"}:
            stays = "what it had holds" if one.state == "unread" else "it has nothing"
            log.error("%s: %s; %s", name, one.why, stays)
        elif before.state != "unread":
            log.info("%s: %s", name, "it is gone" if one.state == "missing" else "it is there")

    async def _apply(self, policy: Policy, new: Policy) -> None:
        path = self._instance.state.policy
        try:
            await self._instance.apply(
                new,
                Path(path) if path else None,
                unless=lambda: self._instance.policy is not policy,
            )
            self._failed = ""
        except DmmError as e:
            if str(e) != self._failed:
                log.error("what nft sets have now cannot be put in force: %s", e)
            self._failed = str(e)
            again = time.monotonic() + RETRY_S
            for name in policy.sets:
                if self._readings[name].prefixes != policy.elements.get(name):
                    kept = policy.elements.get(name, ())
                    self._readings[name] = Reading("unread", kept, str(e), again)
