# SPDX-License-Identifier: Apache-2.0
"""What a named set has, as it was read last, and goes on with what is told. See sets.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dmm_ebpf.hal import nftsets
from dmm_ebpf.rd.policy.named import Edit, Named
from dmm_ebpf.rd.policy.values import Prefix

if TYPE_CHECKING:
    from dmm_ebpf import records


class Following:
    """An nft set that was read, and goes on with what the kernel tells. prefixes: what it has."""

    def __init__(self, found: nftsets.SetFound) -> None:
        self._found = found
        self._prefixes = {block: Prefix(*block) for block in found.elements.blocks}
        self.prefixes = tuple(self._prefixes.values())

    def follow(self, heard: Iterable[nftsets.Heard]) -> Edit | None:
        """Take what was heard; what that changes. None: it is another set now, or none."""
        edit = nftsets.follow(self._found, heard)
        if edit is None:
            return None
        made = Edit([Prefix(*one) for one in edit.put], [self._prefixes.pop(n) for n in edit.drop])
        if edit.put or edit.drop:
            self._prefixes |= zip(edit.put, made.put, strict=True)
            self.prefixes = tuple(self._prefixes.values())
        return made


@dataclass(frozen=True)
class Reading:
    """What came of reading a set; due: when to read it again, though nothing tells of a change.
    following: where it is an nft set.
    """

    state: records.status.SetState
    prefixes: tuple[Prefix, ...] = ()
    why: str = ""
    due: float | None = None
    following: Following | None = field(default=None, compare=False)


Readings = Mapping[Named, Reading]
