# SPDX-License-Identifier: Apache-2.0
"""The shape of a policy: what keys exist, of what type, and the records that the rest of
the RD reads.

Owns the records of the TOML text (stacks, rules, routes as written) and Policy, what they become
once names are resolved. All of it is frozen. It refuses what one key or one table shows to be wrong
by itself; what needs two places to see (an unknown name, a contradiction, a fallback to a user
stack) is policy.py's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from dmm_ebpf.abi import C
from dmm_ebpf.kit.names import CONTROLS, FORMS, has_form, offers
from dmm_ebpf.rd.policy.locate import place
from dmm_ebpf.rd.policy.routes import Match, RouteTable
from dmm_ebpf.rd.policy.routes_file import Stamp
from dmm_ebpf.rd.policy.values import (
    Mark,
    Ports,
    Prefix,
    UidRange,
    ValueRefusedError,
    parse_dscp,
    parse_mark,
    parse_ports,
    parse_prefix,
    parse_protocol,
    parse_rate,
    parse_size,
    parse_uid,
    shown,
)

KERNEL = "kernel"
REJECT = "reject"
MAX_NAME = 31
MAX_COMMAND = 32  # parts
MAX_USER_PROCESSES = C.DMM_MAX_STACKS  # of all user stacks together: their seats, see bpf/abi.h

USER_TRANSPORTS = ("tcp",)
USER_IO = ("auto", "af_xdp", "tap")
MAX_BUSY_POLL_US = 1_000_000
MIN_USER_TIMEOUT_MS = 200  # TCP_RTO_MIN, include/net/tcp.h: before it nothing is sent again
MAX_USER_TIMEOUT_MS = 0x7FFFFFFF  # tcp(7)
MAX_KEEPALIVE_S = 32767  # MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, include/net/tcp.h
MAX_KEEPALIVE_PROBES = 127  # MAX_TCP_KEEPCNT
MAX_BUFFER_BYTES = 1 << 30  # RFC 7323 section 2.3
SYN_COOKIES = ("auto", "always", "off")
REFUSALS = (
    "EPERM",
    "EACCES",
    "ECONNREFUSED",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "ETIMEDOUT",
)  # errno(3)
_IO_OLD = ("af_packet", "tun")

log = logging.getLogger("dmm-ebpf")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_CONGESTION = re.compile(r"[a-z0-9_-]{1,15}", re.ASCII)
_DEVICE = re.compile(r"[^\s/:]{1,15}")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueRefusedError(f"{shown(value)} is not {what}", "expected a text in quotes")
    return value


def check_name(name: object, what: str) -> str:
    """A name of a stack, table or rule; short enough for listings and plain enough
    for file names.
    """
    text = _text(name, f"a {what}'s name")
    if not _NAME.fullmatch(text) or len(text) > MAX_NAME:
        raise ValueRefusedError(
            f"{shown(text)} cannot name a {what}",
            f"names have 1 to {MAX_NAME} letters, digits, '_', '-' or '.', and begin with a letter, digit or '_'",
        )
    return text


def _kernel_congestion(value: object) -> str:
    text = _text(value, "a congestion control")
    if not _CONGESTION.fullmatch(text):
        raise ValueRefusedError(
            f"{shown(text)} is not a congestion control",
            'expected for example "cubic", "bbr" or "reno"',
        )
    return text


def _choice(value: object, what: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueRefusedError(
            f"{shown(value)} is not {what} that exists", f"expected {_alternatives(choices)}"
        )
    return str(value)


def _alternatives(choices: tuple[str, ...]) -> str:
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _whole(value: object, least: int, most: int, what: str, unit: str = "") -> int:
    """A whole number from least to most. unit: what is said of it behind the range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueRefusedError(
            f"{shown(value)} is not {what}", f"expected {least} to {most}{unit}"
        )
    return value


def _transport(value: object) -> str:
    return _choice(value, "a transport", USER_TRANSPORTS)


