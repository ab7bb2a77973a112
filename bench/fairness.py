# SPDX-License-Identifier: Apache-2.0
"""How two bulk flows share one bottleneck: two of ours, ours and one of the kernel's, and two
of the kernel's.

A contest is a path, a bottleneck buffer and a pair of congestion controls. Both flows leave the
same host at the same time, each an iperf3 of its own, so that path, round trip and bottleneck are
the same; ours are routed, by their cgroup. What is counted begins SETTLE_S after the first bytes:
goodput of each flow at its receiver, the bottleneck's queue and what it dropped in the emulator. A
run in which the laboratory itself lost a frame is made again once.

docs/benchmarks.md says what the figures mean.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.matrix import (
    FRAME_BYTES,
    RUN_OVERHEAD_S,
    TCP_BUFFERS_BYTES,
    Cell,
    Window,
    payload_bps,
    run_valid,
    valid_if_any,
)
from bench.policies import ROOMY, stack_policy
from dmm_ebpf.errors import UsageError
from lab import Cgroup, Host, Lab, iperf3, iperf3_server
from lab.routed import Routed
from lab.sim.cclab import build as build_simulator
from lab.units import Queue

OURS = "wan"
PAIRS = ((OURS, OURS), (OURS, "cubic"), (OURS, "bbr"), ("cubic", "bbr"))
RATES_MBIT = (100.0,)
RTTS_MS = (40.0,)
LOSSES_PCT = (0.0,)
BUFFERS_BDP = (0.1, 0.3, 1.0, 4.0)
SETTLE_S = 5
STARVED = 0.25  # of the fair share: the least that a rival of ours should keep
PORTS = (5201, 5202)
SIMULATED = {"wan": "wan", "cubic": "cubic", "bbr": "bbr1"}  # lab/sim/cc: Linux has BBR version 1


@dataclass(frozen=True)
class Contest:
    """Two flows over one path; buffer_bdp: of the bottleneck, in products of its rate and
    the round trip.
    """

    cell: Cell
    buffer_bdp: float
    pair: tuple[str, str]

    @property
    def buffer_bytes(self) -> int:
        """The bottleneck's drop-tail queue; two full frames at least."""
        return max(
            round(self.buffer_bdp * self.cell.rate_mbit * self.cell.rtt_ms * 125), 2 * FRAME_BYTES
        )

    def __str__(self) -> str:
        return f"{self.cell}, {self.buffer_bdp:g} BDP, {' and '.join(self.pair)}"


@dataclass(frozen=True)
class Shared:
    """What two flows got after they had settled: goodput ÷ limit of the path, so that 0.5 each
    is fair and full.
    """

    shares: tuple[float, float]
    queue_ms: float
    dropped: float  # of the frames that came to the bottleneck
    own_drops: int = 0

    @property
    def jain(self) -> float:
        """Jain's index: 1 when both got the same, 0.5 when one got all."""
        return sum(self.shares) ** 2 / (2 * sum(share**2 for share in self.shares) or 1.0)

    @property
    def valid(self) -> bool:
        """Whether everything that was lost was lost at the bottleneck or on purpose."""
        return self.own_drops == 0


@dataclass(frozen=True)
class Outcome:
    """All runs of a contest, and what the simulator says of it (None: not asked)."""

    contest: Contest
    runs: tuple[Shared, ...]
    simulated: Shared | None = None

    @property
    def valid(self) -> bool:
        """Whether one of the runs is."""
        return any(run.valid for run in self.runs)

    @property
    def median(self) -> Shared:
        """Medians over the runs, of the valid ones if there are any."""
        runs = valid_if_any(self.runs)
        return Shared(
            (
                statistics.median(r.shares[0] for r in runs),
                statistics.median(r.shares[1] for r in runs),
            ),
            statistics.median(r.queue_ms for r in runs),
            statistics.median(r.dropped for r in runs),
        )

    @property
    def starved(self) -> bool:
        """Whether ours left a rival less than STARVED of its fair half."""
        first, second = self.contest.pair
        return first == OURS != second and self.median.shares[1] < STARVED / 2

    def to_json(self) -> dict[str, Any]:
        """Contest, medians, runs, simulation."""

        def of(shared: Shared) -> dict[str, Any]:
            return asdict(shared) | {"jain": shared.jain}

        return asdict(self.contest.cell) | {
            "buffer_bdp": self.contest.buffer_bdp,
            "pair": self.contest.pair,
            "median": of(self.median),
            "starved": self.starved,
            "valid": self.valid,
            "runs": [of(run) | {"valid": run.valid} for run in self.runs],
            "simulated": of(self.simulated) if self.simulated else None,
        }


@dataclass(frozen=True)
class FairPlan:
    """What is to be run: seconds are those that count, after SETTLE_S."""

    contests: tuple[Contest, ...]
    seconds: float = 30.0
    repeat: int = 1
    simulate: bool = False

    @property
    def n_runs(self) -> int:
        """How many pairs of flows that is."""
        return len(self.contests) * self.repeat

    @property
    def estimate_s(self) -> float:
        """How long it takes when no run must be made again."""
        return self.n_runs * (SETTLE_S + self.seconds + RUN_OVERHEAD_S)


