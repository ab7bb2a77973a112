# SPDX-License-Identifier: Apache-2.0
"""Who makes room when more clients come to the director's socket than it serves, and who holds more
bytes of requests than it has room for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api import server
from dmm_ebpf.rd.api.clients import MAX_CLIENTS, MAX_HELD_BYTES, MAX_READERS, Clients, Owner

Task = asyncio.Task[None]
ROOT = Owner(1, 0)
READER = Owner(2, 1000)


def _with_tasks(test: Callable[[Clients, list[Task]], Awaitable[None]], count: int) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        tasks = [asyncio.ensure_future(forever()) for _ in range(count)]
        try:
            await test(Clients(), tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def _hung_up_on(tasks: list[Task]) -> list[int]:
    return [number for number, task in enumerate(tasks) if task.cancelling() or task.cancelled()]


def test_who_never_asked_makes_room_before_who_asked_once() -> None:
    async def test(clients: Clients, tasks: list[Task]) -> None:
        for task in tasks[:MAX_CLIENTS]:
            assert await clients.admit(task, ROOT) is None
        for task in tasks[: MAX_CLIENTS - 1]:
            clients.asked(task)
        clients.waits(tasks[0])
        clients.waits(tasks[1])
        assert await clients.admit(tasks[MAX_CLIENTS], ROOT) is None
        assert _hung_up_on(tasks) == [MAX_CLIENTS - 1]
        clients.asked(tasks[MAX_CLIENTS])
        for newcomer in tasks[MAX_CLIENTS + 1 : MAX_CLIENTS + 3]:
            assert await clients.admit(newcomer, ROOT) is None
            clients.asked(newcomer)
        assert _hung_up_on(tasks) == [0, 1, MAX_CLIENTS - 1]
        refused = await clients.admit(tasks[MAX_CLIENTS + 3], ROOT)
        assert refused is not None and f"{MAX_CLIENTS} are connected" in str(refused)
        assert len(clients) == MAX_CLIENTS

    _with_tasks(test, MAX_CLIENTS + 4)


def test_who_asks_while_a_newcomer_waits_for_room_stays() -> None:
    """The first was chosen, and its question came; so did the second's, which has its answer by
    then and waits anew.
    """

    async def test(clients: Clients, tasks: list[Task]) -> None:
        for task in tasks[:MAX_CLIENTS]:
            assert await clients.admit(task, ROOT) is None
        coming = clients.admit(tasks[MAX_CLIENTS], ROOT)
        coming.send(None)  # up to where the loop is to read what is there
        clients.asked(tasks[0])
        clients.asked(tasks[1])
        clients.waits(tasks[1])
        assert await asyncio.ensure_future(coming) is None
        assert _hung_up_on(tasks) == [2]

    _with_tasks(test, MAX_CLIENTS + 1)


def test_whoever_has_most_places_makes_room() -> None:
    """Of the kind that makes room: the process first, then the user; then the longest waiting."""
    one, crowd = Owner(10, 0), Owner(11, 0)

    async def test(clients: Clients, tasks: list[Task]) -> None:
        owners = [one, *[crowd] * 3, *(Owner(100 + n, 0) for n in range(MAX_CLIENTS - 4))]
        for task, owner in zip(tasks, owners, strict=False):
            assert await clients.admit(task, owner) is None
        clients.asked(tasks[1])
        newcomers = iter(tasks[MAX_CLIENTS:])
        for expected in ([2], [2, 3], [0, 2, 3]):
            newcomer = next(newcomers)
            assert await clients.admit(newcomer, Owner(1000 + len(expected), 0)) is None
            assert _hung_up_on(tasks) == expected

    _with_tasks(test, MAX_CLIENTS + 3)

    async def of_users(clients: Clients, tasks: list[Task]) -> None:
        owners = [Owner(9, 1000), *(Owner(100 + n, 1001) for n in range(MAX_READERS - 1))]
        for task, owner in zip(tasks, owners, strict=False):
            assert await clients.admit(task, owner) is None
        assert await clients.admit(tasks[MAX_READERS], Owner(10, 1002)) is None
        assert _hung_up_on(tasks) == [1]

    _with_tasks(of_users, MAX_READERS + 1)


def test_the_oldest_half_request_makes_room_for_a_whole_one() -> None:
    async def test(clients: Clients, tasks: list[Task]) -> None:
        for task in tasks:
            await clients.admit(task, ROOT)
        quarter = MAX_HELD_BYTES // 4
        for task in tasks[:4]:
            clients.hold(task, quarter)
        clients.hold(tasks[4], 1)
        assert _hung_up_on(tasks) == [0]
        for task in tasks[1:4]:
            clients.asked(task)
        clients.hold(tasks[4], quarter - 1)
        with pytest.raises(DmmError, match="being answered"):
            clients.hold(tasks[4], 1)
        clients.waits(tasks[1])
        clients.hold(tasks[4], quarter)
        assert _hung_up_on(tasks) == [0]

    _with_tasks(test, 5)


def test_readers_make_room_among_themselves() -> None:
    async def test(clients: Clients, tasks: list[Task]) -> None:
        root, *readers = tasks
        assert await clients.admit(root, ROOT) is None
        clients.asked(root)
        clients.waits(root)
        for one in readers[:MAX_READERS]:
            assert await clients.admit(one, READER) is None
            clients.asked(one)
        refused = await clients.admit(readers[MAX_READERS], READER)
        assert refused and "128 that are not root's are connected" in str(refused)
        clients.waits(readers[5])
        assert await clients.admit(readers[MAX_READERS], READER) is None
        assert _hung_up_on(tasks) == [6]

    _with_tasks(test, MAX_READERS + 2)


def test_what_looks_after_something_is_begun_anew_when_it_fails(monkeypatch) -> None:
    begun = []

    async def look() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise KeyError("eth0")

    monkeypatch.setattr(server, "AGAIN_S", 0.0)
    asyncio.run(server.kept_up(look))
    assert begun == [0, 1, 2]


def test_what_is_cancelled_is_not_begun_anew_whatever_it_raises() -> None:
    """Who cancels waits for its end."""

    begun = asyncio.Event()

    async def look() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("cannot be undone") from None

    async def told_to_end() -> BaseException:
        task = asyncio.ensure_future(server.kept_up(look))
        async with asyncio.timeout(5):
            await begun.wait()
            task.cancel()
            (said,) = await asyncio.gather(task, return_exceptions=True)
        assert said is not None
        return said

    assert isinstance(asyncio.run(told_to_end()), OSError)
