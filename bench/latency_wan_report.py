# SPDX-License-Identifier: Apache-2.0
"""What `tools/bench latency-wan` found, as tables and as plots (SVG and PNG, by matplotlib).

Plots: messages.svg, median and 99th percentile by loss, a panel for each round trip and kind of
loss; tail.svg, the share of messages later than a time, on the path with most loss at 100 ms;
datagrams.svg, the share that did not come back, by loss; others.svg, streams, pages and a thousand
connections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.latency_paths import DATAGRAM_SIDES, KINDS, NAMES, SIDES, Times
from bench.latency_wan import Found
from bench.report import GREY, pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = (0.5, 0.9, 0.99, 0.999)
STYLES: dict[str, dict[str, Any]] = {
    "bbr": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "kernel": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "one": {"color": "#56B4E9", "marker": "^", "linestyle": "-."},
    "both": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
}


def _ms(value: float) -> str:
    return "never" if value == float("inf") else f"{value:.0f}"


def _ratio(value: float, rival: float) -> str:
    if float("inf") in {value, rival} or not rival:
        return ""
    return f"{value / rival:.2f}"


def _marks(times: Times) -> str:
    said = [f"{times.missing} never came"] if times.missing else []
    said += [f"{len(times.failed)} failed"] if times.failed else []
    said += ["not valid"] if times.own_drops else []
    return ", ".join(said)


def _row(found: Found, times: Times, shares: Sequence[float]) -> list[str]:
    """ms and, for ours, ratios to the rival's."""
    texts = []
    for share in shares:
        value = times.at(share)
        ratio = "" if times is found.rival else _ratio(value, found.rival.at(share))
        texts.append(f"{_ms(value)} ({ratio})" if ratio else _ms(value))
    return texts


def latency_wan_tables(found: Sequence[Found]) -> list[Table]:
    """A table for each item: a line for each side of each cell, ms, and ratios to the kernel."""
    tables = []
    for item in dict.fromkeys(one.item for one in found):
        cells = [one for one in found if one.item == item]
        tables.append(_table(item, cells))
    return tables


_BY_PATH = ("messages", "datagrams")  # items whose cells differ by nothing else
_SHOWN: dict[str, tuple[str, tuple[float, ...]]] = {
    "messages": ("messages: there and back, ms (÷ kernel bbr)", QUANTILES),
    "datagrams": ("datagrams: there and back, ms (÷ kernel)", (0.5, 0.99, 0.999)),
    "streams": ("streams: a frame one way, ms (÷ kernel bbr)", QUANTILES),
    "page": ("a page: to its last byte, ms (÷ kernel bbr)", (0.5, 0.95)),
    "many": (
        "many at once: from connect() to the last answer, ms (÷ kernel bbr)",
        (0.5, 0.99, 1.0),
    ),
}


def _table(item: str, cells: Sequence[Found]) -> Table:
    title, shares = _SHOWN[item]
    table = Table(title=title, title_justify="left")
    table.add_column("path" if item in _BY_PATH else "what")
    table.add_column("who")
    heads = [f"p{share * 100:g}" if share < 1 else "slowest" for share in shares]
    extra = {"datagrams": "came back %", "streams": "late %", "many": "slowest ÷ p50"}
    for head in (
        *heads,
        *([extra[item]] if item in extra else []),
        "bytes ÷ payload",
        "copies",
        "",
    ):
        table.add_column(head, justify="right")
    for cell in cells:
        for times in cell.sides:
            what = str(cell.path) if item in _BY_PATH else f"{cell.what}, {cell.path}"
            line = [what if times is cell.rival else "", NAMES[times.side]]
            line += _row(cell, times, shares)
            if item == "datagrams":
                line.append(f"{100 * times.came_share:.2f}")
            if item == "streams" and cell.later_ms is not None:
                line.append(f"{100 * times.later_than(cell.later_ms):.2f}")
            if item == "many":
                line.append(_ratio(times.at(1.0), times.at(0.5)))
            line += [" / ".join(f"{cost:.2f}" for cost in times.cost)]
            line += ["" if times.copies is None else f"{times.copies:,}", _marks(times)]
            table.add_row(*line)
    return table


# ---- plots ----


@dataclass(frozen=True)
class _Line:
    """One of a plot by loss: whose, and its value in a cell."""

    label: str
    side: str
    value: Callable[[Times], float]
    alpha: float = 1.0


@dataclass(frozen=True)
class _ByLoss:
    """A plot by loss. name: of its files; upward, scale: what is up the side."""

    name: str
    title: str
    upward: str
    scale: str
    lines: Sequence[_Line]


