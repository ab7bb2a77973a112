# SPDX-License-Identifier: Apache-2.0
"""Real programs over a line that is bad on both legs: what `tools/soak transfers` does.

Two hosts and an emulated link that loses, reorders and doubles packets both ways (the outer leg).
On each host whose programs go through a user stack, packets between the kernel and the stack suffer
the same (the inner leg). In one phase the client's host has the stack, in the next the server's, in
the last both. A run proves something only if packets were lost, late and doubled on every leg, both
ways: counters that stayed 0 are found as well.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.hal import stackdevice
from lab import Cgroup, Host, Lab, WanLink
from lab.innerleg import FATES, WAYS, InnerLeg
from lab.routed import Routed
from lab.units import parse_probability
from soak.jobs import NOISE_BYTES, SEND_BUFFER_BYTES, SHARES, Job, Noise, Programs, make_job

ROLES = {"client": ("client",), "server": ("server",), "both": ("client", "server")}
NO_TRANSFERS = {"bytes": 0, "transfers": 0, "verified": 0, "errors": 0}
TMPFS = Path("/dev/shm")
LEAST_NOISE_BYTES = 10_000_000
MOST_FAILURES = 20
SLOT = 0  # of the only NIC
OUTER_FATES = {"losses": "lost", "reordered": "late", "duplicated": "doubled"}
# Of the kernel's ends: what the bad line made them see (Documentation/networking/snmp_counter.rst).
KERNEL_COUNTERS = (
    "RetransSegs",
    "TCPTimeouts",
    "TCPOFOQueue",
    "TCPDSACKOldSent",
    "TCPDSACKOfoSent",
    "TCPDSACKRecv",
)
POLICY = """
[stacks.user]
kind = "user"
io = "af_xdp"
transport = "tcp"
congestion = "{congestion}"
processes = {processes}
fallback = "reject"

[[rules]]
name = "all"
cgroup = "{{cgroup}}"
table = "all"

[[tables.all.routes]]
to = "default"
stack = "user"
"""


@dataclass(frozen=True)
class Options:
    """What to do. bytes_wanted: of payload that arrived and was compared, all phases together.
    Probabilities and times are spelt as for tools/wanlab.
    """

    bytes_wanted: int
    seed: int
    congestion: str
    processes: int
    roles: tuple[str, ...]
    parallel: int
    rate: str
    delay: str
    outer: dict[str, Any]
    inner: dict[str, Any]
    only: str | None = None

    @property
    def phase_bytes(self) -> int:
        """Of one phase. Sizes and places of transfers follow from it, not from how many
        phases there are.
        """
        return self.bytes_wanted // len(self.roles)

    def command(self, roles: str) -> str:
        """What makes one phase's transfers again."""
        words = {
            "gigabytes": repr(self.phase_bytes / 1e9),
            "seed": self.seed,
            "cc": self.congestion,
            "processes": self.processes,
            "parallel": self.parallel,
            "rate": self.rate,
            "delay": self.delay,
            **self.outer,
            **{f"inner-{name}": value for name, value in self.inner.items()},
            "role": roles,
        }
        return "tools/soak transfers " + " ".join(
            f"--{name} {value}" for name, value in words.items()
        )


@dataclass(frozen=True)
class Failure:
    """A transfer that did not arrive intact, or something else that a run must not show; the
    command for it again.
    """

    what: str
    repeat: str = ""


