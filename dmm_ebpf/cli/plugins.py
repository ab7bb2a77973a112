# SPDX-License-Identifier: Apache-2.0
"""Congestion controls and transports on the command line: which there are, and what a control does
on a path in virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf.cli import output
from dmm_ebpf.cli.output import Column
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.records.plugin import PluginRow, Simulated, Simulation
from dmm_ebpf.show import units

if TYPE_CHECKING:
    from dmm_ebpf.kit.bench import Run


def include() -> Path:
    """The folder of cc.h, which C plug-ins are built with."""
    import dmm_ebpf

    return Path(dmm_ebpf.__file__).parent / "userstack" / "core" / "cc"


def listing() -> list[PluginRow]:
    """What is built in, what installed packages offer, and the shared objects of the plug-ins'
    folder. Each of these is loaded, in a process of its own, to see whether it can be.
    """
    from dmm_ebpf.kit import load, names, probe

    abis = {names.CONGESTION.key: load.ABI, names.TRANSPORT.key: load.TRANSPORT_ABI}
    rows = [
        PluginRow(name, "built-in", seam.key, abi=abis[seam.key])
        for seam in names.SEAMS.values()
        for name in seam.built_in
    ]
    for plugin in names.offered():
        wrong = None
        try:
            probe.try_out(plugin)
        except DmmError as error:
            wrong = str(error)
        rows.append(
            PluginRow(
                plugin.text,
                plugin.kind,
                plugin.fits,
                file=plugin.file,
                class_=plugin.attribute or None,
                abi=None if wrong else abis[plugin.fits],
                error=wrong,
            )
        )
    return rows


def print_listing(rows: Sequence[PluginRow]) -> None:
    """As a table, and below it why one cannot be used."""
    columns = [
        Column("NAME", _cell("name"), flex=True),
        Column("FITS", _cell("fits")),
        Column("KIND", _cell("kind")),
        Column("ABI", _cell("abi"), right=True),
        Column("CLASS", _cell("class_")),
        Column("FILE", _cell("file"), flex=True),
    ]
    output.print_table(columns, rows)
    for row in rows:
        if row.error:
            print(units.clean(row.error))


def _cell(field: str) -> Callable[[PluginRow], str]:
    value = attrgetter(field)
    return lambda row: units.NONE if value(row) is None else units.clean(value(row))


def simulate(
    controls: Sequence[str],
    *,
    rate: str,
    rtt_ms: float,
    loss_percent: float,
    queue_bdp: float,
    duration_s: float,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> bool:
    """Runs one flow of each control over the path and prints what it got. False: a plug-in had a
    fault. Raises DmmError.
    """
    from dmm_ebpf.kit import bench
    from dmm_ebpf.rd.policy.values import ValueRefusedError, parse_rate

    try:
        rate_Bps = parse_rate(rate)  # noqa: N806
    except ValueRefusedError as error:
        hint = 'expected a text such as "80mbit", "1.5gbit" or "10mbps" (bytes), as in tc, below 34gbit'
        raise UsageError("simulate", why=error.why, hint=hint) from error
    course = bench.Course(rate_Bps, rtt_ms / 1e3, loss_percent / 100, queue_bdp, duration_s, seed)
    done = bench.run(controls, course)
    if plot is not None:
        bench.plot(done, plot)
    if as_json:
        output.print_json(_told(done))
    else:
        _print_run(_told(done))
    for flow in done.flows:
        if flow.faults.sentence:
            output.note(f"{units.clean(flow.congestion)}: {units.clean(flow.faults.sentence)}")
    return not any(flow.faults.faults for flow in done.flows)


def _told(done: Run) -> Simulation:
    course = done.course
    return Simulation(
        **asdict(course),
        queue_bytes=course.queue_bytes,
        limit_Bps=course.limit_Bps,
        flows=[
            Simulated(
                **asdict(flow) | {"faults": flow.faults.faults, "fault": flow.faults.sentence}
            )
            for flow in done.flows
        ],
    )


def _print_run(done: Simulation) -> None:
    print(
        f"{done.rate_Bps * 8e-6:g} Mbit/s, {done.rtt_s * 1e3:g} ms, {done.loss:.3g} lost, "
        f"a queue of {units.size(done.queue_bytes)}, {done.duration_s:g} s: "
        f"at most {done.limit_Bps * 8e-6:.2f} Mbit/s of payload"
    )
    columns: list[Column[Simulated]] = [
        Column("CONGESTION", lambda r: units.clean(r.congestion), flex=True),
        Column("GOODPUT", lambda r: f"{r.goodput_Bps * 8e-6:.2f} Mbit/s", right=True),
        Column("SHARE", lambda r: f"{r.share:.2f}", right=True),
        Column("QUEUE", lambda r: f"{r.queue_ms:.1f} ms", right=True),
        Column("SENT", lambda r: str(r.sent_packets), right=True),
        Column("RETRANS", lambda r: str(r.retransmits), right=True),
        Column("DROPPED", lambda r: f"{r.queue_loss:.2%}", right=True),
        Column("RTO", lambda r: str(r.rtos), right=True),
        Column("FAULTS", lambda r: str(r.faults), right=True),
    ]
    output.print_table(columns, done.flows)
