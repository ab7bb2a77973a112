# SPDX-License-Identifier: Apache-2.0
"""The goals of `tools/bench latency-wan`: of each what the rival has, what ours has, and whether
that is enough. A goal whose path was not measured is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.latency_paths import NAMES, Times
from bench.latency_wan import Found

# Of messages over 100 ms and 12 % of random loss, both ends ours: quantile, ms
MESSAGE_GOALS_MS = ((0.5, 103.0), (0.99, 130.0), (0.999, 250.0))
QUANTILES = (0.5, 0.9, 0.99, 0.999)
STREAM_LATE, STREAM_COST = 0.001, 1.35
PAGE_RATIO = 0.6
SLOWEST_RATIO = 2.0
# What quantiles of messages at one end may exceed the rival's by: they read a clock of a busy
# machine, and neither waits for anything where nothing is lost
TIE = 1.02


@dataclass(frozen=True)
class Goal:
    """One line: what is asked of whom, the rival's value, ours, the goal, as texts."""

    what: str
    who: str
    rival: str
    ours: str
    goal: str
    met: bool


def _ms(value: float) -> str:
    return "never" if value == float("inf") else f"{value:.0f} ms"


def _name(share: float) -> str:
    return f"p{share * 100:g}"


def _messages(cell: Found) -> Iterator[Goal]:
    one, both = cell.of("one"), cell.of("both")
    path = cell.path
    if (path.rtt_ms, path.loss_pct, path.kind) == (100, 12, "random"):
        for share, goal in MESSAGE_GOALS_MS:
            ours = both.at(share)
            yield Goal(
                f"messages, {path}: {_name(share)}",
                NAMES["both"],
                _ms(cell.rival.at(share)),
                _ms(ours),
                f"≤ {goal:.0f} ms",
                ours <= goal,
            )
    if not path.loss_pct:
        sent = (one.copies or 0) + (both.copies or 0)
        yield Goal(f"messages, {path}: copies", "ours", "", f"{sent:,}", "none", not sent)
    share = max(QUANTILES, key=lambda q: _ratio(one, cell.rival, q))
    yield Goal(
        f"messages, {path}: every quantile, of which {_name(share)} is the worst",
        NAMES["one"],
        _ms(cell.rival.at(share)),
        _ms(one.at(share)),
        "no later than kernel bbr",
        _ratio(one, cell.rival, share) <= TIE,
    )


def _ratio(ours: Times, rival: Times, share: float) -> float:
    """Of a quantile; both never: alike."""
    a, b = ours.at(share), rival.at(share)
    return 1.0 if a == b else a / b


def _streams(cell: Found) -> Iterator[Goal]:
    if cell.later_ms is None or cell.path.kind != "random" or cell.path.loss_pct != 12:
        return
    both = cell.of("both")
    late, rival = both.later_than(cell.later_ms), cell.rival.later_than(cell.later_ms)
    cost, rival_cost = both.cost[0], cell.rival.cost[0]
    yield Goal(
        f"streams of {cell.what}, {cell.path}: later than {cell.later_ms:g} ms, for bytes ÷ payload",
        NAMES["both"],
        f"{rival:.2%}, {rival_cost:.2f}",
        f"{late:.2%}, {cost:.2f}",
        f"≤ {STREAM_LATE:.1%}, ≤ {STREAM_COST:g}",
        late <= STREAM_LATE and cost <= STREAM_COST,
    )


def _page(cell: Found) -> Iterator[Goal]:
    for side in ("one", "both"):
        ratios = [_ratio(cell.of(side), cell.rival, share) for share in (0.5, 0.95)]
        yield Goal(
            f"a page by {cell.what}, {cell.path}: p50, p95",
            NAMES[side],
            ", ".join(_ms(cell.rival.at(share)) for share in (0.5, 0.95)),
            f"{ratios[0]:.2f}, {ratios[1]:.2f} of it",
            f"≤ {PAGE_RATIO:g} of it",
            max(ratios) <= PAGE_RATIO,
        )


def _many(cell: Found) -> Iterator[Goal]:
    def said(times: Times) -> str:
        unfinished = times.missing + len(times.failed)
        ratio = times.at(1.0) / times.at(0.5)
        return f"{ratio:.1f}" + (f", {unfinished} did not finish" if unfinished else "")

    for side in ("one", "both"):
        ours = cell.of(side)
        whole = not ours.missing and not ours.failed
        yield Goal(
            f"{cell.what}, {cell.path}: slowest ÷ p50, all finish",
            NAMES[side],
            said(cell.rival),
            said(ours),
            f"≤ {SLOWEST_RATIO:g}",
            whole and ours.at(1.0) <= SLOWEST_RATIO * ours.at(0.5),
        )


_GOALS = {"messages": _messages, "streams": _streams, "page": _page, "many": _many}


def goals(found: Sequence[Found]) -> list[Goal]:
    """Of all cells that have one."""
    return [goal for cell in found if cell.item in _GOALS for goal in _GOALS[cell.item](cell)]


def goals_table(found: Sequence[Found]) -> Table:
    """One line a goal; what is missed is red."""
    table = Table(title="goals", title_justify="left")
    for name in ("what", "who", "kernel bbr", "ours", "goal"):
        table.add_column(name)
    for goal in goals(found):
        colour = "green" if goal.met else "red"
        table.add_row(goal.what, goal.who, goal.rival, f"[{colour}]{goal.ours}[/]", goal.goal)
    return table
