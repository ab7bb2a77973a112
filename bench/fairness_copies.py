# SPDX-License-Identifier: Apache-2.0
"""What copies and parity take from who shares the bottleneck: messages or streams of ours beside a
bulk flow of ours, of the kernel's cubic or of its bbr, with `latency = "low"` and with "normal".

All leave the same host. What is counted begins SETTLE_S after the start: goodput of the bulk flow,
and how long messages and frames took. The two runs of a contest have the same seed and path.

docs/benchmarks.md says what the figures mean.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.fairness import PORTS, SETTLE_S
from bench.latency_paths import quantile
from bench.latency_wan import ECHO_PORT, FRAMES_PER_S
from bench.matrix import FRAME_BYTES, RUN_OVERHEAD_S, TCP_BUFFERS_BYTES, Cell, payload_bps
from bench.policies import ROOMY, stack_policy
from bench.report import NAMES, figure_text
from dmm_ebpf.errors import DmmError
from lab import Cgroup, Host, Lab, iperf3, iperf3_server
from lab.routed import Routed
from lab.sim import corelab
from lab.steady import Pace, Sender, echo_server, sink_server, told_by
from lab.units import Queue

OURS = "wan"
RIVALS = (OURS, "cubic", "bbr")
RATES_MBIT = (20.0,)
RTTS_MS = (40.0,)
LOSSES_PCT = (0.0, 1.0)
MESSAGE_BYTES, MESSAGE_S, MESSAGE_FLOWS = 1024, 0.05, 20
STREAM_BYTES, STREAM_FLOWS = 4167, 2  # of a frame: 2 Mbit/s
LEAST_KEPT = 0.95  # of what the rival has without copies: printed in red below


@dataclass(frozen=True)
class Party:
    """Who sends the copies: connections, bytes of a write, seconds between two, whether it is
    echoed.
    """

    name: str
    flows: int
    write_bytes: int
    gap_s: float
    echo: bool

    def pace(self, seconds: float) -> Pace:
        """Of so many seconds."""
        return Pace(self.flows, round(seconds / self.gap_s), self.write_bytes, self.gap_s)


PARTIES = (
    Party("messages", MESSAGE_FLOWS, MESSAGE_BYTES, MESSAGE_S, True),
    Party("streams", STREAM_FLOWS, STREAM_BYTES, 1 / FRAMES_PER_S, False),
)


@dataclass(frozen=True)
class Beside:
    """A party and a bulk flow over one bottleneck; buffer_bdp as in bench.fairness."""

    cell: Cell
    buffer_bdp: float
    party: Party
    rival: str

    @property
    def buffer_bytes(self) -> int:
        """The bottleneck's drop-tail queue; two full frames at least."""
        return max(
            round(self.buffer_bdp * self.cell.rate_mbit * self.cell.rtt_ms * 125), 2 * FRAME_BYTES
        )

    def __str__(self) -> str:
        return f"{self.cell}, {self.buffer_bdp:g} BDP, {self.party.name} and {self.rival}"


@dataclass(frozen=True)
class Kept:
    """One run. share: the bulk flow's goodput ÷ limit of the path; ms: median and 99th percentile
    of messages or frames; sent: copies and segments of parity.
    """

    share: float
    p50_ms: float
    p99_ms: float
    sent: int


@dataclass(frozen=True)
class Pair:
    """Without and with copies. where: "lab" or "simulator"."""

    beside: Beside
    where: str
    without: Kept
    low: Kept

    @property
    def kept(self) -> float:
        """What the bulk flow keeps of its share."""
        return self.low.share / self.without.share if self.without.share else math.inf

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"kept": self.kept}


def besides(cells: tuple[Cell, ...], buffers: tuple[float, ...]) -> tuple[Beside, ...]:
    """Every party and rival with every buffer on every path."""
    return tuple(
        Beside(cell, buffer, party, rival)
        for cell in cells
        for party in PARTIES
        for rival in RIVALS
        for buffer in buffers
    )


