# SPDX-License-Identifier: Apache-2.0
"""For the tests of the BPF programs: an attached instance, policies written entry by entry, and a
program to route.

The policy's author here is the test itself: entries are packed from bpf/abi.h and written where the
RD would write them, so that what is tested is the programs alone.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C
from dmm_ebpf.loader.spec import LISTENER_KEY
from lab import Cgroup, Host, Lab
from lab.waiting import wait_for, wait_readable

SO_NETNS_COOKIE = 71
SO_MAX_PACING_RATE = 47

# Reads Python from stdin, one JSON string a line; answers with JSON: the value, or the errno
# of an OSError.
AGENT = """
import ctypes, errno, json, os, socket, struct, sys
names = {"s": {}, "socket": socket, "struct": struct, "os": os, "libc": ctypes.CDLL(None)}
for line in sys.stdin:
    source = json.loads(line)
    try:
        try:
            answer = {"value": eval(source, names)}
        except SyntaxError:
            exec(source, names)
            answer = {"value": None}
        json.dumps(answer)
    except OSError as error:
        answer = {"errno": error.errno or errno.ETIMEDOUT}
    except TypeError:
        answer = {"value": repr(answer)}
    print(json.dumps(answer), flush=True)
"""


class Agent:
    """An unmodified program in a cgroup and on a host, which does what the test tells it to."""

    def __init__(self, cgroup: Cgroup, host: Host) -> None:
        self.process: subprocess.Popen[str] = cgroup.spawn(
            [sys.executable, "-c", AGENT],
            host=host,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self("1")  # it has joined the cgroup

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def __call__(self, source: str) -> Any:
        """Runs an expression or statements there; an OSError there is raised here,
        with its errno.
        """
        self.post(source)
        return self.answer()

    def post(self, source: str) -> None:
        """The first half of a call: does not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(source) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The second half of a call."""
        assert self.process.stdout is not None
        assert wait_readable(self.process.stdout.fileno(), 20.0), "the agent does not answer"
        line = self.process.stdout.readline()
        assert line, "the agent ended"
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["value"]

    def open(self, name: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> None:
        """A socket called name."""
        self(f"s[{name!r}] = socket.socket({int(family)}, {int(kind)})")

    def connect(self, name: str, address: str, port: int) -> None:
        """connect(), with a deadline."""
        self(f"s[{name!r}].settimeout(10); s[{name!r}].connect(({address!r}, {port}))")

    def listen(self, name: str, address: str, port: int = 0, family: int = socket.AF_INET) -> int:
        """A listening socket called name; its port."""
        self.open(name, family)
        self(f"s[{name!r}].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)")
        self(f"s[{name!r}].bind(({address!r}, {port})); s[{name!r}].listen()")
        return int(self(f"s[{name!r}].getsockname()[1]"))

    def accept(self, listener: str, name: str) -> None:
        """Takes a connection off a listener."""
        self(f"s[{listener!r}].settimeout(10); s[{name!r}] = s[{listener!r}].accept()[0]")

    def close(self, name: str) -> None:
        """close()."""
        self(f"s.pop({name!r}).close()")

    def mark(self, name: str) -> int:
        """SO_MARK."""
        return int(self(f"s[{name!r}].getsockopt(socket.SOL_SOCKET, socket.SO_MARK)"))

    def tos(self, name: str, *, ipv6: bool = False) -> int:
        """IP_TOS or IPV6_TCLASS."""
        level = (
            "socket.IPPROTO_IPV6, socket.IPV6_TCLASS"
            if ipv6
            else "socket.IPPROTO_IP, socket.IP_TOS"
        )
        return int(self(f"s[{name!r}].getsockopt({level})"))

    def congestion(self, name: str) -> str:
        """TCP_CONGESTION."""
        raw = f"s[{name!r}].getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)"
        return str(self(f"{raw}.split(b'\\0')[0].decode()"))

    def option(self, name: str, option: int) -> int:
        """An integer of SOL_SOCKET."""
        return int(self(f"s[{name!r}].getsockopt(socket.SOL_SOCKET, {option})"))

    def cookie(self, name: str) -> int:
        """SO_COOKIE, which a flow is kept by."""
        return int(
            self(f"struct.unpack('=Q', s[{name!r}].getsockopt(socket.SOL_SOCKET, 57, 8))[0]")
        )


def netns_cookie(host: Host) -> int:
    """The cookie of a host's network namespace."""

    def read() -> int:
        with socket.socket() as sock:
            return int(
                struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
            )

    return host.call(read)


