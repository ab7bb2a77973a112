# SPDX-License-Identifier: Apache-2.0
"""From a file of routes with ports to maps that answer: how long, and how much memory, as the
routes grow.

Each number of routes has a process of its own, with the modules of a director, which reads the
policy, compiles it and puts it in force in maps that are like an instance's, but pinned nowhere.
Then it does so again, with other stacks for half of the routes, as a director does whose policy has
changed, while it still has the one before. Told are the medians of ROUNDS policies.

What the kernel itself needs to put entries in a trie is told beside it: nobody saves that.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

import dmm_ebpf.rd.director.instance  # noqa: F401 - so that its memory is counted
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import programs
from dmm_ebpf.loader.spec import Maps
from dmm_ebpf.rd.director import elementchange, fleetroutes, sync
from dmm_ebpf.rd.director.generations import Generations
from dmm_ebpf.rd.director.liveroutes import Live
from dmm_ebpf.rd.director.routechange import Changing, change
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.livetable import LiveRoute
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.parse import load
from dmm_ebpf.rd.policy.routes import Match
from dmm_ebpf.rd.policy.values import Prefix

ROUTES = (10, 1000, 100_000, 1_000_000)
ROUNDS = 5
CHANGES = 200
ESTIMATE_S = 60.0
WITHIN_S = 600.0

POLICY = """
[stacks.wan]
kind = "user"
[stacks.lan]
kind = "kernel"
[[rules]]
table = "t"
[tables.t]
routes_from = "routes.csv"
[[tables.t.routes]]
to = "nft:inet filter lossy"
proto = "tcp"
stack = "lan"
"""


@dataclass(frozen=True)
class Loaded:
    """Of so many routes. *_s: seconds; user_s and kernel_s: of processor time, in the process and
    in the kernel for it. *_mb: resident, of the process before, and at its peak. change_ms: what a
    change of one live route takes, in the median and at most; element_ms: of one element of an nft
    set; fleet_ms: of one route that stands in etcd by itself.
    """

    routes: int
    read_s: float
    compile_s: float
    live_s: float
    user_s: float
    kernel_s: float
    before_mb: float
    peak_mb: float
    change_ms: float = 0.0
    change_most_ms: float = 0.0
    element_ms: float = 0.0
    element_most_ms: float = 0.0
    fleet_ms: float = 0.0
    fleet_most_ms: float = 0.0

    @property
    def all_s(self) -> float:
        """From the file to live maps."""
        return self.read_s + self.compile_s + self.live_s

    def to_json(self) -> dict[str, float]:
        """For --json."""
        return asdict(self) | {"all_s": self.all_s}


def _write(directory: Path, count: int, turn: int) -> Path:
    """A policy of so many routes, /26 in order, each with ports."""
    stacks = "wan", "lan", "kernel"
    with (directory / "routes.csv").open("w", encoding="ascii") as file:
        file.write("to,proto,ports,stack\n")
        for number in range(count):
            first = (11 << 24) + number * 64
            address = ".".join(str(first >> bits & 255) for bits in (24, 16, 8, 0))
            file.write(f"{address}/26,tcp,443,{stacks[(number & 1) * turn % 3]}\n")
    path = directory / "policy.toml"
    path.write_text(POLICY, encoding="ascii")
    return path


def _memory_mb(name: str) -> float:
    """See proc(5), /proc/pid/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def _no_listener(*_: object) -> None:
    raise AssertionError("there is no listener")


def _nowhere(_path: str) -> tuple[int, int]:
    raise FileNotFoundError


def _once(path: Path, opened: Maps) -> tuple[Policy, tuple[float, ...]]:
    """The policy, and seconds: reading, compiling, until it is live, of the processor."""
    spent, began = os.times(), time.monotonic()
    policy = load(path)
    was_read = time.monotonic()
    compiled = compile_policy(policy, IdSpace(), _nowhere)
    was_compiled = time.monotonic()
    sync.apply(opened, compiled, listener_set=_no_listener)
    ended, after = time.monotonic(), os.times()
    seconds = was_read - began, was_compiled - was_read, ended - was_compiled
    return policy, (*seconds, after.user - spent.user, after.system - spent.system)


