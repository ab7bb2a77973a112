# SPDX-License-Identifier: Apache-2.0
"""What a user stack's port "tap" carries on a veth pair with its offloads as they come, beside its
ceiling and the
kernel in one run: bulk, many flows, requests, connections; and what the device's programs cost a
flow of the kernel's.

The ceiling is a plain relay between two TAP devices (lab/relay.py). Every side is made anew in
every round, so that none has another's leavings. The server is the kernel's, and not routed.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from bench.flows import ECHO_PORT, bulk, exchange
from bench.policies import stack_policy
from dmm_ebpf.errors import DmmError
from dmm_ebpf.userstack.spec import process_label
from lab import Cgroup, Host, Lab, Server, iperf3_server, nginx, random_file
from lab.build import program_path
from lab.programs import start_server
from lab.relay import Relay
from lab.routed import Routed

EVERYWHERE, ELSEWHERE = "default", "203.0.113.0/24"  # the second has nobody in the laboratory
KERNEL, ATTACHED, RELAY, TAP, AF_XDP = "kernel", "kernel, attached", "relay", "tap", "af_xdp"
EACH_CPU = "tap, each CPU"  # as many processes as CPUs, as the kernel's TCP has them all
SIDES = (KERNEL, ATTACHED, RELAY, TAP, EACH_CPU, AF_XDP)
ITEMS = {
    "bulk": (KERNEL, ATTACHED, RELAY, TAP, AF_XDP),
    "many": (KERNEL, TAP, EACH_CPU),
    "requests": (KERNEL, ATTACHED, RELAY, TAP),
    "connections": (KERNEL, RELAY, TAP, EACH_CPU),
    "connect": (ATTACHED,),
}
WAYS = {"to the peer": (), "from the peer": ("-R",)}
FLOWS = (2, 10, 50, 200)
FILE_BYTES = 1_000_000
CONNECT_PORT, CONNECTS = 4000, 1000
# How often the two sides take turns, so that what the machine does besides meets both
CONNECT_TURNS = 4
SECONDS = 2  # of each transfer, unless more are asked for
SETUP_S = 3.5  # for the estimate: hosts, servers, an attach

CONNECT_US = "connect() to loopback, µs"
REQUESTS = "requests of 64 bytes a second"
CONNECTIONS = "connections a second"
AGAIN = "1 MB files: segments that the peer sent again, %"
LOST = "1 MB files: frames that devices of the host dropped"
UNTOLD = "  of them told by no counter of the stack"

# by side, then by figure: a value for each round
Figures = dict[str, dict[str, list[float]]]
Found = Iterator[tuple[str, str, float]]  # side, figure, value


def gbps(way: str) -> str:
    """A figure's name."""
    return f"bulk {way}, Gb/s"


def cpu(way: str) -> str:
    """A figure's name."""
    return f"  CPU, ns a byte, {way}"


def files(flows: int) -> str:
    """A figure's name."""
    return f"1 MB files a second, {flows} connections"


@dataclass(frozen=True)
class Goal:
    """What side ÷ rival of a figure has to be: at least, or at most, a bound. Without a rival,
    the figure itself.
    """

    side: str
    figure: str
    rival: str | None
    bound: float
    most: bool = False

    def to_json(self, medians: dict[str, dict[str, float]]) -> dict[str, Any] | None:
        """None: it was not measured."""
        mine = medians.get(self.side, {}).get(self.figure)
        rival = medians.get(self.rival, {}).get(self.figure) if self.rival else 1.0
        if mine is None or not rival:
            return None
        value = mine / rival
        return {
            "what": self.figure.strip(),
            "side": self.side,
            "rival": self.rival,
            "value": value,
            "goal": f"{'<=' if self.most else '>='} {self.bound:g}",
            "met": value <= self.bound if self.most else value >= self.bound,
        }


GOALS = (
    *(Goal(TAP, gbps(way), RELAY, 0.8) for way in WAYS),
    *(Goal(TAP, gbps(way), KERNEL, 0.5) for way in WAYS),
    *(Goal(TAP, cpu(way), KERNEL, 1.6, most=True) for way in WAYS),
    *(Goal(side, files(flows), KERNEL, 0.5) for side in (TAP, EACH_CPU) for flows in FLOWS),
    *(Goal(side, UNTOLD, None, 0, most=True) for side in (TAP, EACH_CPU)),
    *(
        Goal(TAP, figure, rival, 0.8)
        for figure in (REQUESTS, CONNECTIONS)
        for rival in (KERNEL, RELAY)
    ),
    Goal(EACH_CPU, CONNECTIONS, KERNEL, 0.8),
    *(Goal(ATTACHED, gbps(way), KERNEL, 0.98) for way in WAYS),
    Goal(ATTACHED, REQUESTS, KERNEL, 0.97),
    Goal(ATTACHED, CONNECT_US, KERNEL, 1.04, most=True),
)


