# SPDX-License-Identifier: Apache-2.0
"""Short flows: a file from a cold start over bad paths, and request-response on a clean wire with what it costs.

Cold start: curl fetches 1 MB from nginx; the server's host is the one that is routed. Ours and kernel BBR have a
laboratory each, both up at once, and fetch in turn; fetch n meets the same loss pattern on both. Latency: the clean
wire is a veth pair. docs/benchmarks.md says what the figures mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_inner import busy_s
from bench_matrix import POLICY, TCP_BUFFERS_BYTES, Cell
from lab import Cgroup, Host, Lab, curl_fetch, iperf3, iperf3_server, nginx, random_file
from lab.build import program_path
from lab.programs import start_server
from lab.routed import Routed

from dmm_ebpf.errors import DmmError

FILE_BYTES = 1_000_000
FETCH_TIMEOUT_S = 60.0
ECHO_PORT = 4001
REQUEST_BYTES = 64
SIDES = ("wan", "bbr")

# ---- a file from a cold start ----


@dataclass(frozen=True)
class ColdResult:
    """Completion times of one cell in seconds, connect() included, by side."""

    cell: Cell
    seconds: dict[str, list[float]]

    @property
    def ratio(self) -> float:
        """Median of ours / median of kernel BBR."""
        return statistics.median(self.seconds["wan"]) / statistics.median(self.seconds["bbr"])

    def to_json(self) -> dict[str, Any]:
        """Cell, times, medians and means."""
        return asdict(self.cell) | {
            "seconds": self.seconds,
            "median_s": {side: statistics.median(times) for side, times in self.seconds.items()},
            "mean_s": {side: statistics.fmean(times) for side, times in self.seconds.items()},
            "ratio": self.ratio,
        }


@contextmanager
def _file_server(cell: Cell, side: str, directory: Path) -> Iterator[Callable[[int], float]]:
    """Two hosts and nginx; gives fetch(seed), which returns seconds."""
    with Lab("cold") as lab, ExitStack() as stack:
        client, server = (lab.host(name, tcp_buffers=TCP_BUFFERS_BYTES) for name in ("client", "server"))
        delay, loss = f"{cell.rtt_ms / 2:g}ms", f"{cell.loss_pct:g}%"
        link = lab.wan(client, server, rate=f"{cell.rate_mbit:g}mbit", delay=delay, loss=loss)
        cgroup = stack.enter_context(Cgroup())
        if side == "wan":
            stack.enter_context(Routed(server, cgroup, POLICY, directory))
        else:
            server.sysctl("net.ipv4.tcp_congestion_control", side)
        url = nginx(server, directory / "files", directory / f"nginx-{side}", cgroup=cgroup).url("file")

        def fetch(seed: int) -> float:
            link.set(seed=seed)
            got = curl_fetch(client, url, timeout=FETCH_TIMEOUT_S, options=["-w", "%{stderr}%{time_total}"])
            if got.exit_code or got.size_bytes != FILE_BYTES:
                raise DmmError(f"fetch a file over {cell} by {side}", why=got.stderr or "it was cut short")
            if link.stats().own_drops:
                raise DmmError(f"measure {cell} by {side}", why="the laboratory itself lost frames")
            return float(got.stderr)

        yield fetch


def cold_start(cell: Cell, directory: Path, repeat: int) -> ColdResult:
    """repeat fetches by each side, in turn."""
    files = directory / "files"
    if not files.exists():
        files.mkdir()
        random_file(files / "file", FILE_BYTES)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        fetches = {side: stack.enter_context(_file_server(cell, side, directory)) for side in SIDES}
        for number in range(repeat):
            for side in sorted(SIDES, reverse=bool(number % 2)):
                seconds[side].append(fetches[side](number + 1))
    return ColdResult(cell, seconds)


# ---- latency and cost on a clean wire ----


@dataclass(frozen=True)
class Exchange:
    """Request-response over one connection or over a fresh one each: how many a second, and how long one takes."""

    per_second: float
    median_us: float
    p99_us: float


@dataclass(frozen=True)
class Latency:
    """One side on a clean wire. cpu_ns_per_byte: both hosts and everything between, all cores."""

    request_response: Exchange
    connections: Exchange
    bulk_gbps: float
    cpu_ns_per_byte: float


def exchange(client: Host, cgroup: Cgroup, address: str, seconds: float, *, fresh: bool) -> Exchange:
    """pingpong from client; fresh: a new connection for each request."""
    words: list[str | Path] = [program_path("pingpong"), "crr" if fresh else "rr", address, str(ECHO_PORT)]
    done = cgroup.run([*words, f"{seconds:g}", str(REQUEST_BYTES)], host=client, timeout=seconds + 60)
    count, elapsed_ns, median_ns, p99_ns = (int(word) for word in done.stdout.split())
    return Exchange(count / elapsed_ns * 1e9, median_ns / 1e3, p99_ns / 1e3)


def bulk(client: Host, cgroup: Cgroup, address: str, seconds: float) -> tuple[float, float]:
    """Gb/s of one iperf3 flow, and the machine's CPU for each byte in ns."""
    busy = busy_s()
    answer = iperf3(client, address, "-t", f"{max(1, round(seconds))}", cgroup=cgroup)
    busy = busy_s() - busy
    got = answer["end"]["sum_received"]
    return got["bits_per_second"] / 1e9, busy * 1e9 / got["bytes"]


def latency_once(side: str, directory: Path, seconds: float) -> Latency:
    """One side ("user stack" or "kernel"), all three measurements."""
    with Lab("latency") as lab, ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        lab.wire(client, server)
        cgroup = stack.enter_context(Cgroup())
        serve: list[str | Path] = [program_path("pingpong"), "serve", server.ip4, str(ECHO_PORT)]
        start_server(server, serve, ECHO_PORT, directory / "pingpong.log")
        iperf3_server(server, directory / "iperf3")
        if side == "user stack":
            stack.enter_context(
                Routed(
                    client, cgroup, POLICY.replace('congestion = "wan"', 'congestion = "cubic"'), directory
                )
            )
        asked = exchange(client, cgroup, server.ip4, seconds, fresh=False)
        connected = exchange(client, cgroup, server.ip4, seconds, fresh=True)
        gbps, cpu = bulk(client, cgroup, server.ip4, seconds)
    return Latency(asked, connected, gbps, cpu)


def median_latency(runs: Sequence[Latency]) -> Latency:
    """Figure by figure."""

    def middle(part: Callable[[Latency], Exchange]) -> Exchange:
        found = [part(run) for run in runs]
        return Exchange(
            statistics.median(e.per_second for e in found),
            statistics.median(e.median_us for e in found),
            statistics.median(e.p99_us for e in found),
        )

    return Latency(
        middle(lambda run: run.request_response),
        middle(lambda run: run.connections),
        statistics.median(run.bulk_gbps for run in runs),
        statistics.median(run.cpu_ns_per_byte for run in runs),
    )


def bench_latency(directory: Path, rounds: int, seconds: float) -> dict[str, Latency]:
    """Both sides, rounds alternating; medians."""
    sides = ("user stack", "kernel")
    found: dict[str, list[Latency]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            found[side].append(latency_once(side, directory, seconds))
    return {side: median_latency(runs) for side, runs in found.items()}
