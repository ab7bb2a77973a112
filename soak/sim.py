# SPDX-License-Identifier: Apache-2.0
"""Simulated connections without end: cases from lab/sim/simcases.py, on all processors,
until one breaks.

Hypothesis makes the cases up and makes a broken one small. Each worker is a process with a seed of
its own, so that the same seed and the same number of workers give the same cases.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from dmm_ebpf.kit.names import CONTROLS
from lab.sim import simcases
from lab.sim.corelab import build_sanitized

SHRINK_S = 60.0  # a broken case is made smaller for so long
SAY_EVERY_S = 10.0
TOTALS = ("complete", "errors", "aborted")


@dataclass
class Broken:
    """A case that broke the invariant."""

    why: str
    words: list[str]

    @property
    def repeat(self) -> str:
        """The command that runs it again."""
        return f"tools/soak repeat {' '.join(self.words)}"


@dataclass
class Summary:
    """What ran, and what was found."""

    seed: int
    workers: int
    simulations: int = 0
    connections: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    by_congestion: dict[str, int] = field(default_factory=dict)
    had_to_complete: int = 0
    whole_by_chance: int = 0  # delivered, of those that might have failed
    repaired: int = 0  # symbols, by parity
    lies_found: int = 0  # connections that wrong parity has ended
    packets: int = 0
    bytes_delivered: int = 0
    simulated_s: float = 0.0
    took_s: float = 0.0
    broken: list[Broken] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For json.dumps."""
        return asdict(self) | {"repeat": [broken.repeat for broken in self.broken]}


class _EnoughError(Exception):
    """This worker has its share."""


def _work(binary: Path, number: int, share: int, parity: bool, reports: Any) -> None:
    """One worker: puts a Counter for each simulation on reports, then a Broken or None."""
    broken: Broken | None = None
    done = 0
    first_broken = float("inf")

    @seed(number)
    @settings(
        max_examples=share,
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(simcases.parity_cases() if parity else simcases.honest_cases() | simcases.wild_cases())
    def simulate(case: simcases.Case) -> None:
        nonlocal broken, done, first_broken
        if done >= share or (broken and time.monotonic() > first_broken + SHRINK_S):
            raise _EnoughError
        try:
            result = simcases.run(binary, case)
        except simcases.ViolationError as error:
            first_broken = min(first_broken, time.monotonic())
            broken = Broken(str(error), simcases.words(case))
            raise
        if broken:
            return
        conns = sum(result[name] for name in TOTALS)
        must = simcases.must_complete(case)
        done += conns
        reports.put(
            Counter({name: result[name] for name in TOTALS})
            | Counter(
                simulations=1,
                had_to_complete=conns * must,
                whole_by_chance=result["complete"] * (not must),
                packets=result["sent_pkts"],
                bytes_delivered=result["got_a"] + result["got_b"],
                simulated_ns=result["end_ns"],
                repaired=result["repaired_a"] + result.get("repaired_b", 0),
                lies_found=result["repaired_wrong_a"] + result.get("repaired_wrong_b", 0),
                **{f"cc {case['cc']}": conns},
            )
        )

    with contextlib.suppress(_EnoughError, simcases.ViolationError, Flaky):
        simulate()
    reports.put(broken)


def _say(text: str) -> None:
    print(f"soak: {text}", file=sys.stderr, flush=True)


def _gather(
    processes: Sequence[BaseProcess], reports: Any, connections: int
) -> tuple[Counter[str], list[Broken]]:
    totals: Counter[str] = Counter()
    broken: list[Broken] = []
    left, told = len(processes), time.monotonic()
    while left:
        try:
            report = reports.get(timeout=1)
        except queue.Empty:
            if not any(process.is_alive() for process in processes) and reports.empty():
                broken.append(Broken("a worker of the soak ended without a word", []))
                break
            continue
        if isinstance(report, Counter):
            totals += report
        else:
            left -= 1
            if report:
                _say(f"{report.why}; repeat it with: {report.repeat}")
                broken.append(report)
        if time.monotonic() - told > SAY_EVERY_S:
            told = time.monotonic()
            so_far = sum(totals[name] for name in TOTALS)
            whole, failed = totals["complete"], totals["errors"]
            _say(
                f"{so_far} of {connections} connections, {whole} whole, {failed} reported an error"
            )
    return totals, broken


def soak(connections: int, first_seed: int, workers: int, *, parity: bool = False) -> Summary:
    """Runs simulations until at least so many connections have ended, or each worker has
    found a fault. parity: all of streams with forward error correction.
    """
    os.nice(5)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        binary = build_sanitized(Path(name))
        context = multiprocessing.get_context("fork")
        reports = context.Queue()
        share = -(-connections // workers)
        processes = [
            context.Process(
                target=_work, args=(binary, first_seed + number, share, parity, reports)
            )
            for number in range(workers)
        ]
        for process in processes:
            process.start()
        try:
            totals, broken = _gather(processes, reports, connections)
        finally:
            for process in processes:
                process.terminate()
                process.join()
    return Summary(
        seed=first_seed,
        workers=workers,
        simulations=totals["simulations"],
        connections=sum(totals[verdict] for verdict in TOTALS),
        verdicts={verdict: totals[verdict] for verdict in TOTALS},
        by_congestion={cc: totals[f"cc {cc}"] for cc in CONTROLS},
        had_to_complete=totals["had_to_complete"],
        whole_by_chance=totals["whole_by_chance"],
        packets=totals["packets"],
        bytes_delivered=totals["bytes_delivered"],
        simulated_s=totals["simulated_ns"] / 1e9,
        repaired=totals["repaired"],
        lies_found=totals["lies_found"],
        took_s=time.monotonic() - began,
        broken=broken,
    )


def repeat(words: list[str]) -> tuple[dict[str, int], str | None]:
    """One case again: its result, and what is wrong with it, if anything."""
    case: simcases.Case = {
        name: value for name, _, value in (word.partition("=") for word in words)
    }
    with tempfile.TemporaryDirectory() as name:
        try:
            return simcases.run(build_sanitized(Path(name)), case), None
        except simcases.ViolationError as error:
            return {}, str(error)
