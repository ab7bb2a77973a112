# SPDX-License-Identifier: Apache-2.0
"""Which flows to show: the options of `dmm-ebpf flows` and the filter line of `dmm-ebpf top`.

Pure. A filter that can match nothing
because it is misspelt (a state that TCP does not have, an address that is none) is refused with a
UsageError, not obeyed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dmm_ebpf.digits import whole
from dmm_ebpf.errors import UsageError
from dmm_ebpf.records.event import StackEvent
from dmm_ebpf.records.flow import Flow, FlowEvent
from dmm_ebpf.show import units
from dmm_ebpf.show.who import who
from dmm_ebpf.tcpstates import TCP_STATES

if TYPE_CHECKING:
    from dmm_ebpf.records.event import AnyEvent

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The kernel's names by those of RFC 9293 and ss(8); both are taken.
_STATES = {"ESTABLISHED": "ESTABLISHED"} | {
    state.said.replace("-", "_"): state.name for state in TCP_STATES if state.said != "ESTAB"
}
_WITH_PORT = re.compile(r"\[(?P<v6>[^]]*)\](?::(?P<p6>[^:]*))?|(?P<v4>[^:]*):(?P<p4>[^:]*)")
_KEYS = ("stack", "comm", "pid", "cgroup", "dst", "state")


def parse_port(text: str, what: str, proto: str | None = None) -> int:
    """A port, 1 to 65535, or the name that services(5) has for it. proto: "tcp" or "udp"; None:
    whichever has the name. Raises UsageError, which starts with what.
    """
    why = f"{text!r} is not a port from 1 to 65535"
    if port := whole(text, 65536):
        return port
    if text and not (text.isascii() and text.isdecimal()):
        with contextlib.suppress(
            OSError, ValueError
        ):  # ValueError: a zero byte, or half a character
            return socket.getservbyname(text, *([proto] if proto else []))
        why += f", nor {f'a {proto} service' if proto else 'a service'} in /etc/services"
    raise UsageError(what, why=why)


def split_port(text: str, what: str, proto: str | None = None) -> tuple[str, int | None]:
    """(address, port) of ADDR, ADDR:PORT, [ADDR]:PORT, :PORT or a bare IPv6
    address. Raises UsageError.
    """
    match = _WITH_PORT.fullmatch(text)
    if match is None:
        return text, None
    host = match["v6"] if match["v4"] is None else match["v4"]
    port = match["p6"] if match["v4"] is None else match["p4"]
    return host, None if port is None else parse_port(port, what, proto)


def parse_endpoint(text: str, proto: str | None = None) -> tuple[Address, int | None]:
    """The peer that `route get` is asked about. A host's name is not looked up: it may have many
    addresses, each with a route of its own. Raises UsageError.
    """
    what = f"take {text!r} as ADDR or ADDR:PORT"
    host, port = split_port(text, what, proto)
    try:
        return ipaddress.ip_address(host), port
    except ValueError:
        raise UsageError(
            what,
            why=f"{host!r} is not an IPv4 or IPv6 address, and names are not looked up",
            hint="with a port, write 203.0.113.7:443 or [2001:db8::7]:https",
        ) from None


def looks_like_port(text: str) -> bool:
    """Whether an IPv6 address may have been meant as a shorter one and a port: ::1:80."""
    before, _, last = text.rpartition(":")
    try:
        ipaddress.IPv6Address(before)
    except ValueError:
        return False
    return last.isascii() and last.isdecimal()


@dataclass(frozen=True)
class Peer:
    """Peers in network, or any; on port, or any."""

    network: Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Peer:
        """From an address, a prefix, either of them with a port, or :PORT. Raises UsageError."""
        what = f"filter by the peer {text!r}"
        host, port = split_port(text, what)
        if not host and port is not None:
            return cls(None, port)
        try:
            return cls(ipaddress.ip_network(host, strict=False), port)
        except ValueError:
            raise UsageError(what, why=f"{host!r} is neither an address nor a prefix") from None

    def matches(self, address: Any, port: Any) -> bool:
        """True when the peer's address and port are within."""
        if self.port is not None and port != self.port:
            return False
        if self.network is None:
            return True
        try:
            return ipaddress.ip_address(str(address)) in self.network
        except ValueError:
            return False