# ---- what is measured ----


@dataclass
class _Wire:
    """One side's laboratory."""

    side: str
    client: Host
    server: Host
    cgroup: Cgroup
    plain: Cgroup  # never attached
    web: Server | None
    routed: Routed | None
    seconds: int


def _bulk(wire: _Wire) -> Found:
    for way, options in WAYS.items():
        rate, cpu_ns = bulk(wire.client, wire.cgroup, wire.server.ip4, wire.seconds, *options)
        yield wire.side, gbps(way), rate
        yield wire.side, cpu(way), cpu_ns


def _tcp(host: Host) -> dict[str, int]:
    """Of /proc/net/snmp."""
    lines = host.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return dict(zip(names, map(int, values), strict=True))


def _dropped(host: Host) -> int:
    """Frames that the host's devices and their queueing disciplines did not take. A clsact has no
    queue: what it drops is what a program has done with, as ours with a stack's questions.
    """
    links = json.loads(host.run(["ip", "-j", "-s", "link", "show"]).stdout)
    queues = json.loads(host.run(["tc", "-j", "-s", "qdisc", "show"]).stdout or "[]")
    devices = sum(one["stats64"][way]["dropped"] for one in links for way in ("rx", "tx"))
    return int(devices) + sum(int(one.get("drops", 0)) for one in queues if one["kind"] != "clsact")


def _told(wire: _Wire) -> int:
    """Frames that the stack says were lost on this host."""
    if wire.routed is None:
        return 0
    names = [process_label("wan", number) for number in range(_processes(wire.side))]
    said = [wire.routed.ask_stack(name) for name in names]
    return sum(int(one[name]) for one in said for name in one if name.startswith("nic_rx_dropped"))


def _wrk(wire: _Wire, flows: int) -> float:
    """Files a second."""
    assert wire.web is not None
    argv = ["wrk", "-t", "2", "-c", str(flows), "-d", f"{wire.seconds}s", "--timeout", "10s"]
    said = wire.cgroup.run([*argv, wire.web.url("file")], host=wire.client).stdout
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", said, re.MULTILINE)
    errors = re.search(r"^.*(?:Socket errors|Non-2xx).*$", said, re.MULTILINE)
    if rate is None or errors:
        raise DmmError(
            f"fetch files with {flows} connections by {wire.side}",
            why=(errors or [said])[0].strip(),
        )
    return float(rate[1])


def _many(wire: _Wire) -> Found:
    before, dropped, told = _tcp(wire.server), _dropped(wire.client), _told(wire)
    for flows in FLOWS:
        yield wire.side, files(flows), _wrk(wire, flows)
    after, dropped, told = _tcp(wire.server), _dropped(wire.client) - dropped, _told(wire) - told
    again = after["RetransSegs"] - before["RetransSegs"]
    yield wire.side, AGAIN, 100 * again / max(1, after["OutSegs"] - before["OutSegs"])
    yield wire.side, LOST, dropped
    yield wire.side, UNTOLD, max(0, dropped - told)


def _requests(wire: _Wire) -> Found:
    done = exchange(wire.client, wire.cgroup, wire.server.ip4, wire.seconds, fresh=False)
    yield wire.side, REQUESTS, done.per_second


def _connections(wire: _Wire) -> Found:
    done = exchange(wire.client, wire.cgroup, wire.server.ip4, wire.seconds, fresh=True)
    yield wire.side, CONNECTIONS, done.per_second


def _connect(wire: _Wire) -> Found:
    """Both sides of it, in turn: what is compared is a microsecond."""
    program = program_path("connbench")
    log = wire.routed.log.with_name("connbench.log") if wire.routed else Path("/dev/null")
    start_server(wire.client, [program, "serve", "127.0.0.1", str(CONNECT_PORT)], CONNECT_PORT, log)
    argv: list[str | Path] = [program, "connect", "127.0.0.1", str(CONNECT_PORT), str(CONNECTS)]
    taken: dict[str, list[int]] = {KERNEL: [], ATTACHED: []}
    for side in (KERNEL, ATTACHED, ATTACHED, KERNEL) * CONNECT_TURNS:
        cgroup = wire.cgroup if side == ATTACHED else wire.plain
        taken[side] += map(int, cgroup.run(argv, host=wire.client).stdout.split())
    for side, found in taken.items():
        yield side, CONNECT_US, statistics.median(found) / 1e3


