# SPDX-License-Identifier: Apache-2.0
"""How `dmm-ebpf paths` looks to a person: a table, and a picture of what each candidate shows."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

from dmm_ebpf.cli.output import Column, print_table
from dmm_ebpf.records.path import Path, PathCandidate
from dmm_ebpf.show import units

BAR = 30  # columns of the longest bar
_MOST_HOSTS = 3  # that are named
_Row = tuple[Path, PathCandidate]


def print_paths(rows: list[Path]) -> None:
    """A line for each candidate of each prefix; "*" is who serves, "?" who is tried."""
    columns: list[Column[_Row]] = [
        Column("PREFIX", lambda r: r[0].prefix),
        Column("GOAL", lambda r: r[0].goal),
        Column("STACK", lambda r: f"{_sign(r)} {units.clean(r[1].stack)}"),
        Column("SHARE", lambda r: share(_share(r)), right=True),
        Column("RATE", lambda r: rate(r[1].rate_Bps), right=True),
        Column("RTT", lambda r: _or_dash(r[1].rtt_us, lambda v: units.duration_us(round(v)))),
        Column("LOSS", lambda r: _or_dash(r[1].loss, share), right=True),
        Column("BURST", lambda r: _or_dash(r[1].burst, lambda v: f"{v:.1f}"), right=True, rank=2),
        Column("FAILED", lambda r: share(r[1].failed), right=True),
        Column("SAMPLES", lambda r: f"{r[1].samples:.1f}", right=True, rank=1),
    ]
    if any(path.hosts for path in rows):
        columns.append(Column("TOLD BY", lambda r: units.clean(_named(r[0])), flex=True))
    print_table(columns, [(path, one) for path in rows for one in path.candidates])


def _sign(row: _Row) -> str:
    path, one = row
    return "*" if one.stack == path.chosen else "?" if one.stack == path.explores else " "


def _share(row: _Row) -> float:
    """Of new flows, that this stack gets."""
    path, one = row
    if one.stack == path.chosen:
        return 1 - path.share
    return path.share if one.stack == path.explores else 0.0


def share(value: float) -> str:
    """From 0 to 1, in percent."""
    return f"{100 * value:.3g}%"


def rate(value: float | None) -> str:
    """Bytes per second."""
    return _or_dash(value, lambda v: f"{units.size(round(v), iec=False)}/s")


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def print_picture(rows: list[Path]) -> None:
    """A bar for each candidate: how good it is, as the logarithm that decides has it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    for path in rows:
        head = (
            f"{path.prefix}  {path.goal}: {path.chosen} for {units.age(path.since_s)}, {path.why}"
            f"{_by_others(path)}"
        )
        console.print(Text(units.clean(head), style="bold"))
        for one, bar in _bars(path):
            style = "green" if one.stack == path.chosen else "cyan"
            text = f"  {_sign((path, one))} {one.stack:<16.16} "
            console.print(Text(units.clean(text)), Text(bar, style=style), Text(_figure(path, one)))


def _bars(path: Path) -> Iterator[tuple[PathCandidate, str]]:
    """Who is behind by a factor of e has a bar that is so much shorter."""
    best = max((one.score for one in path.candidates if one.score is not None), default=0.0)
    for one in path.candidates:
        behind = 0.0 if one.score is None else math.exp(max(one.score - best, -50.0))
        yield one, "█" * round(BAR * behind) if one.score is not None else ""


def _figure(path: Path, one: PathCandidate) -> str:
    if one.score is None:
        return "not tried yet" if not one.samples else "its flows tell nothing yet"
    loss = _or_dash(one.loss, share)
    if path.goal == "latency":
        return f"{_or_dash(one.rtt_us, lambda v: units.duration_us(round(v)))}, loss {loss}"
    return f"{rate(one.rate_Bps)}, loss {loss}"


def reasons(path: Path, around: list[Path]) -> Iterator[str]:
    """Why a candidate serves: what stands against a change, who is tried, and what each has shown.

    path: of the prefix that decides; around: of each prefix of the peer's that is known.
    """
    yield _change(path)
    if path.leader:
        yield f"{path.leader} leads for {path.leads_s:.1f} s now"
    if path.explores and path.searches_s:
        more = f"for {path.searches_s:.0f} s more, since the path seems to have changed"
        yield f"{path.explores} is tried by {share(path.share)} of new flows, {more}"
    elif path.explores:
        yield f"{path.explores} is tried by {share(path.share)} of new flows"
    else:
        yield "no other is tried"
    for one in around:
        yield f"{one.prefix}{' decides' if one.prefix == path.prefix else ''}{_by_others(one)}"
        yield from (f"  {_sign((path, each))} {_shown(one, each)}" for each in one.candidates)


def _by_others(path: Path) -> str:
    """Whose experience counts, besides this host's own."""
    return f", with what is told by {_named(path)}" if path.hosts else ""


def _named(path: Path) -> str:
    more = len(path.hosts) - _MOST_HOSTS
    return ", ".join([*path.hosts[:_MOST_HOSTS], *([f"{more} more"] if more > 0 else [])])


def _change(path: Path) -> str:
    times = f"{path.margin:.3g} times as good, and beyond chance"
    sooner = f", not before {path.holds_s:.1f} s from now" if path.holds_s else ""
    changes = "1 change" if path.changes == 1 else f"{path.changes} changes"
    return f"another must be {times}, for a while{sooner}; {changes} of mind until now"


def _shown(path: Path, one: PathCandidate) -> str:
    """What a candidate has shown in a prefix."""
    best = max((each.score for each in path.candidates if each.score is not None), default=None)
    failed = f", failed {share(one.failed)}" if one.failed else ""
    behind = ""
    if best is not None and one.score is not None and one.score < best:
        behind = f", {math.exp(min(best - one.score, 50.0)):.3g} times worse"
    return f"{one.stack}: {_figure(path, one)}{failed}{behind}, {one.samples:.1f} samples of late"
