# SPDX-License-Identifier: Apache-2.0
"""Patterns of cgroups: "/kubepods.slice/*/web-*.scope" in a rule is for every cgroup of such a
path, and for what is below it.

Owns what a pattern is and what it matches. `*` stands for any letters of one name, `?` for one,
`[a-c]` for one of these, `[!a-c]` for one of the others; a name's own `*`, `?` or `[` is written in
brackets. A backslash is a letter as others: systemd's names have it. No letter stands for "/", so a
pattern has one depth, which is what the kernel's programs ask a process's cgroup for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

_SIGNS = frozenset("*?[")
# A name, as a whole: an opened bracket is closed, and has something in it.
WELL_FORMED = r"(?:[^/\[\x00]|\[(?:![^/\x00]|[^!/\x00])[^\]/\x00]*\])*"
_NAME = re.compile(WELL_FORMED)


def is_glob(path: str) -> bool:
    """Whether it is a pattern, and not the path of one cgroup."""
    return not _SIGNS.isdisjoint(path)


def why_not(path: str) -> str:
    """Why it is no pattern; empty: it is one, or a path."""
    for name in path.split("/"):
        if "**" in name:
            return '"**" would be of any depth, and a pattern has one: write a "*" for each name'
        if not _NAME.fullmatch(name):
            return f'{name} has a "[" without its "]"; a letter that is one is written "[[]"'
    return ""


@dataclass(frozen=True)
class Glob:
    """A pattern, name by name from the hierarchy's root."""

    names: tuple[str, ...]

    @property
    def level(self) -> int:
        """The depth of what it matches, as of cgroup_level in struct dmm_rule."""
        return len(self.names)

    def takes_in(self, path: str) -> bool:
        """Whether it matches a cgroup, or one above it."""
        parts = parts_of(path)
        return len(parts) >= self.level and all(
            fnmatchcase(part, name) for part, name in zip(parts, self.names, strict=False)
        )


def parts_of(path: str) -> list[str]:
    """The names of a path."""
    return [part for part in path.split("/") if part]


@lru_cache(512)
def glob(path: str) -> Glob:
    """The pattern that a rule names."""
    return Glob(tuple(parts_of(path)))


def is_in(path: str | None, wanted: str) -> bool:
    """Whether a cgroup is one that a rule names by its path or a pattern, or is below it."""
    return path is not None and glob(wanted).takes_in(path)


def may_meet(path: str, pattern: str) -> bool:
    """Whether a cgroup is in, or above, one that the pattern may stand for."""
    return all(map(fnmatchcase, parts_of(path), glob(pattern).names))


def implies(narrow: str, wide: str) -> bool:
    """Whether what one path or pattern stands for is in what the other does; no only means that it
    could not be told.
    """
    of, whole = parts_of(narrow), parts_of(wide)
    return len(of) >= len(whole) and all(
        w in {n, "*"} or (not is_glob(n) and fnmatchcase(n, w))
        for n, w in zip(of, whole, strict=False)
    )


def globs_of(paths: Iterable[str]) -> tuple[str, ...]:
    """The patterns among them, each once; the place of each is its bit in struct dmm_globbed."""
    return tuple(dict.fromkeys(path for path in paths if is_glob(path)))