@dataclass
class Phase:
    """What one assignment of stacks to hosts has shown."""

    roles: str
    seconds: float = 0.0
    programs: dict[str, dict[str, int]] = field(
        default_factory=lambda: {n: dict(NO_TRANSFERS) for n in SHARES}
    )
    outer: dict[str, dict[str, int]] = field(default_factory=dict)
    inner: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    stacks: dict[str, dict[str, int]] = field(default_factory=dict)
    kernel: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def bytes_verified(self) -> int:
        """Payload that arrived and was compared."""
        return sum(counts["bytes"] for counts in self.programs.values())

    def legs(self) -> Iterator[tuple[str, dict[str, int], int]]:
        """Each leg and way: its name, its packets' fates, and what its sender sent again."""
        for way, sender in (("to_server", "client"), ("to_client", "server")):
            stack = self.stacks.get(sender)
            again = (
                stack["retransmits"] - stack["inner_retransmits"]
                if stack
                else self._by_kernel(sender)
            )
            yield f"outer, {way.replace('_', ' ')}", self.outer[way], again
        for host, ways in self.inner.items():
            for way, again in (
                ("to_stack", self._by_kernel(host)),
                ("to_kernel", self.stacks[host]["inner_retransmits"]),
            ):
                yield f"inner of {host}, {way.replace('_', ' ')}", ways[way], again

    def _by_kernel(self, host: str) -> int:
        return self.kernel[host].get("RetransSegs", 0)


@dataclass
class Summary:
    """A whole run."""

    options: Options
    phases: list[Phase]
    failures: list[Failure]
    seconds: float

    @property
    def programs(self) -> dict[str, dict[str, int]]:
        """Per program: bytes, transfers, hashes that were right, errors."""
        return {
            name: {
                what: sum(phase.programs[name][what] for phase in self.phases)
                for what in NO_TRANSFERS
            }
            for name in SHARES
        }

    @property
    def bytes_verified(self) -> int:
        """Payload that arrived and was compared."""
        return sum(phase.bytes_verified for phase in self.phases)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "options": asdict(self.options),
            "seconds": round(self.seconds, 1),
            "bytes_verified": self.bytes_verified,
            "programs": self.programs,
            "phases": [
                asdict(phase) | {"bytes_verified": phase.bytes_verified} for phase in self.phases
            ],
            "failures": [asdict(failure) for failure in self.failures],
        }


def kernel_counters() -> Counter[str]:
    """KERNEL_COUNTERS of the caller's network namespace, from /proc/net/snmp
    and netstat (proc(5)).
    """
    found: Counter[str] = Counter()
    for name, kind in (("snmp", "Tcp:"), ("netstat", "TcpExt:")):
        lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()
        names, values = (line.split()[1:] for line in lines if line.startswith(kind))
        found.update(
            {k: int(v) for k, v in zip(names, values, strict=True) if k in KERNEL_COUNTERS}
        )
    return found


class Work:
    """Hands out transfers until every program has its share, and keeps count. Used
    by many threads.
    """

    def __init__(
        self, options: Options, phase: Phase, noise_bytes: int, progress: Progress
    ) -> None:
        self.options = options
        self.phase = phase
        self.noise_bytes = noise_bytes
        self.failures: list[Failure] = []
        self.wanted = {name: options.phase_bytes * share for name, share in SHARES.items()}
        self._progress = progress
        self._tasks = {
            name: progress.add_task(f"{phase.roles}: {name}", total=int(wanted), errors=0)
            for name, wanted in self.wanted.items()
        }
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self._ended = False
        self._only_left = [options.only] if options.only else []

    def next(self) -> Job | None:
        """The next transfer of the program that is furthest behind; None: enough, or
        too many failures.
        """
        with self._lock:
            if self.options.only:
                return self._make(*self._only_left.pop().split(":")) if self._only_left else None
            if self._ended or len(self.failures) >= MOST_FAILURES:
                return None
            done = {
                name: (self.phase.programs[name]["bytes"] + self._under_way[name]) / wanted
                for name, wanted in self.wanted.items()
            }
            program = min(done, key=lambda name: done[name])
            if done[program] >= 1:
                return None
            job = self._make(program, str(self._numbers[program]))
            self._numbers[program] += 1
            self._under_way[program] += job.size_bytes
            return job

    def close(self) -> None:
        """No more transfers."""
        self._ended = True

    def _make(self, program: str, number: str) -> Job:
        limit = max(1, int(self.wanted[program] / 3))
        return make_job(
            self.options.seed,
            self.phase.roles,
            program,
            int(number),
            limit_bytes=limit,
            noise_bytes=self.noise_bytes,
        )

    def done(self, job: Job, size_bytes: int, why: str) -> None:
        """A transfer ended: so many bytes arrived and are right, or why not."""
        with self._lock:
            self._under_way[job.program] -= job.size_bytes
            counts = self.phase.programs[job.program]
            counts["transfers"] += 1
            counts["bytes"] += size_bytes
            counts["errors" if why else "verified"] += 1
            self._progress.update(
                self._tasks[job.program], completed=counts["bytes"], errors=counts["errors"]
            )
            if why:
                failure = Failure(
                    f"{job.kind}, stack of {job.roles}: {why}",
                    f"{self.options.command(job.roles)} --only {job.name}",
                )
                self.failures.append(failure)
                self._progress.console.print(
                    f"soak: found: {failure.what}", markup=False, soft_wrap=True
                )


