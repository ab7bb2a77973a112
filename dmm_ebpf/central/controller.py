# SPDX-License-Identifier: Apache-2.0
"""What an operator does with a fleet: push, roll out step by step, roll back, and look.

A push is written whole before the rollout names it, in one revision. Two operators cannot both win:
a rollout is only ever changed from the one that was read. A roll-out goes on while the one who
began it waits; if that ends, it stays where it is until somebody goes on with it or rolls it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from dmm_ebpf.central import hosts, layout, pushtext
from dmm_ebpf.central.client import (
    At,
    Change,
    CompactedError,
    Delete,
    EtcdDownError,
    Item,
    Put,
    Until,
)
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.central.layout import Bundle, LayoutError, Push, Rollout
from dmm_ebpf.central.watching import PathWatch, watching
from dmm_ebpf.digits import whole
from dmm_ebpf.errors import ConflictError, DmmError, UsageError
from dmm_ebpf.rd.policy.hosts import Selector, parse_selector
from dmm_ebpf.records.central import HostRow, Rolled, RolloutRow

KEPT_PUSHES = 20  # older ones are removed
AGAIN_S = 0.5


@dataclass(frozen=True)
class Order:
    """What is pushed. steps: selectors of hosts that take it before all others do. of: the push
    that it brings back; 0: none. note: by who pushes.
    """

    bundle: Bundle
    source: str
    rules: int
    routes: int
    steps: tuple[str, ...] = ()
    note: str = ""
    of: int = 0


@dataclass(frozen=True)
class Standing:
    """What etcd has. at: the revision of rollout's key, 0: it has none."""

    revision: int
    rollout: Rollout | None
    at: int
    routes: tuple[Item, ...]
    hosts: tuple[Item, ...]

    def rows(self) -> list[HostRow]:
        """Of the instances that are listed."""
        return hosts.rows(self.hosts)


Tell = Callable[[HostRow], object]


