# SPDX-License-Identifier: Apache-2.0
"""One width for code and prose: 100 columns, a tab being 8.

What cannot be broken may be longer: text in quotes of Python, tables and samples of the pages, a
line with its `noqa`.
"""

from __future__ import annotations

import io
import tokenize

import pytest
import rooms

WIDTH = 100
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def too_long(text: str) -> set[int]:
    return {
        number
        for number, line in enumerate(text.splitlines(), 1)
        if len(line.expandtabs(8)) > WIDTH
    }


def unbreakable_python(text: str) -> set[int]:
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_docstring = token.type == tokenize.STRING and token.line.lstrip().startswith('"""')
        is_told = token.type == tokenize.COMMENT and "noqa" in token.string
        if (token.type in STRINGS and not is_docstring) or is_told:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines


def unbreakable_page(text: str) -> set[int]:
    lines, in_sample = set(), False
    for number, line in enumerate(text.splitlines(), 1):
        fence = line.lstrip().startswith("```")
        in_sample ^= fence
        if (
            in_sample
            or fence
            or line.lstrip().startswith(("|", "#", "!["))
            or " " not in line.strip()
        ):
            lines.add(number)
    return lines


FREE = {".py": unbreakable_python, ".md": unbreakable_page, ".c": None, ".h": None}
FILES = [
    name
    for name in rooms.tracked()
    if name.endswith(tuple(FREE)) and not name.startswith("bpf/compat/")
]


@pytest.mark.parametrize("ending", FREE)
def test_no_line_is_wider(ending: str) -> None:
    free = FREE[ending]
    wide = []
    for name in (name for name in FILES if name.endswith(ending)):
        text = (rooms.ROOT / name).read_text(encoding="utf-8")
        wide += [f"{name}:{n}" for n in sorted(too_long(text) - (free(text) if free else set()))]
    assert wide == []
