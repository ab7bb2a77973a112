# SPDX-License-Identifier: Apache-2.0
"""Differences that are meant, with why: limits.toml; and what results say against it."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sockets.field import Mode, Notes, Seen
from sockets.script import FAMILIES, SCRIPTS, SIDES

FILE = Path(__file__).with_name("limits.toml")
DIFFERS, KERNELS = "differs", "kernels"


@dataclass(frozen=True)
class Limit:
    """Results with one cause. is_sometimes: or they are as without dmm-ebpf."""

    kind: str
    why: str
    scripts: tuple[str, ...]
    modes: tuple[str, ...]
    families: tuple[str, ...]
    is_sometimes: bool

    def names(self, kind: str, script: str, mode: str, family: str) -> bool:
        """Whether a result is one of these."""
        return (
            kind == self.kind
            and family in self.families
            and any(fnmatch.fnmatchcase(script, pattern) for pattern in self.scripts)
            and any(fnmatch.fnmatchcase(mode, pattern) for pattern in self.modes)
        )


def known_limits(path: Path = FILE) -> list[Limit]:
    """What the file says."""
    told = tomllib.loads(path.read_text())
    return [
        Limit(
            kind,
            entry["why"],
            tuple(entry["scripts"]),
            tuple(entry.get("modes", ["*"])),
            tuple(entry.get("families", FAMILIES)),
            entry.get("sometimes", False),
        )
        for kind in (DIFFERS, KERNELS)
        for entry in told.get(kind, [])
    ]


def difference(expected: Notes, seen: Notes) -> str:
    """The first note of a side that is another, or "" for none."""
    for number in range(max(len(expected), len(seen))):
        without, with_it = (notes[number : number + 1] for notes in (expected, seen))
        if without != with_it:
            return f"without {without or 'nothing more'}, with {with_it or 'nothing more'}"
    return ""


def carriers(script: str, mode: Mode, seen: Seen) -> str:
    """The sides whose flow had another carrier than the script says, or ""."""
    carried = SCRIPTS[script].carried
    wrong = set() if carried is None else seen.carried ^ (set(mode.ports) & set(carried))
    return " and ".join(
        f"{side}: the {'stack' if side in seen.carried else 'kernel'} carried it"
        for side in sorted(wrong)
    )


def objections(
    script: str, mode: Mode, family: str, plain: Sequence[Seen], seen: Seen, limits: Iterable[Limit]
) -> list[str]:
    """What is wrong with a result and the file together. plain: what was seen without dmm-ebpf,
    at least once.
    """
    found = []
    told = ""
    if all(seen.notes != one.notes for one in plain):
        told = "; ".join(
            f"{side}: {text}"
            for side in SIDES
            if (text := difference(plain[0].notes[side], seen.notes[side]))
        )
    kernels = ""
    carried = SCRIPTS[script].carried
    if carried is not None and (wrong := seen.carried ^ (set(mode.ports) & set(carried))):
        kernels = " and ".join(
            f"{side}: the {'stack' if side in seen.carried else 'kernel'} carried it"
            for side in sorted(wrong)
        )
    for kind, text in ((DIFFERS, told), (KERNELS, kernels)):
        limit = next((one for one in limits if one.names(kind, script, mode.name, family)), None)
        if text and limit is None:
            found.append(f"{family}: {text}")
        if not text and limit is not None and not limit.is_sometimes:
            found.append(
                f"{family}: this is as without now; take it out of {FILE.name} ({limit.why!r})"
            )
    return found
