# SPDX-License-Identifier: Apache-2.0
"""A rule of a policy: which sockets, or which forwarded flows, look in which table.

Owns the conditions that a rule has, and excepts by its `not`, the readers of their values, and the
text of a rule in listings. What needs other parts of the policy to see (a table that is not there)
is parse.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy import cgroupglob
from dmm_ebpf.rd.policy.keyed import KeysRefusedError, Record, by
from dmm_ebpf.rd.policy.named import Contents, Named, parse_prefixes
from dmm_ebpf.rd.policy.readers import (
    DEVICE,
    DEVICE_NAME,
    NAME,
    a_text,
    check_name,
    one_of,
)
from dmm_ebpf.rd.policy.shape import (
    ANY_TEXT,
    Shape,
    list_of,
    one_or_more,
    shape_of,
    spelled,
    takes,
)
from dmm_ebpf.rd.policy.values import (
    IdRange,
    Mark,
    Ports,
    Prefix,
    ValueRefusedError,
    parse_dscp,
    parse_gid,
    parse_mark,
    parse_ports,
    parse_uid,
    ports_text,
    shown,
)

Value = TypeVar("Value")
MAX_PATH = 4095  # bytes: PATH_MAX, less a NUL

# The built-in stacks that refuse, each with the error of connect(). All but the first are types of
# routes in iproute2, with its errors: fib_props, net/ipv4/fib_semantics.c, and
# ip6_rt_type_to_error(), net/ipv6/route.c.
REFUSING: Mapping[str, str] = MappingProxyType(
    {"reject": "EPERM", "blackhole": "EINVAL", "unreachable": "EHOSTUNREACH", "prohibit": "EACCES"}
)


_action = one_of("an action of a rule", tuple(REFUSING))


_NOT_DOTS = rf"(?!(?:{ANY_TEXT}*/)?\.\.?(?:/|$))"


@takes(
    spelled(
        rf"/{_NOT_DOTS}(?!{ANY_TEXT}*\*\*){cgroupglob.WELL_FORMED}(?:/{cgroupglob.WELL_FORMED})*"
    )
)
def _cgroup(value: object) -> str:
    """A cgroup, as a path from the cgroup v2 root or a pattern, and all below it."""
    text = a_text(value, "a cgroup's path")
    parts = [part for part in text.split("/") if part]
    if not text.startswith("/") or "\0" in text or any(part in (".", "..") for part in parts):
        raise ValueRefusedError(
            f"{shown(text)} is not a cgroup's path",
            'expected a path that begins with "/", below the cgroup v2 mount, such as "/shop.slice"',
        )
    if why := cgroupglob.why_not(text):
        raise ValueRefusedError(
            f"{shown(text)} is no pattern of cgroups: {why}",
            'expected for example "/kubepods.slice/*/web-*.scope"',
        )
    return "/" + "/".join(parts)


@takes(spelled(rf"{ANY_TEXT}+", most=C.DMM_COMM_LEN - 1))
def _comm(value: object) -> str:
    """The command's name as in /proc/PID/comm, whole."""
    text = a_text(value, "a command name")
    size = len(text.encode())
    if not 1 <= size < C.DMM_COMM_LEN or "\0" in text:
        raise ValueRefusedError(
            f"{shown(text)} is not a command name",
            f"expected 1 to {C.DMM_COMM_LEN - 1} bytes, as in /proc/PID/comm",
        )
    return text


@takes(spelled(rf"/(?!(?:{ANY_TEXT}*/)?\.\.?(?:/|$)){ANY_TEXT}*", most=MAX_PATH))
def executable_path(value: object) -> str:
    """The file that the process executes, a path of the host's: /proc/PID/exe."""
    text = a_text(value, "a file's path")
    parts = [part for part in text.split("/") if part]
    wrong = not parts or not text.startswith("/") or text.endswith("/") or "\0" in text
    if wrong or any(part in (".", "..") for part in parts) or len(text.encode()) > MAX_PATH:
        raise ValueRefusedError(
            f"{shown(text)} is not an executable file's path",
            'expected a path that begins with "/", without "." and "..", such as "/usr/bin/curl"',
        )
    return "/" + "/".join(parts)


@takes(spelled(r"(?!\.\.?$)[^/\x00]+"))
def _netns(value: object) -> str:
    """A network namespace, by its name in `ip netns`."""
    text = a_text(value, "a network namespace's name")
    if not text or "/" in text or "\0" in text or text in (".", ".."):
        raise ValueRefusedError(
            f"{shown(text)} is not a network namespace's name", "expected a name of `ip netns`"
        )
    return text


@takes(list_of(NAME))
def stack_names(value: object) -> tuple[str, ...]:
    """Stacks by name."""
    hint = 'expected a list of stacks, for example ["wan", "kernel"]'
    if not isinstance(value, list) or not value:
        raise ValueRefusedError(f"{shown(value)} is no list of stacks", hint)
    return tuple(dict.fromkeys(check_name(name, "stack") for name in value))


