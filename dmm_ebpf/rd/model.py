# SPDX-License-Identifier: Apache-2.0
"""The shape of a policy: what keys exist, of what type, and the records that the rest of the RD reads.

Owns the pydantic models of the TOML text (stacks, rules, routes as written) and Policy, what they become once names are
resolved. All of it is frozen. It refuses what one key or one table shows to be wrong by itself; what needs two
places to see (an unknown name, a contradiction, a fallback to a user stack) is policy.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from dmm_ebpf.abi import C
from dmm_ebpf.rd.locate import place
from dmm_ebpf.rd.routes import Match, RouteTable
from dmm_ebpf.rd.values import (
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
MAX_USER_PROCESSES = 34  # of all user stacks together: marks and devices dmm-0 .. dmm-33

USER_TRANSPORTS = ("tcp",)
USER_CONGESTION = ("cubic", "wan", "bbr", "reno")
USER_IO = ("auto", "af_xdp")
MAX_BUSY_POLL_US = 1_000_000
MAX_BUFFER_BYTES = 1 << 30  # RFC 7323 section 2.3
SYN_COOKIES = ("auto", "always", "off")
_IO_TO_COME = ("af_packet", "tun")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_CONGESTION = re.compile(r"[a-z0-9_-]{1,15}", re.ASCII)
_DEVICE = re.compile(r"[^\s/:]{1,15}")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueRefusedError(f"{shown(value)} is not {what}", "expected a text in quotes")
    return value


def check_name(name: object, what: str) -> str:
    """A name of a stack, table or rule; short enough for listings and plain enough for file names."""
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
            f"{shown(text)} is not a congestion control", 'expected for example "cubic", "bbr" or "reno"'
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
        raise ValueRefusedError(f"{shown(value)} is not {what}", f"expected {least} to {most}{unit}")
    return value


def _transport(value: object) -> str:
    return _choice(value, "a transport", USER_TRANSPORTS)


def _user_congestion(value: object) -> str:
    return _choice(value, "a congestion control of user stacks", USER_CONGESTION)


def _io(value: object) -> str:
    if value in _IO_TO_COME:
        raise ValueRefusedError(
            f'io = "{value}" is not available in this version', f"expected {_alternatives(USER_IO)}"
        )
    return _choice(value, "an I/O adapter", USER_IO)


def _syn_cookies(value: object) -> str:
    return _choice(value, "a mode of SYN cookies", SYN_COOKIES)


def _instances(value: object) -> int:
    return _whole(value, 1, C.DMM_MAX_PROCESSES, "a number of processes")


def _buffer(value: object) -> int:
    size = parse_size(value)
    if size > MAX_BUFFER_BYTES:
        raise ValueRefusedError(f"{shown(value)} is {size} bytes", "expected 1G at most, as a window reaches")
    return size


def _max_connections(value: object) -> int:
    return _whole(value, 1, C.DMM_MAX_XDP_FLOWS, "a number of connections")


def _busy_poll_us(value: object) -> int:
    return _whole(value, 0, MAX_BUSY_POLL_US, "a time of busy polling", " microseconds")


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
    raise ValueRefusedError(
        f"{shown(value)} is not a direction", 'expected "connect" or "listen"; leave it out to mean both'
    )


class Frozen(BaseModel):
    """A model that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys as a policy writes them."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())


_AsText = PlainSerializer(str, return_type=str, when_used="json-unless-none")
MarkField = Annotated[Mark | None, BeforeValidator(parse_mark), _AsText]
SizeField = Annotated[int | None, BeforeValidator(parse_size)]
BufferField = Annotated[int | None, BeforeValidator(_buffer)]


class KernelStack(Frozen):
    """The kernel's own stack, with options that are set on each socket it serves; None leaves a thing as it is."""

    kind: Literal["kernel"] = "kernel"
    congestion: Annotated[str | None, BeforeValidator(_kernel_congestion)] = None
    dscp: Annotated[int | None, BeforeValidator(parse_dscp)] = None
    mark: MarkField = None
    pacing_rate_Bps: Annotated[int | None, BeforeValidator(parse_rate)] = Field(  # noqa: N815
        default=None, alias="pacing_rate"
    )
    priority: Annotated[int | None, BeforeValidator(_priority)] = None


