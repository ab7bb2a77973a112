# SPDX-License-Identifier: Apache-2.0
"""The cells that are known not to hold, with why: limits.toml, and what the results
say against it.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compat.case import CARRIERS, DIRECTIONS, FAMILIES
from compat.run import DIFFERS, KERNELS, SAME, Result

FILE = Path(__file__).with_name("limits.toml")
VERDICTS = {DIFFERS: "differs", KERNELS: "kernels"}


@dataclass(frozen=True)
class Limit:
    """Cells with one cause. verdict: "differs", or "kernel's" where no listing says why.
    is_sometimes: or they hold. kernels: of these alone, as run.series() has them; none: of all.
    """

    verdict: str
    why: str
    cases: tuple[str, ...]
    carriers: tuple[str, ...]
    directions: tuple[str, ...]
    families: tuple[str, ...]
    is_sometimes: bool
    kernels: tuple[str, ...]

    def names(self, result: Result) -> bool:
        """Whether a cell is one of these."""
        key = f"{result.group}: {result.case}"
        return (
            result.carrier in self.carriers
            and result.direction in self.directions
            and result.family in self.families
            and (not self.kernels or result.kernel in self.kernels)
            and any(fnmatch.fnmatchcase(key, pattern) for pattern in self.cases)
        )


def known_limits(path: Path = FILE) -> list[Limit]:
    """What the file says. A key that is left out means all."""
    told = tomllib.loads(path.read_text())
    return [
        Limit(
            verdict,
            entry["why"],
            tuple(entry["cases"]),
            tuple(entry.get("carriers", CARRIERS)),
            tuple(entry.get("directions", DIRECTIONS)),
            tuple(entry.get("families", FAMILIES)),
            entry.get("sometimes", False),
            tuple(entry.get("kernels", ())),
        )
        for verdict, key in VERDICTS.items()
        for entry in told.get(key, [])
    ]


def limit_of(result: Result, limits: Iterable[Limit]) -> Limit | None:
    """The limit that names a cell, or None."""
    return next((limit for limit in limits if limit.names(result)), None)


def objection(result: Result, limits: Iterable[Limit]) -> str:
    """What is wrong with a cell and the file together: it differs and is not named, or is named
    and holds; or "".
    """
    limit = limit_of(result, limits)
    if result.verdict == DIFFERS and (limit is None or limit.verdict != DIFFERS):
        return f"it differs, and limits.toml does not say so: {result.detail}"
    if result.verdict == KERNELS and not result.detail and limit is None:
        return "the kernel serves it, and neither a listing nor limits.toml says why"
    if limit is not None and limit.is_sometimes:
        return ""
    if result.verdict == SAME and limit is not None:
        return f'it holds now; take it out of limits.toml ("{limit.why}")'
    if result.verdict == KERNELS and limit is not None and limit.verdict == DIFFERS:
        return f'the kernel serves it now, as without us; limits.toml says that it differs ("{limit.why}")'
    return ""
