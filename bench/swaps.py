# SPDX-License-Identifier: Apache-2.0
"""connect() as fast as the machine can, while the policy changes a hundred times: what rate was
reached, and whether each flow's record belongs to one policy alone.

Two policies come in force in turn. Nothing of what they decide is the same: number of the rule,
table, route, stack, and the priority that the stack's sockets have. A record names the generation
that it was decided in, so all else in it, and the socket's own priority, must be that policy's; and
each socket must have a record. Between two rounds of connect() calls, while nothing changes, every
record is compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from dmm_ebpf import loader
from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import APPLY_TIMEOUT_S, Client
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.policy.ids import IdSpace
from lab import Cgroup, Lab
from lab.flooding import Flood, Opened, Peers, most_sockets, swallow
from lab.routed import Routed
from lab.waiting import patient

SWAPS = 100
PROCESSES = 2
ROUND = 20_000  # sockets of each process
MOST_ROUNDS = 500
ESTIMATE_S = 40.0
PEERS = Peers("198.18.0.0", 7, 4096)
MOST_FOUND = 10
TEXTS = (
    """
[stacks.even]
kind = "kernel"
priority = 1001
[[rules]]
table = "even"
[[tables.even.routes]]
to = "198.18.0.0/15"
stack = "even"
""",
    """
