# SPDX-License-Identifier: Apache-2.0
"""Where a key stands in a TOML text, since tomllib does not tell.

Owns a walk over the text that keeps the key path and the line, nothing else. It runs only when
there is an error to place, on a text that tomllib has already accepted, so it checks nothing and
stops at the wanted key. It refuses
nothing either: a path that does not occur gives the line of its longest part that does, or None.

A path is what tomllib's result is indexed with: ("tables", "shop", "routes", 2, "ports").
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence

Path = tuple[str | int, ...]

# One blank, comment or newline run; a string of each of the four kinds; a bare word.
_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line, from 1, on which the key or table at path stands; that of the nearest table
    above it if it has none.
    """
    wanted = tuple(path)
    best: tuple[int, int] | None = None
    line, counted = 1, 0
    for found, offset in _Walk(text).items():
        line += text.count("\n", counted, offset)
        counted = offset
        depth = _common(found, wanted)
        if depth == len(found) and (best is None or depth > best[0]):
            best = (depth, line)
            if depth == len(wanted):
                break
        elif best is None and depth:  # [stacks.wan] also opens stacks
            best = (depth, line)
    return best[1] if best else None


def place(source: str, text: str, path: Sequence[str | int]) -> str:
    """ "policy.toml:12" for the key at path; the file alone when nothing of the path
    occurs in text.
    """
    line = line_of(text, path)
    return f"{source}:{line}" if line else source


def order(source: str, at: str) -> tuple[bool, str, int]:
    """What to sort places (as place() gives them) by: the policy's own lines, then those
    of other files.
    """
    file, _, line = at.rpartition(":")
    if at == source or not (file and line.isascii() and line.isdecimal()):
        file, line = at, "0"
    return file != source, file, int(line)


def describe(path: Sequence[str | int]) -> str:
    """A key path in words: ("tables", "shop", "routes", 2, "to") is "table shop, route 3, to"."""
    singular = {"stacks": "stack", "tables": "table", "rules": "rule", "routes": "route"}
    words: list[str] = []
    index = 0
    while index < len(path):
        part = path[index]
        if part in singular and index + 1 < len(path):
            following = path[index + 1]
            words.append(
                f"{singular[str(part)]} {following + 1 if isinstance(following, int) else following}"
            )
            index += 2
        else:
            words.append(str(part))
            index += 1
    return ", ".join(words)


def _common(found: Path, wanted: Path) -> int:
    depth = 0
    for a, b in zip(found, wanted, strict=False):
        if a != b:
            break
        depth += 1
    return depth


class _Walk:
    """Yields (path, offset) for each table header, key and array element, in the order
    of the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.array_sizes: dict[Path, int] = {}  # arrays of tables seen so far, by path

    def items(self) -> Iterator[tuple[Path, int]]:
        text = self.text
        table: Path = ()
        while True:
            self._skip(_SPACE)
            if self.pos >= len(text):
                return
            start = self.pos
            if text[start] == "[":
                is_array = text.startswith("[[", start)
                self.pos += 2 if is_array else 1
                parts = self._key()
                self.pos += 2 if is_array else 1  # the closing brackets
                table = self._open(parts, is_array)
                yield table, start
            else:
                yield from self._pair(table)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.pos)
        if match:
            self.pos = match.end()

    def _key(self) -> tuple[str, ...]:
        """A key, perhaps dotted; stops at '=' or ']'."""
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            quoted = self.text[self.pos] in "\"'"
            match = (_STRING if quoted else _BARE_KEY).match(self.text, self.pos)
            if match is None:
                raise ValueError(f"no key at offset {self.pos}: not a text that tomllib accepted")
            parts.append(str(tomllib.loads(f"k={match[0]}")["k"]) if quoted else match[0])
            self.pos = match.end()
            self._skip(_BLANK)
            if not self.text.startswith(".", self.pos):
                return tuple(parts)
            self.pos += 1

    def _open(self, parts: tuple[str, ...], is_array: bool) -> Path:
        """The path of a header: names that are arrays of tables mean their last element."""
        path: Path = ()
        for part in parts[:-1]:
            path = (*path, part)
            if path in self.array_sizes:
                path = (*path, self.array_sizes[path] - 1)
        path = (*path, parts[-1])
        if is_array:
            self.array_sizes[path] = self.array_sizes.get(path, 0) + 1
            path = (*path, self.array_sizes[path] - 1)
        return path

    def _pair(self, table: Path) -> Iterator[tuple[Path, int]]:
        start = self.pos
        path = (*table, *self._key())
        yield path, start
        self.pos += 1  # '='
        self._skip(_BLANK)
        yield from self._value(path)

    def _value(self, path: Path) -> Iterator[tuple[Path, int]]:
        opening = self.text[self.pos]
        if opening not in "[{":
            self._skip(_STRING if opening in "\"'" else _SCALAR)
            return
        self.pos += 1
        index = 0
        while True:
            self._skip(_SPACE)
            here = self.text[self.pos]
            if here in "]}":
                self.pos += 1
                return
            if here == ",":
                self.pos += 1
            elif opening == "{":
                yield from self._pair(path)
            else:
                yield (*path, index), self.pos
                yield from self._value((*path, index))
                index += 1
