# SPDX-License-Identifier: Apache-2.0
"""The named sets of an instance's policy, nft sets and hostnames: read before it comes in
force, and followed while it is.

The kernel tells of what is changed by nft, element by element (hal/nftsets.py), and that is taken
as it is: a set is read whole at first, when it has become another one, and when the kernel had more
to tell than room. Sets whose elements have time-outs, or come by rules, are also read each second.
Of names hostnames.py tells. Each change is the same policy with other elements, put in force whole:
a new generation. A set that is not there has no elements, and is waited for; so is a name that has
no addresses, or that nobody knows yet.

Invariants: nothing is read before it is listened for: the socket is open before. What was heard of
a set waits (_told) while it is read, and is taken behind that, but for what was in it already.
What cannot be read, or not be put in force, leaves what was; it is told, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dmm_ebpf import records
from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.hal import nftsets
from dmm_ebpf.hal.hostnames import WITHIN_S
from dmm_ebpf.hal.netlink import explained
from dmm_ebpf.rd.director import elementchange, hostnames
from dmm_ebpf.rd.director.reading import Following, Reading, Readings
from dmm_ebpf.rd.policy.hostnames import HostName
from dmm_ebpf.rd.policy.locate import describe
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.named import Contents, Edit, Named
from dmm_ebpf.rd.policy.nftsets import SetName
from dmm_ebpf.rd.policy.values import parse_prefix
from dmm_ebpf.threads import in_thread

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.instance import Instance

LOOK_S = 1.0  # at sets of whose changes nothing tells
RETRY_S = 5.0
SHARE = 0.1  # of the time that looks may take where nothing has changed
SETTLE_S = 0.002  # behind a set that was read: the commands of a script come one after the other
MOST_HEARD = 1 << 14  # changes of sets that wait while one is read; then all are read anew

log = logging.getLogger("dmm-ebpf")


def read_all(names: Iterable[Named]) -> dict[Named, Reading]:
    """Of the thread's network namespace; of a thread without event loop. The addresses of names are
    those of now.
    """
    sets, hosts = _kinds(names)
    return _read_sets(sets) | (asyncio.run(hostnames.look(hosts, WITHIN_S)) if hosts else {})


def _kinds(names: Iterable[Named]) -> tuple[list[SetName], list[HostName]]:
    named = list(names)
    sets = [one for one in named if isinstance(one, SetName)]
    return sets, [one for one in named if isinstance(one, HostName)]


def _read_sets(names: Iterable[SetName]) -> dict[Named, Reading]:
    return {name: _read(name) for name in names}


def _read(name: SetName) -> Reading:
    began = time.monotonic()
    try:
        found = nftsets.read(name)
    except DmmError as error:
        why = "; ".join(filter(None, (error.why, error.hint)))
        if isinstance(error, nftsets.NoAddressesError):
            return Reading("refused", why=why)
        return Reading("unread", why=why, due=began + RETRY_S)
    if found is None:
        return Reading("missing")
    now = time.monotonic()
    due = now + max(LOOK_S, (now - began) / SHARE) if found.restless else None
    following = Following(found)
    return Reading("followed", following.prefixes, due=due, following=following)


def filled(policy: Policy, readings: Readings) -> Policy:
    """The policy with what its sets have."""
    return policy.with_elements({name: readings[name].prefixes for name in policy.sets})


def rows(policy: Policy, readings: Readings) -> list[records.status.NamedSet]:
    """As listings have them."""
    return [_row(name, readings[name]) for name in policy.sets]


def _row(name: Named, one: Reading) -> records.status.NamedSet:
    addresses = [str(prefix) for prefix in one.prefixes] if isinstance(name, HostName) else None
    return records.status.NamedSet(
        str(name),
        one.state,
        len(one.prefixes),
        one.why,
        records.record.ABSENT if addresses is None else addresses,
    )


def of_rows(policy: Policy, listed: Iterable[records.status.NamedSet]) -> dict[Named, Reading]:
    """What an instance's listing says of the hostnames of its policy, the rest as read_all()."""
    _, hosts = _kinds(policy.sets)
    told = {row.set: row for row in listed if row.elements is not records.record.ABSENT}
    known: dict[Named, Reading] = {
        name: Reading(
            row.state,
            tuple(prefix for one in row.elements or () for prefix in parse_prefix(one)),
        )
        for name in hosts
        if (row := told.get(str(name)))
    }
    return read_all(one for one in policy.sets if one not in known) | known


