# SPDX-License-Identifier: Apache-2.0
"""Undoing goes on past what fails, and tells of all of it."""

import asyncio

import pytest

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.steps import Steps
from dmm_ebpf.threads import in_thread


def test_every_step_is_tried_and_every_failure_told():
    steps = Steps("detach x")

    def fails() -> list[str]:
        raise OSError(28, "No space left on device")

    async def fails_late() -> list[str]:
        raise DmmError("stop y", why="it will not")

    async def goes_late() -> list[str]:
        return ["c"]

    async def undo() -> None:
        steps.do("one", fails)
        steps.do("two", lambda: ["a", "b"])
        await steps.wait("three", fails_late())
        await steps.wait("four", goes_late())

    asyncio.run(undo())
    assert steps.removed == ["a", "b", "c"]
    with pytest.raises(
        DmmError,
        match=r"cannot detach x: one: .*No space left.*; three: cannot stop y: it will not",
    ):
        steps.finish()


def test_a_cancellation_waits_for_the_thread():
    """What a thread goes on making, after it was given up, nobody would undo."""

    async def cancelled() -> list[str]:
        begun, may_end = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        done: list[str] = []

        def make() -> None:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result()
            done.append("made")

        task = loop.create_task(in_thread(make))
        await begun.wait()
        task.cancel()
        loop.call_soon(
            may_end.set
        )  # comes after the cancellation: a loop calls in the order of asking
        with pytest.raises(asyncio.CancelledError):
            await task
        return list(done)  # before the thread could go on by itself

    assert asyncio.run(cancelled()) == ["made"]