class Controller:
    """For one fleet. Errors are DmmErrors."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._place = fleet.etcd.place
        self._written: pushtext.Written | None = None  # the text of what was pushed here

    async def standing(self) -> Standing:
        """All but the pushes themselves."""
        want = await self._fleet.find(layout.WANT, prefix=True)
        listed = await self._fleet.find(layout.HOSTS, prefix=True)
        twice = await self._fleet.find(layout.TWICE, prefix=True)
        rollout, at = None, 0
        for one in want.items:
            if one.key == layout.ROLLOUT:
                rollout, at = Rollout.read(one.key, one.value), one.revision
        routes = tuple(one for one in want.items if one.key.startswith(layout.ROUTES))
        return Standing(listed.revision, rollout, at, routes, listed.items + twice.items)

    async def row(self, standing: Standing) -> RolloutRow:
        """Which push is for whom."""
        one = standing.rollout
        if one is None:
            routes = len(standing.routes)
            return RolloutRow(str(self._place), "none", 0, 0, [], 0, "", "", 0.0, "", 0, routes)
        pushed = await self._fleet.push(one.push)
        return RolloutRow(
            place=str(self._place),
            state=one.state,
            push=one.push,
            stable=one.stable,
            steps=one.steps,
            reached=one.reached,
            why=one.why,
            by=pushed.by,
            at=pushed.at,
            note=pushed.note,
            of=pushed.of,
            routes=len(standing.routes),
        )

    async def pushes(self) -> list[Push]:
        """Those that are kept, the oldest first."""
        found = await self._fleet.find(layout.PUSHES, prefix=True)
        pushes = []
        for one in found.items:
            with contextlib.suppress(LayoutError):  # nobody could go back to it
                pushes.append(Push.read(one.key, one.value))
        return pushes

    async def bundle(self, push: int) -> Bundle:
        """What was pushed."""
        return await self._fleet.bundle(push, (await self._fleet.push(push)).digest)

    # -- push --

    async def push(self, order: Order) -> Rollout:
        """Write it, and tell the hosts of the first step, or all. Raises ConflictError if another
        push came in between, or one is being rolled out.
        """
        standing = await self.standing()
        before = standing.rollout
        if before is not None and before.state == "rolling" and not order.of:
            why = f"push {before.push}, by {before.by}, is being rolled out"
            hint = "wait for it, go on with it by push --resume, or roll it back"
            raise ConflictError(f"push to {self._place}", why=why, hint=hint)
        self._check_steps(order.steps, standing)
        stable, stable_digest = _stable(before)
        digest, parts = order.bundle.digest(), order.bundle.parts()
        written = await pushtext.write(self._fleet, 1 + await self._highest(standing), parts)
        number = written.push
        by, now = _by(), round(time.time(), 3)
        pushed = Push(
            push=number,
            digest=digest,
            parts=len(parts),
            by=by,
            at=now,
            note=order.note,
            of=order.of,
            before=stable,
            source=order.source,
            rules=order.rules,
            routes=order.routes,
        )
        rollout = Rollout(
            push=number,
            digest=digest,
            stable=stable,
            stable_digest=stable_digest,
            state="rolling" if order.steps else "everywhere",
            steps=list(order.steps),
            reached=1 if order.steps else 0,
            by=by,
            at=now,
        )
        try:
            await self._change(
                standing.at,
                rollout,
                [Put(layout.push_key(number), layout.write(pushed))],
                [written.unchanged],
            )
        except ConflictError:
            await pushtext.remove(self._fleet, written)
            raise
        self._written = written
        await self._forget(number, stable)
        return rollout

    async def _highest(self, standing: Standing) -> int:
        """The highest number that any push had, also before etcd was restored from a backup: hosts
        remember.
        """
        known = [*await self._numbers(layout.PUSHES), *await self._numbers(layout.TEXTS)]
        # A host that tells of one near the last has lied: no push could come after it.
        told = (max(one.push, one.newest) for one in standing.rows())
        known += [one for one in told if one <= layout.MAX_NUMBER // 2]
        return max([standing.rollout.push if standing.rollout else 0, *known])

    async def _numbers(self, prefix: str) -> set[int]:
        """Of which pushes there is something below prefix."""
        found = await self._fleet.find(prefix, prefix=True, keys_only=True)
        texts = {one.key.removeprefix(prefix).partition("/")[0] for one in found.items}
        numbers = (whole(text, layout.MAX_NUMBER + 1) for text in texts)
        return {one for one in numbers if one is not None}

    def _check_steps(self, steps: Sequence[str], standing: Standing) -> None:
        for one in steps:
            selector = parse_selector(one)
            if not any(selector.holds(row.labels) for row in standing.rows()):
                why = f"no host that is listed has {one}"
                hint = "dmm-ebpf controller hosts lists them, with their labels"
                raise UsageError(f"push to {self._place} in steps", why=why, hint=hint)

    async def _change(
        self, at: int, rollout: Rollout, more: Sequence[Put] = (), wants: Sequence[Until] = ()
    ) -> None:
        """Change the rollout from what it was at revision at, and put more beside it. wants: that
        the push's text is as it was written. Raises ConflictError.
        """
        value = layout.write(rollout)
        put = [*more, Put(layout.ROLLOUT, value)]
        if await self._fleet.commit([At(layout.ROLLOUT, at), *wants], put):
            return
        # A request that was tried again may have been done the first time.
        found = await self._fleet.find(layout.ROLLOUT)
        if not found.items or found.items[0].value != value:
            why = "somebody else has removed the rollout meanwhile"
            if at == (found.items[0].revision if found.items else 0):
                hint = f"{pushtext.ONE_VERSION}, and do it again"
                raise ConflictError(f"push to {self._place}", why=pushtext.OVERWRITTEN, hint=hint)
            if found.items:
                now = Rollout.read(layout.ROLLOUT, found.items[0].value)
                why = f"push {now.push}, by {now.by}, came first"
                if now.push == rollout.push:
                    why = f"somebody else went on with push {now.push} meanwhile"
            raise ConflictError(f"push to {self._place}", why=why, hint="look, and do it again")

    async def _forget(self, push: int, stable: int) -> None:
        """Remove pushes that are too old to be rolled back to, and what is left of others that came
        to nothing before this one: who writes one still is not first any more.
        """
        old = {one.push for one in (await self.pushes())[:-KEPT_PUSHES]} - {push, stable}
        texts, known = await self._numbers(layout.TEXTS), await self._numbers(layout.PUSHES)
        for one in old | {number for number in texts - known if number < push}:
            does = [Delete(layout.push_key(one)), Delete(layout.text_key(one), True)]
            await self._fleet.commit([], does)

    # -- roll out --

    def watching(
        self, steps: Sequence[str], seconds: float
    ) -> contextlib.AbstractAsyncContextManager[PathWatch | None]:
        """See watching.watching()."""
        return watching(self._fleet, steps, seconds)

    async def take_before(self, watch: PathWatch, steps: Sequence[str]) -> None:
        """Have watch take how the paths are of the hosts that steps select. Raises UsageError if a
        step selects none.
        """
        standing = await self.standing()
        self._check_steps(steps, standing)
        selectors = [parse_selector(one) for one in steps]
        asked = [one for one in standing.rows() if _is_asked(one, selectors)]
        await watch.take_before([(one.host, one.instance) for one in asked])

    async def roll(
        self, within_s: float, tell: Tell, watch: PathWatch | None = None, *, judged: int = 0
    ) -> Rolled:
        """Go on with the roll-out: tell the hosts of step after step, then all, each when those
        before have taken it. A host that refuses, or does not answer within_s seconds, halts it.
        tell is told of each host as it takes or refuses it.

        watch: paths that are worse after a step than before halt it, too; not those of the first
        judged steps, of which it is not known how they were.
        """
        told: set[str] = set()
        silent: list[str] = []

        def tell_once(one: HostRow) -> None:
            if _name(one) not in told:
                told.add(_name(one))
                tell(one)

        while True:
            standing = await self.standing()
            rollout = standing.rollout
            if rollout is None:
                raise UsageError(f"roll out in {self._place}", why="nothing was pushed")
            chosen = None if rollout.state == "everywhere" else rollout.steps[: rollout.reached]
            bad = await self._settled(standing, rollout, chosen, within_s, tell_once)
            if rollout.state == "everywhere":
                return await self._rolled(rollout, bad, silent)
            if not bad and watch is not None and rollout.reached > judged:
                bad, more = await self._judge(watch, rollout)
                silent += [one for one in more if one not in silent]
            if bad:
                rollout = replace(rollout, state="halted", why=bad)
                await self._change(standing.at, rollout)
                return await self._rolled(rollout, bad, silent)
            reached = rollout.reached + 1
            last = reached > len(rollout.steps)
            after = replace(
                rollout,
                state="everywhere" if last else "rolling",
                reached=rollout.reached if last else reached,
                why="",
            )
            await self._change(standing.at, after)

    async def _judge(self, watch: PathWatch, rollout: Rollout) -> tuple[str, list[str]]:
        """What is worse on the hosts that have the push; empty: nothing. And of which hosts that
        cannot be told.
        """
        selectors = [parse_selector(one) for one in rollout.steps[: rollout.reached]]
        rows = [one for one in (await self.standing()).rows() if _is_asked(one, selectors)]
        bad, silent = await watch.worse([(one.host, one.instance) for one in rows])
        return "; ".join(bad), silent

    async def _rolled(self, rollout: Rollout, bad: str, silent: list[str]) -> Rolled:
        rows = [one for one in (await self.standing()).rows() if one.wanted == rollout.push]
        return Rolled(rollout.push, rollout.state, bad, not bad, rows, silent)

    async def _settled(
        self,
        standing: Standing,
        rollout: Rollout,
        steps: Sequence[str] | None,
        within_s: float,
        tell: Tell,
    ) -> str:
        """Wait until every host that steps select (None: all) has said what it made of the push.
        Returns what is wrong; empty: all took it.
        """
        known = hosts.Hosts(standing.hosts)
        selectors = None if steps is None else [parse_selector(one) for one in steps]
        await self._keep_text()

        def asked_now() -> list[HostRow]:
            return [one for one in known.rows() if _is_asked(one, selectors)]

        first = {_name(one) for one in asked_now()}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                async for _ in self._rounds(standing, known):
                    asked = asked_now()
                    if any(one.state == "held" for one in asked):
                        await self._keep_text()
                    for one in asked:
                        if _answered(one, rollout.push):
                            tell(one)
                    halting = any(_refuses(one, rollout.push) for one in asked)
                    halting = halting or not first <= {_name(one) for one in asked}
                    if steps is not None and halting:
                        break
                    if all(_answered(one, rollout.push) for one in asked):
                        break
        asked = asked_now()
        gone = sorted(first - {_name(one) for one in asked}) if steps is not None else []
        listed = {_name(one) for one in known.rows()}
        wrong = [
            f"{name} has other labels now, which no step selects"
            if name in listed
            else f"{name} is not listed any more"
            for name in gone
        ]
        if steps is not None and not first:
            wrong = [f"no host that is listed has {' or '.join(steps)}"]
        wrong += [
            f"{_name(one)}, refused it: {one.why}" for one in asked if _refuses(one, rollout.push)
        ]
        wrong += [
            f"{_name(one)}, did not take it within {within_s:g} s"
            + (f": {one.why}" if one.why else "")
            for one in asked
            if not _answered(one, rollout.push)
        ]
        return "; ".join(wrong)

    async def _keep_text(self) -> None:
        """Have the text of what was pushed here be what was pushed."""
        if self._written is not None:
            self._written = await pushtext.put_back(self._fleet, self._written)

    async def _rounds(self, standing: Standing, known: hosts.Hosts) -> AsyncIterator[None]:
        """Once at first, and whenever hosts have said something else."""
        yield None
        keys = {one.key for one in standing.hosts}
        async for one in self._changes(layout.HOSTS, (layout.HOSTS,), standing.revision, keys):
            known.change(one)
            yield None

    async def _changes(
        self, prefix: str, wanted: tuple[str, ...], revision: int, keys: set[str]
    ) -> AsyncIterator[Change]:
        """Every change below prefix behind revision, also while members of etcd come and go; where
        those have been compacted away, what has become of the keys below wanted meanwhile. keys:
        that there were.
        """
        compacted = False
        while True:
            try:
                if compacted:
                    at = (await self._fleet.find(layout.ROLLOUT)).revision
                    for one in await self._meanwhile(wanted, revision, keys):
                        _note(one, keys)
                        yield one
                    revision, compacted = at, False
                async for changes in self._fleet.watch(prefix, revision + 1):
                    for one in changes:
                        revision = max(revision, one.item.revision if one.item else 0)
                        _note(one, keys)
                        yield one
            except CompactedError:
                compacted = True
            except EtcdDownError:
                await asyncio.sleep(AGAIN_S)

    async def _meanwhile(
        self, wanted: tuple[str, ...], revision: int, keys: set[str]
    ) -> list[Change]:
        made: list[Change] = []
        there: set[str] = set()
        for prefix in wanted:
            newer = await self._fleet.find(prefix, prefix=True, newer_than=revision)
            made += [Change(one.key, one) for one in newer.items]
            known = await self._fleet.find(prefix, prefix=True, keys_only=True)
            there |= {one.key for one in known.items}
        gone = [one for one in keys if one.startswith(wanted) and one not in there]
        return [*(Change(one, None) for one in sorted(gone)), *made]

    # -- back --

    async def back(self, to: int | None) -> tuple[int, Bundle, Push]:
        """The push that a rollback brings back: to, or the one that was everywhere before."""
        rollout = (await self.standing()).rollout
        what = f"roll {self._place} back"
        if rollout is None:
            raise UsageError(what, why="nothing was pushed")
        number = to
        if number is None and rollout.state != "everywhere":
            number = rollout.stable
        elif number is None:
            number = (await self._fleet.push(rollout.push)).before
        if not number:
            raise UsageError(what, why=f"push {rollout.push} is the first", hint="push another one")
        known = {one.push: one for one in await self.pushes()}
        if number not in known:
            kept = ", ".join(map(str, known)) or "none"
            raise UsageError(what, why=f"push {number} is not kept", hint=f"kept are {kept}")
        return number, await self._fleet.bundle(number, known[number].digest), known[number]

    # -- watch --

    async def follow(self) -> AsyncIterator[HostRow | Rollout | Change]:
        """Everything from now on: a host that says something, a rollout that changes, another
        change (a host that is gone, a route that comes or goes).
        """
        keys: set[str] = set()
        revision = 0
        for prefix in _TOLD:
            found = await self._fleet.find(prefix, prefix=True, keys_only=True)
            keys |= {one.key for one in found.items}
            revision = revision or found.revision
        async for one in self._changes("", _TOLD, revision, keys):
            made = _event(one)
            if made is not None:
                yield made


_TOLD = (layout.HOSTS, layout.TWICE, layout.WANT)


def _note(one: Change, keys: set[str]) -> None:
    """Have in keys which there are."""
    if one.item is None:
        keys.discard(one.key)
    else:
        keys.add(one.key)


def _event(one: Change) -> HostRow | Rollout | Change | None:
    if one.key.startswith((layout.HOSTS, layout.TWICE)) and one.item is not None:
        return hosts.row(one.item)
    if one.key == layout.ROLLOUT and one.item is not None:
        try:
            return Rollout.read(one.key, one.item.value)
        except DmmError:
            return one
    return one if one.key.startswith(_TOLD) else None


def _stable(before: Rollout | None) -> tuple[int, str]:
    if before is None:
        return 0, ""
    if before.state == "everywhere":
        return before.push, before.digest
    return before.stable, before.stable_digest


def _is_asked(row: HostRow, selectors: Sequence[Selector] | None) -> bool:
    if row.state == "twice":
        return False
    return selectors is None or any(one.holds(row.labels) for one in selectors)


def _answered(row: HostRow, push: int) -> bool:
    return _refuses(row, push) or (row.push == push and row.state == "applied")


def _refuses(row: HostRow, push: int) -> bool:
    return row.wanted == push and row.state == "refused"


def _name(row: HostRow) -> str:
    return f"{row.host}, instance {row.instance}"


def _by() -> str:
    """Who pushes, as far as this host knows: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