_MEASURES: dict[str, Callable[[_Wire], Found]] = {
    "bulk": _bulk,
    "many": _many,
    "requests": _requests,
    "connections": _connections,
    "connect": _connect,
}


def _processes(side: str) -> int:
    return len(os.sched_getaffinity(0)) if side == EACH_CPU else 1


def _policy(side: str) -> str | None:
    if side in (KERNEL, RELAY):
        return None
    to = ELSEWHERE if side == ATTACHED else EVERYWHERE
    io = AF_XDP if side == AF_XDP else TAP
    return stack_policy(to=to, io=io, congestion="cubic", processes=_processes(side))


def _measure(side: str, items: Sequence[str], seconds: int, directory: Path) -> Found:
    with Lab("ports") as lab, ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        lab.wire(client, server, offloads=True)
        cgroup, plain = stack.enter_context(Cgroup()), stack.enter_context(Cgroup())
        iperf3_server(server, directory / "iperf3")
        serve: list[str | Path] = [program_path("pingpong"), "serve", server.ip4, str(ECHO_PORT)]
        start_server(server, serve, ECHO_PORT, directory / "pingpong.log")
        web = nginx(server, directory / "files", directory / "nginx") if "many" in items else None
        policy, routed = _policy(side), None
        if policy is not None:
            routed = stack.enter_context(Routed(client, cgroup, policy, directory))
            if (port := routed.stack("wan")["port"]) not in (side, TAP):
                raise DmmError(f"measure port {side}", why=f"the stack took {port}")
        if side == RELAY:
            stack.enter_context(Relay(client))
        wire = _Wire(side, client, server, cgroup, plain, web, routed, seconds)
        for item in items:
            yield from _MEASURES[item](wire)


def sides_of(items: Sequence[str]) -> dict[str, list[str]]:
    """What is measured of each side."""
    found = {side: [item for item in items if side in ITEMS[item]] for side in SIDES}
    return {side: wanted for side, wanted in found.items() if wanted}


def estimate_s(items: Sequence[str], seconds: int) -> float:
    """Of one round."""
    runs = {"bulk": len(WAYS), "many": len(FLOWS), "requests": 1, "connections": 1, "connect": 1}
    return sum(
        SETUP_S + sum(runs[item] * (seconds + 0.2) for item in wanted)
        for wanted in sides_of(items).values()
    )


def bench_ports(
    directory: Path, rounds: int, seconds: int, items: Sequence[str], done: Callable[[int], None]
) -> Figures:
    """The order of the sides changes from round to round."""
    (directory / "files").mkdir(exist_ok=True)
    random_file(directory / "files" / "file", FILE_BYTES)
    figures: Figures = {}
    wanted = sides_of(items)
    for number in range(rounds):
        for side in list(wanted)[:: -1 if number % 2 else 1]:
            for whose, figure, value in _measure(side, wanted[side], seconds, directory):
                figures.setdefault(whose, {}).setdefault(figure, []).append(value)
        done(number + 1)
    return figures


# ---- what is told ----


def summary(figures: Figures) -> dict[str, Any]:
    """Medians by side and figure, and the goals that they meet or miss."""
    medians = {
        side: {figure: statistics.median(values) for figure, values in figures[side].items()}
        for side in SIDES
        if side in figures
    }
    goals = (goal.to_json(medians) for goal in GOALS)
    return {"medians": medians, "goals": [goal for goal in goals if goal is not None]}


def _medians_table(medians: dict[str, dict[str, float]]) -> Table:
    table = Table(title="a veth pair, offloads as they come; medians", title_justify="left")
    table.add_column("what")
    for side in medians:
        table.add_column(side, justify="right")
    for figure in dict.fromkeys(figure for of in medians.values() for figure in of):
        values = (of.get(figure) for of in medians.values())
        table.add_row(figure, *("" if value is None else _number(value) for value in values))
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _goals_table(goals: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="ratios of medians", title_justify="left")
    for name in ("what", "of", "÷"):
        table.add_column(name)
    for name in ("ratio", "goal"):
        table.add_column(name, justify="right")
    for goal in goals:
        value = f"{goal['value']:.2f}" if goal["rival"] else _number(goal["value"])
        shown = value if goal["met"] else f"[red]{value}[/]"
        table.add_row(goal["what"], goal["side"], goal["rival"] or "", shown, goal["goal"])
    return table


def ports_table(found: dict[str, Any]) -> Group:
    """The figures, and the ratios that matter."""
    return Group(_medians_table(found["medians"]), _goals_table(found["goals"]))
