# SPDX-License-Identifier: Apache-2.0
"""Proof by volume; tools/soak runs it. Exit status: 0 nothing found, 1 something found,
2 no run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import soak.kills
import soak.sim
import soak.transfers
from dmm_ebpf.errors import DmmError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show_simulated(summary: soak.sim.Summary) -> None:
    """A table of what ran, and a line for what was found."""
    table = Table(
        title=f"simulated connections, seed {summary.seed}", title_justify="left", show_header=False
    )
    rows = {
        "connections": f"{summary.connections} in {summary.simulations} simulations",
        "delivered whole": str(summary.verdicts["complete"]),
        "reported an error": str(summary.verdicts["errors"]),
        "reset by an app": str(summary.verdicts["aborted"]),
        "had to deliver, and did": str(summary.had_to_complete),
        "might have failed": f"{summary.connections - summary.had_to_complete}, {summary.whole_by_chance} delivered",
        "by congestion control": ", ".join(f"{cc} {n}" for cc, n in summary.by_congestion.items()),
        "on the links": f"{summary.packets} packets",
        "repaired by parity": f"{summary.repaired} symbols, {summary.lies_found} times it was wrong",
        "time": f"{summary.simulated_s / 3600:.1f} h simulated in {summary.took_s:.0f} s",
    }
    for row in rows.items():
        table.add_row(*row)
    Console(soft_wrap=True).print(table)
    for broken in summary.broken:
        print(f"soak: found: {broken.why}; repeat it with: {broken.repeat}")
    if not summary.broken:
        print("soak: nothing found")


@app.command()
def simulated(
    *,
    connections: Annotated[int, typer.Option(help="How many, at least.", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Another seed makes up other cases.", min=0)] = 1,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = os.cpu_count() or 2,
    parity: Annotated[
        bool, typer.Option("--parity", help="Only streams with forward error correction.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The user-space TCP in virtual time: every stream arrives exactly, or an app is told
    of an error.

    Example: tools/soak simulated --connections 10000
    """
    summary = soak.sim.soak(connections, seed, workers, parity=parity)
    if as_json:
        print(json.dumps(summary.as_json(), indent=2))
    else:
        show_simulated(summary)
    raise typer.Exit(int(bool(summary.broken)))


@app.command()
def repeat(
    words: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="As `simulated` printed them.")
    ],
) -> None:
    """One simulation again, under AddressSanitizer, and its verdict.

    Example: tools/soak repeat seed=7 cc=wan loss=0.05
    """
    if wrong := [word for word in words if "=" not in word]:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE")
    result, why = soak.sim.repeat(words)
    for name, value in result.items():
        print(f"{name}={value}")
    if why:
        print(f"soak: {why}", file=sys.stderr)
        raise typer.Exit(1)


def show_transfers(summary: soak.transfers.Summary) -> None:
    """What arrived, what the packets went through, and a line for what was found."""
    console = Console(soft_wrap=True)
    table = Table(title=f"transfers, seed {summary.options.seed}", title_justify="left")
    for name in ("program", "transfers", "intact", "errors", "MB"):
        table.add_column(name, justify="left" if name == "program" else "right")
    for name, counts in summary.programs.items():
        figures = (counts["transfers"], counts["verified"], counts["errors"])
        table.add_row(name, *map(str, figures), f"{counts['bytes'] / 1e6:.1f}")
    console.print(table)
    table = Table(title="packets, and segments that their senders sent again", title_justify="left")
    for name in ("stack of", "leg", "lost", "late", "doubled", "sent again"):
        table.add_column(name, justify="left" if name in ("stack of", "leg") else "right")
    for phase in summary.phases:
        for leg, counts, sent_again in phase.legs():
            seen = (counts["lost"], counts["late"], counts["doubled"], sent_again)
            table.add_row(phase.roles, leg, *map(str, seen))
    console.print(table)
    for failure in summary.failures:
        again = f"; repeat it with: {failure.repeat}" if failure.repeat else ""
        print(f"soak: found: {failure.what}{again}")
    total = f"{summary.bytes_verified / 1e9:.3f} GB in {summary.seconds:.0f} s"
    print(f"soak: {total}, {'with faults' if summary.failures else 'all of it intact'}")