@dataclass(frozen=True)
class CopiesPlan:
    """What is to be run: seconds are those that count."""

    contests: tuple[Beside, ...]
    seconds: float = 20.0
    simulate: bool = False

    @property
    def estimate_s(self) -> float:
        """How long it takes."""
        return len(self.contests) * 2 * (SETTLE_S + self.seconds + RUN_OVERHEAD_S)


# ---- the laboratory ----


def _bulk(
    hosts: tuple[Host, Host], rival: str, cgroup: Cgroup, seconds: float
) -> list[dict[str, Any]]:
    """The rival to its end; its receiver's intervals."""
    client, server = hosts
    options = ["-t", str(math.ceil(SETTLE_S + seconds + 1)), "-i", "0.5", "--get-server-output"]
    options += [] if rival == OURS else ["-C", rival]
    answer = iperf3(
        client,
        server.ip4,
        *options,
        port=PORTS[0],
        cgroup=cgroup if rival == OURS else None,
        timeout=seconds + 120,
    )
    intervals: list[dict[str, Any]] = answer["server_output_json"]["intervals"]
    return intervals


def run_once(beside: Beside, low: bool, directory: Path, seconds: float) -> Kept:
    """A laboratory, the party, the bulk flow, and its end."""
    cell, party = beside.cell, beside.party
    keys = {"latency": "low", "negotiate": "allow"} if low else {"latency": "normal"}
    policy = stack_policy(congestion=OURS, **keys, **ROOMY)
    pace = party.pace(SETTLE_S + seconds)
    with Lab("faircopies") as lab, ExitStack() as stack:
        hosts = [lab.host(name, tcp_buffers=TCP_BUFFERS_BYTES) for name in ("client", "server")]
        client, server = hosts
        path: dict[str, Any] = {
            "rate": f"{cell.rate_mbit:g}mbit",
            "delay": f"{cell.rtt_ms / 2:g}ms",
            "loss": f"{cell.loss_pct:g}%",
            "queue": Queue(size_bytes=beside.buffer_bytes),
        }
        lab.wan(client, server, **path, seed=1)
        cgroups = [stack.enter_context(Cgroup()) for _ in hosts]
        ours = [
            stack.enter_context(Routed(host, cgroup, policy, directory))
            for host, cgroup in zip(hosts, cgroups, strict=True)
        ]
        iperf3_server(server, directory / "iperf3", "-J", port=PORTS[0])
        log = directory / f"party-{party.name}.log"
        log.unlink(missing_ok=True)
        if party.echo:
            echo_server(server, ECHO_PORT, log, cgroups[1])
        else:
            sink_server(server, ECHO_PORT, party.write_bytes, log, cgroups[1])
        with ThreadPoolExecutor(1) as pool:
            bulk = pool.submit(_bulk, (client, server), beside.rival, cgroups[0], seconds)
            what = "ask" if party.echo else "send"
            told = Sender(what, client, (server.ip4, ECHO_PORT), pace, cgroups[0]).result()
            intervals = bulk.result()
        took = (told if party.echo else told_by(log)).message_s
        counted = [one.ask_stack(OURS) for one in ours]
    warm = round(SETTLE_S / party.gap_s)
    wanted = [(c, n) for c in range(pace.connections) for n in range(warm, pace.messages)]
    ms = sorted(took.get(key, math.inf) * 1e3 for key in wanted)
    share = payload_bps(intervals, SETTLE_S, SETTLE_S + seconds) / cell.limit_bps
    sent = sum(one["core_copies"] + one["core_parity"] for one in counted)
    return Kept(share, quantile(ms, 0.5), quantile(ms, 0.99), sent)


# ---- the simulator ----


