# SPDX-License-Identifier: Apache-2.0
"""A fleet on one etcd: how long from a push to the last host, and what etcd pays, as hosts grow.

Each host is the director's own source and publisher (dmm_ebpf/rd/sources) over connections of its
own; simulated is only the instance, which takes every policy at once. All hosts run in one process,
so what they need of a processor is told beside what etcd needs: many machines have it in parallel.
With more hosts than that process can serve, it is the process that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from dmm_ebpf.central import place as places
from dmm_ebpf.central.client import EtcdDownError, connect
from dmm_ebpf.central.controller import Controller, Order
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.central.layout import Bundle
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.routechange import Changing
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.sources.etcdsource import EtcdSource
from dmm_ebpf.rd.sources.follower import follower
from lab import Lab
from lab.etcd import Cluster

HOSTS = (1, 10, 100, 1000)
PUSHES = 3
REST_S = 10.0
WITHIN_S = 300.0
ESTIMATE_S = {1: 20.0, 10: 20.0, 100: 25.0, 1000: 90.0}
_STARTED = re.compile(r"^grpc_server_started_total\{[^}]*\} (\S+)$", re.MULTILINE)
T = TypeVar("T")
_TICKS = os.sysconf("SC_CLK_TCK")

POLICY = """
[hosts]
odd = "parity=odd"
[stacks.lan]
kind = "kernel"
[[rules]]
hosts = "odd"
table = "t"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "10.{number}.0.0/16"
stack = "lan"
"""


@dataclass(frozen=True)
class Grown:
    """Of so many hosts, medians of PUSHES. *_s: seconds of processor time, or from the push until
    half of the hosts, and the last, have it. requests: that etcd has begun to answer from a push to
    the last host. rest_share: of a processor, while nothing is pushed, and rest_requests in a
    second then. host_kb: resident memory of what a director has for its fleet.
    """

    hosts: int
    half_s: float
    last_s: float
    etcd_s: float
    hosts_s: float
    requests: float
    rest_share: float
    rest_requests: float
    etcd_mb: float
    host_kb: float

    def to_json(self) -> dict[str, float]:
        """For --json."""
        return asdict(self)


@dataclass
class _Named:
    """See served.Named."""

    instance: str
    policy: str | None = None
    cgroup: str = "/"


class _NoRoutes:
    """No single routes, and none that are shared."""

    def __init__(self) -> None:
        self.sharing: dict[str, Any] = {}

    def reserve(self, _count: int) -> int:
        return 0


class _Simulated:
    """An instance that serves nobody (served.Served). applied: when."""

    def __init__(self, number: int) -> None:
        self.state = _Named(f"h{number}")
        self.policy: Policy | None = None
        self.live = self.adaptive = _NoRoutes()
        self.applied = 0.0
        self.pushes = 0

    async def apply(self, new: Policy, path: Path | None) -> int:
        self.policy, self.state.policy = new, str(path)
        self.applied, self.pushes = time.monotonic(), self.pushes + 1
        return self.pushes

    async def change(self, work: Callable[[Changing], Awaitable[T]]) -> T:
        raise DmmError("change single routes", why="there are none")

    async def list_stacks(self) -> list[Any]:
        return []

    async def list_flows(self) -> AsyncIterator[list[Any]]:
        yield []

    def list_listeners(self) -> list[Any]:
        return []

    def publish(self, make: Callable[[], object]) -> None:
        """Nobody follows."""


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise DmmError("go on with the benchmark", why=f"{what} took over {WITHIN_S:g} s")
        await asyncio.sleep(0.005)


def _cpu_s(pid: int) -> float:
    """See proc(5), /proc/pid/stat: utime and stime, behind the name."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class _Etcd:
    """What a member has spent so far."""

    def __init__(self, pid: int, url: str) -> None:
        self.pid = pid
        self._metrics = f"{url}/metrics"

    def spent(self) -> tuple[float, int]:
        """Seconds of processor time, and requests, those by its HTTP gateway among them."""
        with urllib.request.urlopen(self._metrics, timeout=60) as answer:
            found = _STARTED.findall(answer.read().decode())
        return _cpu_s(self.pid), sum(int(float(one)) for one in found)


