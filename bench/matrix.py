# SPDX-License-Identifier: Apache-2.0
"""The matrix of wide-area paths: one bulk flow on each, by our stack, by kernel BBR and
by kernel cubic.

A cell is a rate, a round-trip time and a random loss behind the bottleneck. A run is one flow of
one rival over one cell, in a laboratory of its own, so that nothing is carried over and a kernel
rival never meets our XDP program; its sender is iperf3, its receiver the kernel of the other host.
What is counted begins START_S after the flow's first
bytes: goodput at the receiver, the bottleneck's queue in the emulator, the machine's CPU. A run in
which the laboratory itself lost a frame is not valid, is made again once, and is marked if that
does not help.

docs/benchmarks.md says what the figures mean.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bench.policies import ROOMY, stack_policy
from dmm_ebpf.errors import DmmError, UsageError
from lab import Cgroup, Lab, WanLink, iperf3, iperf3_server, wait_for
from lab.cpu import busy_s
from lab.routed import Routed
from lab.sim import corelab

RIVALS = ("wan", "bbr", "cubic")
RATES_MBIT = (20.0, 100.0, 1000.0)
RTTS_MS = (20.0, 100.0, 200.0)
LOSSES_PCT = (0.0, 1.0, 5.0, 12.0)
START_S = 3
GOAL_SHARE = 0.97
TCP_BUFFERS_BYTES = 512 << 20
KERNEL_RECEIVE_BYTES = 128 << 10  # tcp_rmem[1] of a stock kernel, where a receive buffer begins
FIRST_BYTES = 20_000  # more than iperf3 says before its flow begins
BEGIN_TIMEOUT_S = 60.0
RUN_OVERHEAD_S = 4.0  # hosts, attach, iperf3's handshake and farewell: for the estimate only
MSS_BYTES, FRAME_BYTES = 1448, 1538

# Windows as docs/benchmarks.md says: as much as the receiver's kernel can offer.


@dataclass(frozen=True)
class Cell:
    """One path: rate of the bottleneck in Mbit/s on the wire, round trip in ms, loss in
    percent, each way.
    """

    rate_mbit: float
    rtt_ms: float
    loss_pct: float

    @property
    def limit_bps(self) -> float:
        """The most payload a second that can arrive: full frames, those lost
        left out (docs/wanlab.md).
        """
        return self.rate_mbit * 1e6 * (1 - self.loss_pct / 100) * MSS_BYTES / FRAME_BYTES

    def queue_ms(self, queue_bytes: float) -> float:
        """How long the bottleneck takes for so many bytes."""
        return queue_bytes * 8 / (self.rate_mbit * 1e3)

    def __str__(self) -> str:
        return f"{self.rate_mbit:g} Mbit/s, {self.rtt_ms:g} ms, {self.loss_pct:g} %"


@dataclass(frozen=True)
class Plan:
    """What is to be run: seconds are those that count, after START_S; receive_bytes is
    the receiver's tcp_rmem[1].
    """

    cells: tuple[Cell, ...]
    rivals: tuple[str, ...] = RIVALS
    seconds: float = 20.0
    repeat: int = 1
    simulate: bool = False
    receive_bytes: int = TCP_BUFFERS_BYTES

    @property
    def n_runs(self) -> int:
        """How many flows that is."""
        return len(self.cells) * len(self.rivals) * self.repeat

    @property
    def estimate_s(self) -> float:
        """How long it takes when no run must be made again."""
        return self.n_runs * (START_S + self.seconds + RUN_OVERHEAD_S)


class Valid(Protocol):
    """A run that knows whether the laboratory spoilt it."""

    @property
    def valid(self) -> bool: ...


AnyRun = TypeVar("AnyRun", bound=Valid)


def valid_if_any(runs: Iterable[AnyRun]) -> list[AnyRun]:
    """The valid ones, or all if there are none."""
    runs = list(runs)
    return [run for run in runs if run.valid] or runs


@dataclass(frozen=True)
class Run:
    """What one flow did after its start. retransmits: of all its segments, the start included."""

    rival: str
    share: float  # goodput / limit
    goodput_bps: float
    start_share: float  # the same of the first START_S seconds
    queue_ms: float
    retransmits: float
    own_drops: int
    busy_cores: float

    @property
    def valid(self) -> bool:
        """Whether everything that was lost was lost on purpose."""
        return self.own_drops == 0


@dataclass(frozen=True)
class Result:
    """All runs of one cell, and what the simulator says of ours (None: not asked)."""

    cell: Cell
    runs: tuple[Run, ...]
    sim_share: float | None = None

    def median(self, rival: str, what: str) -> float | None:
        """The median over a rival's runs, of the valid ones if there are any."""
        runs = valid_if_any(run for run in self.runs if run.rival == rival)
        return statistics.median(getattr(run, what) for run in runs) if runs else None

    def valid(self, rival: str) -> bool:
        """Whether a rival has a valid run."""
        return any(run.valid for run in self.runs if run.rival == rival)

    def to_json(self) -> dict[str, Any]:
        """Cell, runs, and the medians that tables and plots show."""
        medians = {
            rival: {
                w: self.median(rival, w)
                for w in ("share", "queue_ms", "retransmits", "start_share")
            }
            for rival in RIVALS
            if any(run.rival == rival for run in self.runs)
        }
        return asdict(self.cell) | {
            "medians": medians,
            "runs": [asdict(run) | {"valid": run.valid} for run in self.runs],
            "sim_share": self.sim_share,
        }