@takes(NAME)
def _table_name(value: object) -> str:
    """A table's name."""
    return check_name(value, "table")


@takes(NAME)
def _rule_name(value: object) -> str:
    """A name for listings."""
    return check_name(value, "rule")


@takes(one_or_more(NAME))
def _hosts(value: object) -> tuple[str, ...]:
    """Selectors of [hosts]: one, or a list."""
    names = value if isinstance(value, list) else [value]
    if not names:
        raise ValueRefusedError("it names no hosts", "leave it out, or name one of [hosts]")
    return tuple(check_name(name, "selector of hosts") for name in names)


DIRECTIONS = {
    "connect": int(C.DMM_DIR_CONNECT),
    "listen": int(C.DMM_DIR_LISTEN),
    "forward": int(C.DMM_DIR_FORWARD),
}


@takes({"enum": list(DIRECTIONS)})
def _direction(value: object) -> int:
    """Who opens the flow; left out, connect and listen."""
    if isinstance(value, str) and value in DIRECTIONS:
        return DIRECTIONS[value]
    raise ValueRefusedError(
        f"{shown(value)} is not a direction",
        'expected "connect", "listen" or "forward"; leave it out to mean the first two',
    )


@takes(one_or_more(shape_of(parse_prefixes)))
def _sources(value: object) -> tuple[Prefix | Named, ...]:
    """Who opens what is forwarded: a prefix, an nft set or a host by its name, or a list."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueRefusedError("the list is empty", "leave it out to mean every source")
    found = [one for text in texts for one in parse_prefixes(a_text(text, "a prefix"))]
    return tuple(dict.fromkeys(found))


@takes(one_or_more(DEVICE_NAME))
def _in_interface(value: object) -> tuple[str, ...]:
    """The device by which it comes in: a name, or a list, with * and ? for any letters."""
    names = value if isinstance(value, list) else [value]
    if not names:
        raise ValueRefusedError("the list is empty", "leave it out to mean every device")
    for name in names:
        if not isinstance(name, str) or not DEVICE.fullmatch(name) or name in (".", ".."):
            raise ValueRefusedError(
                f"{shown(name)} is not a network device's name",
                'expected for example "lan0" or "veth*"',
            )
    return tuple(dict.fromkeys(names))


@takes(DEVICE_NAME)
def _interface(value: object) -> str:
    """The network device that the socket is bound to (SO_BINDTODEVICE)."""
    if not isinstance(value, str) or not DEVICE.fullmatch(value) or value in (".", ".."):
        raise ValueRefusedError(
            f"{shown(value)} is not a network device's name", 'expected for example "eth0"'
        )
    return value


def _some(read: Callable[[Any], Value]) -> Callable[[object], tuple[Value, ...]]:
    """The reader of one such value, or of a list, of which one is enough."""
    shape = dict(shape_of(read))
    said = shape.pop("description")

    @takes({"description": f"{said.rstrip('.')}; or a list.", **one_or_more(shape)})
    def read_some(value: object) -> tuple[Value, ...]:
        if not isinstance(value, list):
            return (read(value),)
        if not value:
            raise ValueRefusedError("the list is empty", "leave it out, or name what it is for")
        return tuple(dict.fromkeys(map(read, value)))

    return read_some


@takes({"description": "The socket's own port", **shape_of(parse_ports)})
def _local_port(value: object) -> Ports:
    return parse_ports(value)


@dataclass(frozen=True, kw_only=True)
class Conditions(Record):
    """What is asked of a socket and who has it. None does not matter; of each other one of
    its values must be so.
    """

    cgroup: tuple[str, ...] | None = field(
        default=None, metadata=by(_some(_cgroup))
    )  # itself or anything below it
    uid: tuple[IdRange, ...] | None = field(default=None, metadata=by(_some(parse_uid)))
    # The process's own; not those that it is in besides
    gid: tuple[IdRange, ...] | None = field(default=None, metadata=by(_some(parse_gid)))
    comm: tuple[str, ...] | None = field(default=None, metadata=by(_some(_comm)))
    executable: tuple[str, ...] | None = field(
        default=None, metadata=by(_some(executable_path))
    )  # the file that is there
    mark: tuple[Mark, ...] | None = field(default=None, metadata=by(_some(parse_mark)))
    # Of the socket's own wish: IP_TOS, IPV6_TCLASS
    dscp: tuple[int, ...] | None = field(default=None, metadata=by(_some(parse_dscp)))
    netns: tuple[str, ...] | None = field(default=None, metadata=by(_some(_netns)))
    local_port: Ports | None = field(default=None, metadata=by(_local_port))
    interface: tuple[str, ...] | None = field(default=None, metadata=by(_some(_interface)))

    def asked(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Of all that is asked the key, and the values of which one is to be so."""
        for key in SOCKET_KEYS:
            values = getattr(self, key)
            if values is not None:
                yield key, values

    def conditions_text(self) -> str:
        """In one line, for example "cgroup /shop.slice uid 1000,1001"."""
        return " ".join(f"{key} {values_text(key, values)}" for key, values in self.asked())


