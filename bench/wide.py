# SPDX-License-Identifier: Apache-2.0
"""Runs the wide-area benchmarks for tools/bench (TITLES), with estimate, progress and plots."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.connections import COUNT, SIDES, Held, connections_table, held_once
from bench.control import ESTIMATE_S, HOSTS, Grown, bench_control, control_table
from bench.elements import CHANGES as ELEMENT_CHANGES
from bench.elements import ELEMENTS, Seen, bench_elements, elements_table
from bench.elements import ESTIMATE_S as ELEMENTS_ESTIMATE_S
from bench.fairness import Contest, FairPlan, Outcome, Shared, run_fairness
from bench.fairness_copies import Beside, CopiesPlan, Pair, copies_table, run_copies
from bench.fairness_report import fairness_table, plot_fairness
from bench.flows import (
    Bulk,
    ColdResult,
    Latency,
    bench_latency,
    bench_processes,
    cold_start,
    latency_sides,
)
from bench.growth import ESTIMATE_S as GROWTH_ESTIMATE_S
from bench.growth import ROUNDS as GROWTH_ROUNDS
from bench.growth import Called, bench_growth, growth_table
from bench.latency_wan import Found, LatencyPlan, run_latency_wan
from bench.latency_wan_goals import goals_table
from bench.latency_wan_report import latency_wan_tables, plot_latency_wan
from bench.matrix import Cell, Plan, Result, run_matrix
from bench.ports import ITEMS as PORT_ITEMS
from bench.ports import SECONDS as PORT_SECONDS
from bench.ports import bench_ports, ports_table
from bench.ports import estimate_s as ports_estimate_s
from bench.ports import summary as ports_summary
from bench.report import (
    cold_table,
    latency_table,
    matrix_table,
    plot_cold,
    plot_matrix,
    processes_table,
)
from bench.routes import ESTIMATE_S as ROUTES_ESTIMATE_S
from bench.routes import ROUTES, Loaded, bench_routes, routes_table
from bench.startup import ROUND_S, bench_startup, startup_table, summary
from bench.swaps import ESTIMATE_S as SWAPS_ESTIMATE_S
from bench.swaps import SWAPS, Swapped, bench_swaps, swaps_table
from bench.verify import bench_verify, verify_table

T = TypeVar("T")

TITLES = {
    "matrix": "one bulk flow over bad paths: ours, kernel bbr, kernel cubic",
    "fairness": "two bulk flows over one bottleneck: ours, kernel bbr, kernel cubic",
    "fairness-copies": "a bulk flow beside messages and streams of ours, without and with copies and parity",
    "coldstart": "1 MB from a cold start over bad paths: ours, kernel bbr",
    "latency": "request-response, connections and CPU per byte on a clean wire: user stack, kernel",
    "latency-wan": "messages, datagrams, streams, a page, 1,000 connections over paths that lose: ours, kernel bbr",
    "processes": "bulk flows on a clean wire: a user stack of one process, of several, kernel",
    "ports": "what a user stack's port carries, offloads as they come: tap, its ceiling, the kernel, af_xdp",
    "startup": "a wrapped command, an attach, a take-over: with and without a user stack, ip netns exec, python",
    "verify": "the kernel's verifier: instructions, states and time of each BPF program",
    "routes": "routes with ports from a file to live maps, as they grow: time and memory",
    "growth": "connect() as routes grow, to one peer and to any",
    "swaps": "connect() as fast as it goes while the policy changes: its rate, and that each flow has one policy",
    "elements": "from a change of an nft set to the connect() that it decides, as the set grows",
    "control": "what grows in a director: routes, growth, swaps, elements, and a fleet's hosts on one etcd",
    "connections": "many connections open at once: kernel, user stack that connects, user stack that listens",
}
COLD_FETCH_S = 1.5  # for the estimate: a mean over the default cells
HOLD_S = 25.0  # for the estimate: to start, and until connections are parked


@dataclass(frozen=True)
class Wide:
    """What the command line asks for."""

    plan: Plan
    fair_plan: FairPlan
    fetches: int = 11
    rounds: int = 5
    seconds: int = 4
    plots: Path | None = None
    count: int = COUNT
    busy_poll_us: int = 0
    processes: int = 2
    port_seconds: int = PORT_SECONDS
    port_items: tuple[str, ...] = tuple(PORT_ITEMS)
    latency_plan: LatencyPlan = field(default_factory=LatencyPlan)
    hosts: tuple[int, ...] = HOSTS
    copies_plan: CopiesPlan = field(default_factory=lambda: CopiesPlan(()))


def minutes(seconds: float) -> str:
    """For an estimate."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@contextmanager
