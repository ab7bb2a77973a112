# SPDX-License-Identifier: Apache-2.0
"""What C does for each of a million routes: reading plain lines, finding equal prefixes and the
shorter ones around them, packing entries of tries.

The only module that touches dmm_ebpf.rd.policy._routetable (routetable.h), and all of it that knows
memory: columns are lent to C for one call, or for as long as an object here lives. A table whose
columns are lent cannot grow: array says so with a BufferError.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from dmm_ebpf import abi
from dmm_ebpf.rd.policy._routetable import ffi, lib

NO_ROUTE: int = lib.ROUTE_NONE
NAMED_OWN: int = lib.NAMED_OWN
NAMED_MISS: int = lib.NAMED_MISS
_BLOCK = 16384  # rows, or entries, that C makes at a time

_COLUMNS = (
    ("families", "uint8_t[]"),
    ("lengths", "uint8_t[]"),
    ("stack", "uint8_t[]"),
    ("addrs_hi", "uint64_t[]"),
    ("addrs_lo", "uint64_t[]"),
    ("match", "uint32_t[]"),
    ("origin", "uint32_t[]"),
)


class Columns(Protocol):
    """The columns of a RouteTable."""

    families: bytearray
    lengths: bytearray
    stack: array[int]
    addrs_hi: array[int]
    addrs_lo: array[int]
    match: array[int]
    origin: array[int]

    def __len__(self) -> int: ...


def blocks_apart() -> None:
    """Have this process give back every block of a megabyte or more when it is freed: what a
    million routes are in, while the next million is read. By itself glibc has blocks of a size that
    was freed once stand on its heap, where others keep them from being given back: mallopt(3),
    M_MMAP_THRESHOLD.
    """
    lib.blocks_apart()


def _lent(column: Any, kind: str = "uint32_t[]") -> Any:
    return ffi.from_buffer(kind, column)


def _made(pointer: Any, free: Any) -> Any:
    """What C has made, until nobody has it."""
    if pointer == ffi.NULL:
        raise MemoryError
    return ffi.gc(pointer, free)


class _Lent:
    """The columns of a table as struct routes, which keeps them alive."""

    def __init__(self, table: Columns) -> None:
        self.held = [_lent(getattr(table, name), kind) for name, kind in _COLUMNS]
        self.struct = ffi.new("struct routes *")
        for (name, _), column in zip(_COLUMNS, self.held, strict=True):
            setattr(self.struct, name, column)


class Learnt:
    """Numbers by bytes, for C to find. What is longer than MOST_KEY bytes is not learnt, and too
    many make it forget all: what it does not know is asked of Python again.
    """

    def __init__(self) -> None:
        self.pointer = _made(lib.learnt_new(), lib.learnt_free)

    def put(self, key: bytes, number: int) -> None:
        """number: of 32 bits."""
        if lib.learnt_put(self.pointer, key, len(key), number):
            raise MemoryError


def lent_text(data: bytes) -> Any:
    """data for Lines.read()."""
    return ffi.from_buffer("char[]", data)


class Lines:
    """Reads lines of a routes file that are like those it has been told of, into a table."""

    def __init__(self, table: Columns) -> None:
        self.table = table
        self.tails = Learnt()
        self._buffers = [ffi.new(kind, _BLOCK) for _, kind in _COLUMNS]
        self._out = ffi.new("struct routes *")
        for (name, _), buffer in zip(_COLUMNS, self._buffers, strict=True):
            setattr(self._out, name, buffer)
        self._done = ffi.new("struct lines_read *")

    def learn(self, tail: bytes, match: int, stack: int) -> None:
        """What stands between a line's first comma and its '\\n', and what it means."""
        self.tails.put(tail, match << 8 | stack)

    def read(self, text: Any, at: int, end: int, line: int, room: int) -> tuple[int, int]:
        """Appends the rows of the lines of text (cffi's char[]) from at on, until one comes that is
        not plain or room rows are there; all of them end in '\\n', the last at end. line: of the
        file, that before. Returns how many bytes and lines.
        """
        start, before = at, line
        done, most = self._done, min(room, _BLOCK)
        while most:
            lib.lines_read(self.tails.pointer, text + at, end - at, line, self._out, most, done)
            at, line, rows = at + done.bytes, line + done.lines, done.rows
            if rows:
                self._append(rows)
            room -= rows
            most = min(room, _BLOCK) if rows == most else 0
        return at - start, line - before

    def _append(self, rows: int) -> None:
        for (name, _), buffer in zip(_COLUMNS, self._buffers, strict=True):
            size = rows * ffi.sizeof(ffi.typeof(buffer).item)
            column = getattr(self.table, name)
            data = ffi.buffer(buffer, size)
            if isinstance(column, bytearray):
                column += data
            else:
                column.frombytes(data)