SOCKET_KEYS = tuple(one.name for one in fields(Conditions))


def values_text(key: str, values: tuple[Any, ...]) -> str:
    """The values of a condition, as the policy writes them."""
    return ports_text(values) if key == "local_port" else ",".join(map(str, values))


def _exceptions_shape() -> Shape:
    properties = {one.name: shape_of(one.metadata["read"]) for one in fields(Conditions)}
    table = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
    }
    return one_or_more(table)


@takes(_exceptions_shape)
def _exceptions(value: object) -> tuple[Conditions, ...]:
    """What it is not for: a table of conditions, all of which must be so, or a list of them."""
    tables = value if isinstance(value, list) else [value]
    if not tables:
        raise ValueRefusedError("the list is empty", "leave it out, or name what it is not for")
    return tuple(dict.fromkeys(map(_exception, tables)))


def _exception(table: object) -> Conditions:
    hint = 'expected for example { uid = 0 } or [{ uid = 0 }, { comm = "sshd" }]'
    if not isinstance(table, dict) or not table:
        raise ValueRefusedError(f"{shown(table)} is no table of conditions", hint)
    for key in table:
        if key not in SOCKET_KEYS:
            known = f"known are {', '.join(SOCKET_KEYS)}"
            raise ValueRefusedError(f"unknown key {shown(key)}", known)
    try:
        return Conditions.read(table)
    except KeysRefusedError as error:
        key, refused = next(iter(error.keys.items()))
        raise ValueRefusedError(
            f"{key}: {refused.why if refused else 'it is missing'}", refused.hint if refused else ""
        ) from None


@dataclass(frozen=True, kw_only=True)
class Rule(Conditions):
    """Which sockets look in which table, and what their programs may choose; what is None does not
    matter, all else must be so.
    """

    # None of these may be so
    excepted: tuple[Conditions, ...] = field(default=(), metadata=by(_exceptions, "not"))
    table: str = field(default="", metadata=by(_table_name))  # empty: it only lets choose
    # What refuses all that matches; then table is the one of that name, which parse.py makes
    action: str = field(default="", metadata=by(_action))
    name: str | None = field(default=None, metadata=by(_rule_name))
    hosts: tuple[str, ...] | None = field(default=None, metadata=by(_hosts))  # any of [hosts]
    # What is forwarded: who opens it, before any translation, and the device by which it comes in,
    # * and ? allowed.
    sources: tuple[Prefix | Named, ...] | None = field(default=None, metadata=by(_sources, "from"))
    in_interface: tuple[str, ...] | None = field(default=None, metadata=by(_in_interface))
    direction: int = field(default=C.DMM_DIR_CONNECT | C.DMM_DIR_LISTEN, metadata=by(_direction))
    # The stacks that programs of matching sockets may choose (bpf/dmm.h)
    choose: tuple[str, ...] = field(default=(), metadata=by(stack_names))

    @property
    def forwards(self) -> bool:
        """Whether it is for flows that the host forwards."""
        return self.direction == int(C.DMM_DIR_FORWARD)

    @property
    def source_sets(self) -> tuple[Named, ...]:
        """The nft sets and hostnames among its sources."""
        return tuple(one for one in self.sources or () if not isinstance(one, Prefix))

    @property
    def source_prefixes(self) -> tuple[Prefix, ...]:
        """Its sources without sets, which have nothing until their elements stand for them
        (with_elements()).
        """
        return tuple(one for one in self.sources or () if isinstance(one, Prefix))

    def with_elements(self, contents: Contents) -> Rule:
        """With what the sets among its sources have."""
        if not self.source_sets:
            return self
        found: list[Prefix] = []
        for one in self.sources or ():
            found += (one,) if isinstance(one, Prefix) else contents.get(one, ())
        return replace(self, sources=tuple(dict.fromkeys(found)))

    def every(self, key: str) -> tuple[Any, ...]:
        """The values of a condition, and those that `not` excepts."""
        found = [getattr(one, key) or () for one in (self, *self.excepted)]
        return tuple(dict.fromkeys(value for values in found for value in values))

    def text(self) -> str:
        """The conditions in one line, for example "cgroup /shop.slice uid 1000 connect"; "all"
        when there are none.
        """
        words: list[str] = [f"hosts {','.join(self.hosts)}"] if self.hosts else []
        words += [text] if (text := self.conditions_text()) else []
        words += [f"not {exception_text(one)}" for one in self.excepted]
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
        if self.action:
            words.append(self.action)
        if self.choose:
            words.append(f"choose {','.join(self.choose)}")
        return " ".join(words) or "all"


def exception_text(one: Conditions) -> str:
    """What a rule is not for: "uid 0", or "(uid 0 comm sshd)"."""
    several = len(list(one.asked())) > 1
    return f"({one.conditions_text()})" if several else one.conditions_text()


def forward_entries(rule: Rule) -> int:
    """How many places of forwards[] the rule takes."""
    if not rule.forwards:
        return 0
    return 1 if rule.sources is None else len(rule.sources)