def _progress(what: str, total: int, estimate_s: float) -> Iterator[tuple[Progress, Any]]:
    console = Console(stderr=True)
    console.print(
        f"bench: {TITLES[what]}: {total} runs, about {minutes(estimate_s)}", highlight=False
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress, progress.add_task(what, total=total)


def _gathered(results: Iterable[T], what: str) -> list[T]:
    """All results; an interrupt ends them, and what was done before it is kept."""
    found: list[T] = []
    try:
        for one in results:
            found.append(one)
    except KeyboardInterrupt:
        print(f"bench: interrupted; what follows are the {what} that were done", file=sys.stderr)
    return found


def matrix(wide: Wide, directory: Path) -> list[Result]:
    """Every cell; nothing is lost when it is interrupted but the cell at hand."""
    plan = wide.plan
    with _progress("matrix", plan.n_runs, plan.estimate_s) as (progress, task):

        def done(cell: Cell, run: Any) -> None:
            shown = f"{cell}: {run.rival} {run.share:.3f}" + ("" if run.valid else " (not valid)")
            progress.update(task, advance=1, description=shown)

        return _gathered(run_matrix(plan, directory, done), "cells")


def fairness(wide: Wide, directory: Path) -> list[Outcome]:
    """Every contest; nothing is lost when it is interrupted but the one at hand."""
    plan = wide.fair_plan
    with _progress("fairness", plan.n_runs, plan.estimate_s) as (progress, task):

        def done(contest: Contest, run: Shared) -> None:
            shown = f"{contest}: {run.shares[0]:.3f}, {run.shares[1]:.3f}"
            progress.update(
                task, advance=1, description=shown + ("" if run.valid else " (not valid)")
            )

        return _gathered(run_fairness(plan, directory, done), "contests")


def fairness_copies(wide: Wide, directory: Path) -> list[Pair]:
    """Every contest; nothing is lost when it is interrupted but the one at hand."""
    plan = wide.copies_plan
    with _progress("fairness-copies", len(plan.contests), plan.estimate_s) as (progress, task):

        def done(beside: Beside) -> None:
            progress.update(task, advance=1, description=str(beside))

        return _gathered(run_copies(plan, directory, done), "contests")


def coldstart(wide: Wide, directory: Path) -> list[ColdResult]:
    """Every cell."""
    cells = wide.plan.cells
    found = []
    estimate_s = len(cells) * (wide.fetches * 2 * COLD_FETCH_S + 4)
    with _progress("coldstart", len(cells), estimate_s) as (progress, task):
        for cell in cells:
            found.append(cold_start(cell, directory, wide.fetches))
            progress.update(
                task, advance=1, description=f"{cell}: ours / bbr {found[-1].ratio:.2f}"
            )
    return found


def latency(wide: Wide, directory: Path) -> dict[str, Latency]:
    """Every side."""
    estimate_s = wide.rounds * len(latency_sides(wide.busy_poll_us)) * (3 * wide.seconds + 4)
    with _progress("latency", 1, estimate_s):
        return bench_latency(directory, wide.rounds, wide.seconds, wide.busy_poll_us)


def latency_wan(wide: Wide, directory: Path) -> list[Found]:
    """Every cell; nothing is lost when it is interrupted but the cell at hand."""
    plan = wide.latency_plan
    with _progress("latency-wan", len(plan.items), plan.estimate_s) as (progress, task):

        def done(what: str) -> None:
            progress.update(task, description=what)

        def counted() -> Iterator[Found]:
            for one in run_latency_wan(plan, directory, done):
                progress.update(task, completed=plan.items.index(one.item))
                yield one

        return _gathered(counted(), "cells")


def _latency_wan_shown(found: list[Found]) -> Group:
    return Group(*latency_wan_tables(found), goals_table(found))


def processes(wide: Wide, directory: Path) -> dict[str, Bulk]:
    """Every side."""
    with _progress("processes", 1, wide.rounds * 3 * (wide.seconds + 4)):
        return bench_processes(directory, wide.rounds, wide.seconds, wide.processes)


def connections(wide: Wide, directory: Path) -> dict[str, Held]:
    """Each side once."""
    found = {}
    estimate_s = len(SIDES) * (HOLD_S + wide.count / 4000)
    with _progress("connections", len(SIDES), estimate_s) as (progress, task):
        for side in SIDES:

            def say(what: str, side: str = side) -> None:
                progress.update(task, description=f"{side}: {what}")

            found[side] = held_once(side, wide.count, directory, say)
            progress.update(task, advance=1)
    return found


def control(wide: Wide, directory: Path) -> list[Grown]:
    """Each number of hosts once."""
    estimate_s = sum(ESTIMATE_S.get(count, count / 8) for count in wide.hosts)
    with _progress("control", len(wide.hosts), estimate_s) as (progress, task):
        return bench_control(directory, wide.hosts, lambda _: progress.update(task, advance=1))


def routes(_wide: Wide, directory: Path) -> list[Loaded]:
    """Each number of routes."""
    with _progress("routes", len(ROUTES), ROUTES_ESTIMATE_S) as (progress, task):
        return list(bench_routes(directory, ROUTES, lambda _: progress.update(task, advance=1)))


def growth(_wide: Wide, directory: Path) -> list[Called]:
    """No hooks, and each number of routes."""
    with _progress("growth", GROWTH_ROUNDS, GROWTH_ESTIMATE_S) as (progress, task):

        def done(n: int) -> None:
            progress.update(task, completed=n)

        return bench_growth(directory, ROUTES, GROWTH_ROUNDS, done)


def swaps(_wide: Wide, directory: Path) -> list[Swapped]:
    """One run."""
    with _progress("swaps", SWAPS, SWAPS_ESTIMATE_S) as (progress, task):

        def done(n: int) -> None:
            progress.update(task, completed=n)

        return [bench_swaps(directory, done=done)]


def elements(_wide: Wide, directory: Path) -> list[Seen]:
    """Each number of elements."""
    estimate_s = len(ELEMENTS) * ELEMENTS_ESTIMATE_S
    with _progress("elements", len(ELEMENTS), estimate_s) as (progress, task):

        def done(_: Seen) -> None:
            progress.update(task, advance=1)

        return list(bench_elements(directory, ELEMENTS, ELEMENT_CHANGES, done))


# What is printed of a director as it grows: how it is found, and how shown
_GROWS: tuple[tuple[Callable[[Wide, Path], list[Any]], type, Callable[[Any], Table]], ...] = (
    (routes, Loaded, routes_table),
    (growth, Called, growth_table),
    (swaps, Swapped, lambda found: swaps_table(found[0])),
    (elements, Seen, elements_table),
    (control, Grown, control_table),
)


def _all_that_grows(wide: Wide, directory: Path) -> list[Any]:
    return [one for find, _, _ in _GROWS for one in find(wide, directory)]


def _grown_shown(found: list[Any]) -> Group:
    kinds = ((kind, table_of) for _, kind, table_of in _GROWS)
    return Group(
        *(table_of([one for one in found if isinstance(one, kind)]) for kind, table_of in kinds)
    )


def startup(wide: Wide, directory: Path) -> dict[str, Any]:
    """Every side."""
    with _progress("startup", wide.rounds, wide.rounds * ROUND_S) as (progress, task):
        return summary(
            bench_startup(directory, wide.rounds, lambda n: progress.update(task, completed=n))
        )


def ports(wide: Wide, directory: Path) -> dict[str, Any]:
    """Every side."""
    items, seconds = wide.port_items, wide.port_seconds
    with _progress("ports", wide.rounds, wide.rounds * ports_estimate_s(items, seconds)) as (
        progress,
        task,
    ):

        def done(n: int) -> None:
            progress.update(task, completed=n)

        return ports_summary(bench_ports(directory, wide.rounds, seconds, items, done))


# What is found one by one: how, and how it is shown
_LISTS: dict[
    str, tuple[Callable[[Wide, Path], Any], Callable[[Any], Any], Callable[[Any, Path], list[Path]]]
] = {
    "matrix": (matrix, matrix_table, plot_matrix),
    "fairness": (fairness, fairness_table, plot_fairness),
    "fairness-copies": (fairness_copies, copies_table, lambda _found, _directory: []),
    "coldstart": (coldstart, cold_table, plot_cold),
    "latency-wan": (latency_wan, _latency_wan_shown, plot_latency_wan),
    "routes": (routes, routes_table, lambda _found, _directory: []),
    "growth": (growth, growth_table, lambda _found, _directory: []),
    "swaps": (swaps, lambda found: swaps_table(found[0]), lambda _found, _directory: []),
    "elements": (elements, elements_table, lambda _found, _directory: []),
    "control": (_all_that_grows, _grown_shown, lambda _found, _directory: []),
}


def _once(what: str, wide: Wide, directory: Path) -> tuple[Any, Any, Callable[[Any], Any]]:
    """What was found, that as JSON, and how it is shown."""
    if what == "connections":
        held = connections(wide, directory)
        return held, {side: of.to_json() for side, of in held.items()}, connections_table
    if what == "startup":
        starts = startup(wide, directory)
        return starts, starts, startup_table
    if what == "ports":
        carried = ports(wide, directory)
        return carried, carried, ports_table
    if what == "verify":
        verified = bench_verify()
        return verified, [asdict(one) for one in verified], verify_table
    if what == "processes":
        bulks = processes(wide, directory)
        return bulks, {side: asdict(of) for side, of in bulks.items()}, processes_table
    sides = latency(wide, directory)
    return sides, {side: asdict(of) for side, of in sides.items()}, latency_table


def run(what: str, wide: Wide, directory: Path, *, show: bool) -> Any:
    """One benchmark: printed if show, drawn if plots are wanted; what goes into the JSON."""
    console = Console(soft_wrap=True)
    files: list[Path] = []
    answer: Any
    if what in _LISTS:
        find, table_of, plot = _LISTS[what]
        found = find(wide, directory)
        answer = [one.to_json() for one in found]
        if show:
            console.print(table_of(found))
        if wide.plots and found:
            files = plot(found, wide.plots)
    else:
        found, answer, table_of = _once(what, wide, directory)
        if show:
            console.print(table_of(found))
    for file in files:
        print(f"bench: wrote {file}", file=sys.stderr)
    return answer
