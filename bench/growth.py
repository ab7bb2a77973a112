# SPDX-License-Identifier: Apache-2.0
"""connect() as the routes of a policy grow, by IPv4 and by IPv6: each number of routes has an
instance and a cgroup of its own on one host, and rounds of connect() calls go by all of them in
turn.

The routes, with ports, share one range of addresses out evenly, so that the same peers are asked
for whatever their number: one peer, as a program has that connects to its server again and again,
and peers all over the range, more than what was found of late is kept for. Sockets do not block,
and their device drops what they send: a call is the system call, the hooks and the kernel's own
work for a SYN.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from dmm_ebpf.errors import DmmError
from lab import Cgroup, Host, Lab
from lab.flooding import Flood, Peers, swallow
from lab.routed import Routed

ROUNDS = 15
CALLS = 2000  # of each kind in a round
FIRST, BITS = 11 << 24, 24  # the range that the routes share out, or most of it
# By family; of IPv6 the range is that in the second word of 2001:db8::/32.
PEERS = {
    4: {"one": Peers("11.0.0.0", 0, 1), "any": Peers("11.0.0.0", 128, 1 << 16)},
    6: {"one": Peers("2001:db8:b00::1", 0, 1), "any": Peers("2001:db8:b00::1", 128, 1 << 16)},
}
ESTIMATE_S = 150.0
GOAL = 1.05  # of connect() with the fewest routes
POLICY = """
[stacks.lan]
kind = "kernel"
[[rules]]
table = "t"
[tables.t]
routes_from = "routes.csv"
"""


@dataclass(frozen=True)
class Called:
    """Medians, in ns: of connect() to one peer, and to peers anywhere. family: of IP. routes None:
    no hooks.
    """

    family: int
    routes: int | None
    one_ns: float
    any_ns: float

    def to_json(self) -> dict[str, float | None]:
        """For --json."""
        return asdict(self)


def _write(directory: Path, family: int, count: int) -> Path:
    """A policy with so many routes, each of an equal share of the range."""
    directory.mkdir()
    bits = (1 << BITS) // count
    length = 33 - bits.bit_length()
    with (directory / "routes.csv").open("w", encoding="ascii") as file:
        file.write("to,proto,ports,stack\n")
        for number in range(count):
            prefix = _prefix(family, FIRST + (number << 32 - length), length)
            file.write(f"{prefix},tcp,443,lan\n")
    return directory


def _prefix(family: int, word: int, length: int) -> str:
    if family == 6:
        return f"2001:db8:{word >> 16:x}:{word & 0xFFFF:x}::/{32 + length}"
    return ".".join(str(word >> shift & 255) for shift in (24, 16, 8, 0)) + f"/{length}"


class _Side:
    """A cgroup with floods in it."""

    def __init__(self, host: Host, cgroup: Cgroup, family: int, stack: ExitStack) -> None:
        self._floods = {
            kind: stack.enter_context(Flood(host, cgroup, peers))
            for kind, peers in PEERS[family].items()
        }
        self.rounds: dict[str, list[int]] = {kind: [] for kind in PEERS[family]}

    def round(self) -> None:
        for kind, flood in self._floods.items():
            flood.begin(CALLS)
            opened = flood.opened()
            flood.close_all()
            if opened.failed:
                raise DmmError(f"call connect() {CALLS} times", why=opened.error)
            self.rounds[kind].append(opened.median_ns)

    def called(self, family: int, routes: int | None) -> Called:
        one, anywhere = (statistics.median(self.rounds[kind]) for kind in ("one", "any"))
        return Called(family, routes, one, anywhere)


def bench_growth(
    directory: Path,
    counts: tuple[int, ...],
    rounds: int = ROUNDS,
    done: Callable[[int], object] = lambda _: None,
) -> list[Called]:
    """Of each family a figure for no hooks, and one for each number of routes. done: told how many
    rounds are.
    """
    with Lab("growth") as lab, ExitStack() as stack:
        host = lab.host("host")
        swallow(host)
        sides: dict[tuple[int, int | None], _Side] = {}
        for family, count in ((family, count) for family in PEERS for count in (None, *counts)):
            cgroup = stack.enter_context(Cgroup())
            if count is not None:
                folder = _write(directory / f"growth-{family}-{count}", family, count)
                stack.enter_context(Routed(host, cgroup, POLICY, folder))
            sides[family, count] = _Side(host, cgroup, family, stack)
        for number in range(rounds):
            # What the machine does meanwhile strikes all, and no side always comes first.
            order = list(sides.values())
            for side in order if number % 2 else reversed(order):
                side.round()
            done(number + 1)
        return [side.called(*which) for which, side in sides.items()]


def growth_table(found: list[Called]) -> Table:
    """One line for each number of routes of each family; what is beyond GOAL is red."""
    title = f"connect() as routes grow; goal: {GOAL} of the fewest"
    table = Table(title=title, title_justify="left")
    for name in ("", "routes", "to one peer", "÷ fewest", "to any peer", "÷ fewest"):
        table.add_column(name, justify="right")
    firsts = {one.family: one for one in reversed(found) if one.routes is not None}
    for one in found:
        first = firsts.get(one.family)
        row = [f"IPv{one.family}", "no hooks" if one.routes is None else f"{one.routes:,}"]
        for name in ("one_ns", "any_ns"):
            value = getattr(one, name)
            ratio = value / getattr(first, name) if first and one.routes is not None else None
            row += [f"{value:,.0f} ns", _ratio(ratio)]
        table.add_row(*row)
    return table


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.3f}" if ratio <= GOAL else f"[red]{ratio:.3f}[/]"
