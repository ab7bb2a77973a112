# SPDX-License-Identifier: Apache-2.0
"""Records as maps, and back: what msgpack carries between programs and --json shows, in one place.

A record is a frozen dataclass with slots; its map has its fields by name, in their order. What
Python keeps for itself has an underscore behind it as a field: class_ is the key "class". A field
whose type is a Maybe may be ABSENT: then the map has no such key. What a newer program says besides
is left out. A field that is added later has to be a Maybe or have a default, so that what an older
program says can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, cast

from dmm_ebpf.errors import DmmError

T = TypeVar("T")


class Absent(Enum):
    """There is no such value, which is false."""

    ABSENT = "absent"

    def __bool__(self) -> Literal[False]:
        return False


ABSENT: Literal[Absent.ABSENT] = Absent.ABSENT
Maybe: TypeAlias = T | Literal[Absent.ABSENT]
Parts: TypeAlias = "Mapping[str, type[Record]]"


def known(value: Maybe[T]) -> T | None:
    """value; None where there is none."""
    return None if value is ABSENT else value


class Record:
    """What all have. PARTS: fields that are a record of that class, or a list of such."""

    __slots__ = ()
    PARTS: ClassVar[Parts] = {}

    def to_map(self) -> dict[str, Any]:
        """Its fields; records in them stay records."""
        names, values = _form(type(self)).shape(self)
        return dict(zip(names, values(self), strict=False))

    @classmethod
    def from_map(cls, said: Mapping[str, Any]) -> Self:
        """Of to_map(), all the way down. Raises DmmError if something is missing."""
        form = _form(cls)
        values = {name: said[key] for name, key in form.keys.items() if key in said}
        for name, kind in cls.PARTS.items():
            if name in values:
                values[name] = _part(kind, values[name])
        missing = [name for name in form.required if name not in values]
        if missing:
            raise _incomplete(cls, map(_key, missing))
        return cls(**dict.fromkeys(form.optional, ABSENT) | values)


Kind = TypeVar("Kind", bound=Record)


class _Form:
    """How records of one class become maps. A record has few shapes: which of its Maybes are
    there.
    """

    def __init__(self, kind: type[Record]) -> None:
        known = fields(cast(Any, kind))  # each is a dataclass
        self.names = tuple(one.name for one in known)
        self.keys = {name: _key(name) for name in self.names}
        self.optional = tuple(one.name for one in known if str(one.type).startswith("Maybe["))
        self.defaults = tuple(ABSENT if one.default is MISSING else one.default for one in known)
        self.required = tuple(
            one.name
            for one in known
            if one.default is one.default_factory is MISSING and one.name not in self.optional
        )
        self._maybes = _getter(self.optional)
        self._nothing = (ABSENT,) * len(self.optional)
        least = tuple(name for name in self.names if name not in self.optional)
        self._least = (tuple(map(_key, least)), _getter(least))
        self._shapes: dict[tuple[bool, ...], tuple[tuple[str, ...], Callable[..., Any]]] = {}

    def shape(self, record: Record) -> tuple[tuple[str, ...], Callable[[Record], tuple[Any, ...]]]:
        """The keys of the fields that a record has, and what gives their values."""
        maybes = self._maybes(record)
        if maybes == self._nothing:  # that is most flows
            return self._least
        absent = tuple([value is ABSENT for value in maybes])
        found = self._shapes.get(absent)
        if found is None:
            without = {name for name, one in zip(self.optional, absent, strict=True) if one}
            names = tuple(name for name in self.names if name not in without)
            found = self._shapes[absent] = (tuple(map(_key, names)), _getter(names))
        return found


def _key(name: str) -> str:
    """Of a field in a map."""
    return name.removesuffix("_")


_forms: dict[type[Record], _Form] = {}


def _form(kind: type[Record]) -> _Form:
    form = _forms.get(kind)
    if form is None:
        form = _forms[kind] = _Form(kind)
    return form


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the attributes of these names, as a tuple however many there are."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _part(kind: type[Record], said: Any) -> Any:
    if isinstance(said, list):
        return [kind.from_map(one) for one in said]
    return kind.from_map(said) if isinstance(said, dict) else said


def _incomplete(kind: type[Record], missing: Iterable[str]) -> DmmError:
    return DmmError(
        f"read an answer about a {kind.__name__.lower()}",
        why=f"it does not say {', '.join(missing)}",
        hint="is dmm-ebpf the same version at both ends?",
    )


def to_map(record: Any) -> dict[str, Any]:
    """For encoders: the map of what is a record. TypeError for anything else."""
    if isinstance(record, Record):
        return record.to_map()
    raise TypeError(f"{type(record).__name__} is no record")


# What json.dumps() would make anew for each row.
_LINE, _INDENTED = json.JSONEncoder(default=to_map), json.JSONEncoder(default=to_map, indent=2)


def to_json(value: Any, *, indented: bool = False) -> str:
    """value, which may have records anywhere in it, as JSON."""
    return (_INDENTED if indented else _LINE).encode(value)


# -- many of one class --

Columns = tuple[str, ...]


def columns_of(records: Iterable[Record]) -> list[tuple[Columns, list[tuple[Any, ...]]]]:
    """Records of one class, as the names of their fields and the values of each: half the work of
    a map for each. Those of one shape are together.
    """
    found: dict[Columns, list[tuple[Any, ...]]] = {}
    for record in records:
        names, values = _form(type(record)).shape(record)
        found.setdefault(names, []).append(values(record))
    return list(found.items())


def from_columns(
    kind: type[Kind], columns: Sequence[str], rows: Iterable[list[Any]]
) -> Iterator[Kind]:
    """Of columns_of(). Raises DmmError if something is missing. Not for records with PARTS."""
    form = _form(kind)
    place = {name: index for index, name in enumerate(columns)}
    missing = [key for name in form.required if (key := form.keys[name]) not in place]
    if missing:
        raise _incomplete(kind, missing)
    defaults = list(form.defaults)
    pick = itemgetter(
        *(place.get(key, len(columns) + index) for index, key in enumerate(form.keys.values()))
    )
    for row in rows:
        yield kind(*pick(row + defaults))
