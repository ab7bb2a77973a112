# SPDX-License-Identifier: Apache-2.0
"""The command line of the laboratory: parse, call, print. Every failure is one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dmm_ebpf.errors import DmmError, NotAttachedError, UsageError
from lab.hosts import NETNS_PREFIX, STATE_DIR, Lab, clean, labs, owner_of, remove_lab
from lab.links import DIRECTIONS, LinkParams, LinkStats, WanLink, link_stats
from lab.links import control_command as tell
from lab.waiting import wait_pid_gone

REFRESH_S = 0.5
DOWN_TIMEOUT_S = 10.0
LINK = "link0.sock"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Two hosts (network namespaces) and a wide-area link between them, on this machine.

A value with a slash is for each direction: --rate 100mbit/10mbit gives 100 Mbit/s from left to right and 10 back.

[bold]Examples[/bold]

  sudo tools/wanlab up --rate 100mbit --delay 50ms --loss 1%

  sudo tools/wanlab enter right iperf3 -s          (another terminal)

  sudo tools/wanlab enter left iperf3 -c 198.18.0.2

  sudo tools/wanlab set --loss 5%/0 --delay 80ms

  sudo tools/wanlab stats --json

  sudo tools/wanlab down
""",
)

Name = Annotated[
    str, typer.Option("--name", help="Name of the laboratory; several can be up at once.")
]
Rate = Annotated[str | None, typer.Option(help="Bits per second: 20kbit, 100mbit, 1gbit, none.")]
Delay = Annotated[str | None, typer.Option(help="One way: 50ms, 300us, 0.")]
QueueLength = Annotated[
    str | None, typer.Option(help="Drop-tail queue: 1000p, 64KiB, 50ms, 2bdp, none.")
]
Loss = Annotated[
    str | None,
    typer.Option(
        help="After the bottleneck: 1%; in bursts, '12% burst 3', '12% burst 5ms', 'gemodel P R 1-H 1-K'."
    ),
]
LossAbove = Annotated[
    str | None, typer.Option(help="Lose only packets that are longer than so many bytes.")
]
Jitter = Annotated[
    str | None,
    typer.Option(
        help="Beyond the delay: 10ms, '10ms exponential'; 'reorder' lets packets overtake."
    ),
]
Reorder = Annotated[
    str | None, typer.Option(help="Share of frames that are held back by --reorder-delay.")
]
ReorderDelay = Annotated[str | None, typer.Option(help="How long they are held back: 5ms.")]
Duplicate = Annotated[str | None, typer.Option(help="Share of frames that arrive twice.")]
Corrupt = Annotated[str | None, typer.Option(help="Share of frames with one bit flipped.")]
Overhead = Annotated[
    str | None, typer.Option(help="Bytes that each frame costs beyond its own (default 24).")
]
Seed = Annotated[
    str | None, typer.Option(help="Of the random numbers; the same seed, the same losses.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def _each_way(given: dict[str, str | None]) -> tuple[dict[str, str], dict[str, str]]:
    """Options as typed, split at the slash into both directions' parameters."""
    ways: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for key, value in given.items():
        if value is None:
            continue
        parts = value.split("/")
        if len(parts) > 2:
            raise UsageError(
                f"use {value!r} as {key}", why="there are two directions, so at most one slash"
            )
        for way, part in zip(ways, (parts[0], parts[-1]), strict=True):
            way[key] = part
    return ways


def _quantity(value: float, units: tuple[str, ...], step: float = 1000.0) -> str:
    unit = units[0]
    for unit in units:
        if abs(value) < step or unit == units[-1]:
            break
        value /= step
    return f"{value:.4g} {unit}"


def bits_per_s(value: float) -> str:
    """A rate for people."""
    return _quantity(value, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"))


def duration(ns: float) -> str:
    """A time for people."""
    return _quantity(ns, ("ns", "µs", "ms", "s"))


def _params_text(params: dict[str, Any]) -> str:
    rate = bits_per_s(params["rate_bps"]) if params["rate_bps"] else "no limit"
    text = f"{rate}, {duration(params['delay_ns'])}"
    for key in ("loss", "reorder", "duplicate", "corrupt"):
        if params[key]:
            text += f", {key} {params[key]:.4g}"
    if params["burst_p"]:
        text += f", bursts p {params['burst_p']:.4g} r {params['burst_r']:.4g}"
    if params["jitter_ns"]:
        text += f", jitter {duration(params['jitter_ns'])}"
    return text


def stats_table(answer: dict[str, Any], stats: LinkStats, before: LinkStats | None) -> Table:
    """Both directions side by side; rates need an earlier reading."""
    table = Table(title=None, header_style="bold", expand=False)
    table.add_column("")
    for name, arrow in zip(DIRECTIONS, ("left → right", "right → left"), strict=True):
        table.add_column(f"{arrow}\n{_params_text(answer[name]['params'])}", justify="right")
    seconds = (stats.uptime_ns - before.uptime_ns) / 1e9 if before else 0.0
    ways = [(getattr(stats, d), getattr(before, d) if before else None) for d in DIRECTIONS]

    def row(label: str, values: list[str], style: str = "") -> None:
        table.add_row(label, *values, style=style)

    if seconds:
        row("in", [bits_per_s((s.rx_bytes - b.rx_bytes) * 8 / seconds) for s, b in ways if b])
        row("out", [bits_per_s((s.tx_bytes - b.tx_bytes) * 8 / seconds) for s, b in ways if b])
    row("frames in, out", [f"{s.rx_pkts:,}  {s.tx_pkts:,}" for s, _ in ways])
    row("queue now, max", [f"{s.queue_pkts:,}  {s.queue_max_pkts:,}" for s, _ in ways])
    row(
        "wait mean, max",
        [f"{duration(s.queue_wait_mean_ns)}  {duration(s.queue_wait_max_ns)}" for s, _ in ways],
    )
    row("queue drops", [f"{s.queue_drops:,}" for s, _ in ways])
    row("random losses, bursts", [f"{s.losses:,}  {s.loss_bursts:,}" for s, _ in ways])
    row("reordered", [f"{s.reordered:,}" for s, _ in ways])
    row("duplicated", [f"{s.duplicated:,}" for s, _ in ways])
    row("corrupted", [f"{s.corrupted:,}" for s, _ in ways])
    row(
        "late mean, max",
        [f"{duration(s.late_mean_ns)}  {duration(s.late_max_ns)}" for s, _ in ways],
    )
    own = [f"{s.own_drops:,}" for s, _ in ways]
    row("lost by the lab", own, style="bold red" if stats.own_drops else "")
    return table


@contextlib.contextmanager
def _stop_signals() -> Iterator[int]:
    """A descriptor that is readable once SIGINT or SIGTERM came."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(writing)
    for number in old:
        signal.signal(number, lambda *_: None)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _show_until_stopped(link: WanLink, console: Console, stop_fd: int) -> None:
    """Live counters until a signal, or until the emulator ends."""
    answer, stats = link.command("stats"), link.stats()
    poller = select.poll()
    poller.register(stop_fd, select.POLLIN)
    with Live(stats_table(answer, stats, None), console=console, auto_refresh=False) as live:
        while not poller.poll(REFRESH_S * 1000):
            if link.process.poll() is not None:
                raise DmmError("go on", why="the link emulator ended")
            before, answer, stats = stats, link.command("stats"), link.stats()
            live.update(stats_table(answer, stats, before), refresh=True)


@app.command()
def up(
    *,
    name: Name = "wan",
    rate: Rate = "100mbit",
    delay: Delay = "25ms",
    queue: QueueLength = None,
    loss: Loss = None,
    loss_above: LossAbove = None,
    jitter: Jitter = None,
    reorder: Reorder = None,
    reorder_delay: ReorderDelay = None,
    duplicate: Duplicate = None,
    corrupt: Corrupt = None,
    overhead: Overhead = None,
    seed: Seed = None,
    mtu: Annotated[int, typer.Option(help="Of both hosts' interfaces.", min=1280, max=9000)] = 1500,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only one line, when ready.")
    ] = False,
) -> None:
    """Make hosts left and right and the link, and keep them until Ctrl-C or `wanlab down`."""
    ab, ba = _each_way(
        {
            "rate": rate,
            "delay": delay,
            "queue": queue,
            "loss": loss,
            "loss_above": loss_above,
            "jitter": jitter,
            "reorder": reorder,
            "reorder_delay": reorder_delay,
            "duplicate": duplicate,
            "corrupt": corrupt,
            "overhead": overhead,
            "seed": seed,
        }
    )
    for changes in (ab, ba):
        LinkParams().with_changes(changes)
    console = Console()
    with _stop_signals() as stop_fd, Lab(name, unique=False) as lab:
        left, right = lab.host("left"), lab.host("right")
        link = lab.wan(left, right, ab=ab, ba=ba, mtu=mtu)
        if quiet:
            print("ready", flush=True)
            select.select([stop_fd], [], [])
            return
        for host in (left, right):
            console.print(
                f"[bold]{host.name:5}[/bold] {host.ip4}  {host.ip6}  namespace {host.netns}"
            )
        suffix = "" if name == "wan" else f" --name {name}"
        console.print(
            f"enter a host: [bold]sudo tools/wanlab enter{suffix} left[/bold]   end: Ctrl-C\n"
        )
        _show_until_stopped(link, console, stop_fd)


def _control(name: str) -> Path:
    control = STATE_DIR / name / LINK
    if not control.exists():
        there = ", ".join(labs()) or "none is up"
        raise NotAttachedError(
            f"find the laboratory {name!r}", why=f"it is not up ({there})", hint="use wanlab up"
        )
    return control


@app.command("set")
def set_(
    *,
    name: Name = "wan",
    rate: Rate = None,
    delay: Delay = None,
    queue: QueueLength = None,
    loss: Loss = None,
    loss_above: LossAbove = None,
    jitter: Jitter = None,
    reorder: Reorder = None,
    reorder_delay: ReorderDelay = None,
    duplicate: Duplicate = None,
    corrupt: Corrupt = None,
    overhead: Overhead = None,
    seed: Seed = None,
) -> None:
    """Change the link while it carries traffic; what is not named stays.

    A queue made in bdp keeps the length that it had; give --queue again to fit it to a new
    rate or delay.
    """
    control = _control(name)
    given = {
        "rate": rate,
        "delay": delay,
        "loss": loss,
        "loss_above": loss_above,
        "jitter": jitter,
        "reorder": reorder,
        "reorder_delay": reorder_delay,
        "duplicate": duplicate,
        "corrupt": corrupt,
        "overhead": overhead,
        "seed": seed,
        "queue": queue,
    }
    now = tell(control, "stats")
    ways = _each_way(given)
    if not any(ways):
        raise UsageError(
            "set nothing", why="name at least one parameter", hint="see wanlab set --help"
        )
    params = []
    for direction, changes in zip(DIRECTIONS, ways, strict=True):
        old = {k: v for k, v in now[direction]["params"].items() if not k.startswith("queue")}
        params.append(LinkParams(**old).with_changes(changes))
    rtt_ns = sum(p.delay_ns for p in params)
    for direction, changes, new in zip(DIRECTIONS, ways, params, strict=True):
        kept = {"queue"} - set(changes) | ({"seed"} - set(changes))
        words = [w for w in new.assignments(rtt_ns) if not w.startswith(tuple(kept) or ("\0",))]
        tell(control, f"set {direction} {' '.join(words)}")


@app.command()
def stats(
    name: Name = "wan",
    as_json: Json = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Set the counters to zero after reading.")
    ] = False,
) -> None:
    """Show the link's counters."""
    control = _control(name)
    answer = tell(control, "stats")
    if reset:
        tell(control, "reset")
    parsed = link_stats(answer, {})
    if not as_json:
        Console().print(stats_table(answer, parsed, None))
        return
    out = asdict(parsed)
    for direction in DIRECTIONS:
        out[direction]["params"] = answer[direction]["params"]
    print(json.dumps(out, indent=2))


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def enter(
    host: Annotated[str, typer.Argument(help="left or right")],
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run; a shell if nothing is given.")
    ] = None,
    name: Name = "wan",
) -> None:
    """Run a command on a host: in its network namespace only, so that cgroupfs and bpffs stay
    as they are.
    """
    netns = Path("/run/netns") / f"{NETNS_PREFIX}{name}-{host}"
    if not netns.exists():
        raise NotAttachedError(
            f"enter host {host!r} of {name!r}", why="there is no such host", hint="use wanlab up"
        )
    words = command or [os.environ.get("SHELL", "/bin/sh")]
    try:
        os.execvp("nsenter", ["nsenter", f"--net={netns}", *words])
    except OSError as error:
        raise DmmError(f"run {words[0]}", why=error.strerror or "exec failed") from error


@app.command()
def down(name: Name = "wan") -> None:
    """End a laboratory and remove what it made."""
    if name not in labs():
        raise NotAttachedError(f"end the laboratory {name!r}", why="it is not up")
    owner = owner_of(name)
    if owner is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner, signal.SIGTERM)
        wait_pid_gone(owner, DOWN_TIMEOUT_S)
    remove_lab(name)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Show every laboratory there is, and whether its owner is alive."""
    found = [{"name": lab, "owner_pid": owner_of(lab)} for lab in labs()]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for lab in found:
        state = (
            f"up, process {lab['owner_pid']}"
            if lab["owner_pid"]
            else "left by a crash; wanlab clean removes it"
        )
        print(f"{lab['name']}: {state}")


@app.command("clean")
def clean_() -> None:
    """Remove what crashed laboratories left: namespaces, links, processes in them,
    container engines, state.
    """
    for lab in clean():
        print(f"removed {lab}")


def main() -> None:
    """Entry point of tools/wanlab."""
    try:
        if os.geteuid() and not {"-h", "--help"} & set(sys.argv) and len(sys.argv) > 1:
            raise DmmError("use network namespaces", why="only root may", hint="use sudo")
        app()
    except DmmError as error:
        print(f"wanlab: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
