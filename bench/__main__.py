# SPDX-License-Identifier: Apache-2.0
"""What dmm-ebpf costs and gains, as ratios against a rival in the same session;
tools/bench runs it.

Rounds of the two sides alternate, so that what the machine does meanwhile strikes both; the
figure is the ratio of the medians. Absolute numbers are printed to be judged with, and mean
nothing on another machine.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import bench.connections
import bench.control
import bench.fairness
import bench.fairness_copies
import bench.latency_paths
import bench.latency_wan
import bench.ports
import bench.wide
from bench.matrix import (
    KERNEL_RECEIVE_BYTES,
    LOSSES_PCT,
    RATES_MBIT,
    RIVALS,
    RTTS_MS,
    TCP_BUFFERS_BYTES,
    Cell,
    Plan,
    cells,
    numbers,
)
from bench.policies import stack_policy
from dmm_ebpf.errors import DmmError
from lab import Cgroup, Host, Lab, iperf3, iperf3_server
from lab.build import program_path
from lab.programs import start_server
from lab.routed import Routed

COPIES_DEFAULT = (
    bench.fairness_copies.RATES_MBIT,
    bench.fairness_copies.RTTS_MS,
    bench.fairness_copies.LOSSES_PCT,
)
CONNECT_PORT = 4000
CONNECTS = 4000
ROUTES = 10_000

KERNEL_POLICY = """
[[rules]]
cgroup = "{cgroup}"
table = "t"
[tables.t]
routes_from = "routes.csv"
"""

Result = dict[str, Any]


def write_routes(path: Path) -> None:
    """ROUTES routes of all lengths to the kernel's stack, loopback and the laboratory's
    networks among them.
    """
    noise = random.Random(1)
    lines = {"127.0.0.0/8", "198.18.0.0/15"}
    while len(lines) < ROUTES:
        length = noise.randint(12, 32)
        address = noise.getrandbits(32) >> (32 - length) << (32 - length)
        lines.add(f"{ipaddress.IPv4Address(address)}/{length}")
    path.write_text(
        "to,proto,ports,stack\n" + "".join(f"{line},,,kernel\n" for line in sorted(lines))
    )


def medians(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each side over alternating rounds; the order changes from round to round."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            values[name].append(sides[name]())
    return {name: statistics.median(found) for name, found in values.items()}


def connect_ns(host: Host, cgroup: Cgroup) -> float:
    """The median of CONNECTS connect() calls to loopback, in ns."""
    argv: list[str | Path] = [
        program_path("connbench"),
        "connect",
        "127.0.0.1",
        str(CONNECT_PORT),
        str(CONNECTS),
    ]
    done = cgroup.run(argv, host=host)
    return statistics.median(int(line) for line in done.stdout.split())


def bench_connect(directory: Path, rounds: int) -> Result:
    """connect() to loopback, hooks attached and ROUTES routes, against a cgroup without hooks."""
    with Lab("connect") as lab, ExitStack() as stack:
        host = lab.host("host")
        attached, plain = stack.enter_context(Cgroup()), stack.enter_context(Cgroup())
        serve: list[str | Path] = [
            program_path("connbench"),
            "serve",
            "127.0.0.1",
            str(CONNECT_PORT),
        ]
        start_server(host, serve, CONNECT_PORT, directory / "connbench.log")
        write_routes(directory / "routes.csv")
        stack.enter_context(Routed(host, attached, KERNEL_POLICY, directory))
        ns = medians(
            {"hooks": lambda: connect_ns(host, attached), "none": lambda: connect_ns(host, plain)},
            rounds,
        )
    return {"ns": ns, "ratio": ns["hooks"] / ns["none"], "goal": "<= 1.05"}


def gbps(client: Host, server: Host, cgroup: Cgroup | None, seconds: int, *options: str) -> float:
    """What an iperf3 receiver got, in Gb/s, after the first second."""
    answer = iperf3(client, server.ip4, "-t", str(seconds), "-O", "1", *options, cgroup=cgroup)
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def bench_kernel(directory: Path, rounds: int, seconds: int) -> Result:
    """iperf3 over a kernel-stack flow, attached against not attached."""
    with Lab("kernel") as lab, ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        lab.wire(client, server)
        attached, plain = stack.enter_context(Cgroup()), stack.enter_context(Cgroup())
        iperf3_server(server, directory / "iperf3")
        write_routes(directory / "routes.csv")
        stack.enter_context(Routed(client, attached, KERNEL_POLICY, directory))
        rates = medians(
            {
                "attached": lambda: gbps(client, server, attached, seconds),
                "not attached": lambda: gbps(client, server, plain, seconds),
            },
            rounds,
        )
    return {"gbps": rates, "ratio": rates["attached"] / rates["not attached"], "goal": ">= 0.98"}


def bench_user(directory: Path, rounds: int, seconds: int) -> Result:
    """iperf3 over a plain wire of whole frames, through a user stack on the client, against
    the kernel's cubic.
    """
    with Lab("user") as lab, ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        lab.wire(client, server)
        cgroup = stack.enter_context(Cgroup())
        iperf3_server(server, directory / "iperf3")

        def user_stack() -> float:
            # Attached for this alone: the kernel's rounds meet no program on the wire.
            with Routed(client, cgroup, stack_policy(congestion="cubic"), directory):
                return gbps(client, server, cgroup, seconds)

        rates = medians(
            {
                "user stack": user_stack,
                "kernel": lambda: gbps(client, server, cgroup, seconds, "-C", "cubic"),
            },
            rounds,
        )
    return {"gbps": rates, "ratio": rates["user stack"] / rates["kernel"], "goal": "reported"}


TITLES = {
    "connect": "connect() to loopback, 10,000 routes: hooks / none",
    "kernel": "iperf3 over the kernel's stack: attached / not attached",
    "user": "one flow of whole frames: user stack / kernel cubic",
}


def show(results: dict[str, Result]) -> None:
    """A table of the ratios."""
    table = Table(title="ratios of medians, rounds alternating", title_justify="left")
    for name in ("what", "ratio", "goal", "medians"):
        table.add_column(name)
    for name, result in results.items():
        unit = "ns" if "ns" in result else "gbps"
        shown = ", ".join(f"{side} {value:.4g}" for side, value in result[unit].items())
        table.add_row(TITLES[name], f"{result['ratio']:.3f}", result["goal"], f"{shown} {unit}")
    Console(soft_wrap=True).print(table)


def words(values: Iterable[float]) -> str:
    """A list as the options take it."""
    return ",".join(f"{value:g}" for value in values)


def run_one(item: str, directory: Path, rounds: int, seconds: int) -> Result:
    """One of TITLES."""
    if item == "connect":
        return bench_connect(directory, rounds)
    if item == "kernel":
        return bench_kernel(directory, rounds, seconds)
    return bench_user(directory, rounds, seconds)


Typed = tuple[str | None, str | None, str | None]  # rates, round trips and losses, as typed


def fair_plan_of(
    path: Typed, buffers: str, seconds: int | None, repeat: int, sim: bool
) -> bench.fairness.FairPlan:
    """What fairness runs."""
    default = (bench.fairness.RATES_MBIT, bench.fairness.RTTS_MS, bench.fairness.LOSSES_PCT)
    contests = bench.fairness.contests(grid_of(*path, default), numbers(buffers, "BDP"))
    return bench.fairness.FairPlan(contests, seconds or 30, repeat, sim)


def copies_plan_of(
    path: Typed, buffers: str, seconds: int | None, sim: bool
) -> bench.fairness_copies.CopiesPlan:
    """What fairness-copies runs."""
    grid = grid_of(*path, COPIES_DEFAULT)
    besides = bench.fairness_copies.besides(grid, numbers(buffers, "BDP"))
    return bench.fairness_copies.CopiesPlan(besides, seconds or 20, sim)


def run_all(
    chosen: Iterable[str], wide: bench.wide.Wide, *, show_wide: bool
) -> tuple[dict[str, Result], dict[str, Any]]:
    """Those of TITLES, and those of bench.wide, by name."""
    results: dict[str, Result] = {}
    wide_results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        for item in chosen:
            if item in bench.wide.TITLES:
                wide_results[item] = bench.wide.run(item, wide, directory, show=show_wide)
                continue
            print(f"bench: {TITLES[item]} ...", file=sys.stderr)
            results[item] = run_one(item, directory, wide.rounds, wide.seconds)
    return results, wide_results


def rivals_of(text: str) -> tuple[str, ...]:
    """ "wan,bbr" as a tuple."""
    chosen = tuple(text.split(","))
    if unknown := [name for name in chosen if name not in RIVALS]:
        raise typer.BadParameter(f"there is no rival {unknown[0]!r}; there are {', '.join(RIVALS)}")
    return chosen


def items_of(
    what: str, benchmarks: Collection[str], text: str | None, known: Collection[str]
) -> tuple[str, ...]:
    """ "bulk,many" as a tuple of what a benchmark measures; all if nothing is said, or it is
    not among the benchmarks that run.
    """
    chosen = tuple(text.split(",")) if text and what in benchmarks else tuple(known)
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(
            f"{what} measures no {unknown[0]!r}; it measures {', '.join(known)}"
        )
    return chosen


def latency_plan_of(
    rtts: str | None, losses: str | None, items: tuple[str, ...], quick: bool
) -> bench.latency_wan.LatencyPlan:
    """What latency-wan runs."""
    plan = bench.latency_wan.LatencyPlan(items=items)
    plan = plan.quick if quick else plan
    if not (rtts or losses):
        return plan
    chosen = [numbers(rtts or words(bench.latency_paths.RTTS_MS), "ms")]
    chosen += [numbers(losses or words(bench.latency_paths.LOSSES_PCT), "percent")]
    paths = tuple(bench.latency_paths.paths(tuple(chosen[0]), tuple(chosen[1])))
    return replace(plan, paths=paths, stream_paths=paths)


def grid_of(
    rates: str | None, rtts: str | None, losses: str | None, default: Sequence[Iterable[float]]
) -> tuple[Cell, ...]:
    """The paths that the options name; default: rates, round trips and losses of what
    was left out.
    """
    given = ((rates, "Mbit/s"), (rtts, "ms"), (losses, "percent"))
    return cells(
        *(numbers(text or words(d), unit) for (text, unit), d in zip(given, default, strict=True))
    )


app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


BUFFERS = words(bench.fairness.BUFFERS_BDP)
HOSTS = words(bench.control.HOSTS)
ALL_RIVALS = ",".join(RIVALS)
WhatArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help=f"Any of: {', '.join([*TITLES, *bench.wide.TITLES])}. Default: {', '.join(TITLES)}."
    ),
]
RoundsOption = Annotated[int, typer.Option(help="Rounds of each side.", min=1)]
SecondsOption = Annotated[
    int | None,
    typer.Option(
        help="Seconds of each transfer; 4 unless given, for matrix 20, fairness 30, ports 2.",
        min=2,
    ),
]
RatesOption = Annotated[
    str | None,
    typer.Option(
        help=f"Mbit/s; {words(RATES_MBIT)} unless given, for fairness 100, fairness-copies 20."
    ),
]
RttsOption = Annotated[
    str | None,
    typer.Option(help=f"ms; {words(RTTS_MS)} unless given, for fairness and fairness-copies 40."),
]
LossesOption = Annotated[
    str | None,
    typer.Option(
        help=f"percent, each way; {words(LOSSES_PCT)} unless given, for fairness 0, fairness-copies 0,1."
    ),
]
BuffersOption = Annotated[
    str,
    typer.Option(
        help="fairness, fairness-copies: the bottleneck's buffer in bandwidth-delay products."
    ),
]
RepeatOption = Annotated[
    int, typer.Option(help="matrix, fairness: runs of each kind in a cell.", min=1)
]
FetchesOption = Annotated[
    int, typer.Option(help="coldstart: fetches of each side in a cell.", min=1)
]
CountOption = Annotated[
    int,
    typer.Option(
        help="connections: how many are open at once.", min=1, max=bench.connections.COUNT_MAX
    ),
]
BusyPollUsOption = Annotated[
    int,
    typer.Option(help="latency: measure a user stack that looks for packets so long, too.", min=0),
]
ProcessesOption = Annotated[
    int, typer.Option(help="processes: how many the second user stack has.", min=2, max=16)
]
ReceiveMibOption = Annotated[
    int,
    typer.Option(
        help="matrix: MiB that the receiver's buffer begins with; 0: 128 KiB, as a stock kernel's.",
        min=0,
        max=TCP_BUFFERS_BYTES >> 20,
    ),
]
RivalsOption = Annotated[str, typer.Option(help="matrix: who runs.")]
OnlyOption = Annotated[
    str | None,
    typer.Option(
        help=f"What is measured; ports: any of {', '.join(bench.ports.ITEMS)}; "
        f"latency-wan: any of {', '.join(bench.latency_wan.ITEMS)}."
    ),
]
HostsOption = Annotated[
    str, typer.Option(help="control: how many hosts there are, one after the other.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="latency-wan: fewer paths, and less on each.")
]
SimOption = Annotated[
    bool,
    typer.Option(
        help="matrix, fairness, fairness-copies: ask the simulator about each cell as well."
    ),
]
PlotsOption = Annotated[Path | None, typer.Option(help="Write plots (SVG, PNG) to this directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def main(
    what: WhatArgument = None,
    *,
    rounds: RoundsOption = 7,
    seconds: SecondsOption = None,
    rates: RatesOption = None,
    rtts: RttsOption = None,
    losses: LossesOption = None,
    buffers: BuffersOption = BUFFERS,
    repeat: RepeatOption = 1,
    fetches: FetchesOption = 11,
    count: CountOption = bench.connections.COUNT,
    busy_poll_us: BusyPollUsOption = 0,
    processes: ProcessesOption = 2,
    receive_mib: ReceiveMibOption = TCP_BUFFERS_BYTES >> 20,
    rivals: RivalsOption = ALL_RIVALS,
    only: OnlyOption = None,
    hosts: HostsOption = HOSTS,
    quick: QuickOption = False,
    sim: SimOption = False,
    plots: PlotsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run benchmarks and print their ratios.

    Example: tools/bench connect kernel --rounds 15

    Example: tools/bench matrix --rates 100 --losses 0,5 --seconds 6 --plots plots

    Example: tools/bench fairness --buffers 1 --repeat 3 --sim

    Example: tools/bench latency-wan --quick --only messages,page --plots plots
    """
    chosen = what or list(TITLES)
    known = [*TITLES, *bench.wide.TITLES]
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(
            f"there is no benchmark {unknown[0]}; there are {', '.join(known)}"
        )
    grid = grid_of(rates, rtts, losses, (RATES_MBIT, RTTS_MS, LOSSES_PCT))
    receive_bytes = receive_mib << 20 or KERNEL_RECEIVE_BYTES
    path = (rates, rtts, losses)
    wide = bench.wide.Wide(
        Plan(grid, rivals_of(rivals), seconds or 20, repeat, sim, receive_bytes),
        fair_plan_of(path, buffers, seconds, repeat, sim),
        fetches,
        rounds,
        seconds or 4,
        plots,
        count,
        busy_poll_us,
        processes,
        seconds or bench.ports.SECONDS,
        items_of("ports", chosen, only, bench.ports.ITEMS),
        latency_plan_of(
            rtts, losses, items_of("latency-wan", chosen, only, bench.latency_wan.ITEMS), quick
        ),
        tuple(int(one) for one in numbers(hosts, "hosts")),
        copies_plan_of(path, buffers, seconds, sim),
    )
    results, wide_results = run_all(chosen, wide, show_wide=not as_json)
    if as_json:
        print(json.dumps(results | wide_results, indent=2))
    elif results:
        show(results)


if __name__ == "__main__":
    os.umask(0o022)
    # As Ctrl-C does: what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app(prog_name="tools/bench")
    except (DmmError, TimeoutError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
