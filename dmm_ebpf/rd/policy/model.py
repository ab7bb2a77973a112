# SPDX-License-Identifier: Apache-2.0
"""The shape of a policy: what keys exist, of what type, and the records that the rest of
the RD reads.

Owns the records of the TOML text (stacks and routes as written; those of rules are in rule.py) and
Policy, what they become once names are resolved. All of it is frozen. It refuses what one key or
one table shows to be wrong by itself; what needs two places to see (an unknown name, a
contradiction, a fallback to a user stack) is parse.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from dmm_ebpf.abi import C
from dmm_ebpf.kit.names import CONGESTION, TRANSPORT, Seam
from dmm_ebpf.rd.policy.elements import MOST_BESIDE, Elements
from dmm_ebpf.rd.policy.hosts import Labels
from dmm_ebpf.rd.policy.keyed import OldName, Record, by
from dmm_ebpf.rd.policy.livetable import FleetRoutes, LiveRoutes
from dmm_ebpf.rd.policy.locate import describe, place
from dmm_ebpf.rd.policy.named import Contents, Named, parse_prefixes
from dmm_ebpf.rd.policy.readers import (
    DEVICE,
    DEVICE_NAME,
    NAME,
    a_text,
    built_in_or_plugin,
    check_name,
    one_of,
    truth,
    whole_number,
)
from dmm_ebpf.rd.policy.routes import Match, RouteTable
from dmm_ebpf.rd.policy.routes_file import Stamp
from dmm_ebpf.rd.policy.rule import REFUSING, Rule, stack_names
from dmm_ebpf.rd.policy.shape import (
    ANY_TEXT,
    any_of,
    list_of,
    shape_of,
    spelled,
    takes,
    whole,
)
from dmm_ebpf.rd.policy.values import (
    SHARE,
    U32_MAX,
    Mark,
    Ports,
    Prefix,
    ValueRefusedError,
    parse_dscp,
    parse_mark,
    parse_ports,
    parse_protocol,
    parse_rate,
    parse_share,
    parse_size,
    shown,
)
from dmm_ebpf.records.path import Goal

KERNEL = "kernel"
REJECT = "reject"
AUTO = "auto"  # of a route: the director chooses among its candidates
GOALS: tuple[Goal, ...] = get_args(Goal)
TABLES = ("hosts", "labels", "stacks", "rules", "tables")  # a policy's keys
TABLE_KEYS = ("routes", "routes_from", "candidates", "goal", "share")
MAX_STACKS = C.DMM_MAX_STACKS - 1  # without "kernel"
MAX_COMMAND = 32  # parts
MAX_USER_PROCESSES = C.DMM_MAX_STACKS  # of all user stacks together: their seats, see bpf/abi.h

USER_IO = ("auto", "af_xdp", "tap")
MAX_BUSY_POLL_US = 1_000_000
MIN_USER_TIMEOUT_MS = 200  # TCP_RTO_MIN, include/net/tcp.h: before it nothing is sent again
MAX_USER_TIMEOUT_MS = 0x7FFFFFFF  # tcp(7)
MAX_KEEPALIVE_S = 32767  # MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, include/net/tcp.h
MAX_KEEPALIVE_PROBES = 127  # MAX_TCP_KEEPCNT
MAX_BUFFER_BYTES = 1 << 30  # RFC 7323 section 2.3
SYN_COOKIES = ("auto", "always", "off")
NEGOTIATE = ("forbid", "allow", "demand")
LATENCIES = ("auto", "low", "normal")
NO_BUDGET_PPM = U32_MAX  # DMM_REDUNDANCY_NONE: to C, 0 is its default
REFUSALS = (
    "EPERM",
    "EACCES",
    "ECONNREFUSED",
    "EHOSTUNREACH",
    "EINVAL",
    "ENETUNREACH",
    "ETIMEDOUT",
)  # errno(3)
_IO_OLD = {"af_packet": "tap", "tun": "tap"}  # and what they are called now


_CONGESTION = re.compile(r"[a-z0-9_-]{1,15}")


@takes(spelled(_CONGESTION.pattern))
def _kernel_congestion(value: object) -> str:
    """A congestion control that the kernel has loaded: "cubic", "bbr", "reno"."""
    text = a_text(value, "a congestion control")
    if not _CONGESTION.fullmatch(text):
        raise ValueRefusedError(
            f"{shown(text)} is not a congestion control",
            'expected for example "cubic", "bbr" or "reno"',
        )
    return text


@takes({"enum": ["kernel", "user", "reject"]})
def _kind(value: object) -> str:
    """What parse.py has chosen the record by."""
    return str(value)


@takes(
    {
        **list_of(spelled(f"{ANY_TEXT}*")),
        "prefixItems": [spelled(f"/{ANY_TEXT}*")],
        "maxItems": MAX_COMMAND,
    }
)
def _command(value: object) -> tuple[str, ...]:
    """The program that is run as its processes, and its arguments."""
    hint = 'expected a list, the first an absolute path, as in ["/usr/bin/python3", "/etc/dmm-ebpf/my.py"]'
    if not isinstance(value, list) or not 0 < len(value) <= MAX_COMMAND:
        raise ValueRefusedError(f"{shown(value)} is not a command", hint)
    words = tuple(a_text(word, "a part of a command") for word in value)
    if not words[0].startswith("/") or any("\0" in word for word in words):
        raise ValueRefusedError(f"{shown(words[0])} is not a program", hint)
    return words


_io_of_now = one_of("an I/O adapter", USER_IO)


@takes(any_of(shape_of(_io_of_now), {"enum": list(_IO_OLD), "deprecated": True}))
def _io(value: object) -> str:
    """How it reaches the network."""
    return _io_of_now(_IO_OLD.get(value, value) if isinstance(value, str) else value)


_transport = built_in_or_plugin(TRANSPORT)
_user_congestion = built_in_or_plugin(CONGESTION)
_processes = whole_number(1, C.DMM_MAX_PROCESSES, "a number of processes")
_max_connections = whole_number(1, C.DMM_MAX_XDP_FLOWS, "a number of connections")
_busy_poll_us = whole_number(0, MAX_BUSY_POLL_US, "a time of busy polling", " microseconds")
_syn_cookies = one_of("a mode of SYN cookies", SYN_COOKIES)
_negotiate = one_of("a way to negotiate", NEGOTIATE)
_latency = one_of("a kind of latency", LATENCIES)
_errno = one_of("an error of connect()", REFUSALS)
_goal = one_of("a goal of an adaptive route", GOALS)
_priority = whole_number(0, 0x7FFFFFFF, "a priority", ", as SO_PRIORITY in socket(7)")


@dataclass(frozen=True)
class Redundancy:
    """What copies against loss may cost, what loss they may leave, and what parity may add to a
    stream, in parts per million; None: C's default.
    """

    budget_ppm: int | None = None
    residual_ppm: int | None = None
    parity_ppm: int | None = None

    def plain(self) -> dict[str, float]:
        """As listings print it: percent, by the policy's keys."""
        values = {
            "budget": self.budget_ppm,
            "residual": self.residual_ppm,
            "parity": self.parity_ppm,
        }
        return {key: ppm / 10_000 for key, ppm in values.items() if ppm is not None}


