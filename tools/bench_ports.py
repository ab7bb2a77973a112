# SPDX-License-Identifier: Apache-2.0
"""What each port of a user stack carries on a veth pair with its offloads as they come, beside the kernel in one run.

One iperf3 flow each way. The server is the kernel's; the stack is attached anew for each transfer, so that no side
has another's leavings.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab import Cgroup, Host, Lab, iperf3, iperf3_server
from lab.routed import Routed
from rich.table import Table

POLICY = """
[stacks.wan]
kind = "user"
congestion = "cubic"
io = "{io}"
[[rules]]
cgroup = "{{cgroup}}"
table = "t"
[[tables.t.routes]]
to = "default"
stack = "wan"
"""
KERNEL = "kernel"
SIDES = (KERNEL, "tap", "af_xdp")
WAYS = {"to the peer": (), "from the peer": ("-R",)}
TRANSFER_S = 4.0  # what an attach and iperf3's ends add to a transfer, for the estimate

Rates = dict[str, dict[str, list[float]]]


def _gbps(client: Host, server: Host, cgroup: Cgroup, seconds: int, options: tuple[str, ...]) -> float:
    answer = iperf3(client, server.ip4, "-t", str(seconds), "-O", "1", *options, cgroup=cgroup)
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def _measure(side: str, seconds: int, directory: Path) -> dict[str, float]:
    with Lab("ports") as lab, ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        lab.wire(client, server, offloads=True)
        cgroup = stack.enter_context(Cgroup())
        iperf3_server(server, directory / "iperf3")
        if side != KERNEL:
            routed = stack.enter_context(Routed(client, cgroup, POLICY.format(io=side), directory))
            assert routed.stack("wan")["port"] == side
        return {way: _gbps(client, server, cgroup, seconds, options) for way, options in WAYS.items()}


def bench_ports(directory: Path, rounds: int, seconds: int, done: Callable[[int], None]) -> Rates:
    """Gb/s of each side and way, a value for each round; the order changes from round to round."""
    rates: Rates = {side: {way: [] for way in WAYS} for side in SIDES}
    for number in range(rounds):
        for side in SIDES[:: -1 if number % 2 else 1]:
            for way, gbps in _measure(side, seconds, directory).items():
                rates[side][way].append(gbps)
        done(number + 1)
    return rates


def summary(rates: Rates) -> dict[str, Any]:
    """Medians, and what part of the kernel's they are."""
    medians = {side: {way: statistics.median(v) for way, v in ways.items()} for side, ways in rates.items()}
    return {
        side: {way: {"gbps": gbps, "of_kernel": gbps / medians[KERNEL][way]} for way, gbps in ways.items()}
        for side, ways in medians.items()
    }


def ports_table(found: dict[str, Any]) -> Table:
    """A row for each side."""
    table = Table(title="one flow on a veth pair, offloads as they come; medians", title_justify="left")
    table.add_column("port")
    for way in WAYS:
        table.add_column(f"{way}, Gb/s", justify="right")
        table.add_column("÷ kernel", justify="right")
    for side, ways in found.items():
        cells = (f"{value:.2f}" for of in ways.values() for value in (of["gbps"], of["of_kernel"]))
        table.add_row(side, *cells)
    return table