def _serve(work: Work, programs: Programs) -> None:
    while (job := work.next()) is not None:
        size_bytes, why = 0, ""
        try:
            size_bytes = programs.transfer(job)
        except (DmmError, TimeoutError, SubprocessError, OSError) as error:
            why = error.why if isinstance(error, DmmError) else str(error)
        work.done(job, size_bytes, why)


class Site:
    """Two hosts, the link between them, and a place in memory for files."""

    def __init__(self, options: Options, lab: Lab, directory: Path, stack: ExitStack) -> None:
        self.options = options
        self.directory = directory
        self.hosts = {name: lab.host(name, tcp_buffers=16 << 20) for name in ("client", "server")}
        for host in self.hosts.values():
            host.sysctl("net.ipv4.tcp_wmem", f"4096 {SEND_BUFFER_BYTES} {SEND_BUFFER_BYTES}")
        self.cgroups = {name: stack.enter_context(Cgroup()) for name in self.hosts}
        self.link: WanLink = lab.wan(
            self.hosts["client"],
            self.hosts["server"],
            rate=options.rate,
            delay=options.delay,
            queue="2000p",
            reorder_delay="1ms",
            seed=options.seed,
            **options.outer,
        )
        served = directory / "www"
        served.mkdir()
        size_bytes = min(NOISE_BYTES, max(options.phase_bytes, LEAST_NOISE_BYTES))
        self.noise = Noise(served / "noise", size_bytes, options.seed)

    def run(self, roles: str, progress: Progress) -> tuple[Phase, list[Failure]]:
        """One phase, with stacks on the hosts of these roles; both legs are bad only
        while it lasts.
        """
        phase = Phase(roles)
        began = time.monotonic()
        with ExitStack() as stack:
            routed = {
                name: stack.enter_context(self._attach(self.hosts[name], self.cgroups[name], phase))
                for name in ROLES[roles]
            }
            programs = Programs(
                (self.hosts["client"], self.cgroups["client"]),
                (self.hosts["server"], self.cgroups["server"]),
                self.noise,
                self.directory,
            )
            stack.callback(programs.stop)
            self.link.reset()
            before = {name: host.call(kernel_counters) for name, host in self.hosts.items()}
            work = Work(self.options, phase, self.noise.size_bytes, progress)
            # Whatever interrupts the run waits for the transfers under way, and for no others.
            with ThreadPoolExecutor(self.options.parallel) as pool, closing(work):
                for future in [
                    pool.submit(_serve, work, programs) for _ in range(self.options.parallel)
                ]:
                    future.result()
            for name, host in self.hosts.items():
                phase.kernel[name] = dict(host.call(kernel_counters) - before[name])
            for name, dmm in routed.items():
                row = dmm.stack("user")
                phase.stacks[name] = row["counters"]
                if row["restarts"]:
                    what = f"the stack on {name} ended and was started again"
                    work.failures.append(Failure(what, self.options.command(roles)))
            phase.outer = self._outer()
        phase.seconds = round(time.monotonic() - began, 1)
        return phase, work.failures

    @contextmanager
    def _attach(self, host: Host, cgroup: Cgroup, phase: Phase) -> Iterator[Routed]:
        policy = POLICY.format(congestion=self.options.congestion, processes=self.options.processes)
        with Routed(host, cgroup, policy, self.directory) as routed:
            lost, late, doubled = (
                parse_probability(self.options.inner[name])
                for name in ("loss", "reorder", "duplicate")
            )
            with ExitStack() as stack:
                legs = [
                    stack.enter_context(
                        InnerLeg(
                            host,
                            stackdevice.inner(process["device"], SLOT),
                            lost=lost,
                            late=late,
                            doubled=doubled,
                        )
                    )
                    for process in routed.stack("user")["processes"]
                ]
                yield routed
                phase.inner[host.name] = total = {way: dict.fromkeys(FATES, 0) for way in WAYS}
                for leg in legs:
                    for way, stats in leg.stats().items():
                        for fate, packets in asdict(stats).items():
                            total[way][fate] += packets

    def _outer(self) -> dict[str, dict[str, int]]:
        stats = self.link.stats()
        return {
            name: {
                "packets": way.rx_pkts,
                "queue_drops": way.queue_drops,
                "own_drops": way.own_drops,
                **{ours: getattr(way, theirs) for theirs, ours in OUTER_FATES.items()},
            }
            for name, way in (("to_server", stats.ab), ("to_client", stats.ba))
        }