_SHARES = {"budget": 0, "residual": 1, "parity": 0}  # the least of each, parts per million


@takes(
    {
        "type": "object",
        "minProperties": 1,
        "properties": dict.fromkeys(_SHARES, SHARE),
        "additionalProperties": False,
    }
)
def _redundancy(value: object) -> Redundancy:
    """What copies and parity may cost: { budget = "5%", residual = "0.1%", parity = "27%" }."""
    hint = (
        'expected for example { budget = "5%", residual = "0.2%", parity = "27%" }, or some of them'
    )
    if not isinstance(value, dict) or not value or not set(value) <= set(_SHARES):
        raise ValueRefusedError(f"{shown(value)} is not what redundancy may cost", hint)
    shares = {
        key: parse_share(value[key], least, f"a {key} of redundancy")
        for key, least in _SHARES.items()
        if key in value
    }
    return Redundancy(*(shares.get(key) for key in _SHARES))


@takes(any_of(whole(1, MAX_BUFFER_BYTES), *shape_of(parse_size)["anyOf"][1:]))
def _buffer(value: object) -> int:
    """A size in bytes, at most 1G: 65536, "512K", "16M"."""
    size = parse_size(value)
    if size > MAX_BUFFER_BYTES:
        raise ValueRefusedError(
            f"{shown(value)} is {size} bytes", "expected 1G at most, as a window reaches"
        )
    return size


_user_timeout = whole_number(
    MIN_USER_TIMEOUT_MS,
    MAX_USER_TIMEOUT_MS,
    "a user time-out",
    " milliseconds, as TCP_USER_TIMEOUT in tcp(7)",
)
_keepalive_probes = whole_number(1, MAX_KEEPALIVE_PROBES, "a number of keep-alive probes")
_keepalive_s = whole_number(1, MAX_KEEPALIVE_S, "a time of keep-alive", " seconds")