def containing(table: Columns, family: int, addr: int) -> Iterator[int]:
    """The routes whose prefix contains an address, in order."""
    lent, count = _Lent(table), len(table)
    address = family, addr >> 64, addr & 0xFFFFFFFFFFFFFFFF
    at = lib.routes_containing(lent.struct, count, 0, *address)
    while at < count:
        yield at
        at = lib.routes_containing(lent.struct, count, at + 1, *address)


class Prefixes:
    """The prefixes of a table, by hash; 16 bytes a route while it lives."""

    def __init__(self, table: Columns) -> None:
        self._table = _Lent(table)
        made = lib.prefixes_new(self._table.struct, len(table))
        self._pointer = _made(made, lib.prefixes_free)
        self._key = ffi.new("uint32_t[]", lib.MOST_GROUP + 1)

    def links(self) -> array[int] | None:
        """For groups(); None where no two routes have one prefix."""
        if not self._pointer.later:
            return None
        size = 4 * self._pointer.count
        return array("I", bytes(ffi.buffer(self._pointer.links, size)))

    def first(self, family: int, addr: int, length: int) -> int:
        """The first route of a prefix, or NO_ROUTE."""
        halves = addr >> 64, addr & 0xFFFFFFFFFFFFFFFF
        return int(lib.prefixes_first(self._pointer, family, length, *halves))

    def parent(self, route: int, hidden: int) -> int:
        """The first route of the next shorter prefix around a route's, or NO_ROUTE. Prefixes whose
        one route has the match hidden are passed over.
        """
        return int(lib.prefixes_parent(self._pointer, route, hidden))

    def lack(self, other: Columns, matches: array[int], stacks: array[int]) -> Iterator[int]:
        """The routes of another table that this one does not have, in order. matches, stacks: what
        this table calls those of the other; NO_ROUTE: it has none such.
        """
        lent, count = _Lent(other), len(other)
        called = _lent(matches), _lent(stacks)
        at = lib.prefixes_lack(self._pointer, lent.struct, count, 0, *called)
        while at < count:
            yield at
            at = lib.prefixes_lack(self._pointer, lent.struct, count, at + 1, *called)

    def plan(self, takes_all: bytes, templates: Learnt, plan: array[int], start: int) -> int:
        """Fills plan from a route on, until one comes whose key() templates do not have; its
        index, or that behind the last one. takes_all: of each match, 0 or 1.
        """
        lent = _lent(plan)
        return int(lib.plan_run(self._pointer, takes_all, templates.pointer, lent, start))

    def key(self, takes_all: bytes, route: int) -> bytes:
        """By what plan() finds the template of a prefix, by its first route: the parent, and the
        match of each of its routes. Empty, and not found, where they are more than MOST_GROUP.
        """
        size = lib.plan_key(self._pointer, takes_all, route, self._key)
        return bytes(ffi.buffer(self._key, 4 * size))


def chain(links: array[int], first: int) -> list[int]:
    """The routes of one prefix, by the first of them."""
    out = [first]
    while (following := links[out[-1]] & NO_ROUTE) != NO_ROUTE:
        out.append(following)
    return out


def groups(links: array[int]) -> Iterator[list[int]]:
    """The routes of each prefix that has several."""
    lent, count = _lent(links), len(links)
    at = lib.links_shared(lent, count, 0)
    while at < count:
        yield chain(links, at)
        at = lib.links_shared(lent, count, at + 1)


