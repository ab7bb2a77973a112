# SPDX-License-Identifier: Apache-2.0
"""The policy of an instance out of etcd: followed, put in force, or refused, and told of.

Invariant: the policy in force changes only to one that was read whole and accepted. Whatever etcd
is (down, slow, without a quorum, compacted, restored from an older backup, full of wrong data), the
host goes on with the last good policy, which is also on disk, and says why.

Pushes are numbered, and the number that etcd tells of never falls: if it does, or comes with other
content, etcd was restored from a backup, and is not followed until it tells of a newer push.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf import records
from dmm_ebpf.central import layout
from dmm_ebpf.central.client import CompactedError, Found, Item, connect
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.central.layout import Bundle, Rollout
from dmm_ebpf.errors import DmmError, PolicyError, unforeseen
from dmm_ebpf.rd.director import fleetroutes
from dmm_ebpf.rd.director.fleetroutes import NotBesideError
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.livetable import LiveRoute
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.sources.compose import Composed, compose, single
from dmm_ebpf.rd.sources.figures import PathFigures
from dmm_ebpf.rd.sources.lastgood import Kept, LastGood
from dmm_ebpf.rd.sources.learnt import Learnt
from dmm_ebpf.rd.sources.publish import Publisher
from dmm_ebpf.records.central import Central, CentralState

if TYPE_CHECKING:
    from dmm_ebpf.rd.sources.follower import Follower
    from dmm_ebpf.rd.sources.served import Served

FIRST_WITHIN_S = 5.0  # so long an attach waits for etcd, when it has nothing to begin with
BEAT_S = 15.0  # the publisher asks more often, and finds out who is gone
AGAIN_S = (0.2, 5.0)  # the least and the most between two tries to reach etcd
RETRY_S = 5.0  # after a failure that is not the policy's: a stack that does not start
log = logging.getLogger("dmm-ebpf")


@dataclass(frozen=True)
class _Refusal:
    """A try that has ended badly. digest: of what was tried; empty: none has. why: the sentence.
    again: when to try the same once more, by time.monotonic(); 0: nothing but another policy, or
    reload(), is tried.
    """

    digest: str = ""
    why: str = ""
    again: float = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the same is to be tried once more now."""
        return bool(self.again) and time.monotonic() >= self.again


@contextlib.asynccontextmanager
async def opened(who: Follower) -> AsyncIterator[Fleet]:
    """The fleet of a source that is to be made; closed if the body fails. Raises what connect()
    does; etcd need not answer.
    """
    etcd = await connect(who.place)
    try:
        yield Fleet(etcd)
    except BaseException:
        await etcd.close()
        raise


