# SPDX-License-Identifier: Apache-2.0
"""Followers of one backlog: each gets every event in order, or is told how many it was
too slow for.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dmm_ebpf.rd.api.backlog import Backlog


async def _next(follower: Any) -> dict[str, Any]:
    async with asyncio.timeout(5):
        event: dict[str, Any] = await anext(follower)
        return event


def test_each_follower_gets_each_event_once_and_is_told_what_it_lost() -> None:
    async def scene() -> None:
        backlog = Backlog(most=4)
        first, second = backlog.follow(), backlog.follow()
        waiting = [asyncio.ensure_future(_next(follower)) for follower in (first, second)]
        event = {"number": 0}
        backlog.add(event)
        backlog.add(event)  # by the other follower's subscription
        assert [await one for one in waiting] == [event, event]
        for number in range(1, 8):
            backlog.add({"number": number})
        assert await _next(first) == {"number": 4, "events_lost": 3}
        assert [(await _next(first))["number"] for _ in range(3)] == [5, 6, 7]
        assert await _next(second) == {"number": 4, "events_lost": 3}
        backlog.add({"number": 8})
        assert [(await _next(second))["number"] for _ in range(4)] == [5, 6, 7, 8]
        assert await _next(first) == {"number": 8}

    asyncio.run(scene())
