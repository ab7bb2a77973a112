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
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.table import Table

from dmm_ebpf.central import place as places
from dmm_ebpf.central.client import EtcdDownError, connect
from dmm_ebpf.central.controller import Controller, Order
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.central.layout import Bundle
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.instance import Instance
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.sources.etcdsource import EtcdSource
from dmm_ebpf.rd.sources.follower import follower
from lab import Lab
from lab.etcd import Cluster

HOSTS = (1, 10, 100)
PUSHES = 3
REST_S = 10.0
WITHIN_S = 300.0
ESTIMATE_S = {1: 20.0, 10: 20.0, 100: 25.0}
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
    half of the hosts, and the last, have it. rest_share: of a processor, while nothing is pushed.
    """

    hosts: int
    half_s: float
    last_s: float
    etcd_s: float
    hosts_s: float
    rest_share: float
    etcd_mb: float

    def to_json(self) -> dict[str, float]:
        """For --json."""
        return asdict(self)


class _Simulated:
    """What a source asks of an instance. applied: when."""

    def __init__(self, number: int) -> None:
        self.state = SimpleNamespace(instance=f"h{number}", policy=None, cgroup="/")
        self.policy: Policy | None = None
        self.applied = 0.0
        self.pushes = 0

    async def apply(self, new: Policy, path: Path) -> int:
        self.policy, self.state.policy = new, str(path)
        self.applied, self.pushes = time.monotonic(), self.pushes + 1
        return self.pushes

    async def list_stacks(self) -> list[Any]:
        return []

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


async def _measure(text: str, count: int, etcd_pid: int) -> Grown:
    place = places.parse(text)
    instances = [_Simulated(number) for number in range(count)]
    tasks = []
    for number, one in enumerate(instances):
        who = follower(place, f"host{number}", [f"parity={'odd' if number % 2 else 'even'}"])
        fleet = Fleet(await connect(place))
        source = EtcdSource(cast(Instance, one), fleet, who)
        tasks.append(asyncio.ensure_future(source.run()))
    operator = await connect(place)
    controller = Controller(Fleet(operator))
    try:
        await _all_listed(controller, count)
        rest = _cpu_s(etcd_pid)
        await asyncio.sleep(REST_S)
        rest = (_cpu_s(etcd_pid) - rest) / REST_S
        rounds = [await _push(controller, instances, number, etcd_pid) for number in range(PUSHES)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await operator.close()
    half, last, etcd, hosts = (
        sorted(column)[len(rounds) // 2] for column in zip(*rounds, strict=True)
    )
    return Grown(count, half, last, etcd, hosts, rest, _rss_mb(etcd_pid))


async def _all_listed(controller: Controller, count: int) -> None:
    """Until every host has said what it is, however long etcd takes for so many at once."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with contextlib.suppress(EtcdDownError):
                if len((await controller.standing()).rows()) == count:
                    return
            await asyncio.sleep(0.2)


async def _push(
    controller: Controller, instances: list[_Simulated], number: int, etcd_pid: int
) -> tuple[float, float, float, float]:
    """Until half of the hosts have it, the last, and the processor time of etcd and of hosts."""
    bundle = Bundle(POLICY.replace("{number}", str(number)))
    etcd, hosts, began = _cpu_s(etcd_pid), time.process_time(), time.monotonic()
    await controller.push(Order(bundle, "bench", 2, 1))
    await _until(lambda: all(one.pushes > number for one in instances), "a push")
    after = sorted(one.applied - began for one in instances)
    spent = _cpu_s(etcd_pid) - etcd, time.process_time() - hosts
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
                process = etcd.members[0].process
                assert process is not None
                argv = [sys.executable, "-m", "bench.control", etcd.place(), count, process.pid]
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
    """One line for each number of hosts."""
    table = Table(title="one etcd, from a push to its hosts", title_justify="left")
    for name in ("hosts", "half have it", "the last", "CPU of etcd", "of the hosts", "at rest"):
        table.add_column(name, justify="right")
    table.add_column("etcd's memory", justify="right")
    for one in found:
        table.add_row(
            str(one.hosts),
            f"{one.half_s:.2f} s",
            f"{one.last_s:.2f} s",
            f"{one.etcd_s:.2f} s",
            f"{one.hosts_s:.2f} s",
            f"{one.rest_share:.1%}",
            f"{one.etcd_mb:.0f} MB",
        )
    return table


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(asdict(asyncio.run(_measure(sys.argv[1], *map(int, sys.argv[2:4]))))))
