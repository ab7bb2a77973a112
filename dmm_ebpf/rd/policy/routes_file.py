# SPDX-License-Identifier: Apache-2.0
"""Routes files: a table's routes as comma separated values, up to millions of lines.

Owns the reading of such a file into a RouteTable, with nothing kept but the table's columns. What
a line means, and what is refused, _Reader says; C (bulk.py) reads those lines that are like one
it has read. The columns are to, proto, ports, stack; a first line with exactly these names may
head the file; proto and ports may be empty; ports that need commas are quoted, as in RFC 4180, or
separated by spaces; blank lines and lines that begin with '#' are skipped. It refuses, with the
line: anything else, lines above MAX_LINE characters, more than MAX_ROUTES routes, what is not a
regular file, what is not UTF-8; and a file of nothing but blanks.
"""

from __future__ import annotations

import csv
import io
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.named import parse_prefixes
from dmm_ebpf.rd.policy.routes import Match, RouteTable
from dmm_ebpf.rd.policy.values import (
    Prefix,
    ValueRefusedError,
    parse_ports,
    parse_protocol,
    shown,
)

HEADER = ("to", "proto", "ports", "stack")
MAX_LINE = 4096
MAX_ROUTES = 8_000_000
_CHUNK = 1 << 18  # bytes that are read at once
_LONGEST = 4 * MAX_LINE  # bytes of the longest line
_EXPECTED = "expected to,proto,ports,stack, for example 203.0.113.0/24,tcp,443,wan"

Stamp = tuple[int, ...] | None


def stamp_of(path: Path) -> Stamp:
    """What tells one content at path, whatever links lead there, from the next: device, inode,
    size, and the times of change in ns; None when there is no such file now, and the error alone
    where another one keeps it from being looked at.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return (error.errno or 0,)
    except ValueError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_text_file(path: Path, what: str, limit_bytes: int) -> bytes:
    """The bytes of a regular file of at most limit_bytes; PolicyError tells what is wrong
    with it otherwise.
    """
    require_regular(path, what)
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise unreadable(path, what, error) from None
    if len(data) > limit_bytes:
        raise PolicyError(
            f"read {what} {path}",
            why=f"it is larger than {limit_bytes >> 20} MiB",
            hint="move long lists of routes to a file and name it in routes_from",
        )
    return data


def require_regular(path: Path, what: str) -> None:
    """PolicyError unless path is a regular file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, what, error) from None
    if stat.S_ISDIR(mode):
        raise PolicyError(f"read {what} {path}", why="it is a directory", hint="name a file")
    if not stat.S_ISREG(mode):
        raise PolicyError(
            f"read {what} {path}", why="it is not a regular file", hint="name a regular file"
        )


