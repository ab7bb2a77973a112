# SPDX-License-Identifier: Apache-2.0
"""The events that followers have not taken yet, kept once for all of them, and no
more than BACKLOG_EVENTS.

A follower that is too slow loses the oldest, and is told how many with the next one that it gets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

BACKLOG_EVENTS = 16384  # some 1 KiB each


T = TypeVar("T")


class Backlog(Generic[T]):
    """A ring of events; each follower has its own place in it. Lives in one event loop."""

    def __init__(self, most: int = BACKLOG_EVENTS) -> None:
        self._events: deque[T] = deque(maxlen=most)
        self._seen = 0  # events ever added
        self._more = asyncio.Event()

    def add(self, event: T) -> None:
        """Keep event. Each follower may hand it on: one that was just added is not added again."""
        if self._events and self._events[-1] is event:
            return
        self._events.append(event)
        self._seen += 1
        self._more.set()

    def follow(self) -> AsyncIterator[tuple[T, int]]:
        """Every event that is added after this call, and how many were lost before it."""
        return self._from(self._seen)

    async def _from(self, place: int) -> AsyncIterator[tuple[T, int]]:
        while True:
            while place == self._seen:
                self._more = asyncio.Event() if self._more.is_set() else self._more
                await self._more.wait()
            oldest = self._seen - len(self._events)
            lost, place = max(0, oldest - place), max(place, oldest)
            event = self._events[place - oldest]
            place += 1
            yield event, lost
