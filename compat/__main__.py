# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/compat."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from compat.case import CARRIERS
from compat.cases import GROUPS
from compat.guest import tried_there
from compat.limits import known_limits, objection
from compat.page import page as page_text
from compat.run import DIFFERS, SAME, Result, Spot, run, spots
from dmm_ebpf.errors import DmmError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def compat(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option(help='A group, or "GROUP: CASE", with * and ?; may be given again.'),
    ] = None,
    carrier: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(CARRIERS)}; may be given again.")
    ] = None,
    family: Annotated[str, typer.Option(help="ip4 or ip6 alone.")] = "",
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Print each cell that is not the same, with what was seen."
        ),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The cells that the tests run.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Every cell with what was seen, as JSON.")
    ] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Write docs/compatibility.md; needs every cell.")
    ] = False,
    kernel: Annotated[
        str,
        typer.Option(
            help="Try what this kernel cannot under another one, emulated: 6.1. Takes long."
        ),
    ] = "",
    groups: Annotated[
        bool, typer.Option("--groups", help="Only print the groups and their cases.")
    ] = False,
) -> None:
    """Try what else may be on a host beside dmm-ebpf, and compare with the same host without it.

    Exits with 1 when a cell differs that limits.toml does not name, or holds though it is named.
    """
    wanted = [s for s in spots(only or (), quick=quick) if family in ("", s.family)]
    chosen = tuple(carrier or CARRIERS)
    _check(wanted, chosen, page and bool(only or carrier or quick or family))
    if groups:
        for name in GROUPS:
            cases = dict.fromkeys(spot.case.name for spot in wanted if spot.case.group == name)
            print(f"{name}: {'; '.join(cases)}") if cases else None
        return
    results = _run(wanted, chosen)
    if kernel:
        results = tried_there(results, kernel)
    limits = known_limits()
    objections = [(r, text) for r in results if (text := objection(r, limits))]
    if page:
        PAGE.write_text(page_text(results, limits))
    if as_json:
        print(json.dumps([r.as_dict() for r in results], indent=1))
    else:
        _show(results, objections, verbose)
    raise typer.Exit(1 if objections else 0)


def _check(wanted: list[Spot], carriers: tuple[str, ...], is_part: bool) -> None:
    if not wanted:
        raise typer.BadParameter("no case is called so; --groups lists them", param_hint="--only")
    if set(carriers) - set(CARRIERS):
        raise typer.BadParameter(
            f"a carrier is one of {', '.join(CARRIERS)}", param_hint="--carrier"
        )
    if is_part:
        raise typer.BadParameter(
            "the page needs every cell: no --only, --carrier, --family or --quick",
            param_hint="--page",
        )


def _run(wanted: list[Spot], carriers: tuple[str, ...]) -> list[Result]:
    with (
        tempfile.TemporaryDirectory(prefix="dmm-compat-") as name,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        bar = progress.add_task("cells", total=len(wanted) * (len(carriers) + 1))
        return run(wanted, Path(name), carriers, lambda carrier, spot: progress.advance(bar))


def _show(results: list[Result], objections: list[tuple[Result, str]], is_verbose: bool) -> None:
    console = Console()
    table = Table(title="cells by group", title_justify="left")
    verdicts = Counter((r.group, r.carrier, r.verdict) for r in results)
    for heading in ("group", *dict.fromkeys(r.carrier for r in results)):
        table.add_column(heading)
    for group in dict.fromkeys(r.group for r in results):
        cells = [
            ", ".join(
                f"{n} {v}"
                for (g, c, v), n in sorted(verdicts.items())
                if (g, c) == (group, carrier)
            )
            for carrier in dict.fromkeys(r.carrier for r in results)
        ]
        table.add_row(group, *cells)
    console.print(table)
    for result in results if is_verbose else ():
        if result.verdict != SAME:
            _line(console, result, f"{result.verdict}: {result.detail or 'no reason is told'}")
    known = sum(r.verdict == DIFFERS for r in results) - sum(
        "differs, and" in text for _, text in objections
    )
    console.print(f"{known} cells differ as limits.toml says")
    for result, text in objections:
        _line(console, result, text, style="red")


def _line(console: Console, result: Result, text: str, style: str = "") -> None:
    place = f"{result.group}: {result.case}, {result.direction}, {result.family}, {result.carrier}"
    console.print(f"{place}: {text}", style=style, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point of tools/compat. SIGTERM ends it as Ctrl-C does: what was made is removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app(prog_name="tools/compat")
    except DmmError as error:
        print(f"compat: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
