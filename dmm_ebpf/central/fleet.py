# SPDX-License-Identifier: Apache-2.0
"""A fleet's part of etcd: layout.py's keys by client.py's requests. Keys here begin behind the
prefix.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from dmm_ebpf.central import layout
from dmm_ebpf.central.client import At, Change, Delete, Etcd, Found, Item, Put, Until
from dmm_ebpf.central.layout import Bundle, Push


class Fleet:
    """What hosts and operators have in common. Errors are the client's, and LayoutError."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        self._prefix = f"{etcd.place.prefix}/"

    async def find(
        self, key: str, *, prefix: bool = False, newer_than: int = 0, keys_only: bool = False
    ) -> Found:
        """See Etcd.range()."""
        found = await self.etcd.range(
            self._prefix + key, prefix=prefix, newer_than=newer_than, keys_only=keys_only
        )
        return Found(found.revision, tuple(map(self._item, found.items)))

    async def commit(self, wants: Sequence[At | Until], does: Sequence[Put | Delete]) -> int:
        """See Etcd.commit()."""
        return await self.etcd.commit(
            [replace(one, key=self._prefix + one.key) for one in wants],
            [replace(one, key=self._prefix + one.key) for one in does],
        )

    async def watch(self, prefix: str, first: int) -> AsyncIterator[tuple[Change, ...]]:
        """See Etcd.watch()."""
        async for changes in self.etcd.watch(self._prefix + prefix, first):
            yield tuple(
                Change(
                    one.key.removeprefix(self._prefix),
                    None if not one.item else self._item(one.item),
                )
                for one in changes
            )

    async def push(self, number: int) -> Push:
        """Who pushed it, and when."""
        key = layout.push_key(number)
        found = await self.find(key)
        if not found.items:
            raise layout.refused(key, "there is none", "push again")
        return Push.read(key, found.items[0].value)

    async def bundle(self, number: int, digest: str) -> Bundle:
        """What was pushed; LayoutError if it is not of this digest."""
        key = layout.text_key(number)
        pushed = await self.push(number)
        parts = []
        for index in range(pushed.parts):
            found = await self.find(f"{key}{index:04}")
            if not found.items:
                raise layout.refused(key, f"part {index + 1} of {pushed.parts} is not there")
            parts.append(found.items[0].value)
        return await asyncio.to_thread(Bundle.of_parts, key, parts, digest)

    def _item(self, one: Item) -> Item:
        return replace(one, key=one.key.removeprefix(self._prefix))
