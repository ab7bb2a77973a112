# SPDX-License-Identifier: Apache-2.0
"""Map: an open BPF map, and the inner maps that hold a policy's routes.

A Map owns its fd and closes it. Keys and values are bytes of exactly key_size and value_size: what
is told by types is table.py's. This is the door for many at once, such as a million routes that are
packed as columns already. A refusal of the kernel is a DmmError; an absent key is not an error.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator
from typing import Any, Literal

from dmm_ebpf.abi import U32, Form, KeyForm, StructForm
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf, explain
from dmm_ebpf.loader.bpf import MapType

BATCH = 4096
_PERCPU = (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY)
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, bpf.ENOTSUPP)

RoutesKind = Literal["routes", "ports"]
INNER: dict[RoutesKind, tuple[Form[Any], StructForm]] = {
    "routes": (U32, StructForm("dmm_route_node")),
    "ports": (KeyForm("dmm_port_key"), StructForm("dmm_port_value")),
}

# Of an array that flag has the length left out of what is checked when it is put in; what may be
# mapped begins with a page, so that nodes begin with a line of cache.
_SHAPES: dict[RoutesKind, tuple[MapType, int]] = {
    "routes": (MapType.ARRAY, bpf.BPF_F_INNER_MAP | bpf.BPF_F_MMAPABLE),
    "ports": (MapType.LPM_TRIE, bpf.BPF_F_NO_PREALLOC),
}


def _error(what: str, error: OSError, max_entries: int = 0) -> DmmError:
    if error.errno in (errno.E2BIG, errno.ENOSPC) and max_entries:
        return DmmError(what, why=f"it is full ({max_entries} entries)")
    return explain.refused(what, error)


def _round8(size: int) -> int:
    return (size + 7) & ~7


class Map(Closing):
    """A BPF map by its fd, which it owns. Sizes in bytes; value_size is that of one CPU's value."""

    def __init__(self, fd: int) -> None:
        self._closer = weakref.finalize(self, os.close, fd)
        info = bpf.map_info(fd)
        self.fd = fd
        self.name = info.name
        self.type = info.type
        self.id = info.id
        self.key_size = info.key_size
        self.value_size = info.value_size
        self.max_entries = info.max_entries
        self._lookup_bytes = info.value_size
        if info.type in _PERCPU:
            self._lookup_bytes = _round8(info.value_size) * bpf.possible_cpus()

    def __repr__(self) -> str:
        return f"Map({self.name!r}, id={self.id}, fd={self.fd})"

    def close(self) -> None:
        """Closes the fd; a second call does nothing."""
        self._closer()

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name}: key of {len(key)} bytes, wants {self.key_size}")
        return key

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. Of a per-CPU map: all CPUs' values, each padded to 8 bytes."""
        try:
            return bpf.map_lookup(self.fd, self._key(key), self._lookup_bytes)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise _error(f"read BPF map {self.name}", error) from error

    def lookup_percpu(self, key: bytes) -> list[bytes]:
        """One value per possible CPU; an empty list if the key is absent."""
        if self.type not in _PERCPU:
            raise ValueError(f"map {self.name} is not per CPU")
        data = self.lookup(key) or b""
        step = _round8(self.value_size)
        return [data[i : i + self.value_size] for i in range(0, len(data), step)]

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Writes one entry. flags: 0, bpf.BPF_NOEXIST or bpf.BPF_EXIST."""
        if len(value) != self.value_size:
            raise ValueError(
                f"map {self.name}: value of {len(value)} bytes, wants {self.value_size}"
            )
        try:
            bpf.map_update(self.fd, self._key(key), value, flags)
        except OSError as error:
            raise _error(f"write BPF map {self.name}", error, self.max_entries) from error

    def delete(self, key: bytes) -> bool:
        """Removes one entry; False if it was absent."""
        try:
            bpf.map_delete(self.fd, self._key(key))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise _error(f"delete from BPF map {self.name}", error) from error
        return True

    def update_batch(
        self, keys: bytes | memoryview, values: bytes | memoryview, count: int
    ) -> None:
        """Writes count entries, laid end to end; after a failure some may be there."""
        if len(keys) != count * self.key_size or len(values) != count * self.value_size:
            raise ValueError(
                f"map {self.name}: {len(keys)} and {len(values)} bytes are not {count} entries"
            )
        if not count:
            return
        try:
            bpf.map_update_batch(self.fd, keys, values, count)
        except OSError as error:
            raise _error(
                f"write {count} entries to BPF map {self.name}", error, self.max_entries
            ) from error

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry that is there throughout; one that comes or goes meanwhile may or may
        not be seen.
        """
        if self.type in _PERCPU or self.type == MapType.ARRAY_OF_MAPS:
            yield from self._items_one_by_one()
            return
        for keys, values in self.chunks():
            for i in range(len(keys) // self.key_size):
                yield (
                    keys[i * self.key_size : (i + 1) * self.key_size],
                    values[i * self.value_size : (i + 1) * self.value_size],
                )

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """items() some thousands at once: keys end to end, and values; not of a per-CPU map."""
        position: bytes | None = None
        count = min(BATCH, self.max_entries)
        while True:
            try:
                position_next, keys, values, n, last = bpf.map_lookup_batch(
                    self.fd, position, self.key_size, self.value_size, count
                )
            except OSError as error:
                if error.errno == errno.ENOSPC:  # one hash bucket holds more than the buffer
                    count *= 2
                    continue
                if error.errno in _NO_BATCH and position is None:
                    yield from self._items_one_by_one()
                    return
                raise _error(f"read BPF map {self.name}", error) from error
            position = position_next
            yield keys[: n * self.key_size], values[: n * self.value_size]
            if last:
                return

    def _items_one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        """A key that vanishes sends the kernel's iteration back to the start; seen
        keeps entries single.
        """
        seen: set[bytes] = set()
        key: bytes | None = None
        while True:
            try:
                key = bpf.map_next_key(self.fd, key, self.key_size)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise _error(f"read BPF map {self.name}", error) from error
            if key in seen:
                continue
            seen.add(key)
            value = self.lookup(key)
            if value is not None:
                yield key, value


def create_routes_map(kind: RoutesKind, max_entries: int) -> Map:
    """A map for set_inner(); as large as the policy needs, at least 1 entry."""
    key, value = INNER[kind]
    shape, flags = _SHAPES[kind]
    try:
        fd = bpf.map_create(
            f"dmm_{kind}",
            shape,
            key.size,
            value.size,
            max(1, max_entries),
            flags=flags,
        )
    except OSError as error:
        raise _error(f"create a BPF map for {max_entries} {kind} entries", error) from error
    return Map(fd)


def set_inner(outer: Map, index: int, inner: Map | None) -> None:
    """outer[index] = inner, at once; None empties it. The kernel frees a map that nobody
    uses any more.
    """
    key = U32.pack(index)
    if inner is None:
        outer.delete(key)
    else:
        outer.update(key, U32.pack(inner.fd))
