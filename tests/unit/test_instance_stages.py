# SPDX-License-Identifier: Apache-2.0
"""What an instance takes and refuses in each of its states, without a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dmm_ebpf.errors import DmmError, NotAttachedError
from dmm_ebpf.rd.director.instance import Instance
from dmm_ebpf.rd.director.stage import Progress, Stage
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.states import ForbiddenError
from lab import wait_for


class Bare(Instance):
    """With nothing on the host: work is what is done to apply a policy, left what a detach
    cannot remove at first.
    """

    def __init__(self, work: Callable[[Bare], Awaitable[None]], left: list[DmmError]) -> None:
        self.state = SimpleNamespace(instance="i")  # type: ignore[assignment]
        self.stage, self.progress = Stage.ATTACHING, Progress.IDLE
        self._applying, self._appliers = asyncio.Lock(), set()
        self._work, self._left = work, left

    async def _apply(self, _new: Policy, _path: Any) -> int:
        await self._work(self)
        return 7

    async def _close(self) -> list[str]:
        if self._left:
            raise self._left.pop()
        return ["hooks"]

    async def ask(self) -> int | None:
        policy: Any = SimpleNamespace(old_names_told=tuple)
        return await self.apply(policy, None)


async def through(instance: Bare) -> None:
    for step in (Progress.STARTING, Progress.SWITCHING, Progress.SETTLING):
        instance._come_to(step)


async def fails(instance: Bare) -> None:
    instance._come_to(Progress.STARTING)
    raise DmmError("start stack wan", why="it is full")


async def waits(_instance: Bare) -> None:
    await asyncio.Event().wait()


async def skips(instance: Bare) -> None:
    instance._come_to(Progress.SETTLING)


def test_a_policy_goes_by_its_steps(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        instance = Bare(through, [])
        assert await instance.ask() == 7
        assert (instance.progress, instance.stage) == (Progress.IDLE, Stage.ATTACHING)
        assert await instance.ask() == 7

    caplog.set_level("DEBUG")
    asyncio.run(run())
    told = [one.getMessage() for one in caplog.records if one.name == "dmm-ebpf"]
    assert told[:3] == [
        "the policy of instance i: idle, then compiling",
        "the policy of instance i: compiling, then starting",
        "the policy of instance i: starting, then switching",
    ]


@pytest.mark.parametrize(("work", "told"), [(fails, "it is full"), (skips, "may not follow")])
def test_a_policy_that_fails_leaves_room_for_the_next(work: Any, told: str) -> None:
    async def run() -> None:
        instance = Bare(work, [])
        with pytest.raises(DmmError, match=told):
            await instance.ask()
        assert instance.progress is Progress.IDLE
        instance._work = through
        assert await instance.ask() == 7

    asyncio.run(run())


def test_a_detach_ends_what_is_under_way_and_takes_no_more() -> None:
    async def run() -> None:
        instance = Bare(waits, [])
        instance._enter(Stage.SERVING)
        first, second = (asyncio.ensure_future(instance.ask()) for _ in range(2))
        await asyncio.to_thread(
            wait_for, lambda: instance.progress is not Progress.IDLE, 10, "a policy under way"
        )
        assert await instance.close() == ["hooks"]
        for asked in (first, second, asyncio.ensure_future(instance.ask())):
            with pytest.raises(NotAttachedError, match="is being detached"):
                await asked
        assert (instance.stage, instance.progress) == (Stage.DETACHED, Progress.IDLE)
        with pytest.raises(ForbiddenError, match="it is detached, and detaching may not follow"):
            await instance.close()

    asyncio.run(run())


def test_a_detach_that_left_something_can_be_tried_again() -> None:
    async def run() -> None:
        instance = Bare(through, [DmmError("remove the pins", why="they are busy")])
        with pytest.raises(DmmError, match="they are busy"):
            await instance.close()
        assert instance.stage is Stage.DETACHING
        with pytest.raises(NotAttachedError):
            await instance.ask()
        assert await instance.close() == ["hooks"]
        with pytest.raises(ForbiddenError):
            instance._enter(Stage.SERVING)

    asyncio.run(run())
