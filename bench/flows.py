# SPDX-License-Identifier: Apache-2.0
"""Short flows: a file from a cold start over bad paths, and request-response on a clean wire with
what it costs.

Cold start: curl fetches 1 MB from nginx; the server's host is the one that is routed. Ours
and kernel BBR have a laboratory each, both up at once, and fetch in turn; fetch n meets the
same loss pattern on both. Latency: the clean wire is a veth pair. docs/benchmarks.md says
what the figures mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.matrix import TCP_BUFFERS_BYTES, Cell
from bench.policies import ROOMY, stack_policy
from dmm_ebpf.errors import DmmError
from dmm_ebpf.userstack.spec import process_label
from lab import Cgroup, Host, Lab, curl_fetch, iperf3, iperf3_server, nginx, random_file
from lab.build import program_path
from lab.cpu import busy_s
from lab.programs import start_server
from lab.routed import Routed

FILE_BYTES = 1_000_000
FETCH_TIMEOUT_S = 60.0
ECHO_PORT = 4001
REQUEST_BYTES = 64
SIDES = ("wan", "bbr")
FLOWS = 8  # at once, for several processes of a stack

Side = TypeVar("Side")
Measured = TypeVar("Measured")

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
        client, server = (
            lab.host(name, tcp_buffers=TCP_BUFFERS_BYTES) for name in ("client", "server")
        )
        delay, loss = f"{cell.rtt_ms / 2:g}ms", f"{cell.loss_pct:g}%"
        link = lab.wan(client, server, rate=f"{cell.rate_mbit:g}mbit", delay=delay, loss=loss)
        cgroup = stack.enter_context(Cgroup())
        if side == "wan":
            stack.enter_context(
                Routed(server, cgroup, stack_policy(congestion="wan", **ROOMY), directory)
            )
        else:
            server.sysctl("net.ipv4.tcp_congestion_control", side)
        url = nginx(server, directory / "files", directory / f"nginx-{side}", cgroup=cgroup).url(
            "file"
        )

        def fetch(seed: int) -> float:
            link.set(seed=seed)
            got = curl_fetch(
                client, url, timeout=FETCH_TIMEOUT_S, options=["-w", "%{stderr}%{time_total}"]
            )
            if got.exit_code or got.size_bytes != FILE_BYTES:
                raise DmmError(
                    f"fetch a file over {cell} by {side}", why=got.stderr or "it was cut short"
                )
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
    """Request-response over one connection or over a fresh one each: how many a second, and how
    long one takes.
    """

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


def exchange(
    client: Host, cgroup: Cgroup, address: str, seconds: float, *, fresh: bool
) -> Exchange:
    """pingpong from client; fresh: a new connection for each request."""
    words: list[str | Path] = [
        program_path("pingpong"),
        "crr" if fresh else "rr",
        address,
        str(ECHO_PORT),
    ]
    done = cgroup.run(
        [*words, f"{seconds:g}", str(REQUEST_BYTES)], host=client, timeout=seconds + 60
    )
    count, elapsed_ns, median_ns, p99_ns = (int(word) for word in done.stdout.split())
    return Exchange(count / elapsed_ns * 1e9, median_ns / 1e3, p99_ns / 1e3)


def bulk(
    client: Host, cgroup: Cgroup, address: str, seconds: float, *options: str
) -> tuple[float, float]:
    """Gb/s of an iperf3 flow, or as many as its options say, and the machine's CPU for each
    byte in ns.
    """
    busy = busy_s()
    answer = iperf3(client, address, "-t", f"{max(1, round(seconds))}", *options, cgroup=cgroup)
    busy = busy_s() - busy
    got = answer["end"]["sum_received"]
    return got["bits_per_second"] / 1e9, busy * 1e9 / got["bytes"]


def latency_once(policy: str | None, directory: Path, seconds: float) -> Latency:
    """One side, all three measurements: the user stack of policy, or the kernel if that is None."""
    with Lab("latency") as lab, ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        lab.wire(client, server)
        cgroup = stack.enter_context(Cgroup())
        serve: list[str | Path] = [program_path("pingpong"), "serve", server.ip4, str(ECHO_PORT)]
        start_server(server, serve, ECHO_PORT, directory / "pingpong.log")
        iperf3_server(server, directory / "iperf3")
        if policy is not None:
            stack.enter_context(Routed(client, cgroup, policy, directory))
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


def latency_sides(busy_poll_us: int) -> dict[str, str | None]:
    """The policy of each side, the kernel last; busy_poll_us, unless it is 0: of one side more."""
    sides: dict[str, str | None] = {"user stack": stack_policy(**ROOMY, congestion="cubic")}
    if busy_poll_us:
        policy = stack_policy(**ROOMY, congestion="cubic", busy_poll_us=busy_poll_us)
        sides[f"busy_poll_us = {busy_poll_us}"] = policy
    return sides | {"kernel": None}


def in_turn(
    sides: dict[str, Side], rounds: int, once: Callable[[Side], Measured]
) -> dict[str, list[Measured]]:
    """once(what a side is) of each, in every round; the order changes from round to round."""
    found: dict[str, list[Measured]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            found[side].append(once(sides[side]))
    return found


def bench_latency(
    directory: Path, rounds: int, seconds: float, busy_poll_us: int = 0
) -> dict[str, Latency]:
    """Every side, rounds alternating; medians."""
    runs = in_turn(
        latency_sides(busy_poll_us), rounds, lambda policy: latency_once(policy, directory, seconds)
    )
    return {side: median_latency(found) for side, found in runs.items()}


# ---- several processes of a stack ----


@dataclass(frozen=True)
class Bulk:
    """FLOWS bulk flows at once: Gb/s together, the machine's CPU for each byte, and how many
    connections each process of the stack has had, iperf3's own among them.
    """

    gbps: float
    cpu_ns_per_byte: float
    connections: tuple[int, ...]


def bulk_once(processes: int, directory: Path, seconds: float) -> Bulk:
    """A user stack of so many processes on a clean wire; 0: the kernel."""
    with Lab("processes") as lab, ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        lab.wire(client, server)
        cgroup = stack.enter_context(Cgroup())
        iperf3_server(server, directory / "iperf3")
        policy = stack_policy(**ROOMY, congestion="cubic", processes=max(1, processes))
        routed = (
            stack.enter_context(Routed(client, cgroup, policy, directory)) if processes else None
        )
        gbps, cpu = bulk(client, cgroup, server.ip4, seconds, "-P", str(FLOWS))
        labels = [process_label("wan", number) for number in range(processes)]
        opened = [routed.ask_stack(label)["core_active_open"] for label in labels] if routed else []
    return Bulk(gbps, cpu, tuple(opened))


def bench_processes(
    directory: Path, rounds: int, seconds: float, processes: int
) -> dict[str, Bulk]:
    """A stack of one process, one of several, and the kernel, rounds alternating; medians, and the
    connections of the last round.
    """
    sides = {"1 process": 1, f"{processes} processes": processes, "kernel": 0}
    runs = in_turn(sides, rounds, lambda count: bulk_once(count, directory, seconds))
    return {
        side: Bulk(
            statistics.median(run.gbps for run in found),
            statistics.median(run.cpu_ns_per_byte for run in found),
            found[-1].connections,
        )
        for side, found in runs.items()
    }
