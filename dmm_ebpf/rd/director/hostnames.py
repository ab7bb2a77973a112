# SPDX-License-Identifier: Apache-2.0
"""The hostnames that an instance's policy names: asked for of DNS, again and again.

A name is two questions, for IPv4 and for IPv6, each with a time of its own. What is answered holds
for the TTL; an address that no answer has any more is kept for some TTLs, since servers with many
addresses tell a few of them at a time. While nobody answers, what was known stays, for STALE_S;
that a name has no addresses is an answer, and takes them away.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal.hostnames import MOST_ADDRESSES, Asker, Family, Found
from dmm_ebpf.rd.director.reading import Reading
from dmm_ebpf.rd.policy.hostnames import HostName
from dmm_ebpf.rd.policy.named import Named
from dmm_ebpf.rd.policy.values import Prefix

FLOOR_S, CEILING_S = 5.0, 3600.0  # of what is made of a TTL
KEPT_TTLS = 5  # since an answer had an address last
RETRY_S, LAST_RETRY_S = 1.0, 60.0  # where there is no address, or no answer
STALE_S = 3600.0  # since the last answer
FIRST_S = 2.0  # that a policy waits for its new names
UNASKED = "it was not answered yet"
FAMILIES: tuple[Family, ...] = (4, 6)

log = logging.getLogger("dmm-ebpf")


class Question:
    """What is known of one family of a name's addresses. Times are seconds of any clock that only
    goes on.
    """

    def __init__(self) -> None:
        self.was_asked = False
        self.failed = ""  # why the last one was not answered
        self.none = ""  # why there are no addresses, as was answered last
        self._until: dict[Prefix, float] = {}  # when an address goes that no answer has
        self._answered_at = 0.0
        self._retry_s = RETRY_S

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The addresses that it stands for."""
        return tuple(sorted(self._until))

    @property
    def unanswered(self) -> float | None:
        """When the last answer came, if nobody answers since; None: somebody does."""
        return self._answered_at if self.failed else None

    def remember(self, prefixes: Iterable[Prefix], now: float, answered_at: float) -> None:
        """Takes what an earlier director knew, whose last answer came then."""
        self._until = dict.fromkeys(prefixes, now + KEPT_TTLS * FLOOR_S)
        self.failed = UNASKED if self._until else ""
        self._answered_at = min(answered_at, now)

    def answer(self, found: Found, now: float) -> float:
        """Takes an answer; in how many seconds to ask again."""
        self.was_asked, self.failed, self.none = True, "", found.none
        self._answered_at = now
        if found.none:
            self._until = {}
            return self._backoff()
        self._retry_s = RETRY_S
        ttl = min(max(float(found.ttl), FLOOR_S), CEILING_S)
        seen = dict.fromkeys((Prefix(*one) for one in found.blocks), now + KEPT_TTLS * ttl)
        kept = {one: until for one, until in self._until.items() if until > now} | seen
        latest = sorted(kept, key=lambda one: (one not in seen, -kept[one], one))
        self._until = {one: kept[one] for one in latest[:MOST_ADDRESSES]}
        return ttl

    def failure(self, why: str, now: float) -> float:
        """Takes it that nobody answers; in how many seconds to ask again."""
        self.was_asked, self.failed = True, why
        if now - self._answered_at > STALE_S:
            self._until, self.none = {}, ""
        return self._backoff()

    def _backoff(self) -> float:
        now, self._retry_s = self._retry_s, min(2 * self._retry_s, LAST_RETRY_S)
        return now


def reading(questions: Sequence[Question]) -> Reading:
    """What a name stands for, and how it stands with it."""
    prefixes = tuple(itertools.chain.from_iterable(one.prefixes for one in questions))
    failed = next((one.failed for one in questions if one.failed), "")
    if not prefixes:
        none = next((one.none for one in questions if one.none), UNASKED)
        return Reading("missing", why=failed or none)
    stale = next((one.failed for one in questions if one.failed and one.prefixes), "")
    return Reading("unread" if stale else "followed", prefixes, stale)


