# SPDX-License-Identifier: Apache-2.0
"""The program that makes sockets MPTCP's, where it could not be loaded at first."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import protocol, protocolprobe
from dmm_ebpf.loader.spec import PROTOCOL
from dmm_ebpf.rd.director import mptcp
from dmm_ebpf.rd.director.mptcp import Mptcp


def test_a_load_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    attached: Any = SimpleNamespace(links={})
    now, tries = [100.0], []

    def put(_attached: Any) -> None:
        tries.append(now[0])
        if len(tries) < 4:
            raise DmmError("load it", why="out of memory")
        attached.links[PROTOCOL.pin] = 1

    monkeypatch.setattr(protocol, "put", put)
    monkeypatch.setattr(protocolprobe, "switched_off", lambda: "")
    monkeypatch.setattr(mptcp, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def story() -> None:
        one = Mptcp(attached)
        assert one.look() == ""
        await one.follow(True)
        assert one.look() == "sockets are made as TCP's: out of memory"
        while one.look():
            now[0] += 0.25
            await one.mend()

    asyncio.run(story())
    assert tries == [100.0, 101.0, 103.0, 107.0]