def sim_arguments(beside: Beside, low: bool, until_s: float) -> list[str]:
    """The contest in the words of lab/sim/sim.c."""
    cell, party = beside.cell, beside.party
    pace = party.pace(until_s + 1)
    keys = {
        "cc": OURS,
        **({"bulk": 1} if beside.rival == OURS else {"rival": beside.rival}),
        "rate_Bps": round(cell.rate_mbit * 125_000),
        "delay_ns": round(cell.rtt_ms * 5e5),
        "queue_bytes": beside.buffer_bytes,
        "loss": cell.loss_pct / 100,
        "conns": party.flows,
        "maxconn": 2 * party.flows,
        "gap_ns": round(party.gap_s * 1e9 / party.flows),
        "up": pace.messages * party.write_bytes,
        "down": 0,
        "write_bytes": party.write_bytes,
        "write_gap_ns": round(party.gap_s * 1e9),
        "echo": int(party.echo),
        "one_way": int(not party.echo),
        "skip": round(SETTLE_S / party.gap_s) * party.flows,
        "latency": 1 if low else 2,
        "latency_b": 1 if low else 2,
        "negotiate": int(low),
        "krcvbuf": 1 << 30,
        "sndbuf": 1 << 30,
        "rcvbuf": 1 << 30,
        "memory": 4 << 30,
        "limit_ns": round(until_s * 1e9),
    }
    return [f"{key}={value}" for key, value in keys.items()]


def simulate(simulator: Path, beside: Beside, low: bool, seconds: float) -> Kept:
    """The same in virtual time; cubic and bbr are the core's own, of RFC 9438 and of the draft."""

    got = "bulk_got" if beside.rival == OURS else "rival_got"

    def run(until_s: float) -> dict[str, int]:
        argv = [str(simulator), *sim_arguments(beside, low, until_s)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        said = dict(line.split("=") for line in done.stdout.splitlines() if "=" in line)
        if done.returncode or got not in said:
            raise DmmError(f"simulate {beside}", why=(done.stderr or done.stdout).strip())
        return {name: int(value) for name, value in said.items()}

    early, late = run(SETTLE_S), run(SETTLE_S + seconds)
    got_bps = (late[got] - early[got]) * 8 / seconds
    sent = sum(late[f"{name}_{side}"] for name in ("copies", "parity") for side in "ab")
    return Kept(
        got_bps / beside.cell.limit_bps, late["trip_p50_us"] / 1e3, late["trip_p99_us"] / 1e3, sent
    )


def run_copies(
    plan: CopiesPlan, directory: Path, done: Callable[[Beside], None] = lambda beside: None
) -> Iterator[Pair]:
    """Contests one after another, each without and with copies, and in the simulator if asked."""
    simulator = corelab.build_plain(directory) if plan.simulate else None
    for beside in plan.contests:
        runs = [run_once(beside, low, directory, plan.seconds) for low in (False, True)]
        yield Pair(beside, "lab", *runs)
        if simulator:
            runs = [simulate(simulator, beside, low, plan.seconds) for low in (False, True)]
            yield Pair(beside, "simulator", *runs)
        done(beside)


def copies_table(pairs: list[Pair]) -> Table:
    """One line a contest; what costs the bulk flow more than LEAST_KEPT allows is red."""
    table = Table(
        title='a bulk flow beside messages or streams, latency "normal" → "low"; share of the limit',
        title_justify="left",
    )
    for name in ("path", "BDP", "ours", "bulk", "where"):
        table.add_column(name)
    for name in ("bulk's share", "keeps", "p50 ms", "p99 ms", "copies, parity"):
        table.add_column(name, justify="right")
    for pair in pairs:
        beside, a, b = pair.beside, pair.without, pair.low
        table.add_row(
            str(beside.cell),
            f"{beside.buffer_bdp:g}",
            beside.party.name,
            NAMES[beside.rival],
            pair.where,
            f"{a.share:.3f} → {b.share:.3f}",
            figure_text(pair.kept, 2, good=False if pair.kept < LEAST_KEPT else None),
            f"{a.p50_ms:.0f} → {b.p50_ms:.0f}",
            f"{a.p99_ms:.0f} → {b.p99_ms:.0f}",
            f"{b.sent:,}",
        )
    return table
