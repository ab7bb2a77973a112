# SPDX-License-Identifier: Apache-2.0
"""Many connections open at once through one stack process: opening them, the memory of idle ones,
and using them.

Real programs hold them, between two hosts joined by a veth pair. Memory is what the kernel says of
the stack process (VmRSS), what the stack says of itself, and what the kernel says of the BPF maps.
docs/benchmarks.md says more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.policies import stack_policy
from dmm_ebpf import loader
from dmm_ebpf.errors import DmmError
from lab import Cgroup, Host, Lab
from lab.holding import Holders, Told
from lab.routed import Routed
from lab.waiting import wait_for

COUNT = 100_000
COUNT_MAX = 250_000  # there are records for 262,144 flows
SIDES = ("kernel", "stack connects", "stack listens")
GOAL_BYTES = 1024  # of an idle connection, both legs together, beyond buffers in use
FLOW_MAPS = ("flows", "more_flows", "xdp_flows")
RATE_MIN = 500  # connections a second, for deadlines only
QUIET_S = 10.0  # after which the stack parks a connection


@dataclass(frozen=True)
class Memory:
    """At one moment. rss_bytes: the stack process, as the kernel counts. used_bytes: what the stack
    says that its connections take, its table included, payload not. maps_bytes: by map, as the
    kernel counts. flow_records: of connections, in flows and more_flows. owned: 5-tuples that XDP
    gives to the stack.
    """

    connections: int
    parked: int
    rss_bytes: int
    used_bytes: int
    held_bytes: int
    maps_bytes: dict[str, int]
    flow_records: int
    owned: int

    @property
    def all_maps_bytes(self) -> int:
        """Of the records of flows."""
        return sum(self.maps_bytes.values())


@dataclass(frozen=True)
class Held:
    """One side. check: a byte each way on every one, after they were idle; memory: before,
    idle, after they ended.
    """

    opened: Told
    checked: Told
    before: Memory | None = None
    idle: Memory | None = None
    after: Memory | None = None

    @property
    def opened_per_second(self) -> float:
        """Connections."""
        return self.opened.done / self.opened.seconds

    @property
    def idle_rss_bytes(self) -> float | None:
        """What an idle connection adds to the process."""
        if self.idle is None or self.before is None or not self.idle.connections:
            return None
        return (self.idle.rss_bytes - self.before.rss_bytes) / self.idle.connections

    @property
    def idle_used_bytes(self) -> float | None:
        """What an idle connection takes by the stack's own count."""
        if self.idle is None or not self.idle.connections:
            return None
        return self.idle.used_bytes / self.idle.connections

    @property
    def idle_maps_bytes(self) -> float | None:
        """What an idle connection adds to the BPF maps."""
        if self.idle is None or self.before is None or not self.idle.connections:
            return None
        return (self.idle.all_maps_bytes - self.before.all_maps_bytes) / self.idle.connections

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self) | {
            "opened_per_second": self.opened_per_second,
            "idle_rss_bytes_per_connection": self.idle_rss_bytes,
            "idle_used_bytes_per_connection": self.idle_used_bytes,
            "idle_maps_bytes_per_connection": self.idle_maps_bytes,
        }


def rss_bytes(pid: int) -> int:
    """VmRSS of proc_pid_status(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise DmmError(f"read the memory of process {pid}", why="the kernel does not tell it")


def map_bytes(fd: int) -> int:
    """What a BPF map takes, from the kernel's words on its descriptor."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    raise DmmError("read the memory of a BPF map", why="the kernel does not tell it")


def memory_of(routed: Routed, pid: int) -> Memory:
    """Of the user stack of an instance, whose process is pid. The process's size is read first:
    being asked makes it no smaller.
    """
    rss = rss_bytes(pid)
    said = routed.ask_stack("wan")
    attached = loader.adopt(routed.instance)
    try:
        maps = {name: attached.maps[name] for name in FLOW_MAPS}
        sizes = {name: map_bytes(one.fd) for name, one in maps.items()}
        records = sum(1 for _ in attached.flows())
        owned = attached.maps.xdp_flows.count()
    finally:
        attached.close()
    used = said["memory_used_bytes"] - said["memory_payload_bytes"] + said["memory_table_bytes"]
    return Memory(
        said["connections"],
        said["memory_parked"],
        rss,
        used,
        said["memory_held_bytes"],
        sizes,
        records,
        owned,
    )


def _told(holders: Holders, word: str, count: int) -> Told:
    told = holders.tell(word, 60 + count / RATE_MIN)
    if told.failed:
        raise DmmError(
            f"{word} {count} connections", why=f"{told.failed} failed with {', '.join(told.errors)}"
        )
    return told


