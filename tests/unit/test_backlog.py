# SPDX-License-Identifier: Apache-2.0
"""Followers of one backlog: each gets every event in order, or is told how many it was
too slow for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dmm_ebpf.rd.api.backlog import Backlog


async def _next(follower: AsyncIterator[tuple[int, int]]) -> tuple[int, int]:
    """The next event, and how many were lost before it."""
    async with asyncio.timeout(5):
        return await anext(follower)


def test_each_follower_gets_each_event_once_and_is_told_what_it_lost() -> None:
    async def scene() -> None:
        backlog: Backlog[int] = Backlog(most=4)
        first, second = backlog.follow(), backlog.follow()
        waiting = [asyncio.ensure_future(_next(follower)) for follower in (first, second)]
        event = 1000  # the very same object twice
        backlog.add(event)
        backlog.add(event)  # by the other follower's subscription
        assert [await one for one in waiting] == [(event, 0), (event, 0)]
        for number in range(1, 8):
            backlog.add(number)
        assert await _next(first) == (4, 3)
        assert [(await _next(first))[0] for _ in range(3)] == [5, 6, 7]
        assert await _next(second) == (4, 3)
        backlog.add(8)
        assert [(await _next(second))[0] for _ in range(4)] == [5, 6, 7, 8]
        assert await _next(first) == (8, 0)

    asyncio.run(scene())