class Hostnames:
    """Those of one instance. Lives in its event loop."""

    def __init__(self, changed: Callable[[HostName], object]) -> None:
        """changed: called when a name has other addresses, or it stands otherwise with it."""
        self._changed = changed
        self.known: Mapping[str, Sequence[Prefix]] = {}  # from before, by the names' texts
        self.unanswered_before: Mapping[str, float] = {}  # as unanswered() of then
        self._asker: Asker | None = None
        self._asking: dict[HostName, list[asyncio.Task[None]]] = {}
        self._questions: dict[HostName, tuple[Question, ...]] = {}
        self._readings: dict[HostName, Reading] = {}
        self._asked: dict[HostName, asyncio.Event] = {}

    def reading(self, name: HostName) -> Reading:
        """Of a name that is followed."""
        return self._readings[name]

    def unanswered(self) -> dict[str, float]:
        """When the last answer came about each name that has addresses and is answered no more, by
        CLOCK_MONOTONIC.
        """
        asked = {
            str(name): [q.unanswered for q in questions if q.prefixes and q.unanswered is not None]
            for name, questions in self._questions.items()
        }
        return {name: min(times) for name, times in asked.items() if times}

    async def follow(self, names: Collection[HostName], within_s: float) -> None:
        """Follow these, and no others; waits a moment for the first answers about new ones."""
        self.keep(names)
        if not names:
            return
        self._asker = self._asker or Asker()
        for name in names:
            if name not in self._asking:
                self._begin(name, self._asker)
        waits = [asyncio.ensure_future(self._asked[name].wait()) for name in names]
        try:
            await asyncio.wait(waits, timeout=within_s)
        finally:
            for one in waits:
                one.cancel()

    def keep(self, names: Collection[HostName]) -> None:
        """Follow no others any more."""
        for name in self._asking.keys() - set(names):
            self._forget(name)

    def close(self) -> None:
        """Follow none."""
        self.keep(())
        if self._asker is not None:
            self._asker.close()
            self._asker = None

    def _begin(self, name: HostName, asker: Asker) -> None:
        questions = tuple(Question() for _ in FAMILIES)
        known, now = self.known.get(str(name), ()), time.monotonic()
        answered_at = self.unanswered_before.get(str(name), now)
        for family, one in zip(FAMILIES, questions, strict=True):
            one.remember((p for p in known if p.family == family), now, answered_at)
        self._questions[name], self._readings[name] = questions, reading(questions)
        self._asked[name] = asyncio.Event()
        self._asking[name] = [
            asyncio.create_task(self._ask(asker, name, *one))
            for one in zip(FAMILIES, questions, strict=True)
        ]

    def _forget(self, name: HostName) -> None:
        for task in self._asking.pop(name):
            task.cancel()
        del self._questions[name], self._readings[name], self._asked[name]

    async def _ask(self, asker: Asker, name: HostName, family: Family, question: Question) -> None:
        while True:
            try:
                found = await asker.ask(name.name, family)
            except DmmError as error:
                pause = question.failure(error.why, time.monotonic())
            except Exception as error:
                log.exception("%s could not be asked for; it is asked for again", name)
                pause = question.failure(type(error).__name__, time.monotonic())
            else:
                pause = question.answer(found, time.monotonic())
            self._tell(name)
            await asyncio.sleep(pause)

    def _tell(self, name: HostName) -> None:
        questions = self._questions[name]
        if all(one.was_asked for one in questions):
            self._asked[name].set()
        now = reading(questions)
        if now != self._readings[name]:
            self._readings[name] = now
            self._changed(name)


async def look(names: Collection[HostName], within_s: float) -> dict[Named, Reading]:
    """What they have at this moment, by the answers that come within that time."""
    asking = Hostnames(lambda _: None)
    try:
        await asking.follow(names, within_s)
        return {name: asking.reading(name) for name in names}
    finally:
        asking.close()
