# SPDX-License-Identifier: Apache-2.0
"""What a way up leaves that fails after the instance is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dmm_ebpf.rd.director.instance import AttachOptions, Instance
from dmm_ebpf.rd.life import attaching
from dmm_ebpf.rd.sources import etcdsource


class Made(SimpleNamespace):
    """An instance as far as it has come."""

    adopted = False
    closed = False

    async def close(self) -> list[str]:
        self.closed = True
        return []

    async def give_up(self, why: BaseException) -> None:
        await Instance.give_up(cast(Instance, self), why)


@pytest.mark.parametrize(
    ("why", "adopted", "closed"),
    [
        (MemoryError("no room"), False, True),
        (MemoryError("no room"), True, False),
        (asyncio.CancelledError(), False, True),
        (asyncio.CancelledError(), True, True),
    ],
)
def test_a_source_that_cannot_begin_leaves_a_host_as_it_was(
    monkeypatch: pytest.MonkeyPatch, why: BaseException, *, adopted: bool, closed: bool
) -> None:
    made = Made(adopted=adopted)

    async def opened(*_: Any) -> Made:
        return made

    class Source:
        def __init__(self, *_: Any) -> None: ...

        async def begin(self) -> None:
            raise why

    @contextlib.asynccontextmanager
    async def fleet(_: Any) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(Instance, "open", opened)
    monkeypatch.setattr(etcdsource, "EtcdSource", Source)
    monkeypatch.setattr(etcdsource, "opened", fleet)
    options = AttachOptions("x", "/", Path("etcd:"), None)
    with pytest.raises(type(why)):
        asyncio.run(attaching._opened(options, cast(Any, object()), cast(Any, None), cast(Any, 0)))
    assert made.closed is closed
