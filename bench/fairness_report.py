# SPDX-License-Identifier: Apache-2.0
"""How two flows shared a bottleneck, as a table and as a plot (fairness.svg and .png)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.fairness import Outcome, Shared
from bench.report import GREY, NAMES, STYLES, figure_text, head, pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAIR_JAIN = 0.9  # printed in green from here on


def _path_of(outcomes: Sequence[Outcome]) -> str:
    """The path that all have in common; "" if they have not."""
    paths = {str(outcome.contest.cell) for outcome in outcomes}
    return paths.pop() if len(paths) == 1 else ""


def fairness_table(outcomes: Sequence[Outcome]) -> Table:
    """One line a contest; a rival whom ours left too little is red. The path is a column only
    if there are several.
    """
    with_sim = any(outcome.simulated for outcome in outcomes)
    path = _path_of(outcomes)
    table = Table(
        title=f"{path + ': ' if path else ''}shares of the limit (0.5 each is fair), Jain's index, queue",
        title_justify="left",
    )
    for name in (*(() if path else ("path",)), "first", "second"):
        table.add_column(name)
    for name in ("BDP", "share", "share", "Jain", "queue ms", "drop %"):
        table.add_column(name, justify="right")
    if with_sim:
        table.add_column("simulated: shares, queue ms", justify="right")
    if not all(outcome.valid for outcome in outcomes):
        table.add_column("")
    for outcome in outcomes:
        contest, found = outcome.contest, outcome.median
        line = [] if path else [str(contest.cell)]
        line += [NAMES[name] for name in contest.pair]
        line += [
            f"{contest.buffer_bdp:g}",
            figure_text(found.shares[0], 2),
            figure_text(found.shares[1], 2, good=False if outcome.starved else None),
            figure_text(found.jain, 2, good=True if found.jain >= FAIR_JAIN else None),
            figure_text(found.queue_ms, 1),
            figure_text(100 * found.dropped, 2),
        ]
        if with_sim:
            line.append(_simulated(outcome.simulated))
        table.add_row(*line, *([] if outcome.valid else ["not valid"]))
    return table


def _simulated(shared: Shared | None) -> str:
    if not shared:
        return ""
    return f"{shared.shares[0]:.3f} / {shared.shares[1]:.3f}, {shared.queue_ms:.1f}"


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """The contests of each path, in the order in which they were run."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(str(outcome.contest.cell), []).append(outcome)
    return list(rows.items())


def _bars(panel: Axes, outcomes: Sequence[Outcome], buffers: Sequence[float]) -> None:
    """For each buffer both shares side by side, and the queue in round trips as a line
    of its own.
    """
    pair = outcomes[0].contest.pair
    for place, name in enumerate(pair):
        style = STYLES[name]
        x = [buffers.index(o.contest.buffer_bdp) + (place - 0.5) * 0.36 for o in outcomes]
        y = [o.median.shares[place] for o in outcomes]
        hatch = "//" if place and pair[0] == pair[1] else None
        label = NAMES[name] if not hatch else f"{NAMES[name]}, the other"
        panel.bar(
            x, y, 0.34, color=style["color"], hatch=hatch, edgecolor="white", label=label, zorder=2
        )
        for at, outcome in zip(x, outcomes, strict=True):
            values = [run.shares[place] for run in outcome.runs]
            panel.plot([at] * len(values), values, ".", color="#333333", markersize=3, zorder=4)
    x = [float(buffers.index(o.contest.buffer_bdp)) for o in outcomes]
    y = [o.median.queue_ms / o.contest.cell.rtt_ms for o in outcomes]
    panel.plot(
        x,
        y,
        "D--",
        color="#333333",
        markersize=4,
        linewidth=1,
        label="queue ÷ round trip",
        zorder=5,
    )
    panel.axhline(0.5, color=GREY, linewidth=0.8, zorder=3)
    panel.set_title(" and ".join(NAMES[name] for name in pair), fontsize=9, loc="left")
    panel.set_xticks(range(len(buffers)), [f"{buffer:g}" for buffer in buffers])


def draw_fairness(outcomes: Sequence[Outcome]) -> Figure:
    """A row for each path, a panel for each pair."""
    rows = _rows(outcomes)
    pairs = list(dict.fromkeys(o.contest.pair for o in outcomes))
    buffers = sorted({o.contest.buffer_bdp for o in outcomes})
    figure: Figure
    figure, axes = pyplot().subplots(
        len(rows),
        len(pairs),
        figsize=(max(6.4, 0.8 + 3.0 * len(pairs)), 1.3 + 2.6 * len(rows)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    named: dict[str, Any] = {}
    for row, (path, here) in zip(axes, rows, strict=True):
        row[0].set_ylabel(path, fontsize=8, color=GREY)
        for panel, pair in zip(row, pairs, strict=True):
            found = [o for o in here if o.contest.pair == pair]
            if found:
                _bars(panel, found, buffers)
            panel.set_xlabel("buffer, BDP", fontsize=8, color=GREY)
            named |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    axes[0][0].set_ylim(
        bottom=0
    )  # only now: it ends the scaling of all panels, which share the axis
    head(figure, "Two bulk flows over one bottleneck: share of each, 0.5 is fair", named)
    return figure


def plot_fairness(outcomes: Sequence[Outcome], directory: Path) -> list[Path]:
    """The drawing as files, which are returned."""
    directory.mkdir(parents=True, exist_ok=True)
    return write_figure(draw_fairness(outcomes), directory / "fairness")
