# SPDX-License-Identifier: Apache-2.0
"""Two hosts on which scripts are run: with dmm-ebpf attached to either or both, or to none."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmm_ebpf.errors import DmmError, NotAttachedError
from dmm_ebpf.rd.api.client import Client
from lab import Cgroup, Host, Lab
from lab.routed import Routed
from lab.waiting import patient, wait_readable
from sockets.script import CLIENT, FAMILIES, IP4, PORTS, SCRIPTS, SERVER, SIDES

AGENT = Path(__file__).with_name("agent.py")
START_S = 30.0
GRACE_S = 15.0  # a side ends itself after its own time; this is for a machine that is busy
FIRST_PORT, LAST_PORT = 4000, 32000  # below those that a kernel chooses
# Behind the server, by what its router says of them (script.py has the addresses).
BEYOND = tuple(
    (kind, prefix)
    for kind, number in (("blackhole", 1), ("unreachable", 2), ("prohibit", 3))
    for prefix in (f"203.0.113.{number}/32", f"2001:db8:beef::{number}/128")
)
POLICY = """
[stacks.ours]
kind = "user"
io = "{io}"
processes = {processes}
congestion = "cubic"
udp = true

[[rules]]
cgroup = "{{cgroup}}"
table = "all"

[[tables.all.routes]]
to = "default"
stack = "ours"
"""

Notes = list[list[Any]]


@dataclass(frozen=True)
class Mode:
    """Which host is routed, by which port of the outer leg, and by how many processes
    of the stack.
    """

    name: str
    ports: dict[str, str]
    processes: int = 1


PLAIN = Mode("plain", {})
QUICK = (
    Mode("client by tap", {CLIENT: "tap"}),
    Mode("client by af_xdp", {CLIENT: "af_xdp"}),
    Mode("server by tap", {SERVER: "tap"}),
    Mode("server by af_xdp", {SERVER: "af_xdp"}),
    Mode("both, of three processes", {CLIENT: "tap", SERVER: "tap"}, 3),
)
MORE = (
    Mode("both by af_xdp", {CLIENT: "af_xdp", SERVER: "af_xdp"}),
    Mode("client, of three processes by af_xdp", {CLIENT: "af_xdp"}, 3),
    Mode("server, of three processes by af_xdp", {SERVER: "af_xdp"}, 3),
    Mode("both by tap", {CLIENT: "tap", SERVER: "tap"}),
)


@dataclass(frozen=True)
class Seen:
    """What a run of a script showed. carried: sides that had a flow which the stack "ours"
    was to carry.
    """

    notes: dict[str, Notes]
    carried: frozenset[str] = frozenset()


class Agent:
    """A process of agent.py in a host and a cgroup."""

    def __init__(self, host: Host, cgroup: Cgroup) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = ["/usr/bin/python3", str(AGENT)]
        self.process = cgroup.spawn(argv, host=host, stdin=theirs.fileno())
        theirs.close()
        if (
            not wait_readable(self.control.fileno(), patient(START_S))
            or self.control.recv(16) != b"ready"
        ):
            raise DmmError("start the scripts' process", why="it did not say that it is ready")

    def start(self, told: dict[str, Any], other: socket.socket) -> socket.socket:
        """Starts a side; what its notes are read from."""
        notes, theirs = socket.socketpair()
        with theirs, other:
            socket.send_fds(
                self.control, [json.dumps(told).encode()], [other.fileno(), theirs.fileno()]
            )
        return notes

    def close(self) -> None:
        """Ends it and what it has started."""
        self.control.close()
        self.process.wait()


class Field:
    """A client and a server on a wire, with a process of ours on each that runs its
    side of scripts.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.directory = directory
        self.stack = contextlib.ExitStack()
        self.listening: dict[str, Listening] = {}
        with contextlib.ExitStack() as making:
            lab = making.enter_context(Lab(name))
            self.hosts = {side: lab.host(side) for side in SIDES}
            lab.wire(*self.hosts.values(), offloads=True)
            for host in self.hosts.values():
                host.sysctl("net.ipv4.tcp_syn_retries", 1)
                host.sysctl("net.ipv4.tcp_syn_linear_timeouts", 0)
                host.sysctl(
                    "net.ipv4.tcp_fastopen", 0x403
                )  # without a cookie, which one address has for all
            self.hosts[SERVER].sysctl("net.ipv4.ip_forward", 1)
            self.hosts[SERVER].sysctl("net.ipv6.conf.all.forwarding", 1)
            self.hosts[SERVER].sysctl("net.ipv4.icmp_ratelimit", 0)
            self.hosts[SERVER].ip(*(f"route add {kind} {prefix}" for kind, prefix in BEYOND))
            self.cgroups = {side: making.enter_context(Cgroup()) for side in SIDES}
            self.agents = {side: Agent(self.hosts[side], self.cgroups[side]) for side in SIDES}
            for agent in self.agents.values():
                making.callback(agent.close)
            self._made = making.pop_all()
        self._blocks = itertools.cycle(range(FIRST_PORT, LAST_PORT, PORTS))
        self._lock = threading.Lock()

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        with self._made:
            pass

    @contextlib.contextmanager
    def routed(self, mode: Mode) -> Iterator[dict[str, Routed]]:
        """dmm-ebpf attached as the mode says; the instances by side."""
        with contextlib.ExitStack() as stack:
            found = {}
            for side, io in mode.ports.items():
                policy = POLICY.format(io=io, processes=mode.processes)
                routed = Routed(self.hosts[side], self.cgroups[side], policy, self.directory)
                found[side] = stack.enter_context(routed)
                self.listening[side] = Listening(routed.instance)
                stack.callback(self._deaf, side)
            yield found

    def _deaf(self, side: str) -> None:
        self.listening.pop(side).close()

    def run(self, key: str, family: str) -> Seen:
        """A script, from its beginning to its end; may be called by several threads at once."""
        with self._lock:
            port = next(self._blocks)
        addresses = {
            side: host.ip4 if family == IP4 else host.ip6 for side, host in self.hosts.items()
        }
        told = {"script": key, "family": family, "addresses": addresses, "port": port}
        ends = dict(zip(SIDES, socket.socketpair(), strict=True))
        readers = {
            side: self.agents[side].start(told | {"side": side}, ends[side]) for side in SIDES
        }
        seconds = patient(SCRIPTS[key].seconds + GRACE_S)
        notes = {side: _notes(reader, seconds) for side, reader in readers.items()}
        ours = range(port, port + PORTS)
        awaited = SCRIPTS[key].carried or ()
        carried = (
            side
            for side, listening in self.listening.items()
            if listening.has_carried(ours, 2.0 if side in awaited else 0.0)
        )
        return Seen(notes, frozenset(carried))


