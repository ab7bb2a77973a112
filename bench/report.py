# SPDX-License-Identifier: Apache-2.0
"""What the wide-area benchmarks found, as tables for people and as plots (SVG and
PNG, by matplotlib).

Plots: share.svg, goodput by loss, a panel for each rate and round trip; queue.svg, the
mean queueing delay as a share of the round trip, in the same panels; coldstart.svg, ours
over kernel BBR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.flows import FLOWS, Bulk, ColdResult, Exchange, Latency
from bench.matrix import GOAL_SHARE, RIVALS, Result
from dmm_ebpf.errors import DmmError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLD_GOAL = 1.0
NAMES = {"wan": "ours (wan)", "bbr": "kernel bbr", "cubic": "kernel cubic"}
# Okabe and Ito's palette: told apart by people who do not see all colours; markers and dashes
# say it again.
STYLES: dict[str, dict[str, Any]] = {
    "wan": {"color": "#0072B2", "marker": "o", "linewidth": 2.2, "zorder": 4},
    "bbr": {"color": "#E69F00", "marker": "s", "linestyle": "--", "zorder": 3},
    "cubic": {"color": "#CC79A7", "marker": "^", "linestyle": ":", "zorder": 2},
}
GREY = "#666666"

# ---- tables ----


def figure_text(value: float | None, digits: int, *, good: bool | None = None) -> str:
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text if good is None else f"[{'green' if good else 'red'}]{text}[/]"


def matrix_table(results: Sequence[Result]) -> Table:
    """One line a cell; a share that misses the goal is red, a cell without a valid run
    has a note.
    """
    rivals = [r for r in RIVALS if any(run.rival == r for result in results for run in result.runs)]
    with_sim = any(result.sim_share is not None for result in results)
    table = Table(
        title="goodput ÷ (rate × (1 − loss) × 1448/1538); mean queueing delay; share of segments sent again",
        title_justify="left",
    )
    for name in ("Mbit/s", "RTT ms", "loss %"):
        table.add_column(name, justify="right")
    for rival in rivals:
        table.add_column(NAMES[rival], justify="right")
    if with_sim:
        table.add_column("ours, simulated", justify="right")
    for what in ("queue ms", "again %"):
        table.add_column(
            f"{what}: " + " / ".join(r if r != "wan" else "ours" for r in rivals), justify="right"
        )
    table.add_column("")
    for result in results:
        cell = result.cell
        line = [f"{cell.rate_mbit:g}", f"{cell.rtt_ms:g}", f"{cell.loss_pct:g}"]
        for rival in rivals:
            share = result.median(rival, "share")
            is_goal = rival == "wan" and share is not None
            line.append(
                figure_text(share, 3, good=share >= GOAL_SHARE if is_goal and share else None)
            )
        if with_sim:
            line.append(figure_text(result.sim_share, 3))
        line.append(" / ".join(figure_text(result.median(r, "queue_ms"), 1) for r in rivals))
        line.append(
            " / ".join(
                figure_text(100 * (result.median(r, "retransmits") or 0.0), 1) for r in rivals
            )
        )
        bad = [r for r in rivals if not result.valid(r)]
        line.append(f"not valid: {', '.join(bad)}" if bad else "")
        table.add_row(*line)
    return table


def cold_table(results: Sequence[ColdResult]) -> Table:
    """One line a cell."""
    table = Table(title="1 MB from a cold start, seconds, medians", title_justify="left")
    for name in ("Mbit/s", "RTT ms", "loss %", "ours", "kernel bbr", "ours / bbr"):
        table.add_column(name, justify="right")
    for result in results:
        cell, medians = result.cell, result.to_json()["median_s"]
        table.add_row(
            f"{cell.rate_mbit:g}",
            f"{cell.rtt_ms:g}",
            f"{cell.loss_pct:g}",
            figure_text(medians["wan"], 3),
            figure_text(medians["bbr"], 3),
            figure_text(result.ratio, 3, good=result.ratio <= COLD_GOAL),
        )
    return table


def latency_table(sides: dict[str, Latency]) -> Table:
    """One line a figure: every side, and what each user stack's is of the kernel's."""
    ours = [side for side in sides if side != "kernel"]
    table = Table(title="clean wire, one core's worth of stack; medians", title_justify="left")
    table.add_column("what")
    for name in (*ours, "kernel", *(f"{side} ÷ kernel" for side in ours)):
        table.add_column(name, justify="right")

    def line(what: str, value: Callable[[Latency], float]) -> None:
        kernel = value(sides["kernel"])
        mine = [value(sides[side]) for side in ours]
        table.add_row(
            what, *(f"{v:.4g}" for v in (*mine, kernel)), *(f"{v / kernel:.2f}" for v in mine)
        )

    def exchange(what: str, part: Callable[[Latency], Exchange]) -> None:
        line(f"{what} a second", lambda of: part(of).per_second)
        line(f"{what}, median µs", lambda of: part(of).median_us)
        line(f"{what}, 99th percentile µs", lambda of: part(of).p99_us)

    exchange("requests", lambda of: of.request_response)
    exchange("connections", lambda of: of.connections)
    line("bulk, Gb/s", lambda of: of.bulk_gbps)
    line("CPU of the machine, ns a byte", lambda of: of.cpu_ns_per_byte)
    return table


def processes_table(sides: dict[str, Bulk]) -> Table:
    """One line a side, each against the stack with one process."""
    one = sides["1 process"]
    table = Table(
        title=f"{FLOWS} bulk flows at once on a clean wire; medians", title_justify="left"
    )
    table.add_column("side")
    for name in (
        "Gb/s",
        "÷ 1 process",
        "CPU of the machine, ns a byte",
        "connections of each process",
    ):
        table.add_column(name, justify="right")
    for side, found in sides.items():
        table.add_row(
            side,
            f"{found.gbps:.2f}",
            f"{found.gbps / one.gbps:.2f}",
            f"{found.cpu_ns_per_byte:.2f}",
            ", ".join(str(n) for n in found.connections),
        )
    return table


# ---- plots ----


def pyplot() -> Any:
    """matplotlib.pyplot, set up for files that look alike and are the same for the same figures."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise DmmError(
            "draw plots", why="matplotlib is not installed", hint="run tools/bootstrap"
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "dmm-ebpf", "axes.spines.top": False})
    mpl.rcParams.update({"axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4"})
    return plt