def _hosts(lab: Lab) -> tuple[Host, Host]:
    client, server = lab.host("client"), lab.host("server")
    lab.wire(client, server)
    for host in (client, server):
        # Nobody but the ends of these connections listens here.
        host.sysctl("net.ipv4.ip_local_port_range", "32768 60999")
        host.sysctl("net.core.somaxconn", 4096)
    return client, server


def held_once(side: str, count: int, directory: Path, say: Callable[[str], None]) -> Held:
    """One of SIDES: count connections opened, left alone until they are parked, used, and ended."""
    with Lab("connections") as lab, ExitStack() as stack:
        client, server = _hosts(lab)
        cgroups = (stack.enter_context(Cgroup()), stack.enter_context(Cgroup()))
        routed = None
        if side != "kernel":
            ours = (client, cgroups[0]) if side == "stack connects" else (server, cgroups[1])
            policy = stack_policy(congestion="wan", max_connections=count)
            routed = stack.enter_context(Routed(*ours, policy, directory))
        with Holders(client, server, cgroups, count, directory) as holders:
            return _hold(holders, count, routed, say)


def _hold(holders: Holders, count: int, routed: Routed | None, say: Callable[[str], None]) -> Held:
    if routed is None:
        say("opening")
        opened = _told(holders, "open", count)
        say("checking")
        return Held(opened, _told(holders, "check", count))
    pid = int(routed.stack("wan")["pid"])
    before = memory_of(routed, pid)
    say("opening")
    opened = _told(holders, "open", count)
    say("idle")
    _wait_parked(routed, count)
    idle = memory_of(routed, pid)
    say("checking")
    checked = _told(holders, "check", count)
    say("ending")
    # What ends in order leaves TIME_WAIT with the client, whose stack would have it for a minute.
    # A burst of resets from the network is the network's to lose, and then the server's stack
    # would not know.
    _told(holders, "close" if routed.host.name == "server" else "reset", count)
    wait_for(
        lambda: not routed.ask_stack("wan")["connections"], 60, "the stack's connections to end"
    )
    return Held(opened, checked, before, idle, memory_of(routed, pid))


def _wait_parked(routed: Routed, count: int) -> None:
    """Until the stack has put every connection away. It says so at most twice a second: asking
    costs it time.
    """
    deadline = time.monotonic() + 6 * QUIET_S
    while (said := routed.ask_stack("wan"))["memory_parked"] < count:
        if said["connections"] < count:
            raise DmmError(f"hold {count} connections", why=f"the stack has {said['connections']}")
        if time.monotonic() > deadline:
            raise DmmError(
                "wait for idle connections to be parked", why=f"{said['memory_parked']} are"
            )
        time.sleep(0.5)


def connections_table(found: dict[str, Held]) -> Table:
    """One line a figure, one column a side."""
    count = next(iter(found.values())).opened.done
    table = Table(
        title=f"{count:,} connections open at once, then idle, then used", title_justify="left"
    )
    table.add_column("what")
    for side in found:
        table.add_column(side, justify="right")

    def line(what: str, text: Callable[[Held], str]) -> None:
        table.add_row(what, *(text(held) for held in found.values()))

    def line_of_bytes(
        what: str, value: Callable[[Held], float | None], goal: int | None = None
    ) -> None:
        def text(held: Held) -> str:
            found = value(held)
            if found is None:
                return ""
            return f"{found:.0f}" if goal is None or found <= goal else f"[red]{found:.0f}[/]"

        line(what, text)

    line("opened a second", lambda held: f"{held.opened_per_second:.0f}")
    if kernel := found.get("kernel"):
        line("  ÷ kernel", lambda held: f"{held.opened_per_second / kernel.opened_per_second:.2f}")
    line("work after they were idle", lambda held: f"{held.checked.done:,}")
    for name in ("before", "idle", "after"):
        line(f"resident MB, {name}", _resident(name))
    line_of_bytes("resident bytes for each, idle", lambda held: held.idle_rss_bytes, GOAL_BYTES)
    line_of_bytes("  by the stack's own count", lambda held: held.idle_used_bytes, GOAL_BYTES)
    line_of_bytes("BPF maps' bytes for each", lambda held: held.idle_maps_bytes)
    return table


def _resident(when: str) -> Callable[[Held], str]:
    def text(held: Held) -> str:
        memory: Memory | None = getattr(held, when)
        return f"{memory.rss_bytes / 1e6:.0f}" if memory else ""

    return text