def _user_congestion(value: object) -> str:
    if (
        isinstance(value, str)
        and value not in CONTROLS
        and has_form(value)
        and (":" in value or offers(value))
    ):
        return value
    try:
        return _choice(value, "a congestion control of user stacks", CONTROLS)
    except ValueRefusedError as exc:
        raise ValueRefusedError(exc.why, f"{exc.hint}, or a plug-in: {FORMS}") from None


def _command(value: object) -> tuple[str, ...]:
    """See UserStack.command."""
    hint = 'expected a list, the first an absolute path, as in ["/usr/bin/python3", "/etc/dmm-ebpf/my.py"]'
    if not isinstance(value, list) or not 0 < len(value) <= MAX_COMMAND:
        raise ValueRefusedError(f"{shown(value)} is not a command", hint)
    words = tuple(_text(word, "a part of a command") for word in value)
    if not words[0].startswith("/") or any("\0" in word for word in words):
        raise ValueRefusedError(f"{shown(words[0])} is not a program", hint)
    return words


def _io(value: object) -> str:
    if value in _IO_OLD:
        log.warning('io = "%s" is an old name and means io = "tap" now, which does the same', value)
        return "tap"
    return _choice(value, "an I/O adapter", USER_IO)


def _syn_cookies(value: object) -> str:
    return _choice(value, "a mode of SYN cookies", SYN_COOKIES)


def _errno(value: object) -> str:
    return _choice(value, "an error of connect()", REFUSALS)


def _processes(value: object) -> int:
    return _whole(value, 1, C.DMM_MAX_PROCESSES, "a number of processes")


def _buffer(value: object) -> int:
    size = parse_size(value)
    if size > MAX_BUFFER_BYTES:
        raise ValueRefusedError(
            f"{shown(value)} is {size} bytes", "expected 1G at most, as a window reaches"
        )
    return size


def _max_connections(value: object) -> int:
    return _whole(value, 1, C.DMM_MAX_XDP_FLOWS, "a number of connections")


def _busy_poll_us(value: object) -> int:
    return _whole(value, 0, MAX_BUSY_POLL_US, "a time of busy polling", " microseconds")


def _user_timeout_ms(value: object) -> int:
    most, unit = MAX_USER_TIMEOUT_MS, " milliseconds, as TCP_USER_TIMEOUT in tcp(7)"
    return _whole(value, MIN_USER_TIMEOUT_MS, most, "a user time-out", unit)


def _keepalive_s(value: object) -> int:
    return _whole(value, 1, MAX_KEEPALIVE_S, "a time of keep-alive", " seconds")


def _keepalive_probes(value: object) -> int:
    return _whole(value, 1, MAX_KEEPALIVE_PROBES, "a number of keep-alive probes")