def write_figure(figure: Figure, path: Path) -> list[Path]:
    """As SVG and PNG; the files."""
    files = [path.with_suffix(".svg"), path.with_suffix(".png")]
    figure.savefig(files[0], metadata={"Date": None})
    figure.savefig(files[1], dpi=150)
    pyplot().close(figure)
    return files


def _grid(
    results: Sequence[Result] | Sequence[ColdResult], *, one_scale: bool = True
) -> tuple[Figure, dict[tuple[float, float], Axes]]:
    """A panel for each (rate, round trip): rates downwards, round trips to the right.

    one_scale: all have the same vertical axis.
    """
    plt = pyplot()
    rates = sorted({r.cell.rate_mbit for r in results})
    rtts = sorted({r.cell.rtt_ms for r in results})
    size = (max(6.4, 1.2 + 2.9 * len(rtts)), 1.5 + 2.1 * len(rates))
    figure, axes = plt.subplots(
        len(rates),
        len(rtts),
        figsize=size,
        sharex=True,
        sharey=one_scale,
        squeeze=False,
        layout="constrained",
    )
    panels = {
        (rate, rtt): axes[row][column]
        for row, rate in enumerate(rates)
        for column, rtt in enumerate(rtts)
    }
    for (rate, rtt), panel in panels.items():
        named = f"{rate / 1000:g} Gbit/s" if rate >= 1000 else f"{rate:g} Mbit/s"
        panel.set_title(f"{named}, {rtt:g} ms", fontsize=9, loc="left")
    return figure, panels


def _finish(
    figure: Figure, panels: dict[tuple[float, float], Axes], title: str, path: Path
) -> list[Path]:
    """Legend, loss axis, files."""
    named: dict[str, Any] = {}
    for panel in panels.values():
        named |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        spec = panel.get_subplotspec()
        if spec and spec.is_last_row():
            panel.set_xlabel("random loss, %", fontsize=8, color=GREY)
    head(figure, title, named)
    return write_figure(figure, path)