def contests(
    cells: Iterable[Cell], buffers: Sequence[float], pairs: Sequence[tuple[str, str]] = PAIRS
) -> tuple[Contest, ...]:
    """Every pair with every buffer on every path."""
    if not all(0 < buffer < math.inf for buffer in buffers):
        raise UsageError("measure a bottleneck without a buffer", why="two flows cannot share it")
    return tuple(
        Contest(cell, buffer, pair) for cell in cells for pair in pairs for buffer in buffers
    )


def _send(
    hosts: tuple[Host, Host], flow: tuple[str, int], cgroup: Cgroup | None, seconds: float
) -> list[dict[str, Any]]:
    """One flow, a congestion control and a port, to its end; its receiver's intervals."""
    (client, server), (congestion, port) = hosts, flow
    options = ["-t", str(math.ceil(SETTLE_S + seconds + 1)), "-i", "0.5", "--get-server-output"]
    if congestion != OURS:
        options += ["-C", congestion]
    answer = iperf3(
        client,
        server.ip4,
        *options,
        port=port,
        cgroup=cgroup if congestion == OURS else None,
        timeout=seconds + 120,
    )
    intervals: list[dict[str, Any]] = answer["server_output_json"]["intervals"]
    return intervals


def run_once(contest: Contest, directory: Path, seconds: float, seed: int) -> Shared:
    """A laboratory, both flows, and its end."""
    cell = contest.cell
    with Lab("fairness") as lab, ExitStack() as stack:
        client, server = (
            lab.host(name, tcp_buffers=TCP_BUFFERS_BYTES) for name in ("client", "server")
        )
        path: dict[str, Any] = {
            "rate": f"{cell.rate_mbit:g}mbit",
            "delay": f"{cell.rtt_ms / 2:g}ms",
            "loss": f"{cell.loss_pct:g}%",
            "queue": Queue(size_bytes=contest.buffer_bytes),
        }
        link = lab.wan(client, server, **path, seed=seed)
        for port in PORTS:
            iperf3_server(server, directory / f"iperf3-{port}", "-J", port=port)
        cgroup = None
        if OURS in contest.pair:
            cgroup = stack.enter_context(Cgroup())
            stack.enter_context(
                Routed(client, cgroup, stack_policy(congestion="wan", **ROOMY), directory)
            )
        window = Window(link, seconds, SETTLE_S)
        window.start()
        try:
            with ThreadPoolExecutor(2) as pool:
                flows = [
                    pool.submit(_send, (client, server), flow, cgroup, seconds)
                    for flow in zip(contest.pair, PORTS, strict=True)
                ]
                intervals = [flow.result() for flow in flows]
        except BaseException:
            window.cancelled.set()
            raise
        finally:
            window.join()
    if window.error:
        raise window.error
    first, second = (
        payload_bps(i, SETTLE_S, SETTLE_S + seconds) / cell.limit_bps for i in intervals
    )
    return Shared(
        (first, second), cell.queue_ms(window.queue_bytes), window.dropped, window.own_drops
    )


def run_fairness(
    plan: FairPlan,
    directory: Path,
    done: Callable[[Contest, Shared], None] = lambda contest, run: None,
) -> Iterator[Outcome]:
    """The contests one after another, and what the simulator says of each if it is asked."""
    simulator = build_simulator(directory) if plan.simulate else None
    for contest in plan.contests:
        runs = []
        for number in range(plan.repeat):
            runs.append(
                run_valid(partial(run_once, contest, directory, plan.seconds, seed=number + 1))
            )
            done(contest, runs[-1])
        outcome = Outcome(contest, tuple(runs))
        yield (
            replace(outcome, simulated=simulate(simulator, contest, plan.seconds))
            if simulator
            else outcome
        )


# ---- the simulator ----


def sim_arguments(contest: Contest, seconds: float) -> list[str]:
    """The contest in the words of lab/sim/cc/ccsim.c."""
    keys = {
        "rate": contest.cell.rate_mbit,
        "rtt": contest.cell.rtt_ms,
        "loss": contest.cell.loss_pct,
        "buf": contest.buffer_bdp,
        "warm": SETTLE_S,
        "dur": SETTLE_S + seconds,
    }
    words = [f"{key}={value:g}" for key, value in keys.items()]
    return words + [f"flow={SIMULATED[congestion]}" for congestion in contest.pair]


def simulate(simulator: Path, contest: Contest, seconds: float) -> Shared:
    """The same flows in virtual time; the kernel's are modelled."""
    argv = [str(simulator), *sim_arguments(contest, seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return shared_of(json.loads(done.stdout)["flows"])


def shared_of(flows: Sequence[Mapping[str, float]]) -> Shared:
    """Two flows as ccsim.c prints them. If nothing arrived of either, their drops count alike."""
    first, second = flows
    # Of what came to the bottleneck; the flows' own shares of drops count by what they sent.
    weights = (first["ratio"], second["ratio"]) if first["ratio"] + second["ratio"] else (1.0, 1.0)
    dropped = (first["queue_loss"] * weights[0] + second["queue_loss"] * weights[1]) / sum(weights)
    queue_ms = (first["qdelay_ms"] + second["qdelay_ms"]) / 2
    return Shared((first["ratio"], second["ratio"]), queue_ms, dropped)
