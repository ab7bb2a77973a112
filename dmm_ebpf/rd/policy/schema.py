# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema (2020-12) of a policy file, by which editors complete and check one.

Made of the records' fields and their readers' shapes (shape.py), so no key is named here that they
have. It accepts every policy that parse.py accepts; of what parse.py refuses it cannot tell what
needs two places of the file to see (a name that is nowhere defined, two routes that contradict), or
more than a form (host bits behind a prefix). Pure, but for the names of installed plug-ins.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from dmm_ebpf import __version__
from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.hosts import parse_labels, parse_selector
from dmm_ebpf.rd.policy.keyed import Record
from dmm_ebpf.rd.policy.model import (
    BUILT_IN,
    MAX_STACKS,
    STACK_RECORDS,
    TABLE_KEYS,
    TABLES,
    AutoRecord,
    RouteRecord,
)
from dmm_ebpf.rd.policy.readers import NAME
from dmm_ebpf.rd.policy.rule import Rule
from dmm_ebpf.rd.policy.shape import Shape, any_of, shape_of
from dmm_ebpf.rd.policy.values import ValueRefusedError

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> Shape:
    """The schema, whole; as this host's `policy check` has it."""
    parts = {
        "hosts": _by_name(shape_of(parse_selector)),
        "labels": shape_of(parse_labels),
        "stacks": {**_by_name(_stack(), but=tuple(BUILT_IN)), "maxProperties": MAX_STACKS},
        "rules": {"type": "array", "maxItems": int(C.DMM_MAX_RULES), "items": _rule()},
        "tables": _by_name(_table()),
    }
    return {
        "$schema": DIALECT,
        "title": f"A policy of dmm-ebpf {__version__}",
        **_object({key: parts[key] for key in TABLES}),
    }


def _object(properties: dict[str, Shape]) -> Shape:
    """A table with these keys and no other."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _by_name(shape: Shape, *, but: tuple[str, ...] = ()) -> Shape:
    """A table whose keys are names, and not those of but."""
    names = {**NAME, "not": {"enum": list(but)}} if but else NAME
    return {"type": "object", "propertyNames": names, "additionalProperties": shape}


def _record(kind: type[Record]) -> Shape:
    properties: dict[str, Shape] = {}
    required: list[str] = []
    for one, key in zip(fields(kind), kind.keys(), strict=True):
        properties[key] = _field(one)
        if one.default is MISSING:
            required.append(key)
    both = []
    for old, key in kind.old_keys().items():
        properties[old] = {**properties[key], "deprecated": True}
        both.append({"required": [old, key]})
    shape = {**_object(properties), "required": required}
    return {**shape, "not": any_of(*both)} if both else shape


def _field(one: Field[Any]) -> Shape:
    """With its default, where a policy could write that."""
    read = one.metadata["read"]
    shape = shape_of(read)
    if isinstance(one.default, str | int):
        try:
            if read(one.default) == one.default:
                return {**shape, "default": one.default}
        except ValueRefusedError:
            pass
    return shape


def _stack() -> Shape:
    """Not one of several schemas: of those an editor could only say that none fits. The keys of all
    kinds come first, since editors that complete do not look into conditions.
    """
    records = {name: _record(record) for name, record in STACK_RECORDS.items()}
    shapes: dict[str, list[Shape]] = {}
    for record in records.values():
        for key, shape in record["properties"].items():
            found = shapes.setdefault(key, [])
            found += [] if shape in found else [shape]
    keys = {key: found[0] if len(found) == 1 else any_of(*found) for key, found in shapes.items()}
    keys["kind"] = {"enum": list(STACK_RECORDS)}
    conditions: Shape = {}
    for name, record in records.items():
        own = {
            key: {} if shapes[key] == [one] else one for key, one in record["properties"].items()
        }
        conditions = {
            "if": {"required": ["kind"], "properties": {"kind": {"const": name}}},
            "then": {**record, "properties": {**own, "kind": {}}},
            **({"else": conditions} if conditions else {}),
        }
    return {"type": "object", "required": ["kind"], "properties": keys, **conditions}


def _rule() -> Shape:
    """A rule without a table only lets programs choose."""
    leads = any_of(*({"required": [key]} for key in ("table", "action", "choose")))
    return {**_record(Rule), **leads}


def _table() -> Shape:
    parts: dict[str, Shape] = {
        "routes": {"type": "array", "items": _record(RouteRecord)},
        "routes_from": {"type": "string", "minLength": 1},
        **_record(AutoRecord)["properties"],
    }
    return _object({key: parts[key] for key in TABLE_KEYS})