def parse_state(text: str) -> str:
    """The kernel's name of a TCP state given in any usual spelling. Raises UsageError."""
    upper = text.upper().replace("-", "_")
    name = _STATES.get("ESTABLISHED" if upper == "ESTAB" else upper, upper)
    if name not in _STATES.values():
        known = ", ".join(spelling.lower().replace("_", "-") for spelling in _STATES)
        raise UsageError(f"filter by the state {text!r}", why=f"a TCP state is one of {known}")
    return name


def parse_pid(text: str) -> int:
    """A process id. Raises UsageError."""
    pid = whole(text, 2**31)
    if pid is not None:
        return pid
    raise UsageError(f"filter by the process {text!r}", why="a pid is a number below 2,147,483,648")


@dataclass(frozen=True)
class FlowFilter:
    """What a flow must have to be shown; None and () ask for nothing."""

    stack: tuple[str, ...] = ()  # any of these
    comm: str | None = None  # a shell pattern
    pid: int | None = None
    cgroup: str | None = None  # as rules name it; those below it are meant too
    dst: Peer | None = None
    state: str | None = None  # as the kernel names it
    words: tuple[str, ...] = ()  # each somewhere in what a line of the listing says, in any case

    @classmethod
    def parse(cls, text: str) -> FlowFilter:
        """From words and key=value terms, as typed in top. Raises UsageError."""
        terms: dict[str, str] = {}
        stacks = []
        words = []
        for term in text.split():
            key, equals, value = term.partition("=")
            if not equals:
                words.append(term.lower())
            elif key in terms:
                raise UsageError(
                    f"filter by {term!r}", why=f"{key} is given twice", hint="only stack may be"
                )
            elif key == "stack" and value:
                stacks.append(value)
            elif key in _KEYS and value:
                terms[key] = value
            else:
                raise UsageError(
                    f"filter by {term!r}", why=f"a term is a word or {'|'.join(_KEYS)}=VALUE"
                )
        return cls.of(words=tuple(words), stack=stacks, **terms)

    @classmethod
    def of(
        cls,
        *,
        stack: Sequence[str] = (),
        comm: str | None = None,
        pid: str | int | None = None,
        cgroup: str | None = None,
        dst: str | None = None,
        state: str | None = None,
        words: tuple[str, ...] = (),
    ) -> FlowFilter:
        """From texts as typed. Raises UsageError."""
        return cls(
            stack=tuple(stack),
            comm=comm,
            pid=None if pid is None else parse_pid(str(pid)),
            cgroup=None if cgroup is None else cgroup.rstrip("/"),
            dst=None if dst is None else Peer.parse(dst),
            state=None if state is None else parse_state(state),
            words=words,
        )

    def matches(self, flow: Flow) -> bool:
        """True when flow has all that is asked for."""
        return (
            (not self.stack or flow.stack in self.stack)
            and (self.comm is None or fnmatch.fnmatchcase(flow.comm, self.comm))
            and (self.pid is None or flow.pid == self.pid)
            and (self.cgroup is None or f"{flow.cgroup or ''}/".startswith(f"{self.cgroup}/"))
            and (self.state is None or flow.state == self.state)
            and (self.dst is None or self.dst.matches(flow.dst, flow.dport))
            and (not self.words or self._has_words(flow))
        )

    def matches_event(self, event: AnyEvent) -> bool:
        """The same of an event: what is about no flow has of all this at most a stack."""
        if isinstance(event, FlowEvent):
            return self.matches(event.flow)
        if self.stack and not (isinstance(event, StackEvent) and event.stack in self.stack):
            return False
        return replace(self, stack=()) == FlowFilter()

    def _has_words(self, flow: Flow) -> bool:
        shown = " ".join(
            (
                who(flow),
                units.endpoint(flow.src, flow.sport),
                units.endpoint(flow.dst, flow.dport),
                *map(
                    str,
                    (flow.instance, flow.stack, flow.table, flow.rule, flow.route, flow.cgroup),
                ),
                units.state(flow.state),
            )
        ).lower()
        return all(word in shown for word in self.words)
