# SPDX-License-Identifier: Apache-2.0
"""The cgroups that patterns of rules match: which there are, where others would be made, and
globbed[], by which the hooks know them.

A pattern has one depth, so what it matches is found name by name from the hierarchy's root, and all
of its ways down are followed by inotify (groups.py). Ids of cgroups are used once, so one that is
removed matches nothing, whoever learns of it when.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.loader import Maps
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.policy.cgroupglob import glob, is_glob


class Entries(set[bytes]):
    """Names of entries of a directory; in it is also what one of patterns stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.patterns: set[bytes] = set()

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (
            isinstance(name, bytes) and any(fnmatchcase(name, one) for one in self.patterns)
        )


@dataclass
class Found:
    """ids: of each cgroup that is matched the bits of its patterns. ways: each directory in which a
    cgroup is, or would be made, that a pattern stands for or leads through, and the names there;
    parents come first.
    """

    ids: dict[int, int] = field(default_factory=dict)
    ways: dict[Path, set[str]] = field(default_factory=dict)


def find(globs: Sequence[str]) -> Found:
    """What there is of these patterns, a bit for each in order. DmmError: there is no cgroup v2."""
    found, listed = Found(), dict[Path, list[tuple[str, int]]]()
    root = cgroups.find_cgroup2() if globs else Path()
    for bit, pattern in enumerate(globs):
        level = [(root, 0)]
        for name in glob(pattern).names:
            for folder, _ in level:
                found.ways.setdefault(folder, set()).add(name)
            level = [
                (folder / child, number)
                for folder, _ in level
                for child, number in _children(folder, name, listed)
            ]
        for _, number in level:
            found.ids[number] = found.ids.get(number, 0) | 1 << bit
    return found


def _children(
    folder: Path, name: str, listed: dict[Path, list[tuple[str, int]]]
) -> Iterator[tuple[str, int]]:
    """The cgroups in one that a name of a pattern stands for, with their ids."""
    if not is_glob(name):
        number = cgroups.id_of(folder / name)
        if number != cgroups.NOWHERE and (folder / name).is_dir():
            yield name, number
        return
    if folder not in listed:
        listed[folder] = list(_listed(folder))
    for child, number in listed[folder]:
        if fnmatchcase(child, name):
            yield child, number


def _listed(folder: Path) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, entry.inode()
    except (FileNotFoundError, NotADirectoryError):
        return  # it went meanwhile


def entries(
    wanted: Mapping[Path, set[bytes]], ways: Mapping[Path, set[str]]
) -> dict[Path, Entries]:
    """What is to be followed of entries that are named and of Found.ways; parents come first."""
    made: dict[Path, Entries] = {}
    for folder, names in ways.items():
        for name in map(os.fsencode, names):
            one = made.setdefault(folder, Entries())
            (one.patterns if is_glob(os.fsdecode(name)) else one).add(name)
    for folder, named in wanted.items():
        made.setdefault(folder, Entries()).update(named)
    return made


class Globbed:
    """globbed[] of one instance. Only who holds the instance makes one, and nobody else writes."""

    def __init__(self, maps: Maps) -> None:
        self._table = maps.globbed
        self._writing = threading.Lock()
        self._known: dict[int, list[int]] | None = None  # what is there; None: not read yet
        self._left = [0, 0]

    @property
    def left(self) -> int:
        """How many cgroups that are matched there was no room for."""
        return max(self._left)

    def put(self, half: int, wanted: Mapping[int, int]) -> bool:
        """Have these be matched by the patterns of that half, and no others; whether that is
        anything new. Those for which there is no room are counted.
        """
        with self._writing:
            known = self._read()
            changed = [n for n, masks in known.items() if masks[half] != wanted.get(n, 0)]
            for number in changed:
                self._write(number, half, wanted.get(number, 0))
            added = [number for number in wanted if number not in known]
            self._left[half] = 0
            for at, number in enumerate(added):
                if len(known) >= C.DMM_MAX_GLOBBED:
                    self._left[half] = len(added) - at
                    break
                self._write(number, half, wanted[number])
            return bool(changed or added)

    def _read(self) -> dict[int, list[int]]:
        if self._known is None:
            self._known = {number: list(entry.globs) for number, entry in self._table.items()}
        return self._known

    def _write(self, number: int, half: int, mask: int) -> None:
        known = self._read()
        masks = list(known.get(number, (0, 0)))
        masks[half] = mask
        if any(masks):
            self._table[number] = abi.new("dmm_globbed", globs=masks)
            known[number] = masks
        else:
            self._table.delete(number)
            known.pop(number, None)

    def matched(self, half: int) -> int:
        """The bits of that half's patterns that match a cgroup."""
        with self._writing:
            return matched_by(masks[half] for masks in self._read().values())


class Room(Item):
    """That there is room for all cgroups that patterns match."""

    def __init__(self, globbed: Globbed) -> None:
        super().__init__("cgroups of patterns")
        self._globbed = globbed

    def look(self) -> str:
        left = self._globbed.left
        room = f"the {C.DMM_MAX_GLOBBED} that the hooks can know: the kernel serves their sockets"
        return f"{left} more are matched than {room}" if left else ""

    async def mend(self) -> None:
        """Whenever one of them goes, another has its place (Groups.look())."""


def matched_by(masks: Iterable[int]) -> int:
    """The bits of all patterns that match something."""
    found = 0
    for mask in masks:
        found |= mask
    return found


def is_matched(path: str) -> bool:
    """Whether a cgroup is there that the pattern stands for."""
    return bool(find([path]).ids)
