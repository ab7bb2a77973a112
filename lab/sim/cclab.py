# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the simulator of congestion controls (dmm_ebpf/kit/sim) as a program, with
reference controls (lab/sim/cc) and the product's own cc_*.c, unchanged.

`python -m lab.sim.cclab [CC...]` prints goodput and queue over the matrix, the time of 1
MB, and shares.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "dmm_ebpf"
CC = PACKAGE / "userstack/core/cc"
SANITIZE = ("-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
RATES_MBIT = (20, 100, 1000)
RTTS_MS = (20, 100, 200)
LOSSES_PCT = (0, 1, 5, 12)
BUFFERS_BDP = (0.1, 0.3, 1, 4)


@dataclass(frozen=True)
class Flow:
    """What one flow got after the warm-up; ratio is goodput ÷ (rate × (1 − loss) × 1448 / 1538)."""

    cc: str
    goodput_Bps: float  # noqa: N815
    ratio: float
    qdelay_ms: float
    queue_loss: float
    random_loss: float
    rtos: int
    inflight_bdp: float
    done_s: float


SIMULATOR = tuple(sorted((PACKAGE / "kit/sim").glob("*.c")))
STRICT = ("-O2", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")


def build(directory: Path, *flags: str) -> Path:
    """Compile the simulator with the product's congestion controls into directory."""
    binary = directory / "ccsim"
    mains = HERE / "cc/ccsim_main.c", HERE / "cc/ccsim_ref.c"
    sources = [*mains, *SIMULATOR, CC / "cc_wan.c", CC / "cc_bbr.c"]
    subprocess.run(["cc", *STRICT, *flags, "-o", binary, *sources, "-lm"], check=True)
    return binary


def build_plugins(directory: Path, *flags: str) -> Path:
    """Compile what calls plug-ins, with a worker of C in the place of Python's, into
    directory; see plugins_main.c.
    """
    binary = directory / "plugins"
    sources = [HERE / "cc/plugins_main.c", *SIMULATOR, *sorted(CC.glob("*.c"))]
    sources += sorted((PACKAGE / "kit").glob("[!_e]*.c"))
    subprocess.run(["cc", *STRICT, *flags, "-o", binary, *sources, "-lm", "-lpthread"], check=True)
    return binary


def run(binary: Path, *flows: str, **options: float) -> list[Flow]:
    """One simulation; options and flows as ccsim.c's comment says."""
    arguments = [f"{name}={value}" for name, value in options.items()] + [
        f"flow={flow}" for flow in flows
    ]
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=True)
    return [Flow(**flow) for flow in json.loads(done.stdout)["flows"]]


def cold_start_s(
    binary: Path, cc: str, rate: float, rtt: float, loss: float, *, seeds: int = 9
) -> float:
    """Median time of 1 MB from a cold start, the receiver's last byte."""
    return median(
        run(binary, f"{cc}:kb=1000", rate=rate, rtt=rtt, loss=loss, seed=seed, dur=120)[0].done_s
        for seed in range(1, seeds + 1)
    )


def _matrix(binary: Path, cc: str, pool: ThreadPoolExecutor) -> None:
    cells = [(rate, rtt, loss) for rate in RATES_MBIT for rtt in RTTS_MS for loss in LOSSES_PCT]
    flows = list(
        pool.map(lambda c: run(binary, cc, rate=c[0], rtt=c[1], loss=c[2], dur=15)[0], cells)
    )
    times = list(pool.map(lambda c: cold_start_s(binary, cc, *c), cells))
    for i in range(0, len(cells), len(LOSSES_PCT)):
        row = zip(flows[i : i + len(LOSSES_PCT)], times[i : i + len(LOSSES_PCT)], strict=True)
        line = "  ".join(
            f"{flow.ratio:.3f}/{flow.qdelay_ms:5.2f}/{time:5.2f}" for flow, time in row
        )
        print(f"{cc:5} {cells[i][0]:5} Mb/s {cells[i][1]:4} ms  {line}")


def _shares(binary: Path, cc: str, pool: ThreadPoolExecutor) -> None:
    jobs = [
        (other, buf) for other in ("cubic", "bbr1", "bbr", f"{cc}:start=2") for buf in BUFFERS_BDP
    ]
    results = pool.map(lambda job: run(binary, cc, job[0], buf=job[1], dur=60, warm=5), jobs)
    for (_, buf), flows in zip(jobs, results, strict=True):
        line = "  ".join(
            f"{f.cc:5} {f.ratio:.2f} (queue {f.qdelay_ms:5.1f} ms, lost {f.queue_loss:.2%})"
            for f in flows
        )
        print(f"buffer {buf:3} BDP: {line}")


def report(names: list[str]) -> None:
    """Print matrix and shares of each congestion control, on all processors."""
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(os.cpu_count()) as pool:
        binary = build(Path(directory))
        losses = ", ".join(f"{loss} %" for loss in LOSSES_PCT)
        print(
            f"goodput ÷ limit / mean queueing delay in ms / 1 MB from cold in s, at loss {losses}"
        )
        for cc in names:
            _matrix(binary, cc, pool)
        print("shares of a 100 Mb/s, 100 ms bottleneck, 5 to 60 s; bbr1 is Linux' BBR")
        for cc in names:
            _shares(binary, cc, pool)


if __name__ == "__main__":
    report(sys.argv[1:] or ["wan", "bbr", "bbr1"])
