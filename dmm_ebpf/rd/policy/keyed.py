# SPDX-License-Identifier: Apache-2.0
"""A table of the policy whose keys are known: a record, each field of which says how its key is
read.

Owns Record and by(), the metadata of its fields: from them a table is read, a key is refused with
what is wrong, and the JSON Schema is made (schema.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from dmm_ebpf.errors import apart
from dmm_ebpf.rd.policy.values import Mark, ValueRefusedError


@runtime_checkable
class Plain(Protocol):
    """A value that says itself how listings print it."""

    def plain(self) -> Any:
        """As JSON has it."""


class OldName(NamedTuple):
    """A name that goes on working for one version: at which key of the text, and a sentence."""

    path: tuple[str | int, ...]
    told: str


class KeysRefusedError(Exception):
    """The keys of a table that are refused, as the policy writes them, each with why, or None
    when it is missing.
    """

    def __init__(self, keys: dict[str, ValueRefusedError | None]) -> None:
        super().__init__(", ".join(keys))
        self.keys = keys


def by(
    read: Callable[[Any], Any],
    name: str = "",
    *,
    old: str = "",
    old_values: Mapping[str, str] | None = None,
    process: bool = False,
) -> dict[str, Any]:
    """Metadata of a field. read: from what TOML gives to the value, or ValueRefusedError. name: the
    key as a policy writes it, where that is not the field's name. old: what the key was called, and
    may be for one version more; old_values: likewise of values, with what they are called now.
    process: each process of the stack is told the value as it is, for C's member of
    the field's name.
    """
    return {
        "read": read,
        "name": name,
        "old": old,
        "old_values": old_values or {},
        "process": process,
    }


@dataclass(frozen=True, kw_only=True)
class Record:
    """A table of the policy; each field's metadata is made by by(), and one without default
    must be there.
    """

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys as a policy writes them."""
        return tuple(one.metadata["name"] or one.name for one in fields(cls))

    @classmethod
    def old_keys(cls) -> dict[str, str]:
        """The keys that had another name, by that."""
        olds = (one.metadata["old"] for one in fields(cls))
        return {old: key for old, key in zip(olds, cls.keys(), strict=True) if old}

    @classmethod
    def old_names(cls, data: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The keys of a table that have an old name, or an old name for a value, each with a
        sentence.
        """
        for one, key in zip(fields(cls), cls.keys(), strict=True):
            if (old := one.metadata["old"]) and old in data:
                yield old, f"{old} is an old name of the key {key}, which does the same"
            value, now = data.get(key), one.metadata["old_values"]
            if isinstance(value, str) and value in now:
                means = f'{key} = "{value}" is an old name and means {key} = "{now[value]}" now'
                yield key, f"{means}, which does the same"

    @classmethod
    def read(cls, data: Mapping[str, object]) -> Self:
        """The record of a table whose keys are known ones. KeysRefusedError: all keys
        that are refused.
        """
        values: dict[str, Any] = {}
        wrong: dict[str, ValueRefusedError | None] = {}
        olds = {key: old for old, key in cls.old_keys().items()}
        for one, key in zip(fields(cls), cls.keys(), strict=True):
            old = olds.get(key, "")
            if old in data and key in data:
                wrong[old] = ValueRefusedError(
                    f"it is the old name of {key}, which is there, too", "take one away"
                )
                continue
            written = _written(key, old, data)
            if written in data:
                try:
                    values[one.name] = one.metadata["read"](data[written])
                except ValueRefusedError as refused:
                    wrong[written] = apart(refused)
            elif one.default is MISSING:
                wrong[key] = None
        if wrong:
            raise KeysRefusedError(wrong)
        return cls(**values)

    def options(self) -> dict[str, Any]:
        """What is not None, by field, as listings print it; without kind."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "kind"}
        return {name: _plain(value) for name, value in values.items() if value is not None}


def _written(key: str, old: str, data: Mapping[str, object]) -> str:
    """The name by which data may have a key."""
    return old if old and old in data else key


def _plain(value: Any) -> Any:
    """value as JSON has it."""
    if isinstance(value, Mark):
        return str(value)
    if isinstance(value, Plain):
        return value.plain()
    return list(value) if isinstance(value, tuple) else value
