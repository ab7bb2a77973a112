# SPDX-License-Identifier: Apache-2.0
"""docs/json.md as tables of keys and types, to hold real output against."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs/json.md"
KEY = re.compile(r"\| (\w+) \| (\? )?([\w \[\]]+?) \| .*\|")
COULD_NOT_TELL = "could_not_tell"
Table = dict[str, tuple[bool, str]]
PLAIN: dict[str, Any] = {
    "text": lambda v: isinstance(v, str),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "map": lambda v: isinstance(v, dict),
}


def read_page() -> dict[str, Table]:
    """For each table its keys: whether it may be missing, and its type."""
    tables: dict[str, Table] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            table = tables[line[3:]] = {}
        elif (found := KEY.fullmatch(line)) and found[3] != "type":
            table[found[1]] = (bool(found[2]), found[3])
    return tables


TABLES = read_page()


def wrong_with(value: Any, kind: str, where: str) -> list[str]:
    """What is not as a type of the page says."""
    kinds = kind.split(" or ")
    if isinstance(value, dict) and set(value) == {COULD_NOT_TELL}:
        return []
    for one in kinds:
        if one in PLAIN and PLAIN[one](value):
            return []
        if one.endswith("[]") and isinstance(value, list):
            return [
                text
                for i, v in enumerate(value)
                for text in wrong_with(v, one[:-2], f"{where}[{i}]")
            ]
        if one in TABLES and isinstance(value, dict):
            return wrong_in(value, one, where)
    return [f"{where}: {value!r} is not {kind}"]


def wrong_in(row: dict[str, Any], table: str, where: str, *, more: bool = False) -> list[str]:
    keys = TABLES[table]
    wrong = [f"{where}: {key} is not on the page" for key in row if key not in keys and not more]
    wrong += [
        f"{where}: no {key}"
        for key, (optional, _) in keys.items()
        if key not in row and not optional
    ]
    for key, value in row.items():
        if key in keys:
            wrong += wrong_with(value, keys[key][1], f"{where}.{key}")
    return wrong
