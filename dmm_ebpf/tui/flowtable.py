# SPDX-License-Identifier: Apache-2.0
"""The table of `dmm-ebpf top`: draws the rows in view and no others, however many flows there are.

Owns the cursor and the column widths. It keeps the cursor on a flow, not on a line, once
the user has
moved it. Titles stay in the first line; a click on one asks to sort by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from dmm_ebpf.show import units
from dmm_ebpf.show.who import who
from dmm_ebpf.tcpstates import TCP_STATES
from dmm_ebpf.tui.model import DEFAULT_ORDER, FlowRow, Key

if TYPE_CHECKING:
    from textual import events

_WHEEL_LINES = 3


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[FlowRow], str]
    least: int  # characters it has on the narrowest screen
    soon: int = 0  # characters it gets before the others grow
    right: bool = False
    # where the least of all is too much, the highest rank is left out first; 0 stays, and so does
    # what is sorted by
    rank: int = 0
    shorten: Callable[[str, int], str] = units.shorten


def _stack(row: FlowRow) -> str:
    # One that took its fallback is marked: the route named another stack.
    return units.clean(row.flow.stack) + ("" if row.flow.wanted == row.flow.stack else "!")


_SHORT_STATES = {state.said: state.short for state in TCP_STATES}


def _short_state(text: str, width: int) -> str:
    return text if len(text) <= width else _SHORT_STATES.get(text, text)[:width]


COLUMNS = (
    _Column("PROCESS", lambda r: who(r.flow), 10, shorten=units.shorten_name),
    _Column(
        "PEER",
        lambda r: units.endpoint(r.flow.dst, r.flow.dport),
        15,
        soon=21,  # the longest IPv4 address with a port
        rank=1,
        shorten=units.shorten_middle,
    ),
    _Column("STACK", _stack, 7, soon=12, rank=2, shorten=units.shorten_marked),
    _Column("ROUTE", lambda r: units.clean(r.flow.route), 9, rank=8, shorten=units.shorten_middle),
    _Column("OUT", lambda r: units.bit_rate(r.out_Bps), 4, right=True, rank=3),
    _Column("IN", lambda r: units.bit_rate(r.in_Bps), 4, right=True, rank=4),
    _Column("SRTT", lambda r: units.duration_us(r.flow.srtt_us), 5, right=True, rank=6),
    _Column("RETR", lambda r: units.quantity(r.flow.retransmits), 4, right=True, rank=7),
    _Column("STATE", lambda r: units.state(r.flow.state), 5, rank=5, shorten=_short_state),
)


def column_widths(natural: list[int], room: int, sorted_by: str = DEFAULT_ORDER) -> list[int]:
    """Widths in room, 0 for one left out: each its least, some more soon, then a character to
    who lacks most.
    """
    widths = _least_widths(room, sorted_by)
    room -= _taken(widths)
    for i, column in enumerate(COLUMNS):
        if not widths[i]:
            continue
        more = max(min(min(natural[i], column.soon) - widths[i], room), 0)
        widths[i] += more
        room -= more
    while room > 0:
        lacking = max((i for i, w in enumerate(widths) if w), key=lambda i: natural[i] - widths[i])
        if natural[lacking] <= widths[lacking]:
            break
        widths[lacking] += 1
        room -= 1
    return widths


def _least_widths(room: int, sorted_by: str) -> list[int]:
    """As many columns as have their least in room; that which is sorted by comes before others."""
    widths = [column.least for column in COLUMNS]
    for rank in range(max(column.rank for column in COLUMNS), 0, -1):
        if _taken(widths) <= room:
            break
        widths = [
            0 if column.rank == rank and column.title != sorted_by else w
            for column, w in zip(COLUMNS, widths, strict=True)
        ]
    return widths


def _taken(widths: list[int]) -> int:
    """Characters of a line: columns, and one between each two."""
    return sum(widths) + sum(map(bool, widths)) - 1


def _shown(widths: list[int]) -> Iterator[tuple[_Column, int]]:
    """Columns that are not left out, with their widths."""
    return ((column, width) for column, width in zip(COLUMNS, widths, strict=True) if width)


class FlowTable(Widget, can_focus=True):
    """Rows of flows with a cursor."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "flowtable--title",
        "flowtable--sorted",
        "flowtable--cursor",
        "flowtable--fallback",
        "flowtable--quiet",
    }
    DEFAULT_CSS = """
    FlowTable { height: 1fr; }
    FlowTable > .flowtable--title { background: $primary-muted; color: $text; text-style: bold; }
    FlowTable > .flowtable--sorted { background: $primary; color: $text; text-style: bold; }
    FlowTable > .flowtable--cursor { background: $surface-lighten-2; text-style: bold; }
    FlowTable > .flowtable--fallback { color: $warning; }
    FlowTable > .flowtable--quiet { text-style: dim; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "first", show=False),
        Binding("end", "last", show=False),
    ]

    class Moved(Message):
        """The cursor is on another flow, or on none."""

    class TitleClicked(Message):
        """Sort by column, please."""

        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[FlowRow] = []
        self._sorted_by = DEFAULT_ORDER
        self._ascending = False
        self._top = 0
        self._cursor = 0
        self._followed: Key | None = None

    # -- what the application tells and asks --

    def show(self, rows: list[FlowRow], sorted_by: str, *, ascending: bool) -> None:
        """Draw these rows from now on."""
        self._rows, self._sorted_by, self._ascending = rows, sorted_by, ascending
        if self._followed is not None:
            at = next((i for i, row in enumerate(rows) if row.key == self._followed), None)
            if at is None:
                self._followed = None
            else:
                self._cursor = at
        self._settle()

    @property
    def selected(self) -> FlowRow | None:
        """The row under the cursor."""
        return self._rows[self._cursor] if self._rows else None

    # -- keys and mouse --

    def action_move(self, lines: int) -> None:
        """Move the cursor by lines."""
        self._go(self._cursor + lines)

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is in view."""
        self._go(self._cursor + pages * self._in_view())

    def action_first(self) -> None:
        """Back to the top, and let the cursor stay there whichever flow is first."""
        self._go(0)
        self._followed = None

    def action_last(self) -> None:
        """To the last row."""
        self._go(len(self._rows) - 1)

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        """Roll."""
        self._go(self._cursor + _WHEEL_LINES)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        """Roll."""
        self._go(self._cursor - _WHEEL_LINES)

    def on_click(self, event: events.Click) -> None:
        """A title sorts, a row takes the cursor."""
        if event.y > 0:
            self._go(self._top + event.y - 1)
            return
        left = 0
        for column, width in _shown(self._widths()):
            if left <= event.x <= left + width:
                self.post_message(self.TitleClicked(column.title))
                return
            left += width + 1

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._settle()

    def _go(self, index: int) -> None:
        if not self._rows:
            return
        self._cursor = min(max(index, 0), len(self._rows) - 1)
        self._followed = self._rows[self._cursor].key
        self._settle()

    def _in_view(self) -> int:
        return max(self.size.height - 1, 1)

    def _settle(self) -> None:
        """Cursor within the rows, view around the cursor, screen up to date."""
        self._cursor = min(max(self._cursor, 0), max(len(self._rows) - 1, 0))
        view = self._in_view()
        lowest = max(min(self._top, len(self._rows) - view), 0)
        self._top = min(max(lowest, self._cursor - view + 1), self._cursor)
        self.post_message(self.Moved())
        self.refresh()

    # -- drawing --

    def _widths(self) -> list[int]:
        shown = self._rows[self._top : self._top + self._in_view()]
        natural = [
            max(column.least, *(units.cells(column.cell(row)) for row in shown))
            if shown
            else column.least
            for column in COLUMNS
        ]
        return column_widths(natural, self.size.width, self._sorted_by)

    def render_line(self, y: int) -> Strip:
        """Line y of the widget (textual's line API)."""
        widths = self._widths()
        index = self._top + y - 1
        if y == 0:
            strip = self._titles(widths)
        elif index < len(self._rows):
            strip = self._line(self._rows[index], widths, cursor=index == self._cursor)
        else:
            return Strip.blank(self.size.width, self.rich_style)
        return strip.adjust_cell_length(self.size.width, self.rich_style).crop(0, self.size.width)

    def _titles(self, widths: list[int]) -> Strip:
        plain = self.get_component_rich_style("flowtable--title")
        chosen = self.get_component_rich_style("flowtable--sorted")
        segments = []
        for column, width in _shown(widths):
            is_chosen = column.title == self._sorted_by
            text = column.title[:width]
            if is_chosen:
                text = text[: width - 1] + ("▲" if self._ascending else "▼")
            segments.append(
                Segment(units.pad(text, width, right=column.right), chosen if is_chosen else plain)
            )
            segments.append(Segment(" ", plain))
        return Strip(segments).extend_cell_length(self.size.width, plain)

    def _line(self, row: FlowRow, widths: list[int], *, cursor: bool) -> Strip:
        base = self.rich_style
        if row.flow.state != "ESTABLISHED":
            base += self.get_component_rich_style("flowtable--quiet", partial=True)
        mark = (
            self.get_component_rich_style("flowtable--cursor", partial=True) if cursor else Style()
        )
        fallback = self.get_component_rich_style("flowtable--fallback", partial=True)
        segments = []
        for column, width in _shown(widths):
            text = column.cell(row)
            style = base + fallback if column.title == "STACK" and text.endswith("!") else base
            shown = units.pad(column.shorten(text, width), width, right=column.right)
            segments.append(Segment(shown + " ", style + mark))
        return Strip(segments).extend_cell_length(self.size.width, base + mark)
