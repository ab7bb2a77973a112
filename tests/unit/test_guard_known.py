# SPDX-License-Identifier: Apache-2.0
"""The guard tells of what is missing from the first moment it is asked."""

from __future__ import annotations

import asyncio

from dmm_ebpf.rd.director.guard import Guard, Item


class Gone(Item):
    def look(self) -> str:
        return "it is gone"

    async def mend(self) -> None:
        pass


def test_who_asks_before_the_first_look_waits_for_it() -> None:
    async def ask() -> list[str]:
        guard = Guard(lambda: [Gone("a cgroup")])
        looking = asyncio.create_task(guard.look())
        await guard.known()
        found = [entry.what for entry in guard.missing()]
        await looking
        return found

    assert asyncio.run(ask()) == ["a cgroup"]