def errors(policy: Policy, readings: Readings) -> Iterator[PolicyError]:
    """For each route and rule that names what is no set of addresses, or cannot be read."""
    for place, said, name in _named(policy):
        if isinstance(name, SetName) and readings[name].state in {"refused", "unread"}:
            why = f"{said}{name} cannot be used: {readings[name].why}"
            yield PolicyError(f"accept {place}", why=why)


def waiting(policy: Policy, readings: Readings) -> Iterator[records.policy.Warned]:
    """Of each route and rule whose set does not exist, or whose name has no addresses."""
    for place, said, name in _named(policy):
        if readings[name].state == "missing":
            what = "does not exist on this host, and is waited for"
            if isinstance(name, HostName):
                what = f"has no addresses now, and is waited for: {readings[name].why}"
            yield records.policy.Warned(place, f"{said}{name} {what}")


def _named(policy: Policy) -> Iterator[tuple[str, str, Named]]:
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
        self._hosts = hostnames.Hostnames(self._heard)
        self._readings: dict[Named, Reading] = {}
        self._stale: set[Named] = set()
        self._told: list[nftsets.Heard] = []  # and not taken yet
        self._reading = asyncio.Lock()  # else an older reading could take a newer one's place
        self._news = asyncio.Event()
        self._failed = ""  # why what was read last could not be put in force
        self._rest_until = 0.0  # before which no set is read whole, as reading them takes long

    def remember(self, hosts: Mapping[str, Sequence[str]], unanswered: Mapping[str, float]) -> None:
        """What an earlier director knew of hostnames, by their texts: it holds until others are
        known. unanswered: what unanswered() said.
        """
        self._hosts.unanswered_before = unanswered
        self._hosts.known = {
            text: [prefix for one in addresses for prefix in parse_prefix(one)]
            for text, addresses in hosts.items()
        }

    def unanswered(self) -> dict[str, float]:
        """See Hostnames.unanswered()."""
        return self._hosts.unanswered()

    async def fill(self, policy: Policy, *, anyhow: bool = False) -> Policy:
        """The policy with what its sets have now. anyhow: also if one is no set of addresses, as it
        may have become while the policy was in force. PolicyError; DmmError: one cannot be read.
        """
        if not policy.sets:
            return policy
        in_force = self._instance.policy.sets if self._instance.policy else ()
        named, hosts = _kinds(policy.sets)
        if named:
            self._listen()
        await self._hosts.follow({*_kinds(in_force)[1], *hosts}, hostnames.FIRST_S)
        async with self._reading:
            for name in policy.sets:  # that changes of it are heard
                self._readings.setdefault(name, Reading("missing"))
            found = await self._read(policy.sets)
            for name, one in found.items():
                # What is known of one that is in force stays
                if one.state == "unread" and isinstance(name, SetName):
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
        named, hosts = _kinds(policy.sets)
        if not named:
            self._hear_no_more()
        self._hosts.keep(hosts)
        self._hosts.known = {}
        self._news.set()

    def rows(self) -> list[records.status.NamedSet]:
        """Those of the policy in force; empty: it names none."""
        policy = self._instance.policy
        return rows(policy, self._readings) if policy else []

    def close(self) -> None:
        """Hear no more, and ask no more."""
        self._hear_no_more()
        self._hosts.close()

    def _hear_no_more(self) -> None:
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
        if self._changes is None:
            return
        names = _kinds(self._readings)[0]
        try:
            self._told += self._changes.heard(names)
        except nftsets.LostError:
            self._stale.update(names)
        if len(self._told) > MOST_HEARD:
            self._told.clear()
            self._stale.update(names)
        if self._told or self._stale:
            self._news.set()

    def _heard(self, name: Named) -> None:
        if name in self._readings:
            self._stale.add(name)
            self._news.set()

    async def _read(self, names: Iterable[Named]) -> dict[Named, Reading]:
        sets, hosts = _kinds(names)
        found: dict[Named, Reading] = {name: self._hosts.reading(name) for name in hosts}
        return found | (await in_thread(_read_sets, sets) if sets else {})

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next()):
                        await self._news.wait()
                self._news.clear()
                began, whole = time.monotonic(), True
                try:
                    whole = await self._look()
                except Exception:
                    log.exception("named sets could not be looked at; they are looked at again")
                    await asyncio.sleep(RETRY_S)
                    self._news.set()
                took = time.monotonic() - began
                if whole:
                    self._rest_until = time.monotonic() + 2 * took
                await asyncio.sleep(SETTLE_S if whole else took)
        finally:
            self.close()

    def _next(self) -> float | None:
        """When to look at the latest, in the loop's time, which is time.monotonic()."""
        policy = self._instance.policy
        named = policy.sets if policy else ()
        due = [d for d in (self._readings[n].due for n in named) if d is not None]
        if self._stale & set(named):
            due.append(0.0)
        return max(min(due), self._rest_until) if due else None

    async def _look(self) -> bool:
        """Whether sets had to be read for it."""
        policy = self._instance.policy
        if policy is None or not policy.sets:
            return False
        async with self._reading:
            edits = self._follow_told(policy)
            now = time.monotonic()
            due = {n for n, one in self._readings.items() if one.due is not None and one.due <= now}
            names = (self._stale | due) & set(policy.sets) if now >= self._rest_until else set()
            self._stale -= names  # what is heard from here on was perhaps not read yet
            try:
                found = await self._read(names) if names else {}
            except BaseException:
                self._stale |= names
                raise
            for name, one in found.items():
                if name in self._readings:  # else another policy is in force by now
                    self._take(name, one)
        if self._instance.policy is not policy:
            return bool(names)
        elements = {name: self._readings[name].prefixes for name in policy.sets}
        changed = [n for n, now in elements.items() if now is not policy.elements.get(n)]
        is_told = all(name in edits and name not in found for name in changed)
        if changed and elements != policy.elements:
            told = {name: edits[name] for name in changed} if is_told else None
            await self._apply(policy, elements, told)
        return bool(names)

    def _follow_told(self, policy: Policy) -> dict[Named, Edit]:
        """Take what was heard of sets that are known; what that makes of what the policy has, where
        it says all. Others are stale from then on.
        """
        told, self._told = self._told, []
        edits: dict[Named, Edit] = {}
        for name in {SetName(*one.name) for one in told} & self._readings.keys():
            reading = self._readings[name]
            heard = [one for one in told if one.name == name]
            edit = reading.following.follow(heard) if reading.following else None
            if reading.following is None or edit is None:
                self._stale.add(name)
                continue
            self._readings[name] = replace(reading, prefixes=reading.following.prefixes)
            if reading.prefixes is policy.elements.get(name):
                edits[name] = edit
        return edits

    def _take(self, name: Named, one: Reading) -> None:
        before = self._readings[name]
        if one.state == "unread" and isinstance(name, SetName):
            one = replace(one, prefixes=before.prefixes)
        self._readings[name] = one
        if (one.state, one.why) == (before.state, before.why):
            return
        if isinstance(name, HostName) and one.state != before.state:
            self._instance.keep_hosts()
        if one.state in {"refused", "unread"}:
            stays = "what it had holds" if one.state == "unread" else "it has nothing"
            log.error("%s: %s; %s", name, one.why, stays)
        elif one.state == "missing" and one.why:
            log.warning("%s has no addresses: %s", name, one.why)
        elif before.state != "unread":
            log.info("%s: %s", name, "it is gone" if one.state == "missing" else "it is there")

    async def _apply(
        self, policy: Policy, elements: Contents, told: dict[Named, Edit] | None
    ) -> None:
        """told: all that makes elements of what the policy has; None: it has to be compared."""
        try:
            await self._instance.change(
                lambda here: elementchange.change(here, policy, elements, told)
            )
            self._failed = ""
        except DmmError as error:
            if str(error) != self._failed:
                log.error("what named sets have now cannot be put in force: %s", error)
            self._failed = str(error)
            again = time.monotonic() + RETRY_S
            for name in policy.sets:
                if self._readings[name].prefixes != policy.elements.get(name):
                    kept = policy.elements.get(name, ())
                    self._readings[name] = Reading("unread", kept, str(error), again)
