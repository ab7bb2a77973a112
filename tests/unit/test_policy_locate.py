# SPDX-License-Identifier: Apache-2.0
"""The locator gives the line of a key in any TOML that tomllib takes."""

from __future__ import annotations

import tomllib

import pytest

from dmm_ebpf.rd.policy.locate import _Walk, line_of

TEXT = '''# a comment with [stacks.fake]
title = """
[stacks.lan]
kind = "nothing"
"""

[stacks.lan]
kind = "kernel"   # [rules]
dscp = 'a#b'

[[rules]]
cgroup = "/a"
table = "shop"
[[rules]]
table = "shop"

[tables."my shop"]
note.deep = 1
[[tables.shop.routes]]
to = "10.0.0.0/8"
[[tables.shop.routes]]
to = "11.0.0.0/8"
ports = [
  1,
  "2", # ]
  { a = 1, b = [2,
     3] },
]
[tables.inline]
routes = [
  { to = "1.0.0.0/8", stack = "a" },
  { to = "2.0.0.0/8",
  stack = "b" }]
last = 2026-01-01
'''.replace('  stack = "b" }', 'stack = "b" }').replace('"2.0.0.0/8",\n', '"2.0.0.0/8", ')


def _paths(value: object, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    out: set[tuple[str | int, ...]] = {at} if at else set()
    if isinstance(value, dict):
        for key, child in value.items():
            out |= _paths(child, (*at, key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            out |= _paths(child, (*at, i))
    return out


def test_walks_exactly_the_leaves_tomllib_sees() -> None:
    data = tomllib.loads(TEXT)
    found = {path for path, _ in _Walk(TEXT).items()}
    everything = _paths(data)
    assert found <= everything
    leaves = {p for p in everything if not any(q[: len(p)] == p and q != p for q in everything)}
    assert leaves <= found


@pytest.mark.parametrize(
    ("path", "marker"),
    [
        (("title",), 'title = """'),
        (("stacks", "lan"), "[stacks.lan]"),
        (("stacks", "lan", "dscp"), "dscp ="),
        (("rules", 1, "table"), 'table = "shop"'),
        (("tables", "my shop", "note", "deep"), "note.deep"),
        (("tables", "shop", "routes", 1, "to"), 'to = "11.0.0.0/8"'),
        (("tables", "shop", "routes", 1, "ports", 2, "b", 1), "     3]"),
        (("tables", "inline", "routes", 1, "stack"), 'stack = "b"'),
        (("tables", "inline", "last"), "last ="),
    ],
)
def test_line_of_a_key(path: tuple[str | int, ...], marker: str) -> None:
    line = line_of(TEXT, path)
    assert line is not None
    assert marker in TEXT.splitlines()[line - 1]


def test_header_inside_a_string_is_not_a_header() -> None:
    line = line_of(TEXT, ("stacks", "lan", "kind"))
    assert line is not None
    assert TEXT.splitlines()[line - 1].startswith('kind = "kernel"')


def test_missing_key_gives_its_table() -> None:
    line = line_of(TEXT, ("rules", 1, "cgroup"))
    assert line is not None
    assert TEXT.splitlines()[line - 1] == "[[rules]]"
    assert line == TEXT[: TEXT.rindex("[[rules]]")].count("\n") + 1


def test_nothing_of_the_path_occurs() -> None:
    assert line_of(TEXT, ("absent",)) is None
    assert line_of("", ("stacks",)) is None


def test_path_above_the_headers_gives_the_first_header() -> None:
    line = line_of(TEXT, ("stacks",))
    assert line is not None
    assert TEXT.splitlines()[line - 1] == "[stacks.lan]"