async def _changes(directory: Path, policy: Policy, opened: Maps) -> tuple[float, ...]:
    """Milliseconds that a change of one route takes, beside others, where none waits for the one
    before: in the median, and at most; the same of an element of a set, and of a fleet's route.
    """
    live, ids = Live(directory, opened), IdSpace()
    ids.assign(policy.stacks, policy.tables)
    joined = fleetroutes.beside(policy.with_elements({}), [], 1).with_live(live.routes)
    generation = sync.current_generation(opened)
    live.in_force(joined, live.compiled(joined, ids), ids, generation)
    state = State("bench", os.getpid(), "/", 0, generation=generation)
    taken = [joined]
    here = Changing(state, joined, opened, live, Generations(state), _whole, taken.append, set)
    routes = await _route_changes(here, policy)
    elements = []
    for number in range(CHANGES):
        (name,), now = policy.sets, taken[-1]
        one = Prefix(4, (12 << 24) + 2 * number, 32)
        began = time.monotonic()
        contents = {name: (*now.elements.get(name, ()), one)}
        await elementchange.change(replace(here, policy=now), now, contents)
        elements.append(1000 * (time.monotonic() - began))
        await live.settled()
    fleet = await _fleet_changes(replace(here, policy=taken[-1]))
    live.close()
    return *routes, statistics.median(elements), max(elements), *fleet


async def _fleet_changes(here: Changing) -> tuple[float, float]:
    took, wanted = [], []
    for number in range(CHANGES):
        to = Prefix(4, (13 << 24) + 2 * number, 32)
        wanted.append(LiveRoute(0, "t", to, Match(6, ((443, 443),)), "lan", "want/routes/t/x:1"))
        began = time.monotonic()
        await fleetroutes.change(here, wanted)
        took.append(1000 * (time.monotonic() - began))
        await here.live.settled()
    return statistics.median(took), max(took)


async def _route_changes(here: Changing, policy: Policy) -> tuple[float, float]:
    took = []
    for number in range(CHANGES):
        first = (11 << 24) + number % policy.n_routes * 64
        to = Prefix(4, first, 26)
        # No route of the policy's as it was read last is the kernel's: each is a change.
        stack = ("kernel", "lan")[number // policy.n_routes % 2]
        route = {"to": str(to), "proto": "tcp", "ports": "443", "stack": stack}
        done = await change(here, {"verb": "replace", "routes": [route]})
        assert done.added
        took.append(done.took_ms)
        await here.live.settled()
    return statistics.median(took), max(took)


async def _whole(_policy: Policy) -> int:
    raise AssertionError("a kernel's stack needs nothing but its route")


def measure(directory: Path, count: int) -> Loaded:
    """In this process, whose peak it is then."""
    bulk.blocks_apart()  # as an instance does
    opened = programs.create_maps()
    before = _memory_mb("VmRSS")
    rows = []
    try:
        for turn in range(ROUNDS):
            path = _write(directory, count, turn)
            in_force, row = _once(path, opened)  # meanwhile there is the one before, too
            assert in_force.n_routes == count
            rows.append(row)
        changes = asyncio.run(_changes(directory, in_force, opened))
    finally:
        programs.close_maps(opened)
    reading, compiling, live, user, kernel = map(statistics.median, zip(*rows, strict=True))
    peak = _memory_mb("VmHWM")
    return Loaded(count, reading, compiling, live, user, kernel, before, peak, *changes)


def bench_routes(
    directory: Path, counts: tuple[int, ...], done: Callable[[Loaded], object]
) -> Iterator[Loaded]:
    """Each number of routes, in a process of its own."""
    for count in counts:
        own = directory / str(count)  # live routes are kept in it
        own.mkdir()
        argv = [sys.executable, "-m", "bench.routes", str(own), str(count)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=WITHIN_S, check=False)
        if ran.returncode:
            why = ran.stderr.strip().splitlines()[-1]
            raise DmmError(f"load {count} routes", why=why)
        found = Loaded(**json.loads(ran.stdout))
        done(found)
        yield found


def routes_table(found: list[Loaded]) -> Table:
    """One line for each number of routes."""
    table = Table(title="routes with ports, from a file to live maps: s, MB", title_justify="left")
    for name in (
        "routes",
        "read",
        "compiled",
        "live",
        "all",
        "user",
        "system",
        "MB, peak",
        "change ms",
        "element ms",
        "fleet ms",
    ):
        table.add_column(name, justify="right")
    for one in found:
        seconds = (one.read_s, one.compile_s, one.live_s, one.all_s, one.user_s, one.kernel_s)
        table.add_row(
            f"{one.routes:,}",
            *(f"{value:.3f}" for value in seconds),
            f"{one.before_mb:.0f}, {one.peak_mb:.0f}",
            f"{one.change_ms:.2f}",
            f"{one.element_ms:.2f}",
            f"{one.fleet_ms:.2f}",
        )
    return table


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Path(sys.argv[1]), int(sys.argv[2])))))