class EtcdSource:
    """A Source (director/source.py). Lives in the instance's event loop."""

    def __init__(self, instance: Served, fleet: Fleet, who: Follower) -> None:
        self._instance = instance
        self._fleet = fleet
        self._who = who
        self._last = LastGood(instance.state.instance, str(who.place))
        self._found: dict[str, Item] = {}  # below want/
        self._revision = 0  # of the store, when _found was so
        # Of the policy in force, beside which single routes stand: the push, and its digest
        self._base = (0, "")
        self._absent: set[str] = set()  # tables that it has for other hosts alone
        self._unkept: list[LiveRoute] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._considering = asyncio.Lock()
        self._refusal = _Refusal()  # of the last try, which was of the policy that is wanted
        self._told = Central(str(who.place), who.host, dict(who.labels), since=_now())
        self._lost = ""  # why etcd cannot be reached
        self._publisher = Publisher(fleet, instance, who.host, self.told)
        named = (who.host, who.labels)
        self._learnt = Learnt(fleet, instance, who.host, lambda: self._publisher.lease)
        self._figures = PathFigures(fleet, instance, named, lambda: self._publisher.lease)

    @property
    def trouble(self) -> records.status.Refused | None:
        """What etcd has for this host and is not in force; None: nothing."""
        told = self._told
        if told.state not in {"refused", "held"}:
            return None
        return records.status.Refused(str(self._who.place), told.why, told.since)

    def told(self) -> Central:
        """How it stands with etcd."""
        told = replace(
            self._told,
            newest=self._last.kept.newest,
            reached=not self._lost,
            lost=self._lost,
            unpublished=self._publisher.trouble,
        )
        if told.state == "applied" and not self._is_in_force():
            path = self._instance.state.policy or "another policy"
            why = f"{path} was applied by hand, and stays until etcd has something else"
            return replace(told, state="overridden", why=why)
        return told

    async def begin(self) -> None:
        """Put the last good policy in force where none is; with none, wait a little for etcd."""
        policy = self._last.policy
        if policy is not None:
            try:
                new = await asyncio.to_thread(policies.load, policy)
                if self._instance.policy is None or self._instance.policy.text != new.text:
                    new = self._with_routes(new)
                    await self._instance.apply(new, policy)
                kept = self._last.kept
                self._tell("applied", push=kept.push, routes=kept.routes)
            except Exception as error:
                log.exception(
                    "the last good policy of %s cannot be used: %s",
                    self._who.place,
                    error,
                    exc_info=not isinstance(error, DmmError),
                )
                policy = None
        if policy is None:
            try:
                async with asyncio.timeout(FIRST_WITHIN_S):
                    found = await self._fleet.find(layout.WANT, prefix=True)
                await self._hear(found)
            except DmmError as error:
                self._lose(error)
            except TimeoutError:
                log.error("%s: no answer yet; there is no policy", self._who.place)

    def _with_routes(self, new: Policy) -> Policy:
        """The last good policy, with the single routes that stood beside it."""
        with contextlib.suppress(NotBesideError):
            routes = self._last.routes()
            return fleetroutes.beside(new, routes, self._instance.live.reserve(len(routes)))
        return new

    async def run(self) -> None:
        """Follow until cancelled."""
        tasks = [
            asyncio.ensure_future(one)
            for one in (
                self._following(),
                self._beat(),
                self._publisher.run(),
                self._figures.run(),
                self._learnt.run(),
            )
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._fleet.etcd.close()

    async def reload(self) -> None:
        """Read etcd now, and try again what was refused."""
        self._refusal = _Refusal()
        try:
            await self._read()
        except DmmError as error:
            self._lose(error)

    # -- etcd --

    async def _following(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception:
                log.exception("%s could not be followed; it is tried again", self._who.place)
            await asyncio.sleep(AGAIN_S[1])

    async def _follow(self) -> None:
        wait = AGAIN_S[0]
        while True:
            try:
                await self._read()
            except DmmError as error:
                self._lose(error)
                # Thousands of hosts must not come back at once.
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, AGAIN_S[1])
                continue
            wait = AGAIN_S[0]
            try:
                async for changes in self._fleet.watch(layout.WANT, self._revision + 1):
                    for one in changes:
                        if one.item is None:
                            self._found.pop(one.key, None)
                        else:
                            self._found[one.key] = one.item
                            self._revision = max(self._revision, one.item.revision)
                    await self._consider()
            except CompactedError:
                log.info("%s was compacted: it is read anew", self._who.place)
            except DmmError as error:
                # Another member may serve: it is lost if none does.
                log.info("%s; it is asked anew", error)
                await asyncio.sleep(wait * random.random())

    async def _beat(self) -> None:
        """A watch may be dead and not say so: the link is down, the peer's host gone. So it is
        asked, too, whether there is anything newer.
        """
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                newer = await self._fleet.find(
                    layout.WANT, prefix=True, newer_than=self._revision, keys_only=True
                )
                again = self._refusal.is_due
                if newer.items or again or self._lost or self._told.state == "held":
                    found = await self._fleet.find(layout.WANT, prefix=True)
                    # The watch may have told of more since.
                    if found.revision >= self._revision:
                        await self._hear(found)
            except DmmError as error:
                self._lose(error)
            except Exception:
                log.exception("%s could not be asked; it is asked again", self._who.place)

    async def _read(self) -> None:
        await self._hear(await self._fleet.find(layout.WANT, prefix=True))

    async def _hear(self, found: Found) -> None:
        self._lost = ""
        self._found = {one.key: one for one in found.items}
        self._revision = found.revision
        await self._consider()

    def _lose(self, error: DmmError) -> None:
        if not self._lost:
            log.error("%s; what is in force stays", error)
        self._lost = str(error)

    # -- what it says --

    async def _consider(self) -> None:
        """Put in force what etcd has for this host, unless it is, or cannot be."""
        async with self._considering:
            try:
                self._figures.ask(self._found.get(layout.WATCH))
                rollout = self._rollout()
                if rollout is not None:
                    await self._take(rollout)
            except layout.LayoutError as error:
                self._refuse("held", str(error))
            except DmmError:
                raise
            except Exception as error:
                log.exception("what %s has could not be looked at", self._who.place)
                self._refuse("held", str(unforeseen(f"look at what {self._who.place} has", error)))

    def _rollout(self) -> Rollout | None:
        item = self._found.get(layout.ROLLOUT)
        if item is None:
            if self._last.kept.newest:
                why = (
                    f"etcd has no {layout.ROLLOUT} any more, and had push {self._last.kept.newest}"
                )
                self._refuse("held", f"{why}; push again")
            else:
                self._tell("waiting", why="nothing was pushed yet")
            return None
        rollout = Rollout.read(item.key, item.value)
        kept = self._last.kept
        other = rollout.push == kept.newest and rollout.digest != kept.newest_digest
        if rollout.push < kept.newest or other:
            same = f"another push {rollout.push} than" if other else f"push {rollout.push} after"
            why = f"etcd tells of {same} push {kept.newest}: it was restored from an older backup"
            self._refuse("held", f"{why}; push again")
            return None
        if rollout.push > kept.newest:
            self._keep(replace(kept, newest=rollout.push, newest_digest=rollout.digest))
        return rollout

    async def _take(self, rollout: Rollout) -> None:
        push, digest = rollout.of(self._who.labels)
        if not push:
            self._tell("waiting", why=f"push {rollout.push} is not for this host yet")
            return
        routes = [self._found[key] for key in layout.below(layout.ROUTES, self._found)]
        alone = single(routes)
        is_same = (push, digest) == self._base and self._is_in_force()
        if is_same and alone is not None and await self._change_routes(push, alone):
            return
        bundle = await self._fleet.bundle(push, digest)
        one = await asyncio.to_thread(compose, bundle, routes, self._who.labels)
        if one.digest == self._last.kept.composed and self._is_in_force():
            self._keep(replace(self._last.kept, push=push))
            self._tell("applied", push=push, routes=one.routes)
            return
        if one.digest == self._refusal.digest and not self._refusal.is_due:
            self._refuse("refused", self._refusal.why, push=push)
            return
        await self._publisher.claim()
        if self._publisher.twice:
            self._refuse("held", self._publisher.trouble)
            return
        try:
            if alone is None or not await self._apply_beside((push, digest), bundle, alone):
                await self._apply(push, one)
        except Exception as error:
            self._fail(push, one, error)

    def _is_in_force(self) -> bool:
        return self._instance.policy is not None and self._instance.state.policy == str(
            self._last.policy
        )

    async def _apply(self, push: int, one: Composed) -> None:
        """With single routes compiled as if they were written in the policy."""
        new, file = await self._parsed(push, one)
        await self._instance.apply(new, file)
        self._base = 0, ""
        self._applied(push, one.routes, one.digest)

    async def _apply_beside(
        self, pushed: tuple[int, str], bundle: Bundle, alone: list[LiveRoute]
    ) -> bool:
        """With single routes beside the policy; False: they cannot stand there."""
        base = await asyncio.to_thread(compose, bundle, [], self._who.labels)
        # Beside the push that is in force already _take() has tried it.
        is_new = pushed != self._base
        if is_new and base.digest == self._last.kept.composed and self._is_in_force():
            self._base = pushed
            if await self._change_routes(pushed[0], alone):
                return True
        try:
            new, file = await self._parsed(pushed[0], base)
            tables = tomllib.loads(bundle.policy).get("tables", {})
            self._absent = set(tables) - set(new.tables)
            wanted = self._here(alone)
            number = self._instance.live.reserve(len(wanted))
            new = await asyncio.to_thread(fleetroutes.beside, new, wanted, number)
        except (NotBesideError, PolicyError):  # all of it together tells what is wrong, if anything
            self._last.drop(base.digest)
            return False
        try:
            await self._instance.apply(new, file)
        except BaseException:
            self._last.drop(base.digest)
            raise
        self._base = pushed
        self._applied(pushed[0], len(alone), base.digest)
        self._keep_routes(alone)
        return True

    async def _change_routes(self, push: int, alone: list[LiveRoute]) -> bool:
        """Whether these single routes stand beside the policy in force now, and no others."""
        await self._publisher.claim()
        if self._publisher.twice:
            return False
        wanted = self._here(alone)
        try:
            await self._instance.change(lambda here: fleetroutes.change(here, wanted))
        except (NotBesideError, DmmError) as error:
            log.info("single routes take the whole policy: %s", error)
            return False
        self._applied(push, len(alone), self._last.kept.composed)
        self._keep_routes(alone)
        return True

    def _here(self, alone: list[LiveRoute]) -> list[LiveRoute]:
        """Those of tables that this host has."""
        return [one for one in alone if one.table not in self._absent]

    def _keep_routes(self, alone: list[LiveRoute]) -> None:
        """For the next boot, which asks etcd soon; so it is nobody's to wait for."""
        self._unkept = alone
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep_latest())

    async def _keep_latest(self) -> None:
        while self._unkept is not None:
            routes, self._unkept = self._here(self._unkept), None
            try:
                await asyncio.to_thread(self._last.keep_routes, routes)
            except DmmError as error:
                log.warning("%s; after a boot this host begins with other single routes", error)

    async def _parsed(self, push: int, one: Composed) -> tuple[Policy, Path]:
        """With the file that it is kept in."""
        file = await asyncio.to_thread(self._last.write, one)
        source = f"push {push}"
        new = await asyncio.to_thread(policies.parse, one.text, source=source, base=file.parent)
        return new, file

    def _applied(self, push: int, routes: int, composed: str) -> None:
        self._refusal = _Refusal()
        self._keep(replace(self._last.kept, push=push, routes=routes, composed=composed))
        self._tell("applied", push=push, routes=routes)

    def _fail(self, push: int, one: Composed, error: Exception) -> None:
        why = str(error)
        if not isinstance(error, DmmError):
            log.error("push %d could not be applied; it is tried again", push, exc_info=error)
            why = str(unforeseen(f"apply push {push}", error))
        again = 0.0 if isinstance(error, PolicyError) else time.monotonic() + RETRY_S
        self._refusal = _Refusal(one.digest, why, again)
        self._last.drop(one.digest)
        self._refuse("refused", why, push=push)

    def _keep(self, kept: Kept) -> None:
        """What cannot be written down is in force all the same, and told."""
        if kept == self._last.kept:
            return
        try:
            self._last.keep(kept)
            self._told = replace(self._told, unkept="")
        except DmmError as error:
            self._told = replace(self._told, unkept=str(error))
            log.warning("%s; after a boot this host begins with an older policy", error)

    # -- what is told --

    def _tell(
        self, state: CentralState, *, push: int | None = None, routes: int = 0, why: str = ""
    ) -> None:
        told = self._told
        since = told.since if (told.state, told.why) == (state, why) else _now()
        push = told.push if push is None else push
        wanted = push if state == "applied" else told.wanted
        self._told = replace(
            told, state=state, push=push, wanted=wanted, routes=routes, why=why, since=since
        )
        if told != self._told:
            if state in {"applied", "waiting"}:
                log.info("%s: %s", self._who.place, why or f"push {push} is in force")
            self._publisher.changed.set()

    def _refuse(self, state: CentralState, why: str, *, push: int | None = None) -> None:
        if (self._told.state, self._told.why, self._told.wanted) == (state, why, push):
            return
        self._told = replace(self._told, wanted=self._told.wanted if push is None else push)
        self._tell(state, routes=self._told.routes, why=why)
        log.error("%s; the policy in force stays", why)
        self._instance.publish(partial(self._event, why))

    def _event(self, why: str) -> records.event.PolicyRefusedEvent:
        name, now = self._instance.state.instance, records.event.now()
        place = str(self._who.place)
        return records.event.PolicyRefusedEvent("policy_refused", place, why, now, name)


def _now() -> float:
    return round(time.time(), 3)