def untouched(options: Options, phases: list[Phase]) -> list[str]:
    """What should have happened to packets, and never did in the whole run."""
    happened: Counter[str] = Counter()
    asked = {"lost": "loss", "late": "reorder", "doubled": "duplicate"}
    expected = set()
    for fate in FATES:
        if parse_probability(options.outer[asked[fate]]):
            expected |= {f"{fate} on the outer leg, {way}" for way in ("to_server", "to_client")}
        if parse_probability(options.inner[asked[fate]]):
            expected |= {f"{fate} on the inner leg, {way}" for way in WAYS}
    for phase in phases:
        for way, stats in phase.outer.items():
            happened.update({f"{fate} on the outer leg, {way}": stats[fate] for fate in FATES})
        for ways in phase.inner.values():
            for way in WAYS:
                happened.update(
                    {f"{fate} on the inner leg, {way}": ways[way][fate] for fate in FATES}
                )
    return sorted(name for name in expected if not happened[name])


def soak(options: Options, console: Console) -> Summary:
    """Transfers until enough has arrived; raises DmmError where that cannot begin."""
    if unknown := [role for role in options.roles if role not in ROLES]:
        raise UsageError(f"use the role {unknown[0]!r}", why=f"there are {', '.join(ROLES)}")
    program, _, number = (options.only or "redis:0").partition(":")
    if program not in SHARES or not number.isdecimal():
        known = ", ".join(SHARES)
        raise UsageError(
            f"do only {options.only!r}", why=f"it is PROGRAM:NUMBER, with a program of {known}"
        )
    began = time.monotonic()
    # So that nothing is left behind then either.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[errors]} errors"),
        TimeElapsedColumn(),
        console=console,
    )
    phases, failures = [], []
    with (
        tempfile.TemporaryDirectory(dir=TMPFS if TMPFS.is_dir() else None) as name,
        Lab("transfers") as lab,
        ExitStack() as stack,
        progress,
    ):
        Path(name).chmod(0o755)
        site = Site(options, lab, Path(name), stack)
        for roles in options.roles:
            phase, found = site.run(roles, progress)
            phases.append(phase)
            failures += found
    if not options.only:
        missing = untouched(options, phases)
        failures += [Failure(f"no packet was {name}: nothing is proven") for name in missing]
    return Summary(options, phases, failures, time.monotonic() - began)