def unreadable(path: Path, what: str, error: OSError | ValueError) -> PolicyError:
    """The PolicyError for a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return PolicyError(
            f"read {what} {shown(str(path))[1:-1]}",
            why="there is no such file",
            hint="check the path",
        )
    why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return PolicyError(f"read {what} {shown(str(path))[1:-1]}", why=why.lower())


def read_routes(
    path: Path,
    table: RouteTable,
    stack_known: Callable[[str], str | None],
    wrong: Callable[[PolicyError], None],
    called: Mapping[str, str],
) -> None:
    """Append the routes of the file to table. stack_known gives None for a defined stack, else why
    and what to do. called: what the file calls otherwise than the table, which is asked first.
    wrong is told of each line that is refused, and may raise; PolicyError: no more
    can be read.
    """
    require_regular(path, "routes file")
    table.file = str(path)
    before = len(table)
    try:
        with path.open("rb") as file:
            _Reader(path, table, stack_known, wrong, called).read(file)
        if len(table) == before and not path.read_bytes().strip():  # somebody is writing it
            hint = f"write {','.join(HEADER)} into it if it is to have no routes"
            raise PolicyError(f"accept {path}", why="it is empty", hint=hint)
    except UnicodeDecodeError as error:
        raise PolicyError(
            f"read routes file {path}",
            why=f"it is not UTF-8 ({error.reason})",
            hint="save it as UTF-8",
        ) from None
    except OSError as error:
        raise unreadable(path, "routes file", error) from None


class _Reader:
    """One pass over one file; the two caches make a line cost little more than its prefix."""

    def __init__(
        self,
        path: Path,
        table: RouteTable,
        stack_known: Callable[[str], str | None],
        wrong: Callable[[PolicyError], None],
        called: Mapping[str, str],
    ) -> None:
        self.path = path
        self.called = called
        self.wrong = wrong
        self.table = table
        self.stack_known = stack_known
        self.stacks: dict[str, int] = {}
        self.matches: dict[tuple[str, str], int] = {}
        self.plain = bulk.Lines(table)
        self.line = 0
        self.is_headed = False  # whether what may be the header is behind us

    def refuse(self, why: str, hint: str = "") -> PolicyError:
        return PolicyError(f"accept {self.path}:{self.line}", why=why, hint=hint)

    def read(self, file: BinaryIO) -> None:
        rest = b""
        while data := file.read(_CHUNK):
            data = rest + data
            end = data.rfind(b"\n") + 1
            self._whole_lines(data, end)
            rest = data[end:]
            if len(rest) > _LONGEST:
                rest = self._without_newline(rest)
        if rest:
            self._few_lines(rest.decode())

    def _without_newline(self, data: bytes) -> bytes:
        """Lines of a file that ends them with '\\r' alone, or too long a one; what is left."""
        end = data.rfind(b"\r", 0, len(data) - 1) + 1
        if not end:
            self._few_lines(data.decode(errors="replace"))
        self._few_lines(data[:end].decode())
        return data[end:]

    def _whole_lines(self, data: bytes, end: int) -> None:
        """All lines up to end, whose last one ends there."""
        text, at = bulk.lent_text(data), 0
        while at < end:
            if self.is_headed:
                room = max(0, MAX_ROUTES - len(self.table))
                size, lines = self.plain.read(text, at, end, self.line, room)
                at, self.line = at + size, self.line + lines
                if at == end:
                    break
            stop = data.index(b"\n", at) + 1
            self._explained(data[at:stop])
            at = stop

    def _explained(self, data: bytes) -> None:
        """What C did not take: a line, of which it may learn, or several with '\r' between."""
        text = data.decode()
        if "\r" in text[:-2] or len(text) >= MAX_LINE:
            self._few_lines(text)
            return
        self.line += 1
        meaning = self._line(text)
        to, _, tail = data.partition(b",")
        if meaning is not None and b'"' not in to:
            self.plain.learn(tail[:-1], *meaning)

    def _few_lines(self, text: str) -> None:
        readline = io.StringIO(text, newline="").readline
        while line := readline(MAX_LINE):
            self.line += 1
            if len(line) == MAX_LINE and line[-1] != "\n":
                raise self.refuse(f"the line is longer than {MAX_LINE} characters", _EXPECTED)
            self._line(line)

    def _line(self, text: str) -> tuple[int, int] | None:
        """Reads one line; its match and stack if it is a row that is taken."""
        meaning = None
        try:
            meaning = self._row(text)
        except ValueRefusedError as error:
            self.wrong(self.refuse(error.why, error.hint))
        except PolicyError as error:
            self.wrong(error)
        if len(self.table) > MAX_ROUTES:
            raise self.refuse(f"the table has more than {MAX_ROUTES} routes", "aggregate prefixes")
        return meaning

    def _row(self, text: str) -> tuple[int, int] | None:
        fields = self._fields(text)
        if not fields:
            return None
        if not self.is_headed:
            self.is_headed = True
            fields[0] = fields[0].removeprefix("\ufeff")
            if tuple(fields) == HEADER:
                return None
        if len(fields) != 4:
            raise self.refuse(f"{shown(text.strip())} has {len(fields)} columns, not 4", _EXPECTED)
        to, proto, ports, stack = fields
        match = self.matches.get((proto, ports))
        if match is None:
            match = self._match(proto, ports)
        stack_index = self.stacks.get(stack)
        if stack_index is None:
            stack_index = self._stack(stack)
        for one in parse_prefixes(to):
            if isinstance(one, Prefix):
                self.table.add(one, match, stack_index, self.line)
            else:
                self.table.add_set(one, match, stack_index, self.line, inline=False)
        return match, stack_index

    def _fields(self, text: str) -> list[str]:
        stripped = text.strip()
        if not stripped or stripped[0] == "#":
            return []
        if '"' not in text:
            return [field.strip() for field in stripped.split(",")]
        try:
            rows = list(csv.reader([text], strict=True))
        except csv.Error as error:
            raise self.refuse(
                f"{shown(stripped)} is not comma separated values ({error})", _EXPECTED
            ) from None
        return [field.strip() for field in rows[0]]

    def _match(self, proto: str, ports: str) -> int:
        number = parse_protocol(proto.lower())
        spaced = re.sub(r"\s*-\s*", "-", ports.replace(",", " "))
        ranges = parse_ports(", ".join(spaced.split())) if ports else ()
        index = self.table.intern_match(Match(number, ranges))
        self.matches[(proto, ports)] = index
        return index

    def _stack(self, stack: str) -> int:
        name = self.called.get(stack)
        if name is None and (problem := self.stack_known(stack)) is not None:
            raise self.refuse(f"no stack is called {shown(stack)}", problem)
        index = self.table.intern_stack(name or stack)
        self.stacks[stack] = index
        return index
