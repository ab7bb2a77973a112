# SPDX-License-Identifier: Apache-2.0
"""What goes to standard output: JSON, and tables that suit where they go.

On a terminal a table is coloured (unless NO_COLOR is set) and fits the width: the
least telling columns
go first, which is said, then the widest texts are cut, which an ellipsis shows; an
endpoint or a number never is.
Into a pipe or a file it is plain text with every column whole and no control sequences.
Notes and errors
go to standard error, so that standard output holds the answer alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dmm_ebpf.records.record import to_json
from dmm_ebpf.show import units

Row = dict[str, Any]
Line = TypeVar("Line")  # what a line of a table tells of
_GAP = 2
_MIN_FLEX = 8


@dataclass(frozen=True)
class Column(Generic[Line]):
    """A column: how a row gives its cell, and what becomes of it when room is short."""

    title: str
    cell: Callable[[Line], str]
    right: bool = False
    rank: int = 0  # the highest rank is left out first; 0 stays
    flex: bool = False  # may be cut,
    cut: Callable[[str, int], str] = units.shorten  # in this way


class _Answered:
    """Whether JSON has gone to standard output: an answer is one document."""

    yet = False


def begin() -> None:
    """A command begins: nothing of its answer is printed."""
    _Answered.yet = False


def json_was_printed() -> bool:
    """Whether the command has printed JSON."""
    return _Answered.yet


def note(text: str) -> None:
    """One line for the person at the terminal, on standard error."""
    print(f"dmm-ebpf: {units.readable(text)}", file=sys.stderr)


def _json(value: Any, *, indented: bool = False) -> str:
    """JSON that any parser takes: half a surrogate pair, as names with bytes that are no UTF-8
    have, is not Unicode.
    """
    text = to_json(value, indented=indented)
    return to_json(_readable(json.loads(text)), indented=indented) if "\\udc" in text else text


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return units.readable(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(one) for key, one in value.items()}
    return [_readable(one) for one in value] if isinstance(value, list) else value


def print_json(value: Any) -> None:
    """value as JSON: indented for a person, on one line for a program."""
    _Answered.yet = True
    print(_json(value, indented=sys.stdout.isatty()))


def print_json_rows(rows: Iterable[Any]) -> None:
    """print_json() of a list that is never held whole, unless it is for a person."""
    if sys.stdout.isatty():
        print_json(list(rows))
        return
    between = "["
    for row in rows:
        _Answered.yet = True
        sys.stdout.write(between + _json(row))
        between = ", "
    _Answered.yet = True
    print("]" if between == ", " else "[]")


def print_json_line(value: Any) -> None:
    """value as one line of JSON, at once: for streams."""
    print(_json(value), flush=True)


def print_table(columns: Sequence[Column[Line]], rows: Iterable[Line], indent: str = "") -> None:
    """rows under their titles; only the titles when there are none."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    if sys.stdout.isatty():
        _print_terminal(columns, cells, shutil.get_terminal_size().columns, indent)
    else:
        for line in layout(columns, cells, None)[1]:
            print(indent + line)


def layout(
    columns: Sequence[Column[Any]], cells: Sequence[Sequence[str]], width: int | None
) -> tuple[list[int], list[str]]:
    """Column widths (0: left out) and lines, titles first, of at most width
    characters (None: any).
    """
    widths = [
        max(len(column.title), *(units.cells(row[i]) for row in cells), 0)
        for i, column in enumerate(columns)
    ]
    if width is not None:
        _fit(columns, widths, width)
    lines = []
    for row in ([column.title for column in columns], *cells):
        parts = [
            units.pad(column.cut(text, w), w, right=column.right)
            for text, w, column in zip(row, widths, columns, strict=True)
            if w
        ]
        lines.append((" " * _GAP).join(parts).rstrip())
    return widths, lines


def _excess(widths: Sequence[int], width: int) -> int:
    shown = [w for w in widths if w]
    return sum(shown) + _GAP * (len(shown) - 1) - width


def _fit(columns: Sequence[Column[Any]], widths: list[int], width: int) -> None:
    """Make widths fit: leave columns out by rank, then cut the widest flexible one, a character
    at a time.
    """
    for rank in sorted({column.rank for column in columns if column.rank}, reverse=True):
        if _excess(widths, width) <= _slack(columns, widths):
            break
        for i, column in enumerate(columns):
            if column.rank == rank:
                widths[i] = 0
    while _excess(widths, width) > 0:
        flexible = [i for i, column in enumerate(columns) if column.flex and widths[i] > _MIN_FLEX]
        if not flexible:
            break
        widths[max(flexible, key=lambda i: widths[i])] -= 1


def _slack(columns: Sequence[Column[Any]], widths: Sequence[int]) -> int:
    """How much cutting can save before texts say too little: half of what is flexible."""
    return sum(
        (w - _MIN_FLEX) // 2
        for w, column in zip(widths, columns, strict=True)
        if column.flex and w > _MIN_FLEX
    )


def _print_terminal(
    columns: Sequence[Column[Any]], cells: Sequence[Sequence[str]], width: int, indent: str
) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(width=width, highlight=False)
    widths, lines = layout(columns, cells, width - len(indent))
    # What does not fit even so is for the terminal to wrap: nothing is lost.
    console.print(Text(indent + lines[0], style="bold"), soft_wrap=True)
    for line in lines[1:]:
        console.print(_coloured(Text(indent + line)), soft_wrap=True)
    left_out = [column.title for column, w in zip(columns, widths, strict=True) if not w]
    if left_out:
        sys.stdout.flush()
        note(
            f"{width} columns have no room for {', '.join(left_out)}; a wider terminal or a pipe has"
        )


def _coloured(line: Any) -> Any:
    """States stand out by colour; the words alone say the same."""
    line.highlight_regex(r"\b(up|ESTAB|running)\b", "green")
    line.highlight_regex(r"\b(starting|SYN-SENT|SYN-RECV)\b", "yellow")
    line.highlight_regex(r"\b(down|CLOSED|dead)\b", "red")
    return line