def numbers(text: str, unit: str) -> tuple[float, ...]:
    """A list as people write it, "20,100"; UsageError for anything else."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 <= value < math.inf for value in values):
        raise UsageError(f"use {text!r} as a list of {unit}", why="it should look like 20,100")
    return values


def cells(
    rates: Iterable[float], rtts: Iterable[float], losses: Iterable[float]
) -> tuple[Cell, ...]:
    """Every combination, losses innermost."""
    losses, rtts = tuple(losses), tuple(rtts)
    made = tuple(Cell(rate, rtt, loss) for rate in rates for rtt in rtts for loss in losses)
    for cell in made:
        if cell.rate_mbit <= 0 or cell.loss_pct >= 100:
            raise UsageError(f"measure a path of {cell}", why="nothing arrives over it")
    return made


def order(rivals: Sequence[str], number: int) -> list[str]:
    """Who runs when in round number: each round begins with another, so that drift
    strikes all alike.
    """
    return [rivals[(i + number) % len(rivals)] for i in range(len(rivals))]


def payload_bps(intervals: Sequence[dict[str, Any]], start: float, end: float) -> float:
    """Payload bits a second between two times after the first bytes, from a receiver's intervals.

    An interval that a border cuts counts in proportion. Raises DmmError when nothing was received.
    """
    sums = [interval["sum"] for interval in intervals]
    first = next((s["start"] for s in sums if s["bytes"]), None)
    if first is None:
        raise DmmError("measure a flow", why="its receiver got nothing")
    got = 0.0
    for s in sums:
        overlap = min(s["end"], first + end) - max(s["start"], first + start)
        if overlap > 0:
            got += s["bytes"] * overlap / (s["end"] - s["start"])
    return got * 8 / (end - start)


class Window(threading.Thread):
    """Reads emulator and CPU over the measured part of a run, while iperf3 runs in other threads.

    seconds: what is measured, from start_s after the first bytes on. Afterwards: mean bytes in the
    bottleneck's queue, the part of the frames that it dropped, busy cores of the machine, frames
    that the laboratory lost.
    """

    def __init__(self, link: WanLink, seconds: float, start_s: float = START_S) -> None:
        super().__init__(name="bench-window", daemon=True)
        self.link = link
        self.seconds = seconds
        self.start_s = start_s
        self.cancelled = threading.Event()
        self.queue_bytes = 0.0
        self.dropped = 0.0
        self.busy_cores = 0.0
        self.own_drops = 0
        self.error: Exception | None = None

    def run(self) -> None:
        """Waits for the first bytes, for start_s, resets the counters, and reads them
        after the window.
        """
        try:
            self._run()
        except (DmmError, TimeoutError, OSError) as error:
            self.error = error

    def _run(self) -> None:
        wait_for(
            lambda: self.cancelled.is_set() or self.link.stats().ab.tx_bytes > FIRST_BYTES,
            BEGIN_TIMEOUT_S,
            "the flow's first bytes",
        )
        self.cancelled.wait(self.start_s)
        before = self.link.stats().own_drops
        self.link.reset()
        busy, began = busy_s(), time.monotonic()
        self.cancelled.wait(self.seconds)
        stats, took = self.link.stats(), time.monotonic() - began
        self.busy_cores = (busy_s() - busy) / took
        self.queue_bytes = stats.ab.queue_mean_bytes
        self.dropped = stats.ab.queue_drops / max(stats.ab.rx_pkts, 1)
        self.own_drops = before + stats.own_drops


def flow(
    link: WanLink, seconds: float, run: Callable[[list[str]], dict[str, Any]]
) -> tuple[dict[str, Any], Window]:
    """One iperf3 flow, run(options), and what the emulator saw of it."""
    window = Window(link, seconds)
    window.start()
    try:
        # One second more than is counted, so that the receiver's last interval is whole.
        answer = run(
            ["-t", str(math.ceil(START_S + seconds + 1)), "-i", "0.5", "--get-server-output"]
        )
    except BaseException:
        window.cancelled.set()
        raise
    finally:
        window.join()
    if window.error:
        raise window.error
    return answer, window


def run_once(cell: Cell, rival: str, plan: Plan, directory: Path, seed: int) -> Run:
    """A laboratory, one flow of a rival ("wan": our stack; else a congestion control of the
    kernel), and its end.
    """
    seconds = plan.seconds
    with Lab("matrix") as lab, ExitStack() as stack:
        client, server = lab.host("client", tcp_buffers=TCP_BUFFERS_BYTES), lab.host("server")
        server.tcp_buffers(TCP_BUFFERS_BYTES, plan.receive_bytes)
        path: dict[str, Any] = {
            "rate": f"{cell.rate_mbit:g}mbit",
            "delay": f"{cell.rtt_ms / 2:g}ms",
            "loss": f"{cell.loss_pct:g}%",
        }
        link = lab.wan(client, server, **path, seed=seed)
        iperf3_server(server, directory / "iperf3", "-J")
        timeout = seconds + 120
        if rival == "wan":
            cgroup = stack.enter_context(Cgroup())
            routed = stack.enter_context(
                Routed(client, cgroup, stack_policy(congestion="wan", **ROOMY), directory)
            )
            answer, window = flow(
                link,
                seconds,
                lambda o: iperf3(client, server.ip4, *o, cgroup=cgroup, timeout=timeout),
            )
            counters = routed.ask_stack("wan")
            retransmits = counters["core_retransmits"] / counters["nic_tx_pkts"]
        else:
            answer, window = flow(
                link,
                seconds,
                lambda o: iperf3(client, server.ip4, "-C", rival, *o, timeout=timeout),
            )
            sent = answer["end"]["sum_sent"]
            retransmits = sent["retransmits"] / (sent["retransmits"] + sent["bytes"] / MSS_BYTES)
    intervals = answer["server_output_json"]["intervals"]
    goodput_bps = payload_bps(intervals, START_S, START_S + seconds)
    return Run(
        rival=rival,
        share=goodput_bps / cell.limit_bps,
        goodput_bps=goodput_bps,
        start_share=payload_bps(intervals, 0, START_S) / cell.limit_bps,
        queue_ms=cell.queue_ms(window.queue_bytes),
        retransmits=retransmits,
        own_drops=window.own_drops,
        busy_cores=window.busy_cores,
    )


def run_valid(run_once: Callable[[], AnyRun]) -> AnyRun:
    """A run, once more if the laboratory lost frames or the programs did not come to terms."""
    try:
        run = run_once()
    except (DmmError, TimeoutError, subprocess.SubprocessError):
        return run_once()
    return run if run.valid else run_once()


def run_cell(cell: Cell, plan: Plan, directory: Path, done: Callable[[Cell, Run], None]) -> Result:
    """Every rival repeat times, alternating; run n has the same loss pattern for each of them."""
    runs = []
    for number in range(plan.repeat):
        for rival in order(plan.rivals, number):
            run = run_valid(partial(run_once, cell, rival, plan, directory, seed=number + 1))
            runs.append(run)
            done(cell, run)
    return Result(cell, tuple(runs))


def run_matrix(
    plan: Plan, directory: Path, done: Callable[[Cell, Run], None] = lambda cell, run: None
) -> Iterator[Result]:
    """The cells one after another, and what the simulator says of each if it is asked."""
    simulator = build_simulator(directory) if plan.simulate else None
    for cell in plan.cells:
        result = run_cell(cell, plan, directory, done)
        yield replace(result, sim_share=simulate(simulator, cell, plan)) if simulator else result


# ---- the simulator ----


def build_simulator(directory: Path) -> Path:
    """lab/sim/sim: the core under a virtual clock. Its path."""
    try:
        return corelab.build_plain(directory)
    except AssertionError as error:
        raise DmmError("build the simulator", why=str(error).strip()) from None


def sim_arguments(cell: Cell, until_s: float, receive_bytes: int = TCP_BUFFERS_BYTES) -> list[str]:
    """The cell in the words of lab/sim/sim.c: a flow of ours without end, stopped
    after until_s seconds.

    The receiver's window is modelled after a Linux kernel's whose tcp_rmem[1] is receive_bytes.
    """
    rate_bytes = cell.rate_mbit * 1e6 / 8
    keys = {
        "cc": "wan",
        "up": 1 << 40,
        "down": 0,
        "rate_Bps": round(rate_bytes),
        "delay_ns": round(cell.rtt_ms * 5e5),
        "queue_bytes": max(round(rate_bytes * cell.rtt_ms / 1e3), 32 * FRAME_BYTES),
        "loss": cell.loss_pct / 100,
        "sndbuf": 1 << 30,
        "rcvbuf": 1 << 30,
        "memory": 4 << 30,
        "linux_window": receive_bytes,
        "limit_ns": round(until_s * 1e9),
    }
    return [f"{key}={value}" for key, value in keys.items()]


def simulate(simulator: Path, cell: Cell, plan: Plan) -> float:
    """Share of the limit that our core gets in virtual time, over the same part of the flow."""
    got = []
    for until_s in (START_S, START_S + plan.seconds):
        argv = [str(simulator), *sim_arguments(cell, until_s, plan.receive_bytes)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        got.append(int(dict(line.split("=") for line in done.stdout.splitlines())["got_b"]))
    return (got[1] - got[0]) * 8 / plan.seconds / cell.limit_bps
