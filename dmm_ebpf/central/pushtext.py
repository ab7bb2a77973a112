# SPDX-License-Identifier: Apache-2.0
"""The text of a push in etcd, as who pushes writes it, and keeps it while the push is rolled out.

An older dmm-ebpf takes the number behind the last push that was rolled out, and writes
there whatever there is. So what is written here may be overwritten before the rollout names it,
which makes that fail, and behind that, by one that comes too late; then it is put back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dmm_ebpf.central import layout
from dmm_ebpf.central.client import At, Delete, Put, Until
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.errors import ConflictError

MOST_AT_ONCE = 16  # who push
OVERWRITTEN = (
    "its text was overwritten by a push at the same time, of an older dmm-ebpf, which does not "
    "look whether there is another"
)
ONE_VERSION = "push by one version of dmm-ebpf alone"

log = logging.getLogger("dmm-ebpf")


@dataclass(frozen=True)
class Written:
    """The text of a push. revision: of its last part."""

    push: int
    parts: tuple[bytes, ...]
    revision: int

    @property
    def key(self) -> str:
        """What the keys of its parts begin with."""
        return layout.text_key(self.push)

    @property
    def unchanged(self) -> Until:
        """That nobody has written there since."""
        return Until(self.key, self.revision)


async def write(fleet: Fleet, number: int, parts: Sequence[bytes]) -> Written:
    """Write the text of a push: of the first from number on that has none, for somebody else may be
    writing at the same time. Raises ConflictError.
    """
    for one in range(number, number + MOST_AT_ONCE):
        first, *rest = _puts(one, parts)
        revision = await fleet.commit([At(first.key, 0)], [first])
        if revision:
            for part in rest:
                revision = await fleet.commit([], [part])
            return Written(one, tuple(parts), revision)
    why = f"{MOST_AT_ONCE} others push at the same time"
    raise ConflictError(f"push to {fleet.etcd.place}", why=why, hint="look, and do it again")


async def remove(fleet: Fleet, written: Written) -> None:
    """Unless somebody else has written there."""
    await fleet.commit([written.unchanged], [Delete(written.key, True)])


async def put_back(fleet: Fleet, written: Written) -> Written:
    """Write it again if somebody else has written there, and say so; what is there then."""
    found = await fleet.find(written.key, prefix=True, newer_than=written.revision, keys_only=True)
    if not found.items:
        return written
    revision = 0
    for part in _puts(written.push, written.parts):
        revision = await fleet.commit([], [part])
    log.warning("push %d: %s; it is put back; %s", written.push, OVERWRITTEN, ONE_VERSION)
    return Written(written.push, written.parts, revision)


def _puts(number: int, parts: Sequence[bytes]) -> list[Put]:
    key = layout.text_key(number)
    return [Put(f"{key}{index:04}", part) for index, part in enumerate(parts)]
