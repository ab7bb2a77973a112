# SPDX-License-Identifier: Apache-2.0
"""The states of a supervisor: by its table, and with a process that is none of a stack's."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from standin import SERVES

from dmm_ebpf.errors import DmmError
from dmm_ebpf.states import ForbiddenError
from dmm_ebpf.userstack.life import Life
from dmm_ebpf.userstack.spec import StackSpec
from dmm_ebpf.userstack.supervisor import StackSupervisor

STRAIGHT = [Life.OFF, Life.STARTING, Life.UP]


class Followed(StackSupervisor):
    """Keeps the states that it went through, and what it has told."""

    def __init__(self, directory: Path, *command: str, up: DmmError | None = None) -> None:
        spec = StackSpec("i", "wan", 3, 5, "dmm-5", [], -1, directory, -1, command=command)
        super().__init__(spec, on_up=self._told_up, on_down=self._told_down)
        self.was = [self.life]
        self.told: list[str] = []
        self.moved = asyncio.Event()
        self._up_error = up

    def _become(self, life: Life, reason: str = "") -> None:
        super()._become(life, reason)
        self.was.append(life)
        self.moved.set()

    def _told_up(self, _info: Mapping[str, Any]) -> None:
        self.told.append("up")
        if self._up_error is not None:
            raise self._up_error

    def _told_down(self, reason: str) -> None:
        self.told.append(reason)

    async def until(self, life: Life) -> None:
        async with asyncio.timeout(30):
            while self.life is not life:
                self.moved.clear()
                await self.moved.wait()


def test_a_life_from_start_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def life() -> Followed:
        one = Followed(tmp_path, sys.executable, "-c", SERVES)
        await one.start()
        os.kill(one.pid, signal.SIGKILL)
        await one.until(Life.BETWEEN)
        await one.until(Life.UP)
        with pytest.raises(ForbiddenError, match="it is up, and starting may not follow"):
            await one.start()
        await one.stop()
        await one.stop()
        await one.start()
        await one.stop()
        return one

    with caplog.at_level(logging.DEBUG):
        one = asyncio.run(life())
    stopped = [Life.STOPPING, Life.OFF]
    between = [Life.BETWEEN, Life.UP]
    assert one.was == [*STRAIGHT, *between, *stopped, *stopped, *STRAIGHT[1:], *stopped]
    assert one.told == ["up", "killed by SIGKILL", "up", "up"]
    assert "supervisor of stack wan: up, then between: killed by SIGKILL" in caplog.text
    assert list(tmp_path.glob("*.pid")) == []


def test_a_stop_while_the_next_one_is_awaited(tmp_path: Path) -> None:
    async def life() -> Followed:
        one = Followed(tmp_path, sys.executable, "-c", SERVES)
        await one.start()
        one.spec = StackSpec("i", "wan", 3, 5, "dmm-5", [], -1, tmp_path, -1, command=["false"])
        os.kill(one.pid, signal.SIGKILL)
        await one.until(Life.BETWEEN)
        await one.stop()
        return one

    one = asyncio.run(life())
    assert one.was == [*STRAIGHT, Life.BETWEEN, Life.STOPPING, Life.OFF]
    assert one.told == ["up", "killed by SIGKILL"]


@pytest.mark.parametrize("program", ["", SERVES], ids=["ends at once", "is refused"])
def test_what_does_not_come_up_leaves_it_off(tmp_path: Path, program: str) -> None:
    refusal = DmmError("lead packets to it", why="the map is full")
    one: Followed

    async def life() -> None:
        nonlocal one
        one = Followed(tmp_path, sys.executable, "-c", program, up=refusal)
        await one.start()

    with pytest.raises(DmmError, match=r"its process ended|the map is full"):
        asyncio.run(life())
    assert one.was == [Life.OFF, Life.STARTING, Life.OFF]
    assert (one.pid, list(tmp_path.glob("*.pid"))) == (0, [])


def test_what_cannot_be_adopted_leaves_it_off(tmp_path: Path) -> None:
    async def life() -> Followed:
        one = Followed(tmp_path)
        assert not await one.adopt(os.getpid(), 1)
        return one

    assert asyncio.run(life()).was == [Life.OFF]
