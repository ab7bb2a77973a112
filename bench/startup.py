# SPDX-License-Identifier: Apache-2.0
"""How long dmm-ebpf takes to start: a wrapped command, an attach, a take-over of what a
killed director left.

Rounds of all of them alternate with two rivals in the same session: the least wrapper that a
namespace can have (`ip netns exec`), and the interpreter that does nothing. Wall time, from the
command line to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.rundir import RunDir
from lab import Cgroup, Host, Lab
from lab.waiting import wait_for

POLICY = """
[stacks.wan]
kind = "user"
congestion = "wan"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "default"
stack = "wan"
"""
# The entry point that pip makes: what a shell starts.
CLI = str(Path(sys.executable).with_name("dmm-ebpf"))
RIVALS = ("ip netns exec", "python, no work")
GOALS_S = {
    "run": 0.5,
    "run, user stack": 0.8,
    "attach": 0.5,
    "attach, user stack": 0.8,
    "take-over": 0.5,
    "take-over, user stack": 0.8,
}
SIDES = (*RIVALS, *GOALS_S, "detach", "run, nothing kept")
ROUND_S = 15.0  # for the estimate
_NOTHING_KEPT = 'mount -t tmpfs none /var/cache && exec "$@"'

Times = dict[str, list[float]]


class _Starts:
    """The commands, on one host."""

    def __init__(self, host: Host, cgroup: Cgroup, directory: Path) -> None:
        self._host = host
        self._cgroup = cgroup
        self._policy = directory / "startup.toml"
        self._policy.write_text(POLICY)
        self._instance = f"bench{os.getpid()}s"

    def seconds(self, *argv: str) -> float:
        """How long a command takes on the host; it must succeed."""
        begin = time.perf_counter()
        done = self._host.run(argv, check=False)
        took = time.perf_counter() - begin
        if done.returncode:
            raise DmmError(f"run {' '.join(argv[:3])}", why=str(done.stderr).strip())
        return took

    def run(self, *, user: bool = False, wrapper: tuple[str, ...] = ()) -> float:
        """`dmm-ebpf run -- true`."""
        options = ("--policy", str(self._policy)) if user else ()
        return self.seconds(*wrapper, CLI, "run", *options, "--", "true")

    def attach(self, *, user: bool) -> float:
        """`dmm-ebpf attach --daemon`; by itself, or over what there is."""
        options = ("--policy", str(self._policy)) if user else ()
        group = ("--cgroup", str(self._cgroup.path))
        return self.seconds(
            CLI, "attach", *group, "--instance", self._instance, "--daemon", *options
        )

    def detach(self) -> float:
        """`dmm-ebpf detach`."""
        return self.seconds(CLI, "detach", "--instance", self._instance)

    def kill_director(self) -> None:
        """SIGKILL, and its end."""
        state = RunDir(self._instance).load()
        if state is None:
            raise DmmError("kill the Resource Director", why="it left no state")
        os.kill(state.pid, signal.SIGKILL)
        wait_for(lambda: not RunDir(self._instance).is_locked(), 10, "the Resource Director to end")

    @contextlib.contextmanager
    def detached(self) -> Iterator[None]:
        """Nothing is attached afterwards, whatever happens."""
        try:
            yield
        finally:
            self._host.run([CLI, "detach", "--instance", self._instance], check=False)


def _round(starts: _Starts, netns: str) -> dict[str, float]:
    times = {
        "ip netns exec": starts.seconds("ip", "netns", "exec", netns, "true"),
        "python, no work": starts.seconds(sys.executable, "-c", "pass"),
        "run": starts.run(),
        "run, user stack": starts.run(user=True),
        "run, nothing kept": starts.run(wrapper=("unshare", "-m", "sh", "-c", _NOTHING_KEPT, "sh")),
    }
    for user, what in ((False, ""), (True, ", user stack")):
        with starts.detached():
            times["attach" + what] = starts.attach(user=user)
            starts.kill_director()
            times["take-over" + what] = starts.attach(user=user)
            times["detach"] = starts.detach()
    return times


def bench_startup(directory: Path, rounds: int, done: Callable[[int], None]) -> Times:
    """Seconds of each of SIDES, in every round. done: how many rounds are over."""
    found: Times = {side: [] for side in SIDES}
    with Lab("startup") as lab, ExitStack() as stack:
        host, peer = lab.host("host"), lab.host("peer")
        lab.wire(host, peer)
        starts = _Starts(host, stack.enter_context(Cgroup()), directory)
        starts.run()  # whatever is made once is made now
        for number in range(rounds):
            for side, seconds in _round(starts, host.netns).items():
                found[side].append(seconds)
            done(number + 1)
    return found


def summary(found: Times) -> dict[str, Any]:
    """Medians in seconds, over those of the rivals, goals, and every run."""
    medians = {side: statistics.median(times) for side, times in found.items()}
    return {
        side: {
            "median_s": medians[side],
            "over": {rival: medians[side] / medians[rival] for rival in RIVALS},
            "goal_s": GOALS_S.get(side),
            "runs_s": times,
        }
        for side, times in found.items()
    }


def startup_table(found: dict[str, Any]) -> Table:
    """One line a side; what misses its goal is red."""
    rounds = len(found["run"]["runs_s"])
    table = Table(title=f"seconds to start, medians of {rounds}", title_justify="left")
    table.add_column("what")
    for name in ("seconds", "goal", *(f"÷ {rival}" for rival in RIVALS)):
        table.add_column(name, justify="right")
    for side, row in found.items():
        goal = row["goal_s"]
        late = goal is not None and row["median_s"] > goal
        shown = f"[red]{row['median_s']:.3f}[/]" if late else f"{row['median_s']:.3f}"
        ratios = (f"{row['over'][rival]:.1f}" for rival in RIVALS)
        table.add_row(side, shown, "" if goal is None else f"≤ {goal:g}", *ratios)
    return table