_NO_ROUTE = (C.DMM_ROUTE_NONE, 0)
_MAX_DIGIT = (1 << 63) - 1
Said = tuple[int, int]


def _digits(table: int, prefix: str) -> tuple[list[int], int]:
    """The digits of a prefix that count, and how many of the last one's values it has."""
    net = ipaddress.ip_network(prefix)
    first = int(net.network_address)
    if net.version == 4:
        return [table << 3 | 4, 0xFFFF << 32 | first], net.num_addresses
    digits = [table << 3 | first >> 126, first >> 63 & _MAX_DIGIT, first & _MAX_DIGIT]
    count = 1 + (net.prefixlen > 2) + (net.prefixlen > 65)
    return digits[:count], net.num_addresses >> (126, 63, 0)[count - 1]


class _Nodes:
    """routes[] from some prefixes, the longest last; written plainly, a level after the other."""

    def __init__(self, routes: Sequence[tuple[int, str, Said]]) -> None:
        longest_last = sorted(routes, key=lambda one: ipaddress.ip_network(one[1]).prefixlen)
        found = [(*_digits(table, prefix), said) for table, prefix, said in longest_last]
        self.nodes = [b""]
        self.nodes[0] = self._root(found, _NO_ROUTE)

    def _root(self, routes: list[tuple[list[int], int, Said]], around: Said) -> bytes:
        here = [one for one in routes if len(one[0]) == 1]
        deeper = {one[0][0] for one in routes if len(one[0]) > 1}
        starts = {0, *(one[0][0] for one in here), *(one[0][0] + one[1] for one in here)}
        starts |= deeper | {digit + 1 for digit in deeper}
        parts = [(at, self._said(here, at, around)) for at in sorted(starts) if at <= _MAX_DIGIT]
        for i, (at, said) in enumerate(parts):
            if at in deeper:
                inside = [(one[0][1:], *one[1:]) for one in routes if one[0][0] == at]
                root = self._root([one for one in inside if one[0]], said)
                parts[i] = at, (self._place([root]), C.DMM_NODE_DEEPER)
        level = [(group[0][0], self._node(group)) for group in _eights(parts)]
        while len(level) > 1:
            level = [
                (group[0][0], self._node(group, self._place([one for _, one in group])))
                for group in _eights(level)
            ]
        return level[0][1]

    def _said(self, here: list[tuple[list[int], int, Said]], at: int, around: Said) -> Said:
        inside = [said for (first,), count, said in here if first <= at < first + count]
        return inside[-1] if inside else around

    def _place(self, nodes: list[bytes]) -> int:
        self.nodes += nodes
        return len(self.nodes) - len(nodes)

    def _node(self, parts: Sequence[tuple[int, Any]], children: int = 0) -> bytes:
        lasts = [at - 1 for at, _ in parts[1:]]
        node = abi.new("dmm_route_node", children=children)
        for i in range(C.DMM_NODE_PARTS - 1):
            node.lasts[i] = lasts[i] if i < len(lasts) else _MAX_DIGIT
        for i, (_, said) in enumerate(parts if not children else ()):
            node.values[i].route, node.values[i].stack = said
        return abi.pack(node)


