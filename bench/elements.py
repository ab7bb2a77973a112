# SPDX-License-Identifier: Apache-2.0
"""From a change of an nft set to the first connect() that it decides, as the set grows.

A program in the instance's cgroup puts an address into the set, or takes one out, and calls
connect() to it until the answer is another one: elements of the set are refused. The time begins
when the kernel has taken the change, which is when the system call of nft's has returned, and ends
when the first connect() that met it has returned: both by CLOCK_MONOTONIC, in one process.
"""

from __future__ import annotations

import errno
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from dmm_ebpf.errors import DmmError
from lab import Cgroup, Lab, nft, wait_for
from lab.flooding import swallow
from lab.hosts import Host
from lab.routed import Routed

ELEMENTS = (10, 1000, 30_000)
CHANGES = 200
FIRST = 8  # are not counted: the director still makes room for what it has read whole
ESTIMATE_S = 20.0
WITHIN_S = 120.0
CHANGE_WITHIN_S = 30.0
GOAL_MS = 2.0
_REST_S = 0.02  # so that each change is one by itself
POLICY = """
[stacks.no]
kind = "reject"
errno = "EACCES"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "nft:inet filter lossy"
stack = "no"
"""


@dataclass(frozen=True)
class Seen:
    """Of a set of so many elements. *_ms: until connect() met a change, of all changes; tries:
    connect() calls for one that still met what was before, in the median.
    """

    elements: int
    changes: int
    median_ms: float
    p95_ms: float
    most_ms: float
    tries: float

    def to_json(self) -> dict[str, float]:
        """For --json."""
        return asdict(self)


def _refused(host: str) -> bool:
    with socket.socket() as sock:
        sock.setblocking(False)
        return sock.connect_ex((host, 443)) == errno.EACCES


def _changed(number: int) -> tuple[float, int]:
    """Milliseconds, and tries, of the change with that number: each address comes, then goes."""
    host = f"198.18.0.{1 + number // 2 % 200}"
    comes = number % 2 == 0
    if nft.change(nft.NEW if comes else nft.DELETE, "filter", "lossy", nft.address(host)):
        raise RuntimeError("the kernel refused the change")
    began, tries = time.monotonic(), 0
    while _refused(host) is not comes:
        tries += 1
        if time.monotonic() - began > CHANGE_WITHIN_S:
            raise RuntimeError(f"connect() has not met a change within {CHANGE_WITHIN_S:g} s")
    return 1000 * (time.monotonic() - began), tries


def measure(count: int, changes: int) -> Seen:
    """In this process, which is in the cgroup and the namespace."""
    took, tries = [], []
    for number in range(-FIRST, changes):
        time.sleep(_REST_S)
        ms, tried = _changed(number)
        if number >= 0:
            took.append(ms)
            tries.append(tried)
    took.sort()
    at_95 = took[min(len(took) - 1, len(took) * 95 // 100)]
    return Seen(count, changes, statistics.median(took), at_95, took[-1], statistics.median(tries))


def _filled(host: Host, routed: Routed, count: int) -> None:
    lines = ["add table inet filter", "add set inet filter lossy { type ipv4_addr; }"]
    many = ", ".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(count))
    lines.append(f"add element inet filter lossy {{ {many} }}")
    host.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")

    def are_there() -> bool:
        sets = routed.ask("status")[0].get("sets", [])
        return [one["prefixes"] for one in sets] == [count]

    wait_for(are_there, WITHIN_S, "the director to have all elements")


def bench_elements(
    directory: Path, counts: tuple[int, ...], changes: int, done: Callable[[Seen], object]
) -> Iterator[Seen]:
    """Each number of elements, in an instance and a host of its own."""
    for count in counts:
        with Lab("elements") as lab, ExitStack() as stack:
            host, cgroup = lab.host("host"), stack.enter_context(Cgroup())
            swallow(host)
            routed = stack.enter_context(Routed(host, cgroup, POLICY, directory))
            _filled(host, routed, count)
            argv = [sys.executable, "-m", "bench.elements", str(count), str(changes)]
            root = Path(__file__).parents[1]
            ran = host.popen(
                cgroup.argv(argv), cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            said, wrong = ran.communicate(timeout=WITHIN_S + changes * CHANGE_WITHIN_S)
            if ran.returncode:
                why = wrong.decode().strip().splitlines()[-1]
                raise DmmError(f"change a set of {count} elements", why=why)
            found = Seen(**json.loads(said))
        done(found)
        yield found


def elements_table(found: list[Seen]) -> Table:
    """One line for each number of elements."""
    table = Table(title="from a change of an nft set to connect(): ms", title_justify="left")
    for name in ("elements", "changes", "median", "95 %", "most", "connect() calls before"):
        table.add_column(name, justify="right")
    for one in found:
        style = "red" if one.median_ms > GOAL_MS else ""
        median = f"[{style}]{one.median_ms:.2f}[/]" if style else f"{one.median_ms:.2f}"
        table.add_row(
            f"{one.elements:,}",
            f"{one.changes}",
            median,
            f"{one.p95_ms:.2f}",
            f"{one.most_ms:.2f}",
            f"{one.tries:g}",
        )
    return table


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:])).to_json()))
