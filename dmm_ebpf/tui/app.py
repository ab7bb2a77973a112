# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf top`: live flows in a terminal, of 80 columns and 24 lines to show all, of 40 and 10
to show flows.

Owns the screen, the keys, and the pace of looking. Looks happen in a thread, one at a time, so that
a Resource Director that is slow never stops a key. Paused, it looks no more, while sorting,
filtering and moving go on over what was seen last.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Input, Static

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.records.flow import Flow
from dmm_ebpf.records.record import ABSENT
from dmm_ebpf.show import units
from dmm_ebpf.show.flowfilter import FlowFilter
from dmm_ebpf.tui import model
from dmm_ebpf.tui.flowtable import FlowTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual import events

    from dmm_ebpf.tui.source import Source

_MAX_STACK_LINES = 5
_SHORT_LINES = 14  # a screen with fewer has no room for what is not flows
_COLUMNS = list(model.ORDERS)
_SORT_KEYS = {
    "n": "PROCESS",
    "d": "PEER",
    "k": "STACK",
    "u": "ROUTE",
    "o": "OUT",
    "i": "IN",
    "t": "SRTT",
    "x": "RETR",
    "a": "STATE",
}

_STATE_STYLES = {
    "up": "green",
    "starting": "yellow",
    "draining": "yellow",
    "down": "red",
    "off": "dim",
}

_HELP = """\
[b]Keys[/b]
  up down pgup pgdn home end   move
  < >                          sort by the column to the left or right
  r                            reverse the order
  n d k u                      sort by process, peer, stack, route
  o i t x a                    sort by out, in, srtt, retransmits, state
  /                            filter; Esc clears it
  p or space                   pause and go on
  q or Ctrl-C                  quit

[b]Filter[/b]: words that must appear, and terms, all of which must hold
  stack=NAME   comm=PATTERN   pid=PID   cgroup=PATH   dst=PREFIX:PORT   state=STATE
  curl stack=wan dst=203.0.113.0/24

[b]Columns[/b]
  OUT and IN are bits a second of the program's own bytes. SRTT and RETR
  are the path's: of the user stack's outer leg where one serves.
  STACK! is not the stack that the route names: `why` in flows --json.

Any key closes this."""


class _Part(NamedTuple):
    """Of a line. cut: its end may be given up; a part of a number would be another number."""

    text: str
    style: str = ""
    cut: bool = False


class HelpScreen(ModalScreen[None]):
    """Keys and terms, over the flows."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: 76; max-width: 100%; height: auto; max-height: 100%;
        padding: 0 1; border: round $primary; background: $surface;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._left = False

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll():
            yield Static(_HELP)

    def on_key(self, event: events.Key) -> None:
        """Any key closes, and does nothing else."""
        event.stop()
        event.prevent_default()
        self._leave()

    def on_click(self) -> None:
        """So does a click."""
        self._leave()

    def _leave(self) -> None:
        """Once: a second key may come before the first has closed it."""
        if not self._left:
            self._left = True
            self.dismiss()


class FilterInput(Input):
    """The line in which a filter is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "app.clear_filter", "Clear")]