def _eights(of: list[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    return (of[i : i + C.DMM_NODE_PARTS] for i in range(0, len(of), C.DMM_NODE_PARTS))


@dataclass
class Policy:
    """Entries of one half. Rules count from 1 as decisions do; apply() writes them
    and flips control.
    """

    rules: list[dict[str, Any]] = field(default_factory=list)
    stacks: dict[int, dict[str, Any]] = field(default_factory=dict)
    routes: list[tuple[int, str, Said]] = field(default_factory=list)
    port_entries: list[tuple[bytes, bytes]] = field(default_factory=list)

    def rule(self, table: int, directions: int = C.DMM_DIR_CONNECT, **fields: Any) -> Policy:
        """The next rule, of one check; its number may be said."""
        number = len(self.rules) + 1
        self.rules.append({"table": table, "directions": directions, "number": number, **fields})
        return self

    def stack(self, number: int, kind: int, **fields: Any) -> Policy:
        """stacks[number]."""
        self.stacks[number] = {"kind": kind, **fields}
        return self

    def user(self, number: int, **fields: Any) -> Policy:
        """A user stack."""
        return self.stack(number, C.DMM_STACK_USER, **{"congestion": b"reno", **fields})

    def route(
        self, table: int, prefix: str, stack: int, *, route: int = 0, portset: int = 0
    ) -> Policy:
        """A prefix; with a portset, ports() say more."""
        said = (route, C.DMM_NODE_PORTS | portset) if portset else (route, stack)
        self.routes.append((table, prefix, said))
        return self

    def ports(
        self, portset: int, port: int, bits: int, stack: int, *, route: int, proto: int = 6
    ) -> Policy:
        """The aligned block of ports whose first is port and whose leading bits count."""
        key = abi.new(
            "dmm_port_key",
            prefixlen=48 + bits,
            portset=socket.htonl(portset),
            proto=proto,
            port_be=socket.htons(port),
        )
        value = abi.new("dmm_port_value", route=route, stack=stack)
        self.port_entries.append((abi.pack(key), abi.pack(value)))
        return self

    def write(self, attached: loader.Attached, generation: int) -> None:
        """Fills the half that generation selects; no program looks at it until flip()."""
        half = generation & 1
        maps = attached.maps
        nodes = [(u32(place), node) for place, node in enumerate(_Nodes(self.routes).nodes)]
        for kind, entries in (("routes", nodes), ("ports", self.port_entries)):
            with loader.create_routes_map(kind, len(entries)) as inner:  # type: ignore[arg-type]
                inner.update_batch(
                    b"".join(k for k, _ in entries), b"".join(v for _, v in entries), len(entries)
                )
                loader.set_inner(maps[kind], half, inner)
        for i, fields in enumerate(self.rules):
            maps.rules[half * C.DMM_MAX_CHECKS + i] = abi.new("dmm_rule", **fields)
        for number in range(1, C.DMM_MAX_STACKS):
            value = abi.new("dmm_stack", **self.stacks.get(number, {}))
            maps.stacks[half * C.DMM_MAX_STACKS + number] = value
        kinds = {stack["kind"] for stack in self.stacks.values()}
        datagrams = C.DMM_DATAGRAMS_REJECT * (C.DMM_STACK_REJECT in kinds)
        datagrams |= C.DMM_DATAGRAMS_USER * (C.DMM_STACK_USER in kinds)
        head = abi.new("dmm_policy_head", n_rules=len(self.rules), datagrams=datagrams)
        maps.heads[half] = head

    def apply(self, attached: loader.Attached, generation: int = 1) -> None:
        """write(), then flip()."""
        self.write(attached, generation)
        flip(attached, generation)


def flip(attached: loader.Attached, generation: int) -> None:
    """Makes generation the one in force."""
    control = attached.maps.control[0]
    control.generation = generation
    attached.maps.control[0] = control


def follow(attached: loader.Attached, flags: int = C.DMM_CONTROL_EVENTS) -> None:
    """Turns events on, as the RD does while somebody follows; with 0, off."""
    control = attached.maps.control[0]
    control.flags = flags
    attached.maps.control[0] = control


# Fields of a stack, and what a socket of it reads.
PATIENT: dict[str, Any] = {
    "flags": C.DMM_SET_USER_TIMEOUT | C.DMM_SET_KEEPALIVE,
    "patience": {"user_timeout_ms": 5000, "keepalive_time_s": 20, "keepalive_probes": 4},
    "usual_patience": {"keepalive_time_s": 7200, "keepalive_intvl_s": 75, "keepalive_probes": 9},
}


def patience(agent: Agent, name: str) -> list[int]:
    """TCP_USER_TIMEOUT, TCP_KEEPIDLE, TCP_KEEPCNT, TCP_KEEPINTVL and SO_KEEPALIVE."""
    options = ((6, 18), (6, 4), (6, 6), (6, 5), (1, 9))
    return list(agent(f"[s[{name!r}].getsockopt(*one) for one in {options}]"))


def stack_up(attached: loader.Attached, number: int, up: int = 1) -> None:
    """stack_state[number].up."""
    attached.maps.stack_state[number] = abi.new("dmm_stack_state", up=up)


def processes_up(attached: loader.Attached, number: int, up: int, seats: Sequence[int]) -> None:
    """stack_state[number] of a stack with several processes: bits of those that are up, the
    seat of each.
    """
    state = abi.new("dmm_stack_state", up=up, processes=len(seats))
    for i, seat in enumerate(seats):
        state.seats[i] = seat
    attached.maps.stack_state[number] = state


def process_full(attached: loader.Attached, number: int, process: int, full: int) -> None:
    """stack_load of one process of stack number: full is a bit set of enum dmm_full."""
    key = u32(number * C.DMM_MAX_PROCESSES + process)
    attached.maps["stack_load"].update(key, abi.pack(abi.new("dmm_stack_load", full=full)))


def u32(value: int) -> bytes:
    """A key or value of one __u32."""
    return struct.pack("=I", value)


def counter(attached: loader.Attached, number: int) -> int:
    """counters[number], over all CPUs."""
    values = attached.maps["counters"].lookup_percpu(u32(number))
    return sum(struct.unpack("=Q", value)[0] for value in values)


def listener_key(address: str, port: int, proto: int = socket.IPPROTO_TCP) -> Any:
    """A key of listeners."""
    return LISTENER_KEY.type(abi.addr16(address), socket.htons(port), proto)


@dataclass
class Bench:
    """Two wired hosts, an instance on a cgroup in a's namespace, and an agent in both."""

    lab: Lab
    a: Host
    b: Host
    cgroup: Cgroup
    attached: loader.Attached
    agent: Agent
    far: socket.socket
    events: list[Any] = field(default_factory=list)
    reader: loader.EventReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = loader.EventReader(self.attached.maps["events"].fd)

    @property
    def port(self) -> int:
        """Of the listening socket on b, which serves both families."""
        return int(self.far.getsockname()[1])

    def flow(self, cookie: int) -> Any | None:
        """The record of a socket."""
        return next((f for f in self.flows() if f.cookie == cookie), None)

    def flows(self) -> list[Any]:
        """Every struct dmm_flow."""
        return list(self.attached.flows())

    def listener(self, address: str, port: int, proto: int = socket.IPPROTO_TCP) -> Any | None:
        """listeners[address, port, proto]."""
        return self.attached.maps.listeners.get(listener_key(address, port, proto))

    def event(self, kind: int, cookie: int) -> Any:
        """Waits for an event of one socket; those that come before it are kept for
        the next call.
        """

        def find() -> Any:
            if wait_readable(self.reader.fileno(), 0.05):
                self.events += self.reader.read()
            return next(
                (e for e in self.events if e.type == kind and e.flow.cookie == cookie), None
            )

        return wait_for(find, 10.0, f"event {kind} of socket {cookie}")

    def count(self, number: int) -> int:
        """A counter."""
        return counter(self.attached, number)


def dual_listener() -> socket.socket:
    """A socket that listens on :: for both families, at a port of the kernel's choice."""
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)


@pytest.fixture
def bench(lab: Lab, cgroup: Cgroup, instance: Callable[[], str]) -> Iterator[Bench]:
    """A Bench; everything is detached at the end."""
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b)
    with ExitStack() as stack:
        name = instance()
        stack.callback(loader.detach, name)
        attached = loader.attach(name, cgroup.path, netns_cookie=netns_cookie(a))
        stack.callback(attached.close)
        follow(attached)
        far = stack.enter_context(b.call(dual_listener))
        made = Bench(lab, a, b, cgroup, attached, Agent(cgroup, a), far)
        stack.callback(made.reader.close)
        yield made