async def _measure(text: str, count: int, etcd: _Etcd) -> Grown:
    place = places.parse(text)
    before_mb = _rss_mb(os.getpid())
    instances = [_Simulated(number) for number in range(count)]
    tasks = []
    for number, one in enumerate(instances):
        who = follower(place, f"host{number}", [f"parity={'odd' if number % 2 else 'even'}"])
        fleet = Fleet(await connect(place))
        source = EtcdSource(one, fleet, who)
        tasks.append(asyncio.ensure_future(source.run()))
    operator = await connect(place)
    controller = Controller(Fleet(operator))
    try:
        await _all_listed(controller, count)
        began = etcd.spent()
        await asyncio.sleep(REST_S)
        ended = etcd.spent()
        rounds = [await _push(controller, instances, number, etcd) for number in range(PUSHES)]
        host_kb = (_rss_mb(os.getpid()) - before_mb) * 1000 / count
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await operator.close()
    half, last, etcd_s, hosts, requests = (
        sorted(column)[len(rounds) // 2] for column in zip(*rounds, strict=True)
    )
    rest, rest_requests = (
        (after - before) / REST_S for before, after in zip(began, ended, strict=True)
    )
    memory = _rss_mb(etcd.pid), host_kb
    return Grown(count, half, last, etcd_s, hosts, requests, rest, rest_requests, *memory)


async def _all_listed(controller: Controller, count: int) -> None:
    """Until every host has said what it is, however long etcd takes for so many at once."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with contextlib.suppress(EtcdDownError):
                if len((await controller.standing()).rows()) == count:
                    return
            await asyncio.sleep(0.2)


async def _push(
    controller: Controller, instances: list[_Simulated], number: int, etcd: _Etcd
) -> tuple[float, ...]:
    """Until half of the hosts have it, the last, the processor time of etcd and of hosts, and the
    requests.
    """
    bundle = Bundle(POLICY.replace("{number}", str(number)))
    (cpu_s, requests), hosts, began = etcd.spent(), time.process_time(), time.monotonic()
    await controller.push(Order(bundle, "bench", 2, 1))
    await _until(lambda: all(one.pushes > number for one in instances), "a push")
    after = sorted(one.applied - began for one in instances)
    cpu_now_s, requests_now = etcd.spent()
    spent = cpu_now_s - cpu_s, time.process_time() - hosts, requests_now - requests
    return after[len(after) // 2], after[-1], *spent


def bench_control(
    directory: Path, counts: tuple[int, ...], done: Callable[[Grown], object]
) -> list[Grown]:
    """Each number of hosts, on an etcd of its own."""
    found = []
    for count in counts:
        with Lab("control") as lab, tempfile.TemporaryDirectory(dir="/dev/shm") as state:
            host, other = lab.host("host"), lab.host("other")
            lab.wire(host, other)
            with Cluster([host], directory / f"etcd-{count}") as etcd:
                member = etcd.members[0]
                assert member.process is not None
                argv = [sys.executable, "-m", "bench.control", etcd.place(), count]
                argv += [member.process.pid, member.client_url]
                environment = os.environ | {"STATE_DIRECTORY": state}
                words = [str(one) for one in argv]
                ran = host.run(words, env=environment, timeout=2 * WITHIN_S, check=False)
        if ran.returncode:
            why = ran.stderr.strip().splitlines()[-1]
            raise DmmError(f"follow one etcd with {count} hosts", why=why)
        found.append(Grown(**json.loads(ran.stdout)))
        done(found[-1])
    return found


def control_table(found: list[Grown]) -> Table:
    """One column for each number of hosts."""
    table = Table(title="one etcd, from a push to its hosts", title_justify="left")
    table.add_column("hosts")
    for one in found:
        table.add_column(f"{one.hosts:,}", justify="right")
    lines: dict[str, Callable[[Grown], str]] = {
        "half of them have it": lambda one: f"{one.half_s:.2f} s",
        "the last has it": lambda one: f"{one.last_s:.2f} s",
        "etcd: processor time": lambda one: f"{one.etcd_s:.2f} s",
        "etcd: requests": lambda one: f"{one.requests:,.0f}",
        "all hosts: processor time": lambda one: f"{one.hosts_s:.2f} s",
        "etcd at rest: of a processor": lambda one: f"{one.rest_share:.1%}",
        "etcd at rest: requests a second": lambda one: f"{one.rest_requests:,.1f}",
        "etcd's memory": lambda one: f"{one.etcd_mb:.0f} MB",
        "a host's memory": lambda one: f"{one.host_kb:,.0f} KB",
    }
    for what, text in lines.items():
        table.add_row(what, *(text(one) for one in found))
    return table


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    member = _Etcd(int(sys.argv[3]), sys.argv[4])
    print(json.dumps(asdict(asyncio.run(_measure(sys.argv[1], int(sys.argv[2]), member)))))