@app.command()
def transfers(
    *,
    gigabytes: Annotated[
        float, typer.Option(help="Payload, all roles together.", min=0.001)
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Another seed makes up other transfers.", min=0)] = 1,
    cc: Annotated[str, typer.Option(help="The user stack's congestion control.")] = "wan",
    processes: Annotated[int, typer.Option(help="Processes of each stack.", min=1)] = 1,
    role: Annotated[
        list[str] | None,
        typer.Option(help="Whose host has the stack: client, server, both. Default: each."),
    ] = None,
    parallel: Annotated[int, typer.Option(help="Transfers at a time.", min=1)] = 16,
    rate: Annotated[str, typer.Option(help="Of the link, each way.")] = "1gbit",
    delay: Annotated[str, typer.Option(help="Of the link, one way.")] = "2ms",
    loss: Annotated[str, typer.Option(help="On the outer leg, each way.")] = "1%",
    reorder: Annotated[str, typer.Option(help="On the outer leg, each way.")] = "1%",
    duplicate: Annotated[str, typer.Option(help="On the outer leg, each way.")] = "1%",
    inner_loss: Annotated[str, typer.Option(help="On the inner leg, each way.")] = "0.5%",
    inner_reorder: Annotated[str, typer.Option(help="On the inner leg, each way.")] = "0.5%",
    inner_duplicate: Annotated[str, typer.Option(help="On the inner leg, each way.")] = "0.5%",
    only: Annotated[
        str | None, typer.Option(metavar="PROGRAM:NUMBER", help="One transfer, as printed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """curl, iperf3 and redis through the user stack, with loss, reordering and duplication
    on both legs.

    Example: tools/soak transfers --gigabytes 10
    """
    options = soak.transfers.Options(
        bytes_wanted=round(gigabytes * 1e9),
        seed=seed,
        congestion=cc,
        processes=processes,
        roles=tuple(role or soak.transfers.ROLES),
        parallel=parallel,
        rate=rate,
        delay=delay,
        outer={"loss": loss, "reorder": reorder, "duplicate": duplicate},
        inner={"loss": inner_loss, "reorder": inner_reorder, "duplicate": inner_duplicate},
        only=only,
    )
    summary = soak.transfers.soak(options, Console(stderr=True))
    if as_json:
        print(json.dumps(summary.as_json(), indent=2))
    else:
        show_transfers(summary)
    raise typer.Exit(int(bool(summary.failures)))


def show_kills(summary: soak.kills.Summary) -> None:
    """What was killed, what went on, and a line for what was found."""
    table = Table(title=f"killed, seed {summary.seed}", title_justify="left", show_header=False)
    rows = {
        "killed": ", ".join(f"{n} {kind}s" for kind, n in sorted(summary.killed.items())),
        "pushes": ", ".join(f"{n} ended with {code}" for code, n in sorted(summary.pushes.items())),
        "kernel flows that stayed open": f"{summary.kept}, {summary.messages} messages",
        "new flows": ", ".join(f"{n} by {who}" for who, n in sorted(summary.served.items())),
        "that failed": ", ".join(f"{n} by {who}" for who, n in sorted(summary.failed.items())),
    }
    for name, text in rows.items():
        table.add_row(name, text or "none")
    Console(soft_wrap=True).print(table)
    for what in summary.found:
        print(f"soak: found: {what}; repeat it with: {summary.command()}")
    if not summary.found:
        print("soak: nothing found")


@app.command()
def kills(
    *,
    seconds: Annotated[float, typer.Option(help="How long things are killed.", min=5)] = 120.0,
    seed: Annotated[int, typer.Option(help="Another seed kills others.", min=0)] = 1,
    as_json: Json = False,
) -> None:
    """A fleet of three hosts under load, while members of etcd, directors and stack processes are
    killed at random.

    Example: tools/soak kills --seconds 120 --seed 7
    """
    console = Console(stderr=True, soft_wrap=True)
    summary = soak.kills.soak(seconds, seed, lambda text: console.print(f"soak: {text}"))
    if as_json:
        print(json.dumps(summary.as_json(), indent=2))
    else:
        show_kills(summary)
    raise typer.Exit(int(bool(summary.found)))


if __name__ == "__main__":
    os.umask(0o022)
    try:
        app(prog_name="tools/soak")
    except (DmmError, TimeoutError, subprocess.SubprocessError) as error:
        print(f"soak: {error}", file=sys.stderr)
        sys.exit(1)