@takes({**list_of(DEVICE_NAME), "uniqueItems": True})
def _devices(value: object) -> tuple[str, ...]:
    """Network devices: ["eth0"]."""
    if not isinstance(value, list) or not value:
        raise ValueRefusedError(
            f"{shown(value)} is not a list of network devices", 'expected for example ["eth0"]'
        )
    for name in value:
        if not isinstance(name, str) or not DEVICE.fullmatch(name) or name in (".", ".."):
            raise ValueRefusedError(
                f"{shown(name)} is not a network device's name", 'expected for example "eth0"'
            )
    if len(set(value)) != len(value):
        raise ValueRefusedError("a device is listed twice", "name each device once")
    return tuple(value)


@takes(shape_of(parse_prefixes))
def _to(value: object) -> tuple[Prefix | Named, ...]:
    """A prefix, or what has such: an nft set, "nft:inet filter lossy", or a host by its name,
    "dns:db.example.com".
    """
    return parse_prefixes(a_text(value, "a prefix"))


@takes(shape_of(parse_protocol))
def _proto(value: object) -> int:
    return parse_protocol(a_text(value, "a protocol"))


@takes(NAME)
def _stack_name(value: object) -> str:
    """A stack's name."""
    return check_name(value, "stack")


@dataclass(frozen=True, kw_only=True)
class _Patient(Record):
    """When the sockets of a stack take a silent peer for dead, where their programs do not say
    it; None: as it is.
    """

    user_timeout_ms: int | None = field(default=None, metadata=by(_user_timeout))
    keepalive_time_s: int | None = field(default=None, metadata=by(_keepalive_s))
    keepalive_intvl_s: int | None = field(default=None, metadata=by(_keepalive_s))
    keepalive_probes: int | None = field(default=None, metadata=by(_keepalive_probes))

    @property
    def keepalive(self) -> bool:
        """Whether they send probes at all."""
        keys = (self.keepalive_time_s, self.keepalive_intvl_s, self.keepalive_probes)
        return any(value is not None for value in keys)


@dataclass(frozen=True, kw_only=True)
class KernelStack(_Patient):
    """The kernel's own stack, with options that are set on each socket it serves; None leaves a
    thing as it is.
    """

    kind: Literal["kernel"] = field(default="kernel", metadata=by(_kind))
    congestion: str | None = field(default=None, metadata=by(_kernel_congestion))
    dscp: int | None = field(default=None, metadata=by(parse_dscp))
    mark: Mark | None = field(default=None, metadata=by(parse_mark))
    pacing_rate_Bps: int | None = field(default=None, metadata=by(parse_rate, "pacing_rate"))  # noqa: N815
    priority: int | None = field(default=None, metadata=by(_priority))
    mptcp: bool = field(default=False, metadata=by(truth))  # sockets are made as MPTCP's


@dataclass(frozen=True, kw_only=True)
class UserStack(_Patient):
    """A user-space stack: one process or several that share its flows, with a transport
    of its own. udp: it relays datagrams, too.
    """

    kind: Literal["user"] = field(metadata=by(_kind))
    transport: str = field(default="tcp", metadata=by(_transport))
    congestion: str = field(default="cubic", metadata=by(_user_congestion))
    io: str = field(default="auto", metadata=by(_io, old_values=_IO_OLD))
    processes: int = field(default=1, metadata=by(_processes, old="instances"))
    fallback: str = field(default=KERNEL, metadata=by(_stack_name))
    devices: tuple[str, ...] = field(
        default=(), metadata=by(_devices)
    )  # (): whichever the route to the peer uses
    sndbuf_bytes: int | None = field(default=None, metadata=by(_buffer, "sndbuf", process=True))
    rcvbuf_bytes: int | None = field(default=None, metadata=by(_buffer, "rcvbuf", process=True))
    memory_bytes: int | None = field(default=None, metadata=by(parse_size, "memory"))
    max_connections: int | None = field(default=None, metadata=by(_max_connections))
    syn_cookies: str = field(default="auto", metadata=by(_syn_cookies, process=True))
    udp: bool = field(default=False, metadata=by(truth))
    negotiate: str = field(default="forbid", metadata=by(_negotiate, process=True))
    busy_poll_us: int = field(default=0, metadata=by(_busy_poll_us, process=True))
    latency: str = field(default="auto", metadata=by(_latency, process=True))
    redundancy: Redundancy | None = field(default=None, metadata=by(_redundancy))
    # what is run as its processes; (): ours
    command: tuple[str, ...] = field(default=(), metadata=by(_command))

    def part(self, seam: Seam) -> str:
        """What it has at a place where plug-ins fit: what is built in, or a plug-in's name."""
        return str(getattr(self, seam.key))

    def process_options(self) -> dict[str, Any]:
        """What each process is told, by the name of C's member; what is None is C's to choose."""
        values = {
            one.name: getattr(self, one.name) for one in fields(self) if one.metadata["process"]
        }
        told = values | self.redundancy_options()
        return {name: value for name, value in told.items() if value is not None}

    def redundancy_options(self) -> dict[str, int | str]:
        """What a process is told of redundancy, by the names of C's members, where 0 is the
        default.
        """
        redundancy = self.redundancy or Redundancy()
        return {
            "latency": self.latency,
            "redundancy_budget_ppm": _most_ppm(redundancy.budget_ppm),
            "redundancy_residual_ppm": redundancy.residual_ppm or 0,
            "parity_most_ppm": _most_ppm(redundancy.parity_ppm),
        }