def _loss_axis(panels: dict[tuple[float, float], Axes], losses: Sequence[float]) -> None:
    """Losses are ranks, not a scale: 0, 1 and 5 % are what matters and would crowd together."""
    for panel in panels.values():
        panel.set_xticks(range(len(losses)), [f"{loss:g}" for loss in losses])
        panel.set_xlim(-0.45, len(losses) - 0.55)


def _plot_medians(
    results: Sequence[Result],
    panels: dict[tuple[float, float], Axes],
    what: str,
    losses: list[float],
) -> None:
    """A line for each rival; runs that are not valid are open markers."""
    for (rate, rtt), panel in panels.items():
        here = [r for r in results if (r.cell.rate_mbit, r.cell.rtt_ms) == (rate, rtt)]
        for rival in RIVALS:
            points = []
            for r in here:
                value = r.median(rival, what)
                if value is not None:
                    scale = rtt if what == "queue_ms" else 1
                    points.append((losses.index(r.cell.loss_pct), value / scale, r.valid(rival)))
            if not points:
                continue
            points.sort()
            x, y = [p[0] for p in points], [p[1] for p in points]
            panel.plot(x, y, label=NAMES[rival], markersize=5, clip_on=False, **STYLES[rival])
            bad = [p for p in points if not p[2]]
            panel.plot(
                [p[0] for p in bad], [p[1] for p in bad], "o", mfc="white", mec="red", zorder=9
            )


def plot_matrix(results: Sequence[Result], directory: Path) -> list[Path]:
    """share and queue; the files written."""
    directory.mkdir(parents=True, exist_ok=True)
    losses = sorted({r.cell.loss_pct for r in results})
    figure, panels = _grid(results)
    _plot_medians(results, panels, "share", losses)
    for panel in panels.values():
        panel.axhline(GOAL_SHARE, color=GREY, linewidth=0.8, zorder=1)
        panel.set_ylim(0, 1.04)
    first = next(iter(panels.values()))
    first.annotate(
        f"goal {GOAL_SHARE}",
        (0, GOAL_SHARE),
        (2, -3),
        textcoords="offset points",
        va="top",
        color=GREY,
        fontsize=7,
    )
    _loss_axis(panels, losses)
    figure.supylabel("goodput ÷ limit", fontsize=9, color=GREY)
    files = _finish(
        figure, panels, "One bulk flow: share of what the path can deliver", directory / "share"
    )

    figure, panels = _grid(results)
    _plot_medians(results, panels, "queue_ms", losses)
    for panel in panels.values():
        panel.set_ylim(bottom=0)
    _loss_axis(panels, losses)
    figure.supylabel("mean queueing delay ÷ round trip", fontsize=9, color=GREY)
    title = "One bulk flow: standing queue at the bottleneck (1 BDP of buffer)"
    return files + _finish(figure, panels, title, directory / "queue")


def plot_cold(results: Sequence[ColdResult], directory: Path) -> list[Path]:
    """Completion times of each fetch as dots, medians as bars; the files written."""
    directory.mkdir(parents=True, exist_ok=True)
    losses = sorted({r.cell.loss_pct for r in results})
    figure, panels = _grid(results, one_scale=False)
    for result in results:
        panel = panels[result.cell.rate_mbit, result.cell.rtt_ms]
        at = losses.index(result.cell.loss_pct)
        for side, shift in (("wan", -0.17), ("bbr", 0.17)):
            times = sorted(result.seconds[side])
            style = STYLES[side]
            label = NAMES[side]
            panel.plot(
                [at + shift] * len(times),
                times,
                style["marker"],
                color=style["color"],
                ms=3,
                alpha=0.35,
                mew=0,
            )
            middle = times[len(times) // 2]
            panel.plot(
                [at + shift - 0.13, at + shift + 0.13],
                [middle] * 2,
                color=style["color"],
                lw=2.4,
                label=label,
            )
    for panel in panels.values():
        panel.set_ylim(bottom=0)
    _loss_axis(panels, losses)
    figure.supylabel("seconds, bar: median", fontsize=9, color=GREY)
    return _finish(
        figure, panels, "1 MB from a cold start, connect() included", directory / "coldstart"
    )


def head(figure: Figure, title: str, named: dict[str, Any]) -> None:
    """A figure's title, and below it what its lines and bars are, by name."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside lower center",
        ncols=len(named),
        frameon=False,
    )