class TopApp(App[None]):
    """The application. failure holds what ended it, if anything did."""

    TITLE = "dmm-ebpf top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: $background; }
    #title, #stacks, #detail { text-wrap: nowrap; text-overflow: ellipsis; }
    #title { height: 1; background: $panel; color: $text; }
    #stacks { height: auto; max-height: 6; color: $text; }
    #detail { height: 3; color: $text-muted; }
    .short #stacks { max-height: 1; }
    .short #detail { display: none; }
    FilterInput { height: 1; border: none; padding: 0; display: none; background: $panel; }
    FilterInput:focus { border: none; }
    FilterInput.open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("p,space", "pause", "Pause", key_display="p"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "clear_filter", "Clear filter", show=False),
        Binding("less_than_sign,comma", "sort_by(-1)", "Sort", key_display="<"),
        Binding("greater_than_sign,full_stop", "sort_by(1)", "Sort", key_display=">"),
        Binding("r", "reverse", "Reverse"),
        Binding("question_mark,h", "help", "Help", key_display="?"),
        *(Binding(key, f"sort({column!r})", show=False) for key, column in _SORT_KEYS.items()),
    ]

    def __init__(
        self,
        source: Source,
        *,
        interval_s: float = 1.0,
        flow_filter: FlowFilter | None = None,
        filter_text: str = "",
        iec: bool = False,
        check: Callable[[FlowFilter], None] | None = None,
    ) -> None:
        """check raises UsageError for a filter by what is not there; called in a thread."""
        super().__init__()
        self.failure: Exception | None = None
        self._source = source
        self._interval_s = interval_s
        self._filter = flow_filter or FlowFilter()
        self._filter_text = filter_text
        self._complaint = ""
        self._iec = iec
        self._check = check
        self._meter = model.RateMeter()
        self._snapshot: model.Snapshot | None = None
        self._seen_at = ""
        self._all: list[model.FlowRow] = []
        self._shown: list[model.FlowRow] = []
        self._column = model.DEFAULT_ORDER
        self._reversed = False
        self._paused = False
        self._looking = False
        self._main: Screen[object] | None = None
        self._width = 80  # characters of a line, until the terminal has told

    # -- life --

    def compose(self) -> ComposeResult:
        """Title, stacks, flows, the flow under the cursor, keys."""
        yield Static(id="title")
        yield Static(id="stacks")
        yield FlowTable()
        yield Static(id="detail")
        yield FilterInput(
            value=self._filter_text, placeholder="words, stack=NAME, dst=PREFIX:PORT, ..."
        )
        yield Footer()

    def on_mount(self) -> None:
        """Look now and then at every interval."""
        # Queries go through it: the screen on top may be the help.
        self._main = self.screen
        self._width = self.size.width
        self._main.set_class(self.size.height < _SHORT_LINES, "short")
        self.query_one(FlowTable).focus()
        self._draw()
        self.set_interval(self._interval_s, self.look)
        self.look()

    def on_resize(self, event: events.Resize) -> None:
        """Few lines are for flows."""
        self._width = event.size.width
        if self._main is not None:
            self._main.set_class(event.size.height < _SHORT_LINES, "short")
            self._draw()

    def on_unmount(self) -> None:
        """Let a look in progress end."""
        self._source.close()

    def _handle_exception(self, error: Exception) -> None:
        """What no handler caught: end as textual does, but leave the telling to
        the command line.
        """
        super()._handle_exception(error)
        self.failure = error
        self._exit_renderables.clear()

    def look(self) -> None:
        """Start a look, unless one is under way or the display is paused."""
        if not self._looking and not self._paused:
            self._looking = True
            self.run_worker(self._look(), exit_on_error=False)

    async def _look(self) -> None:
        try:
            snapshot = await asyncio.to_thread(self._source.poll)
        except Exception as error:
            # Whatever it is, the command line says it in a sentence once the screen is given back.
            self.failure = error
            self.exit()
            return
        finally:
            self._looking = False
        if self._paused:
            return
        self._snapshot = snapshot
        self._seen_at = time.strftime("%H:%M:%S")
        self._all = self._meter.measure(snapshot)
        self._draw()

    # -- keys --

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self._paused = not self._paused
        self._draw()
        self.look()

    def action_sort(self, column: str) -> None:
        """Sort by column; once more reverses."""
        self._reversed = not self._reversed if column == self._column else False
        self._column = column
        self._draw()

    def action_sort_by(self, step: int) -> None:
        """Sort by the column to the left (-1) or right (1) of the one that sorts now."""
        self._column = _COLUMNS[(_COLUMNS.index(self._column) + step) % len(_COLUMNS)]
        self._reversed = False
        self._draw()

    def action_reverse(self) -> None:
        """Turn the order round."""
        self._reversed = not self._reversed
        self._draw()

    def action_filter(self) -> None:
        """Open the filter line."""
        line = self.query_one(FilterInput)
        line.add_class("open")
        line.focus()

    def action_clear_filter(self) -> None:
        """Show every flow again."""
        self.query_one(FilterInput).value = ""
        self._filter, self._filter_text, self._complaint = FlowFilter(), "", ""
        self._close_filter()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing, as far as it makes sense yet."""
        try:
            self._filter = FlowFilter.parse(event.value)
        except UsageError:
            return
        self._filter_text, self._complaint = event.value, ""
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Filter, or say what is wrong and keep the line open."""
        try:
            wanted = FlowFilter.parse(event.value)
        except UsageError as error:
            self._refuse_filter(error)
            return
        if self._check is None:
            self._take_filter(wanted, event.value)
            return
        checking = self._check_filter(self._check, wanted, event.value)
        self.run_worker(checking, group="filter", exclusive=True)

    async def _check_filter(
        self, check: Callable[[FlowFilter], None], wanted: FlowFilter, text: str
    ) -> None:
        try:
            await asyncio.to_thread(check, wanted)
        except DmmError as error:
            self._refuse_filter(error)
        else:
            self._take_filter(wanted, text)

    def _take_filter(self, wanted: FlowFilter, text: str) -> None:
        self._filter, self._filter_text, self._complaint = wanted, text, ""
        self._close_filter()

    def _refuse_filter(self, error: DmmError) -> None:
        self._complaint = str(error)
        self._draw()

    def on_flow_table_title_clicked(self, message: FlowTable.TitleClicked) -> None:
        """Sort by what was clicked."""
        self.action_sort(message.column)

    def on_flow_table_moved(self) -> None:
        """Tell about the flow under the cursor."""
        self._draw_detail()

    def _close_filter(self) -> None:
        self.query_one(FilterInput).remove_class("open")
        self.query_one(FlowTable).focus()
        self._draw()

    # -- drawing --

    def _draw(self) -> None:
        if self._main is None:
            return
        self._shown = model.arrange(self._all, self._filter, self._column, reverse=self._reversed)
        ascending = model.ORDERS[self._column].descending == self._reversed
        with _while_there():
            self._main.query_one(FlowTable).show(self._shown, self._column, ascending=ascending)
            self._main.query_one("#title", Static).update(self._title())
            self._main.query_one("#stacks", Static).update(self._stacks())
        self._draw_detail()

    def _title(self) -> Text:
        parts = [_Part("dmm-ebpf top", "bold")]
        if self._paused:
            parts.append(_Part("  PAUSED", "bold reverse"))
        parts.append(_Part(f"  {self._seen_at or 'looking...'}"))
        if self._snapshot is not None:
            parts += self._totals(self._snapshot)
        return _whole(parts, self._width)

    def _totals(self, snapshot: model.Snapshot) -> list[_Part]:
        shown, total = len(self._shown), len(self._all)
        out = units.bit_rate(sum(row.out_Bps or 0 for row in self._all), iec=self._iec)
        in_ = units.bit_rate(sum(row.in_Bps or 0 for row in self._all), iec=self._iec)
        counted = shown if shown == total else f"{shown}/{total}"
        parts = [_Part(f"  flows {counted}"), _Part(f"  out {out}b/s"), _Part(f"  in {in_}b/s")]
        if self._filter_text:
            parts.append(_Part(f"  filter {self._filter_text}", "bold", cut=True))
        names = snapshot.instances
        label = "instances" if len(names) > 1 else "instance"
        return [*parts, _Part(f"  {label} {', '.join(names) or '-'}", cut=True)]

    def _stacks(self) -> Text:
        text = Text()
        if self._complaint:
            text.append(self._complaint, "bold red")
            return text
        if self._snapshot is None:
            return text
        for note in self._snapshot.notes:
            text.append(units.clean(note) + "\n", "yellow")
        if not self._snapshot.instances:
            text.append("no instance is attached; dmm-ebpf attach starts one", "yellow")
            return text
        totals = model.stack_totals(self._snapshot, self._all)
        several = len(self._snapshot.instances) > 1
        labels = [f"{t.instance}:{t.name}" if several else t.name for t in totals]
        longest = max((units.cells(label) for label in labels), default=5)
        width = min(longest, 24, max(self._width // 3, 5))
        room = max(_MAX_STACK_LINES - len(self._snapshot.notes), 1)
        fits = len(totals) <= room
        lines = []
        for total, label in list(zip(totals, labels, strict=True))[: room if fits else room - 1]:
            parts = [
                _Part(units.pad(units.shorten(units.clean(label), width), width) + "  ", "bold"),
                _Part(f"{units.clean(total.state):<9}", _STATE_STYLES.get(total.state, "")),
                _Part(f"{total.flows:>6} flows"),
                _Part(f"   out {units.bit_rate(total.out_Bps, iec=self._iec):>5}b/s"),
                _Part(f"   in {units.bit_rate(total.in_Bps, iec=self._iec):>5}b/s"),
            ]
            lines.append(_whole(parts, self._width))
        if not fits:
            lines.append(
                Text(f"and {len(totals) - room + 1} more stacks; dmm-ebpf stacks lists them", "dim")
            )
        text.append_text(Text("\n").join(lines))
        return text

    def _draw_detail(self) -> None:
        if self._main is not None:
            with _while_there():
                row = self._main.query_one(FlowTable).selected
                self._main.query_one("#detail", Static).update(
                    Text() if row is None else _detail(row, self._iec, self._width)
                )


def _while_there() -> suppress:
    """What is drawn while the program ends may find its widgets gone already."""
    return suppress(NoMatches)


def _whole(parts: Sequence[_Part], width: int) -> Text:
    """The first, and of the others what a line of that width has room for; what it has none for,
    an ellipsis shows.
    """
    text = Text()
    for i, part in enumerate(parts):
        more = 2 if i + 1 < len(parts) else 0
        if i and not part.cut and text.cell_len + units.cells(part.text.rstrip()) + more > width:
            text.rstrip()
            return text.append(" …")
        text.append(part.text, part.style)
    return text


def _detail(row: model.FlowRow, iec: bool, width: int) -> Text:
    """Three lines with what the table has no room for."""
    flow = row.flow
    arrow = "<-" if flow.direction == "listen" else "->"
    local = units.endpoint(flow.src, flow.sport)
    peer = units.endpoint(flow.dst, flow.dport)
    table, rule, route = (units.clean(text) for text in (flow.table, flow.rule, flow.route))
    lines = (
        (
            _Part(f"{local} {arrow}"),
            _Part(f" {peer}"),
            _Part(f"  sent {units.size(flow.bytes_sent, iec=iec)}"),
            _Part(f" received {units.size(flow.bytes_received, iec=iec)}"),
            _Part(f" age {units.age(flow.age_s)}"),
        ),
        (
            _Part(f"table {table}", cut=True),
            _Part(f"  rule {rule}", cut=True),
            _Part(f"  cgroup {units.clean(flow.cgroup)}", cut=True),
        ),
        (_Part(f"route {route}"), *_path(flow, iec)),
    )
    return Text("\n").join(_whole(line, width) for line in lines)


def _path(flow: Flow, iec: bool) -> list[_Part]:
    """How a user stack sends: its congestion control, window and pacing, as far as
    they are known.
    """
    if flow.congestion is ABSENT or flow.cwnd_bytes is ABSENT:
        return []
    parts = [
        _Part(f"  by {units.clean(flow.congestion)}", cut=True),
        _Part(f"  cwnd {units.size(flow.cwnd_bytes, iec=iec)}"),
    ]
    if flow.agreed:
        parts.append(_Part(f"  agreed {units.clean(flow.agreed)}", cut=True))
    if flow.pacing_Bps:
        parts.append(_Part(f"  pacing {units.bit_rate(flow.pacing_Bps, iec=iec)}b/s"))
    return parts