def _most_ppm(ppm: int | None) -> int:
    """As struct dmm_core_config has it."""
    return NO_BUDGET_PPM if ppm == 0 else ppm or 0


@dataclass(frozen=True, kw_only=True)
class RejectStack(Record):
    """No stack: connect() fails, and sendto() of a socket that is not connected; errno:
    in which way.
    """

    kind: Literal["reject"] = field(default="reject", metadata=by(_kind))
    errno: str = field(default="EPERM", metadata=by(_errno))


Stack = KernelStack | UserStack | RejectStack


def is_mptcp(stack: Stack | None) -> bool:
    """Whether a stack is the kernel's with MPTCP."""
    return isinstance(stack, KernelStack) and stack.mptcp


STACK_RECORDS: dict[str, type[KernelStack] | type[UserStack] | type[RejectStack]] = {
    "kernel": KernelStack,
    "user": UserStack,
    "reject": RejectStack,
}


@dataclass(frozen=True, kw_only=True)
class RouteRecord(Record):
    """A route as written in the policy; "default" is two prefixes."""

    to: tuple[Prefix | Named, ...] = field(metadata=by(_to))
    stack: str = field(metadata=by(_stack_name))
    proto: int = field(default=0, metadata=by(_proto))
    ports: Ports = field(default=(), metadata=by(parse_ports))
    # With stack = "auto": among whom the director chooses, and by what (rd/adaptive)
    candidates: tuple[str, ...] = field(default=(), metadata=by(stack_names))
    goal: str = field(default="", metadata=by(_goal))
    share: bool = field(default=False, metadata=by(truth))  # what is learnt, with other hosts

    @property
    def match(self) -> Match:
        """Protocol and ports."""
        return Match(self.proto, self.ports)


@dataclass(frozen=True, kw_only=True)
class AutoRecord(Record):
    """What routes with stack = "auto" mean that do not say it themselves, as those of a file."""

    candidates: tuple[str, ...] = field(metadata=by(stack_names))
    goal: str = field(default="", metadata=by(_goal))
    share: bool = field(default=False, metadata=by(truth))


@dataclass(frozen=True)
class Auto:
    """What stands in the place of a stack in an adaptive route. Routes with the same goal,
    candidates and share learn together.
    """

    goal: Goal
    candidates: tuple[str, ...]
    share: bool = False  # with other hosts

    @property
    def name(self) -> str:
        """By which tables and listings call it; no stack can be called so."""
        words = [AUTO, self.goal, ",".join(self.candidates), *(["shared"] if self.share else [])]
        return ":".join(words)


BUILT_IN: Mapping[str, Stack] = MappingProxyType(
    {KERNEL: KernelStack(), **{name: RejectStack(errno=why) for name, why in REFUSING.items()}}
)


