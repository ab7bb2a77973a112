# SPDX-License-Identifier: Apache-2.0
"""Proof by volume; tools/soak runs it. Exit status: 0 nothing found, 1 something found, 2 no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent))

import soak_sim
import typer
from rich.console import Console
from rich.table import Table

from dmm_ebpf.errors import DmmError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show_simulated(summary: soak_sim.Summary) -> None:
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
        "by congestion control": ", ".join(f"{cc} {n}" for cc, n in summary.by_congestion.items()),
        "on the links": f"{summary.packets} packets",
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
    as_json: Json = False,
) -> None:
    """The user-space TCP in virtual time: every stream arrives exactly, or an app is told of an error.

    Example: tools/soak simulated --connections 10000
    """
    summary = soak_sim.soak(connections, seed, workers)
    if as_json:
        print(json.dumps(summary.as_json(), indent=2))
    else:
        show_simulated(summary)
    raise typer.Exit(int(bool(summary.broken)))


@app.command()
def repeat(
    words: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="As `simulated` printed them.")],
) -> None:
    """One simulation again, under AddressSanitizer, and its verdict.

    Example: tools/soak repeat seed=7 cc=wan loss=0.05
    """
    if wrong := [word for word in words if "=" not in word]:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE")
    result, why = soak_sim.repeat(words)
    for name, value in result.items():
        print(f"{name}={value}")
    if why:
        print(f"soak: {why}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    os.umask(0o022)
    try:
        app()
    except (DmmError, TimeoutError, subprocess.SubprocessError) as error:
        print(f"soak: {error}", file=sys.stderr)
        sys.exit(1)