def _plot_by_loss(plot: _ByLoss, cells: Sequence[Found], directory: Path) -> list[Path]:
    """A panel for each round trip and kind of loss."""
    plt = pyplot()
    rtts = sorted({cell.path.rtt_ms for cell in cells})
    losses = sorted({cell.path.loss_pct for cell in cells})
    kinds = [kind for kind in KINDS if any(cell.path.kind == kind for cell in cells)]
    size = (max(6.4, 1.2 + 2.9 * len(rtts)), 1.5 + 2.4 * len(kinds))
    figure, axes = plt.subplots(
        len(kinds), len(rtts), figsize=size, sharey="col", squeeze=False, layout="constrained"
    )
    for row, kind in enumerate(kinds):
        for column, rtt in enumerate(rtts):
            panel: Axes = axes[row][column]
            panel.set_title(f"{rtt:g} ms, {kind}", fontsize=9, loc="left")
            here = [c for c in cells if c.path.rtt_ms == rtt and c.path.kind in {kind, KINDS[0]}]
            here = [c for c in here if c.path.kind == kind or not c.path.loss_pct]
            here.sort(key=lambda cell: cell.path.loss_pct)
            at = [losses.index(cell.path.loss_pct) for cell in here]
            for line in plot.lines:
                values = [line.value(cell.of(line.side)) for cell in here]
                style = STYLES[line.side] | {"alpha": line.alpha, "markersize": 4}
                panel.plot(at, values, label=line.label, **style)
            panel.set_yscale(plot.scale)
            panel.set_xticks(range(len(losses)), [f"{loss:g}" for loss in losses])
            panel.set_xlabel("loss each way, %", fontsize=8, color=GREY)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.supylabel(plot.upward, fontsize=9, color=GREY)
    figure.suptitle(plot.title, x=0.01, ha="left", fontsize=11)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return write_figure(figure, directory / plot.name)


def _lost_pct(times: Times) -> float:
    return 100 * (1 - times.came_share)


_MESSAGES = _ByLoss(
    "messages",
    "A message of 1 KB each 50 ms, echoed",
    "there and back, ms",
    "log",
    [
        _Line(f"{NAMES[side]}, p{share * 100:g}", side, partial(Times.at, share=share), alpha)
        for side in SIDES
        for share, alpha in ((0.5, 0.5), (0.99, 1.0))
    ],
)
_DATAGRAMS = _ByLoss(
    "datagrams",
    "A datagram of 200 bytes each 50 ms, echoed",
    "did not come back, %",
    "linear",
    [_Line(NAMES[side], side, _lost_pct) for side in DATAGRAM_SIDES],
)


def _survival(panel: Axes, cell: Found) -> None:
    """The share of messages that took longer, on a logarithmic scale."""
    for side in SIDES:
        ms = cell.of(side).ms
        later = [1 - (n + 0.5) / len(ms) for n in range(len(ms))]
        style = STYLES[side] | {"marker": ""}
        panel.plot(ms, later, label=NAMES[side], drawstyle="steps-post", **style)
    panel.set_yscale("log")
    panel.set_xscale("log")
    panel.set_ylim(top=1)


def _plot_tail(cells: Sequence[Found], directory: Path) -> list[Path]:
    plt = pyplot()
    rtt = 100.0 if any(cell.path.rtt_ms == 100 for cell in cells) else cells[0].path.rtt_ms
    most = max(cell.path.loss_pct for cell in cells if cell.path.rtt_ms == rtt)
    here = [c for c in cells if (c.path.rtt_ms, c.path.loss_pct) == (rtt, most)]
    figure, axes = plt.subplots(
        1, len(here), figsize=(1 + 3.6 * len(here), 3.4), squeeze=False, layout="constrained"
    )
    for panel, cell in zip(axes[0], here, strict=True):
        _survival(panel, cell)
        panel.set_title(str(cell.path), fontsize=9, loc="left")
        panel.set_xlabel("there and back, ms", fontsize=8, color=GREY)
    axes[0][0].set_ylabel("share of messages later than that", fontsize=8, color=GREY)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return write_figure(figure, directory / "tail")


def _plot_others(cells: Sequence[Found], directory: Path) -> list[Path]:
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(cells), figsize=(1 + 2.6 * len(cells), 3.4), squeeze=False, layout="constrained"
    )
    for panel, cell in zip(axes[0], cells, strict=True):
        _survival(panel, cell)
        panel.set_title(f"{cell.what}\n{cell.path}", fontsize=8, loc="left")
        panel.set_xlabel("ms", fontsize=8, color=GREY)
        if cell.later_ms is not None:
            panel.axvline(cell.later_ms, color=GREY, linewidth=0.8)
    axes[0][0].set_ylabel("share later than that", fontsize=8, color=GREY)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return write_figure(figure, directory / "others")


def plot_latency_wan(found: Sequence[Found], directory: Path) -> list[Path]:
    """The files written."""
    directory.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    messages = [one for one in found if one.item == "messages"]
    if messages:
        files += _plot_by_loss(_MESSAGES, messages, directory) + _plot_tail(messages, directory)
    datagrams = [one for one in found if one.item == "datagrams"]
    if datagrams:
        files += _plot_by_loss(_DATAGRAMS, datagrams, directory)
    others = [one for one in found if one.item not in _BY_PATH]
    if others:
        files += _plot_others(others, directory)
    return files