class UserStack(Frozen):
    """A user-space stack: one process or several that share its flows, with a transport of its own."""

    kind: Literal["user"]
    transport: Annotated[str, BeforeValidator(_transport)] = "tcp"
    congestion: Annotated[str, BeforeValidator(_user_congestion)] = "cubic"
    io: Annotated[str, BeforeValidator(_io)] = "auto"
    instances: Annotated[int, BeforeValidator(_instances)] = 1
    fallback: Annotated[str, BeforeValidator(_stack_name)] = KERNEL
    devices: Annotated[
        tuple[str, ...], BeforeValidator(_devices)
    ] = ()  # (): whichever the route to the peer uses
    sndbuf_bytes: BufferField = Field(default=None, alias="sndbuf")
    rcvbuf_bytes: BufferField = Field(default=None, alias="rcvbuf")
    memory_bytes: SizeField = Field(default=None, alias="memory")
    max_connections: Annotated[int | None, BeforeValidator(_max_connections)] = None
    syn_cookies: Annotated[str, BeforeValidator(_syn_cookies)] = "auto"
    busy_poll_us: Annotated[int, BeforeValidator(_busy_poll_us)] = 0


class RejectStack(Frozen):
    """No stack: connect() and bind() fail with EPERM."""

    kind: Literal["reject"] = "reject"


Stack = KernelStack | UserStack | RejectStack
STACK_MODELS: dict[str, type[KernelStack] | type[UserStack] | type[RejectStack]] = {
    "kernel": KernelStack,
    "user": UserStack,
    "reject": RejectStack,
}


class Rule(Frozen):
    """Which sockets look in which table; what is None does not matter, all else must match."""

    table: Annotated[str, BeforeValidator(_table_name)]
    name: Annotated[str | None, BeforeValidator(_rule_name)] = None
    cgroup: Annotated[str | None, BeforeValidator(_cgroup)] = None  # itself or anything below it
    uid: Annotated[UidRange | None, BeforeValidator(parse_uid), _AsText] = None
    comm: Annotated[str | None, BeforeValidator(_comm)] = None
    mark: MarkField = None
    netns: Annotated[str | None, BeforeValidator(_netns)] = None
    direction: Annotated[int, BeforeValidator(_direction)] = Field(
        default=C.DMM_DIR_CONNECT | C.DMM_DIR_LISTEN
    )

    def text(self) -> str:
        """The conditions in one line, for example "cgroup /shop.slice uid 1000 connect"; "all" when there are none."""
        words: list[str] = []
        for key in ("cgroup", "uid", "comm", "mark", "netns"):
            value: Any = getattr(self, key)
            if value is not None:
                words.append(f"{key} {value}")
        if self.direction == C.DMM_DIR_CONNECT:
            words.append("connect")
        elif self.direction == C.DMM_DIR_LISTEN:
            words.append("listen")
        return " ".join(words) or "all"


class RouteModel(Frozen):
    """A route as written in the policy; "default" is two prefixes."""

    to: Annotated[tuple[Prefix, ...], BeforeValidator(_to)]
    stack: Annotated[str, BeforeValidator(_stack_name)]
    proto: Annotated[int, BeforeValidator(_proto)] = 0
    ports: Annotated[Ports, BeforeValidator(parse_ports)] = ()

    @property
    def match(self) -> Match:
        """Protocol and ports."""
        return Match(self.proto, self.ports)


BUILT_IN: Mapping[str, Stack] = MappingProxyType({KERNEL: KernelStack(), REJECT: RejectStack()})


@dataclass(frozen=True)
class Policy:
    """A whole policy, every name resolved.

    stacks has the stacks that the policy defines, "kernel", and "reject" when a route or fallback names it.
    rules are in order; a rule's number, as shown and as stored in decisions, is its position from 1.
    """

    source: str  # the file as the user named it, for messages
    text: str  # the TOML text as it was read
    stacks: Mapping[str, Stack]
    rules: tuple[Rule, ...]
    tables: Mapping[str, RouteTable]
    files: tuple[Path, ...] = ()  # routes files that it was made from

    @property
    def n_routes(self) -> int:
        """Routes of all tables; "default" counts as two."""
        return sum(len(table) for table in self.tables.values())

    def user_stacks(self) -> dict[str, UserStack]:
        """The user stacks by name, in policy order."""
        return {name: stack for name, stack in self.stacks.items() if isinstance(stack, UserStack)}

    def routed_stacks(self) -> list[str]:
        """The stacks that routes name, each once, in order: those that must be there for this policy."""
        return list(dict.fromkeys(name for table in self.tables.values() for name in table.stack_names))

    def rule_text(self, index: int) -> str:
        """The rule at index (from 0): its name, or its number and conditions, "1: cgroup /shop.slice"."""
        rule = self.rules[index]
        return rule.name or f"{index + 1}: {rule.text()}"

    def place(self, *path: str | int) -> str:
        """Where the key at path stands, "policy.toml:12"."""
        return place(self.source, self.text, path)
