# SPDX-License-Identifier: Apache-2.0
"""The command that tries congestion controls in virtual time, as app.py has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmm_ebpf.cli.options import JsonOption, group

sim_app = group()


@sim_app.command()
def sim(  # noqa: PLR0917 - typer calls it, by keyword
    controls: Annotated[
        list[str],
        typer.Argument(
            metavar="CONGESTION...",
            help="One for each flow, named as in a policy; a file may be relative to where you are.",
        ),
    ],
    rate: Annotated[
        str, typer.Option("--rate", metavar="RATE", help="Of the bottleneck, as in tc(8).")
    ] = "100mbit",
    rtt: Annotated[
        float, typer.Option("--rtt", metavar="MS", help="Round trip without a queue.")
    ] = 50,
    loss: Annotated[
        float,
        typer.Option(
            "--loss", metavar="PERCENT", help="Packets lost at random, behind the bottleneck."
        ),
    ] = 0,
    queue: Annotated[
        float,
        typer.Option(
            "--queue", metavar="BDP", help="What the bottleneck holds: so many RATE * MS."
        ),
    ] = 1,
    duration: Annotated[
        float, typer.Option("--duration", metavar="SECONDS", help="Of virtual time.")
    ] = 20,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of all that is random.")] = 1,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw window, rate and queue over time: .svg or .png."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try congestion controls in virtual time: flows that share one bottleneck.

    Nothing of the host is used or changed. Figures are of the last 85 % of the time. Exit code 1: a
    plug-in had a fault.

    \b
    Examples:
      dmm-ebpf sim wan --rate 100mbit --rtt 100 --loss 1
      dmm-ebpf sim python:my_cc.py:Ledbat cubic --plot run.svg
    """
    from dmm_ebpf.cli import plugins

    fine = plugins.simulate(
        controls,
        rate=rate,
        rtt_ms=rtt,
        loss_percent=loss,
        queue_bdp=queue,
        duration_s=duration,
        seed=seed,
        plot=plot,
        as_json=as_json,
    )
    if not fine:
        raise typer.Exit(1)
