# SPDX-License-Identifier: Apache-2.0
"""Congestion controls on the command line: which there are, and what one does on a path
in virtual time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf.cli import output
from dmm_ebpf.cli.output import Column, Row
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.show import units

if TYPE_CHECKING:
    from dmm_ebpf.kit.bench import Run


def include() -> Path:
    """The folder of cc.h, which C plug-ins are built with."""
    import dmm_ebpf

    return Path(dmm_ebpf.__file__).parent / "userstack" / "core"


def listing() -> list[Row]:
    """The built-in controls, what installed packages offer, and the shared objects of the plug-ins'
    folder. Each of these is loaded, in a process of its own, to see whether it can be.
    """
    from dmm_ebpf.kit import load, names, probe

    rows: list[Row] = [_row(name, "built-in", abi=load.ABI) for name in names.CONTROLS]
    for plugin in names.offered():
        error = None
        try:
            probe.try_out(plugin)
        except DmmError as exc:
            error = str(exc)
        rows.append(
            _row(
                plugin.text,
                plugin.kind,
                file=plugin.file,
                attribute=plugin.attribute or None,
                abi=None if error else load.ABI,
                error=error,
            )
        )
    return rows


def _row(
    name: str,
    kind: str,
    *,
    file: str | None = None,
    attribute: str | None = None,
    abi: int | None = None,
    error: str | None = None,
) -> Row:
    return {
        "name": name,
        "kind": kind,
        "file": file,
        "class": attribute,
        "abi": abi,
        "error": error,
    }


def print_listing(rows: Sequence[Row]) -> None:
    """As a table, and below it why one cannot be used."""
    columns = [
        Column("CONGESTION", _cell("name"), flex=True),
        Column("KIND", _cell("kind")),
        Column("ABI", _cell("abi"), right=True),
        Column("CLASS", _cell("class")),
        Column("FILE", _cell("file"), flex=True),
    ]
    output.print_table(columns, rows)
    for row in rows:
        if row["error"]:
            print(units.clean(row["error"]))


def _cell(key: str) -> Any:
    return lambda row: units.NONE if row[key] is None else units.clean(row[key])


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
    except ValueRefusedError as exc:
        raise UsageError("simulate", why=exc.why, hint=exc.hint) from exc
    course = bench.Course(rate_Bps, rtt_ms / 1e3, loss_percent / 100, queue_bdp, duration_s, seed)
    done = bench.run(controls, course)
    if plot is not None:
        bench.plot(done, plot)
    if as_json:
        output.print_json(_as_json(done))
    else:
        _print_run(done)
    for flow in done.flows:
        if flow.faults.sentence:
            output.note(f"{units.clean(flow.congestion)}: {units.clean(flow.faults.sentence)}")
    return not any(flow.faults.faults for flow in done.flows)


def _as_json(done: Run) -> Row:
    flows = [
        asdict(flow)
        | {
            "faults": flow.faults.faults,
            "fault": flow.faults.sentence,
        }
        for flow in done.flows
    ]
    course = done.course
    return {
        **asdict(course),
        "queue_bytes": course.queue_bytes,
        "limit_Bps": course.limit_Bps,
        "flows": flows,
    }


def _print_run(done: Run) -> None:
    course = done.course
    print(
        f"{course.rate_Bps * 8e-6:g} Mbit/s, {course.rtt_s * 1e3:g} ms, {course.loss:.3g} lost, a queue of "
        f"{units.size(course.queue_bytes)}, {course.duration_s:g} s: at most {course.limit_Bps * 8e-6:.2f} Mbit/s "
        "of payload"
    )
    columns = [
        Column("CONGESTION", lambda r: units.clean(r["congestion"]), flex=True),
        Column("GOODPUT", lambda r: f"{r['goodput_Bps'] * 8e-6:.2f} Mbit/s", right=True),
        Column("SHARE", lambda r: f"{r['share']:.2f}", right=True),
        Column("QUEUE", lambda r: f"{r['queue_ms']:.1f} ms", right=True),
        Column("SENT", lambda r: str(r["sent_packets"]), right=True),
        Column("RETRANS", lambda r: str(r["retransmits"]), right=True),
        Column("DROPPED", lambda r: f"{r['queue_loss']:.2%}", right=True),
        Column("RTO", lambda r: str(r["rtos"]), right=True),
        Column("FAULTS", lambda r: str(r["faults"]), right=True),
    ]
    output.print_table(columns, _as_json(done)["flows"])