[stacks.odd]
kind = "kernel"
priority = 1002
[[rules]]
comm = "nobody"
table = "odd"
[[rules]]
table = "odd"
[[tables.odd.routes]]
to = "10.0.0.0/8"
stack = "odd"
[[tables.odd.routes]]
to = "198.18.0.0/15"
stack = "odd"
""",
)
NAMES, RULES, PRIORITIES = ("even", "odd"), (1, 2), (1001, 1002)


@dataclass
class Swapped:
    """seconds: in which connect() was called. slowest_s: of the swaps. generations: in which flows
    were decided. found: what is wrong, in words, the first MOST_FOUND of wrong.
    """

    swaps: int = 0
    connects: int = 0
    failed: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    generations: int = 0
    wrong: int = 0
    found: list[str] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """connect() calls in a second."""
        return self.connects / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"per_s": self.per_s}

    def note(self, what: str) -> None:
        """Something that must not be."""
        self.wrong += 1
        if len(self.found) < MOST_FOUND:
            self.found.append(what)


class _Swapper(threading.Thread):
    """Applies the policies in turn while goes is set."""

    def __init__(self, instance: str, swaps: int, policies: dict[int, int]) -> None:
        super().__init__()
        self.goes = threading.Event()
        self.rests = threading.Event()
        self.rests.set()
        self.slowest_s = 0.0
        self.error: Exception | None = None
        self.left = swaps
        self._instance = instance
        self._policies = policies  # by generation, the number of its text

    def run(self) -> None:
        try:
            with Client(self._instance, timeout_s=APPLY_TIMEOUT_S) as director:
                while self.left:
                    self.goes.wait()
                    self.rests.clear()
                    if self.goes.is_set():
                        self._swap(director)
                    self.rests.set()
        except Exception as error:
            self.error, self.left = error, 0
            self.rests.set()

    def _swap(self, director: Client) -> None:
        number = self.left % 2
        began = time.monotonic()
        applied = director.call("policy_apply", text=TEXTS[number])
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self._policies[applied["generation"]] = number
        self.left -= 1

    def pause(self) -> None:
        """Returns when nothing is being changed."""
        self.goes.clear()
        if not self.rests.wait(patient(APPLY_TIMEOUT_S)):
            raise DmmError("pause the changes of policy", why="one does not end")


class _Judge:
    """Holds records against the policies of their generations."""

    def __init__(self, instance: str, policies: dict[int, int], swapped: Swapped) -> None:
        self._instance = instance
        self._policies = policies
        self._swapped = swapped
        self._seen: set[int] = set()

    def look(self, sockets: dict[int, int]) -> None:
        """sockets: priority by cookie, of all that are held."""
        state = RunDir(self._instance).load()
        assert state is not None
        ids = IdSpace.from_dict(state.ids)
        left = dict(sockets)
        attached = loader.adopt(self._instance)
        try:
            for flow in attached.flows():
                priority = left.pop(flow.cookie, None)
                if priority is not None:
                    self._compare(flow.decision, priority, ids)
        finally:
            attached.close()
        for cookie in left:
            self._swapped.note(f"the socket {cookie} has no record")
        self._swapped.generations = len(self._seen)

    def _compare(self, decision: Any, priority: int, ids: IdSpace) -> None:
        generation = int(decision.generation)
        self._seen.add(generation)
        number = self._policies.get(generation)
        if number is None:
            self._swapped.note(f"a record is of generation {generation}, which was never in force")
            return
        name = NAMES[number]
        wanted = (RULES[number], ids.table(name), ids.stack(name), ids.stack(name), number)
        found = (
            int(decision.rule),
            int(decision.table),
            int(decision.stack),
            int(decision.wanted),
            int(decision.route),
        )
        if found != wanted or priority != PRIORITIES[number]:
            self._swapped.note(
                f"a record of generation {generation} has rule, table, stack, wanted stack and "
                f"route {found}, which should be {wanted}; its socket has priority {priority}"
            )


def _round(floods: list[Flood], count: int) -> list[Opened]:
    for one in floods:
        one.begin(count)
    return [one.opened() for one in floods]


def bench_swaps(
    directory: Path,
    swaps: int = SWAPS,
    processes: int = PROCESSES,
    done: Callable[[int], object] = lambda _: None,
) -> Swapped:
    """done: told how many swaps there were. Rounds go on until all were while connect() was
    called.
    """
    swapped = Swapped()
    count = min(ROUND, most_sockets())
    with Lab("swaps") as lab, ExitStack() as stack:
        host, cgroup = lab.host("host"), stack.enter_context(Cgroup())
        swallow(host)
        routed = stack.enter_context(Routed(host, cgroup, TEXTS[0], directory))
        floods = [stack.enter_context(Flood(host, cgroup, PEERS)) for _ in range(processes)]
        policies = {int(routed.ask("status")[0]["generation"]): 0}
        judge = _Judge(routed.instance, policies, swapped)
        swapper = _Swapper(routed.instance, swaps, policies)
        swapper.start()
        for _ in range(MOST_ROUNDS):
            swapper.goes.set()
            _count(_round(floods, count), swapped)
            swapper.pause()
            judge.look({key: held for one in floods for key, held in one.sockets().items()})
            for one in floods:
                one.close_all()
            done(swaps - swapper.left)
            if not swapper.left:
                break
        swapped.swaps, swapped.slowest_s = swaps - swapper.left, swapper.slowest_s
        swapper.left = 0
        swapper.goes.set()
        swapper.join()
        if swapper.error is not None:
            raise swapper.error
    return swapped


def _count(opened: list[Opened], swapped: Swapped) -> None:
    swapped.connects += sum(one.done for one in opened)
    began, ended = min(one.began_ns for one in opened), max(one.ended_ns for one in opened)
    swapped.seconds += (ended - began) / 1e9
    for one in opened:
        if one.failed:
            swapped.failed += one.failed
            swapped.note(f"{one.failed} connect() calls failed, the first with {one.error}")


def swaps_table(found: Swapped) -> Table:
    """One line."""
    table = Table(title="connect() while the policy changes", title_justify="left")
    names = (
        "changes",
        "the slowest",
        "connect() calls",
        "a second",
        "generations",
        "wrong records",
    )
    for name in names:
        table.add_column(name, justify="right")
    table.add_row(
        f"{found.swaps}",
        f"{found.slowest_s:.3f} s",
        f"{found.connects:,}",
        f"{found.per_s:,.0f}",
        f"{found.generations}",
        f"{found.wrong:,}",
    )
    for what in found.found:
        table.add_row("", "", "", "", "", what)
    return table