def _notes(reader: socket.socket, seconds: float) -> Notes:
    """What a side has noted; that it said nothing is a note, too."""
    reader.settimeout(seconds)
    text = bytearray()
    with reader:
        try:
            while part := reader.recv(1 << 16):
                text += part
        except TimeoutError:
            return [["silent", "until it was given up"]]
    notes: Notes = json.loads(text) if text else [["silent", "ended without a word"]]
    return notes


class Listening:
    """Follows the events of an instance, and remembers the ports of flows that the
    stack "ours" got.
    """

    def __init__(self, instance: str) -> None:
        self._subscription = Client(instance).stream("follow")
        self._ports: set[int] = set()
        self._told = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def has_carried(self, ports: range, within_s: float) -> bool:
        """Whether a flow at one of these ports was given to the stack; events are awaited
        for so long.
        """
        wanted = set(ports)
        with self._told:
            return self._told.wait_for(lambda: bool(self._ports & wanted), within_s)

    def forget(self) -> None:
        """Ports are used again."""
        with self._told:
            self._ports.clear()

    def close(self) -> None:
        """Ends it."""
        self._ended.set()
        self._thread.join()
        self._subscription.close()

    def _follow(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._subscription], [], [], 0.1)[0]:
                continue
            try:
                found = self._subscription.read_ready()
            except NotAttachedError:
                return
            with self._told:
                for event in found:
                    if event.get("stack") == "ours":
                        self._ports |= {event.get("sport", 0), event.get("dport", 0)}
                self._told.notify_all()


def families_of(key: str) -> tuple[str, ...]:
    """Those that a script is run with."""
    return tuple(f for f in FAMILIES if f in SCRIPTS[key].families)
