# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/compat."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from compat.case import CARRIERS
from compat.cases import GROUPS
from compat.guest import kernel_of, try_there
from compat.limits import known_limits, objection
from compat.page import page as page_text
from compat.results import Results, line_of
from compat.run import DIFFERS, SAME, Result, Spot, run, series, spots
from dmm_ebpf.errors import DmmError
from lab.vm.machine import GuestTimeoutError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


OnlyOption = Annotated[
    list[str] | None,
    typer.Option(help='A group, or "GROUP: CASE", with * and ?; may be given again.'),
]
CarrierOption = Annotated[
    list[str] | None, typer.Option(help=f"One of {', '.join(CARRIERS)}; may be given again.")
]
FamilyOption = Annotated[str, typer.Option(help="ip4 or ip6 alone.")]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print each cell that is not the same, with what was seen."
    ),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="The cells that the tests run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Every cell with what was seen, as JSON.")]
PageOption = Annotated[
    bool,
    typer.Option("--page", help="Write docs/compatibility.md; needs every cell of this kernel."),
]
KernelOption = Annotated[
    str,
    typer.Option(help="Try under this kernel of Debian's, in an emulated machine, not here: 6.1."),
]
WithinOption = Annotated[
    int,
    typer.Option(
        help="With --kernel: minutes until the machine is ended, with 124.", min=1, max=1440
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        help="Keep results in this file; what it has of the kernel is not tried again.",
        dir_okay=False,
    ),
]
LinesOption = Annotated[
    bool,
    typer.Option("--lines", help="Every cell as a line of JSON, as soon as it is known."),
]
GroupsOption = Annotated[
    bool, typer.Option("--groups", help="Only print the groups and their cases.")
]


@app.command()
def compat(
    *,
    only: OnlyOption = None,
    carrier: CarrierOption = None,
    family: FamilyOption = "",
    verbose: VerboseOption = False,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    page: PageOption = False,
    kernel: KernelOption = "",
    within: WithinOption = 240,
    results: ResultsOption = None,
    lines: LinesOption = False,
    groups: GroupsOption = False,
) -> None:
    """Try what else may be on a host beside dmm-ebpf, and compare with the same host without it.

    The whole table takes long under another kernel; with --results it can be tried in slices.
    Exits with 1 when a cell differs that limits.toml does not name, or holds though it is named.
    """
    wanted = [s for s in spots(only or (), quick=quick) if family in ("", s.family)]
    chosen = tuple(carrier or CARRIERS)
    _check(wanted, chosen, is_part=page and bool(only or carrier or quick or family or kernel))
    if groups:
        _show_groups(wanted)
        return
    known = Results(results)
    add = _told(known) if lines else known.add
    there = kernel_of(kernel) if kernel else None
    release = series(there.release if there else "")
    missing = known.missing(wanted, chosen, release)
    is_whole = True
    if there and missing:
        is_whole = try_there(there, _words(only, chosen, family, quick, results), within, add)
    elif missing:
        _run(missing, chosen, add)
    found = known.of(wanted, chosen, release)
    limits = known_limits()
    objections = [(r, text) for r in found if (text := objection(r, limits))]
    if page and is_whole:
        beside = {one: known.of(wanted, chosen, one) for one in known.kernels() if one != release}
        PAGE.write_text(page_text(found, beside, limits))
    if as_json:
        print(json.dumps([r.as_dict() for r in found], indent=1))
    elif not lines:
        _show(found, objections, verbose)
    if not is_whole:
        cells = f"{len(found)} of {len(wanted) * len(chosen)}"
        raise _too_late(release, cells, within)
    raise typer.Exit(1 if objections else 0)


def _show_groups(wanted: list[Spot]) -> None:
    for name in GROUPS:
        cases = dict.fromkeys(spot.case.name for spot in wanted if spot.case.group == name)
        if cases:
            print(f"{name}: {'; '.join(cases)}")


def _too_late(release: str, cells: str, minutes: int) -> GuestTimeoutError:
    return GuestTimeoutError(
        f"try every cell under Linux {release}",
        why=f"{cells} were known after {minutes} minutes",
        hint="with --results FILE the next run goes on where this one ended",
    )


def _told(known: Results) -> Callable[[Result], None]:
    def add(result: Result) -> None:
        known.add(result)
        print(line_of(result), flush=True)

    return add


def _words(
    only: list[str] | None,
    carriers: tuple[str, ...],
    family: str,
    is_quick: bool,
    results: Path | None,
) -> list[str]:
    """This command line, for the guest."""
    words = [word for one in only or () for word in ("--only", one)]
    words += [word for one in carriers for word in ("--carrier", one)]
    words += ["--family", family] if family else []
    words += ["--quick"] if is_quick else []
    return words + (["--results", str(results.resolve())] if results and results.exists() else [])


def _check(wanted: list[Spot], carriers: tuple[str, ...], *, is_part: bool) -> None:
    if not wanted:
        raise typer.BadParameter("no case is called so; --groups lists them", param_hint="--only")
    if set(carriers) - set(CARRIERS):
        raise typer.BadParameter(
            f"a carrier is one of {', '.join(CARRIERS)}", param_hint="--carrier"
        )
    if is_part:
        raise typer.BadParameter(
            "the page needs every cell of this kernel: no --only, --carrier, --family, --quick or --kernel",
            param_hint="--page",
        )


def _run(wanted: list[Spot], carriers: tuple[str, ...], add: Callable[[Result], None]) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="dmm-compat-") as name,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        bar = progress.add_task("cells", total=len(wanted) * len(carriers))

        def done(result: Result) -> None:
            add(result)
            progress.advance(bar)

        run(wanted, Path(name), carriers, done)


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
