# SPDX-License-Identifier: Apache-2.0
"""Table: a BPF map by what it holds. Its MapSpec says of which types keys and values are, and
all else follows.

Bytes stay in here: maps.stack_state[3] = value. An integer is an int; a struct is what abi.new()
makes, a copy that nobody else has; a struct that is a key is a named tuple (abi.KeyForm).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, overload

from dmm_ebpf import abi
from dmm_ebpf.abi import Form, StructForm
from dmm_ebpf.loader.bpf import MapType
from dmm_ebpf.loader.maps import Map, RoutesKind

K = TypeVar("K")
V = TypeVar("V")


class MapSpec(Generic[K, V]):
    """One map. key, value: None where the kernel has none (a ring), or other maps for values;
    inner: of which kind.

    As an attribute of a class Maps it has that attribute's name; asked of an object, it gives the
    open map's Table.
    """

    name = ""

    def __init__(  # noqa: PLR0917 - no dataclass: making one takes longer than all else in the list of maps
        self,
        kind: MapType,
        key: Form[K] | None,
        value: Form[V] | None,
        max_entries: int,
        flags: int = 0,
        inner: RoutesKind | None = None,
    ) -> None:
        self.kind = kind
        self.key = key
        self.value = value
        self.max_entries = max_entries
        self.flags = flags
        self.inner = inner

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, opened: None, owner: type) -> MapSpec[K, V]: ...

    @overload
    def __get__(self, opened: Opened, owner: type) -> Table[K, V]: ...

    def __get__(self, opened: Opened | None, owner: type) -> MapSpec[K, V] | Table[K, V]:
        return self if opened is None else opened.table(self)

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return self.key.size if self.key else 0

    @property
    def value_size(self) -> int:
        """Bytes of a value; of another map that of its number."""
        return abi.U32.size if self.inner else self.value.size if self.value else 0

    def is_of(self, opened: Map) -> bool:
        """Whether an open map is as this says: type, sizes and entries."""
        ours = (self.kind, self.key_size, self.value_size, self.max_entries)
        return ours == (opened.type, opened.key_size, opened.value_size, opened.max_entries)


class Opened(Mapping[str, Map]):
    """The open maps of an instance. As a mapping: by name, for what asks for descriptors or for
    bytes; as attributes of the class below this one that lists them: as tables. One that is not
    open is a KeyError.
    """

    def __init__(self, opened: Mapping[str, Map]) -> None:
        self._opened = dict(opened)
        self._tables: dict[str, Table[Any, Any]] = {}

    def __getitem__(self, name: str) -> Map:
        return self._opened[name]

    def __contains__(self, name: object) -> bool:
        return name in self._opened

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __len__(self) -> int:
        return len(self._opened)

    def table(self, spec: MapSpec[K, V]) -> Table[K, V]:
        """The table of one."""
        found = self._tables.get(spec.name)
        if found is None:
            found = self._tables[spec.name] = Table(spec, self._opened[spec.name])
        return found


class Table(Generic[K, V]):
    """What a map holds, by key. A refusal of the kernel is a DmmError, a key or value of another
    type a TypeError or an OverflowError.
    """

    def __init__(self, spec: MapSpec[K, V], opened: Map) -> None:
        if spec.key is None or spec.value is None:
            raise TypeError(f"map {spec.name} has no keys and values to be read")
        self._key, self._value = spec.key, spec.value
        self._map = opened

    def get(self, key: K) -> V | None:
        """The value; None if there is no such key."""
        data = self._map.lookup(self._key.pack(key))
        return None if data is None else self._value.unpack_all(data)[0]

    def __getitem__(self, key: K) -> V:
        value = self.get(key)
        if value is None:
            raise KeyError(f"map {self._map.name} has no entry for {key!r}")
        return value

    def __contains__(self, key: K) -> bool:
        return self._map.lookup(self._key.pack(key)) is not None

    def __setitem__(self, key: K, value: V) -> None:
        self._map.update(self._key.pack(key), self._value.pack(value))

    def update(self, entries: Mapping[K, V]) -> None:
        """Writes all of them by one call; after a failure some may be there."""
        keys = b"".join(map(self._key.pack, entries))
        values = b"".join(map(self._value.pack, entries.values()))
        self._map.update_batch(keys, values, len(entries))

    def delete(self, key: K) -> bool:
        """Removes one entry; False if it was absent."""
        return self._map.delete(self._key.pack(key))

    def percpu(self, key: K) -> list[V]:
        """The value of every possible CPU; an empty list if there is no such key."""
        return self._value.unpack_all(b"".join(self._map.lookup_percpu(self._key.pack(key))))

    def __iter__(self) -> Iterator[K]:
        """Keys, as in items()."""
        for keys, _ in self._map.chunks():
            yield from self._key.unpack_all(keys)

    def items(self) -> Iterator[tuple[K, V]]:
        """Every entry that is there throughout; one that comes or goes meanwhile may or may
        not be seen.
        """
        for keys, values in self._map.chunks():
            yield from zip(self._key.unpack_all(keys), self._value.unpack_all(values), strict=True)

    def count(self) -> int:
        """How many entries there are."""
        return sum(len(keys) for keys, _ in self._map.chunks()) // self._key.size

    def values(self) -> Iterator[V]:
        """Values, as in items()."""
        for _, values in self._map.chunks():
            yield from self._value.unpack_all(values)

    def views(self) -> Iterator[V]:
        """values() that are not copied: each struct holds until the next is asked for;
        abi.copy() keeps one.
        """
        if not isinstance(self._value, StructForm):
            raise TypeError(f"map {self._map.name} has no structs")
        for _, values in self._map.chunks():
            yield from self._value.views(values)

    def where(self, **fields: int) -> set[K]:
        """The keys of those structs whose fields have these values; integers only. Of a million
        it takes a second.
        """
        if not isinstance(self._value, StructForm):
            raise TypeError(f"map {self._map.name} has no structs")
        wanted = tuple(fields.values())
        found: set[K] = set()
        for keys, values in self._map.chunks():
            rows = zip(*(self._value.column(values, name) for name in fields), strict=True)
            at = [i * self._key.size for i, row in enumerate(rows) if row == wanted]
            found.update(self._key.unpack_all(b"".join(keys[i : i + self._key.size] for i in at)))
        return found