@dataclass(frozen=True)
class Policy:
    """A whole policy, every name resolved.

    labels: those of this host, and then rules are those that are for it, and tables without those
    that are for others alone; None: the text does not say them, and rules are all. written: the
    place of each rule in the text.

    plain: of a policy whose sets have their elements (with_elements()) the one as it is written, by
    which it is known; None: it is that itself.

    stacks has the stacks that the policy defines, "kernel", and those of REFUSING that a route, a
    fallback or an action names. tables has one for each action that a rule has, too, by its name.
    rules are in order; a rule's number, as shown and as stored in decisions, is its position from
    1.
    """

    source: str  # the file as the user named it, for messages
    text: str  # the TOML text as it was read
    stacks: Mapping[str, Stack]
    rules: tuple[Rule, ...]
    tables: Mapping[str, RouteTable]
    files: Mapping[Path, Stamp] = field(
        default_factory=dict
    )  # routes files, as they were when they were read
    labels: Labels | None = None
    written: tuple[int, ...] = ()
    autos: Mapping[str, Auto] = field(default_factory=dict)  # of adaptive routes, by name
    plain: Policy | None = None
    elements: Contents = field(default_factory=dict)  # what its sets have, where plain is another
    old_names: tuple[OldName, ...] = ()  # that the text has
    beside: Elements | None = None  # the same of its routes, where tables have none of it
    live: LiveRoutes | None = None  # that stand beside it, where plain is another
    fleet: FleetRoutes | None = None  # those of its fleet, likewise

    def old_names_told(self) -> Iterator[tuple[str, str]]:
        """Names that a later version knows no more: where each stands, and a sentence."""
        for path, told in self.old_names:
            yield place(self.source, self.text, path), f"{describe(path[:-1])}: {told}"

    @property
    def n_routes(self) -> int:
        """Routes of all tables; "default" counts as two, and a set as its elements."""
        beside = len(self.beside or ()) + len(self.fleet or ())
        return sum(map(len, self.tables.values())) + beside

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rules, routes, and stacks that are not built in."""
        return len(self.rules), self.n_routes, sum(name not in BUILT_IN for name in self.stacks)

    @property
    def sets(self) -> tuple[Named, ...]:
        """The nft sets and hostnames that its routes and rules name, each once."""
        plain = self.as_written
        named = [one.to for table in plain.tables.values() for one in table.sets]
        named += [one for rule in plain.rules for one in rule.source_sets]
        return tuple(dict.fromkeys(named))

    @property
    def as_written(self) -> Policy:
        """Without elements of sets: the same one, whatever these have."""
        return self.plain or self

    def with_elements(self, contents: Contents) -> Policy:
        """The policy with what its sets have; a set that is not there has nothing."""
        plain = self.as_written
        rules = tuple(rule.with_elements(contents) for rule in plain.rules)
        beside: Elements | None = Elements(plain.tables, contents)
        tables = plain.tables
        if len(beside or ()) > MOST_BESIDE:
            beside = None
            tables = {name: table.with_elements(contents) for name, table in tables.items()}
        made = replace(plain, rules=rules, tables=tables, plain=plain, elements=contents)
        return replace(made, beside=beside, fleet=self.fleet)

    def tables_of(self, name: str) -> list[RouteTable]:
        """A table, and what stands beside it."""
        beside = (one.table(name) for one in (self.live, self.fleet, self.beside) if one)
        return [self.tables[name], *(one for one in beside if one is not None)]

    def with_live(self, live: LiveRoutes) -> Policy:
        """The policy with routes beside it; they may name what no other route refuses by."""
        beside = [live, *([self.fleet] if self.fleet else [])]
        refusing = {n: BUILT_IN[n] for n in REFUSING if any(one.stacks[n] for one in beside)}
        stacks = {**self.as_written.stacks, **refusing}
        return replace(self, live=live, stacks=stacks, plain=self.as_written)

    def user_stacks(self) -> dict[str, UserStack]:
        """The user stacks by name, in policy order."""
        return {name: stack for name, stack in self.stacks.items() if isinstance(stack, UserStack)}

    def routed_stacks(self) -> list[str]:
        """The stacks that routes name, or that programs may choose, each once, in order: those that
        must be there for this policy.
        """
        routed = (
            name
            for table in self.tables.values()
            for named in table.stack_names
            for name in self.may_serve(named)
        )
        chosen = (name for rule in self.rules for name in rule.choose)
        beside = (name for one in (self.live, self.fleet) if one for name in one.stacks)
        return list(dict.fromkeys([*routed, *chosen, *beside]))

    def makes_mptcp(self, rule: Rule) -> bool:
        """Whether sockets that the rule matches are made as MPTCP's: a route of its table leads to
        a stack with mptcp.
        """
        if not rule.table or rule.forwards:
            return False
        return any(is_mptcp(self.stacks.get(one)) for one in self.tables[rule.table].stack_names)

    def may_serve(self, named: str) -> tuple[str, ...]:
        """Who serves where a route names that: itself, or the candidates."""
        auto = self.autos.get(named)
        return auto.candidates if auto else (named,)

    def rule_text(self, index: int) -> str:
        """The rule at index (from 0): its name, or its number and conditions,
        "1: cgroup /shop.slice".
        """
        rule = self.as_written.rules[index]
        return rule.name or f"{index + 1}: {rule.text()}"

    def place(self, *path: str | int) -> str:
        """Where the key at path stands, "policy.toml:12". A rule's number is its place in rules."""
        if len(path) > 1 and path[0] == "rules" and self.written:
            path = ("rules", self.written[int(path[1])], *path[2:])
        return place(self.source, self.text, path)