def _devices(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueRefusedError(
            f"{shown(value)} is not a list of network devices", 'expected for example ["eth0"]'
        )
    for name in value:
        if not isinstance(name, str) or not _DEVICE.fullmatch(name) or name in (".", ".."):
            raise ValueRefusedError(
                f"{shown(name)} is not a network device's name", 'expected for example "eth0"'
            )
    if len(set(value)) != len(value):
        raise ValueRefusedError("a device is listed twice", "name each device once")
    return tuple(value)


def _cgroup(value: object) -> str:
    text = _text(value, "a cgroup's path")
    parts = [part for part in text.split("/") if part]
    if not text.startswith("/") or "\0" in text or any(part in (".", "..") for part in parts):
        raise ValueRefusedError(
            f"{shown(text)} is not a cgroup's path",
            'expected a path that begins with "/", below the cgroup v2 mount, such as "/shop.slice"',
        )
    return "/" + "/".join(parts)


def _comm(value: object) -> str:
    text = _text(value, "a command name")
    size = len(text.encode())
    if not 1 <= size < C.DMM_COMM_LEN or "\0" in text:
        raise ValueRefusedError(
            f"{shown(text)} is not a command name",
            f"expected 1 to {C.DMM_COMM_LEN - 1} bytes, as in /proc/PID/comm",
        )
    return text


def _netns(value: object) -> str:
    text = _text(value, "a network namespace's name")
    if not text or "/" in text or "\0" in text or text in (".", ".."):
        raise ValueRefusedError(
            f"{shown(text)} is not a network namespace's name", "expected a name of `ip netns`"
        )
    return text


def _priority(value: object) -> int:
    return _whole(value, 0, 0x7FFFFFFF, "a priority", ", as SO_PRIORITY in socket(7)")


def _to(value: object) -> tuple[Prefix, ...]:
    return parse_prefix(_text(value, "a prefix"))


def _proto(value: object) -> int:
    return parse_protocol(_text(value, "a protocol"))


def _stack_name(value: object) -> str:
    return check_name(value, "stack")


def _table_name(value: object) -> str:
    return check_name(value, "table")


def _rule_name(value: object) -> str:
    return check_name(value, "rule")


def _direction(value: object) -> int:
    if value == "connect":
        return int(C.DMM_DIR_CONNECT)
    if value == "listen":
        return int(C.DMM_DIR_LISTEN)
    if value == "forward":
        return int(C.DMM_DIR_FORWARD)
    raise ValueRefusedError(
        f"{shown(value)} is not a direction",
        'expected "connect", "listen" or "forward"; leave it out to mean the first two',
    )


def _sources(value: object) -> tuple[Prefix, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueRefusedError("the list is empty", "leave it out to mean every source")
    found = [prefix for text in texts for prefix in parse_prefix(_text(text, "a prefix"))]
    return tuple(dict.fromkeys(found))


def _in_interface(value: object) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    if not names:
        raise ValueRefusedError("the list is empty", "leave it out to mean every device")
    for name in names:
        if not isinstance(name, str) or not _DEVICE.fullmatch(name) or name in (".", ".."):
            raise ValueRefusedError(
                f"{shown(name)} is not a network device's name",
                'expected for example "lan0" or "veth*"',
            )
    return tuple(dict.fromkeys(names))


class KeysRefusedError(Exception):
    """The keys of a table that are refused, as the policy writes them, each with why, or None
    when it is missing.
    """

    def __init__(self, keys: dict[str, ValueRefusedError | None]) -> None:
        super().__init__(", ".join(keys))
        self.keys = keys


def _by(
    read: Callable[[Any], Any], name: str = "", *, old: str = "", process: bool = False
) -> dict[str, Any]:
    """Metadata of a field. read: from what TOML gives to the value, or ValueRefusedError. name: the
    key as a policy writes it, where that is not the field's name. old: what the key was called, and
    may be for one version more.
    process: each process of the stack is told the value as it is, for C's member of
    the field's name.
    """
    return {"read": read, "name": name, "old": old, "process": process}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A table of the policy; each field's metadata is made by _by(), and one without default
    must be there.
    """

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys as a policy writes them."""
        return tuple(one.metadata["name"] or one.name for one in fields(cls))

    @classmethod
    def old_keys(cls) -> dict[str, str]:
        """The keys that had another name, by that."""
        olds = (one.metadata["old"] for one in fields(cls))
        return {old: key for old, key in zip(olds, cls.keys(), strict=True) if old}

    @classmethod
    def read(cls, data: Mapping[str, object]) -> Self:
        """The record of a table whose keys are known ones. KeysRefusedError: all keys
        that are refused.
        """
        values: dict[str, Any] = {}
        wrong: dict[str, ValueRefusedError | None] = {}
        olds = {key: old for old, key in cls.old_keys().items()}
        for one, key in zip(fields(cls), cls.keys(), strict=True):
            old = olds.get(key, "")
            if old in data and key in data:
                wrong[old] = ValueRefusedError(
                    f"it is the old name of {key}, which is there, too", "take one away"
                )
                continue
            written = _written(key, old, data)
            if written in data:
                try:
                    values[one.name] = one.metadata["read"](data[written])
                except ValueRefusedError as refused:
                    wrong[written] = refused
            elif one.default is MISSING:
                wrong[key] = None
        if wrong:
            raise KeysRefusedError(wrong)
        return cls(**values)

    def options(self) -> dict[str, Any]:
        """What is not None, by field, as listings print it; without kind."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "kind"}
        return {name: _plain(value) for name, value in values.items() if value is not None}


def _written(key: str, old: str, data: Mapping[str, object]) -> str:
    """The name by which data may have a key."""
    if not old or old not in data:
        return key
    log.warning("%s is an old name of the key %s, which does the same", old, key)
    return old


def _plain(value: Any) -> Any:
    """value as JSON has it."""
    if isinstance(value, Mark | UidRange):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class _Patient(Record):
    """When the sockets of a stack take a silent peer for dead, where their programs do not say
    it; None: as it is.
    """

    user_timeout_ms: int | None = field(default=None, metadata=_by(_user_timeout_ms))
    keepalive_time_s: int | None = field(default=None, metadata=_by(_keepalive_s))
    keepalive_intvl_s: int | None = field(default=None, metadata=_by(_keepalive_s))
    keepalive_probes: int | None = field(default=None, metadata=_by(_keepalive_probes))

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

    kind: Literal["kernel"] = field(default="kernel", metadata=_by(str))
    congestion: str | None = field(default=None, metadata=_by(_kernel_congestion))
    dscp: int | None = field(default=None, metadata=_by(parse_dscp))
    mark: Mark | None = field(default=None, metadata=_by(parse_mark))
    pacing_rate_Bps: int | None = field(default=None, metadata=_by(parse_rate, "pacing_rate"))  # noqa: N815
    priority: int | None = field(default=None, metadata=_by(_priority))


@dataclass(frozen=True, kw_only=True)
class UserStack(_Patient):
    """A user-space stack: one process or several that share its flows, with a transport
    of its own.
    """

    kind: Literal["user"] = field(metadata=_by(str))
    transport: str = field(default="tcp", metadata=_by(_transport))
    congestion: str = field(default="cubic", metadata=_by(_user_congestion))
    io: str = field(default="auto", metadata=_by(_io))
    processes: int = field(default=1, metadata=_by(_processes, old="instances"))
    fallback: str = field(default=KERNEL, metadata=_by(_stack_name))
    devices: tuple[str, ...] = field(
        default=(), metadata=_by(_devices)
    )  # (): whichever the route to the peer uses
    sndbuf_bytes: int | None = field(default=None, metadata=_by(_buffer, "sndbuf", process=True))
    rcvbuf_bytes: int | None = field(default=None, metadata=_by(_buffer, "rcvbuf", process=True))
    memory_bytes: int | None = field(default=None, metadata=_by(parse_size, "memory"))
    max_connections: int | None = field(default=None, metadata=_by(_max_connections))
    syn_cookies: str = field(default="auto", metadata=_by(_syn_cookies, process=True))
    busy_poll_us: int = field(default=0, metadata=_by(_busy_poll_us, process=True))
    # what is run as its processes; (): ours
    command: tuple[str, ...] = field(default=(), metadata=_by(_command))

    def process_options(self) -> dict[str, Any]:
        """What each process is told, by the name of C's member; what is None is C's to choose."""
        values = {
            one.name: getattr(self, one.name) for one in fields(self) if one.metadata["process"]
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RejectStack(Record):
    """No stack: connect() fails, and sendto() of a socket that is not connected; errno:
    in which way.
    """

    kind: Literal["reject"] = field(default="reject", metadata=_by(str))
    errno: str = field(default="EPERM", metadata=_by(_errno))


Stack = KernelStack | UserStack | RejectStack
STACK_RECORDS: dict[str, type[KernelStack] | type[UserStack] | type[RejectStack]] = {
    "kernel": KernelStack,
    "user": UserStack,
    "reject": RejectStack,
}


@dataclass(frozen=True, kw_only=True)
class Rule(Record):
    """Which sockets look in which table; what is None does not matter, all else must match."""

    table: str = field(metadata=_by(_table_name))
    name: str | None = field(default=None, metadata=_by(_rule_name))
    cgroup: str | None = field(default=None, metadata=_by(_cgroup))  # itself or anything below it
    uid: UidRange | None = field(default=None, metadata=_by(parse_uid))
    comm: str | None = field(default=None, metadata=_by(_comm))
    mark: Mark | None = field(default=None, metadata=_by(parse_mark))
    netns: str | None = field(default=None, metadata=_by(_netns))
    # What is forwarded: who opens it, before any translation, and the device by which it comes in,
    # * and ? allowed.
    sources: tuple[Prefix, ...] | None = field(default=None, metadata=_by(_sources, "from"))
    in_interface: tuple[str, ...] | None = field(default=None, metadata=_by(_in_interface))
    direction: int = field(default=C.DMM_DIR_CONNECT | C.DMM_DIR_LISTEN, metadata=_by(_direction))

    @property
    def forwards(self) -> bool:
        """Whether it is for flows that the host forwards."""
        return self.direction == int(C.DMM_DIR_FORWARD)

    def text(self) -> str:
        """The conditions in one line, for example "cgroup /shop.slice uid 1000 connect"; "all"
        when there are none.
        """
        words: list[str] = []
        for key in ("cgroup", "uid", "comm", "mark", "netns"):
            value: Any = getattr(self, key)
            if value is not None:
                words.append(f"{key} {value}")
        if self.sources is not None:
            words.append(f"from {','.join(map(str, self.sources))}")
        if self.in_interface is not None:
            words.append(f"in {','.join(self.in_interface)}")
        if self.direction == C.DMM_DIR_CONNECT:
            words.append("connect")
        elif self.direction == C.DMM_DIR_LISTEN:
            words.append("listen")
        elif self.forwards:
            words.append("forward")
        return " ".join(words) or "all"


def forward_entries(rule: Rule) -> int:
    """How many places of forwards[] the rule takes."""
    return len(rule.sources or (None,)) if rule.forwards else 0


@dataclass(frozen=True, kw_only=True)
class RouteRecord(Record):
    """A route as written in the policy; "default" is two prefixes."""

    to: tuple[Prefix, ...] = field(metadata=_by(_to))
    stack: str = field(metadata=_by(_stack_name))
    proto: int = field(default=0, metadata=_by(_proto))
    ports: Ports = field(default=(), metadata=_by(parse_ports))

    @property
    def match(self) -> Match:
        """Protocol and ports."""
        return Match(self.proto, self.ports)


BUILT_IN: Mapping[str, Stack] = MappingProxyType({KERNEL: KernelStack(), REJECT: RejectStack()})


@dataclass(frozen=True)
class Policy:
    """A whole policy, every name resolved.

    stacks has the stacks that the policy defines, "kernel", and "reject" when a route or fallback
    names it. rules are in order; a rule's number, as shown and as stored in decisions, is its
    position from 1.
    """

    source: str  # the file as the user named it, for messages
    text: str  # the TOML text as it was read
    stacks: Mapping[str, Stack]
    rules: tuple[Rule, ...]
    tables: Mapping[str, RouteTable]
    files: Mapping[Path, Stamp] = field(
        default_factory=dict
    )  # routes files, as they were when they were read

    @property
    def n_routes(self) -> int:
        """Routes of all tables; "default" counts as two."""
        return sum(len(table) for table in self.tables.values())

    def user_stacks(self) -> dict[str, UserStack]:
        """The user stacks by name, in policy order."""
        return {name: stack for name, stack in self.stacks.items() if isinstance(stack, UserStack)}

    def routed_stacks(self) -> list[str]:
        """The stacks that routes name, each once, in order: those that must be there
        for this policy.
        """
        return list(
            dict.fromkeys(name for table in self.tables.values() for name in table.stack_names)
        )

    def rule_text(self, index: int) -> str:
        """The rule at index (from 0): its name, or its number and conditions,
        "1: cgroup /shop.slice".
        """
        rule = self.rules[index]
        return rule.name or f"{index + 1}: {rule.text()}"

    def place(self, *path: str | int) -> str:
        """Where the key at path stands, "policy.toml:12"."""
        return place(self.source, self.text, path)