class Templates:
    """What the ports of a prefix are, but for its own routes and the number of its set."""

    def __init__(self) -> None:
        self.starts = array("I", [0])
        self.words = array("I")
        self.whole = array("I")

    def add(self, entries: tuple[tuple[int, int, int], ...], whole: int) -> int:
        """Its number, from 1. entries: prefixlen, and from bit 8 on the rank; proto, pad and
        port_be as a word; the route, which may be NAMED_OWN and its place among its prefix's, or
        NAMED_MISS. whole: NAMED_MISS, or the route that the prefix has for all ports; then there
        are no entries.
        """
        for entry in entries:
            self.words.extend(entry)
        self.starts.append(len(self.words) // 3)
        self.whole.append(whole)
        return len(self.whole)


class Emission:
    """What one table says, packed when it is asked for."""

    def __init__(  # noqa: PLR0917 - struct emission
        self,
        table: Columns,
        links: array[int] | None,
        plan: array[int] | None,
        templates: Templates,
        stacks: array[int],
        via: array[int],
        base: int,
        number: int,
        first_set: int,
    ) -> None:
        """stacks: the number of each of the table's. via: of its last routes, which are elements of
        sets, the route to the set that each is there by. base: what the policy calls its first
        route. number: of the table. first_set: the port sets before.
        """
        self.number = number
        self._table = _Lent(table)
        self._held = [
            _lent(column) for column in (templates.starts, templates.words, templates.whole, stacks)
        ]
        self.struct = struct = ffi.new("struct emission *")
        struct.routes, struct.count = self._table.struct[0], len(table)
        struct.starts, struct.words, struct.whole, struct.numbers = self._held
        struct.written = len(table) - len(via)
        if via:
            struct.via = self._via = _lent(via)
        struct.base, struct.table, struct.first_set = base, number, first_set
        if links is not None:
            struct.links = self._links = _lent(links)
        if plan is not None:
            struct.plan = self._plan = _lent(plan)
        self._sets = _made(lib.port_sets_new(struct, struct.plan), lib.port_sets_free)
        struct.sets = self._sets
        self._order = _lent(array("I", bytes(4 * len(table))))
        struct.order, struct.ordered = self._order, lib.emission_order(struct, self._order)

    @property
    def prefixes(self) -> int:
        """How many there are."""
        return int(self.struct.ordered)

    @property
    def sets(self) -> int:
        """How many sets of ports."""
        return int(self._sets.count)

    @property
    def n_ports(self) -> int:
        """How many entries of ports."""
        return int(self._sets.entries)


Chunk = tuple[memoryview, memoryview, int]


class _Packing:
    """Room for some thousands of keys and values."""

    def __init__(self, room: int, key: int, value: int) -> None:
        self.room, self._key, self._value = room, key, value
        self._keys, self._values = bytearray(room * key), bytearray(room * value)
        self.keys, self.values = _lent(self._keys, "char[]"), _lent(self._values, "char[]")

    def chunk(self, made: int) -> Chunk:
        """What is in it; it holds until more are packed."""
        keys, values = memoryview(self._keys), memoryview(self._values)
        return keys[: made * self._key], values[: made * self._value], made


def port_chunks(tables: Iterable[Emission]) -> Iterator[Chunk]:
    """Keys, values and how many, of ports[]; they hold until the next are asked for."""
    sizes = abi.sizeof("dmm_port_key"), abi.sizeof("dmm_port_value")
    for table in tables:
        packing = _Packing(min(_BLOCK, table.n_ports), *sizes)
        place = ffi.new("struct emission *", table.struct[0])
        while made := lib.emit_ports(place, packing.keys, packing.values, packing.room):
            yield packing.chunk(made)


def node_chunks(tables: Iterable[Emission]) -> Iterator[Chunk]:
    """The same of routes[]. The last is node 0, by which the others are found."""
    packing = _Packing(2 * lib.FOREST_ROOM, 4, abi.sizeof("dmm_route_node"))
    keys = ffi.cast("uint32_t *", packing.keys)
    forest = _made(lib.forest_new(), lib.forest_free)
    for table in sorted(tables, key=lambda one: one.number):
        place = ffi.new("struct emission *", table.struct[0])
        while place.at < place.ordered:
            yield packing.chunk(lib.forest_run(forest, place, keys, packing.values, packing.room))
    yield packing.chunk(lib.forest_end(forest, keys, packing.values))
