# SPDX-License-Identifier: Apache-2.0
"""What a policy says of one flow, worked out from the policy itself.

Owns route_get(), the answer of `dmm-ebpf route get`. It is written to be read: it goes over the
rules and over every route of a table as docs/policy.md tells, with no index and nothing shared with
compile.py, so that the tests can hold the compiled maps against it. A million routes take it well
under a second.

A fact that the query does not give (None) matches no rule that asks for it; the verdict tells
of such rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dmm_ebpf.abi import C
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.policy.model import KERNEL, Policy, RejectStack, Rule, UserStack
from dmm_ebpf.rd.policy.routes import Match, RouteTable
from dmm_ebpf.rd.policy.values import (
    TCP,
    Prefix,
    ValueRefusedError,
    is_named,
    parse_address,
    parse_protocol,
    shown,
)

Kind = TypeVar("Kind", str, int)
DIRECTIONS = {
    "connect": C.DMM_DIR_CONNECT,
    "listen": C.DMM_DIR_LISTEN,
    "forward": C.DMM_DIR_FORWARD,
}


@dataclass(frozen=True)
class Query:
    """A flow as rules and routes see it.

    addr is the peer's address, in both directions; with forward it is the destination, and source
    and in_interface say who opens the flow and by which device it comes in, before any translation.
    port is the peer's for connect, the local one for listen; 0, or
    none given, meets only routes without ports. cgroup is a path below the cgroup v2 mount.
    """

    addr: str
    port: int = 0
    proto: int = TCP
    cgroup: str | None = None
    uid: int | None = None
    comm: str | None = None
    mark: int | None = None
    netns: str | None = None
    source: str | None = None
    in_interface: str | None = None
    direction: int = C.DMM_DIR_CONNECT

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Query:
        """From the parameters of the RD's route_get request; None is as good as
        absent. Raises UsageError.
        """
        try:
            addr = _param(params, "addr", str)
            if addr is None:
                raise ValueRefusedError("addr is missing")
            proto = parse_protocol((_param(params, "proto", str) or "tcp").lower()) or TCP
            parse_address(addr)
            source = _param(params, "source", str)
            if source is not None:
                parse_address(source)
            direction = _param(params, "direction", str) or "connect"
            if direction not in DIRECTIONS:
                raise ValueRefusedError(f"direction {shown(direction)} is unknown")
            return cls(
                addr=addr,
                port=_number(params, "port", 0xFFFF) or 0,
                proto=proto,
                cgroup=_param(params, "cgroup", str),
                uid=_number(params, "uid", 0xFFFFFFFF),
                comm=_param(params, "comm", str),
                mark=_number(params, "mark", 0xFFFFFFFF),
                netns=_param(params, "netns", str),
                source=source,
                in_interface=_param(params, "in_interface", str),
                direction=DIRECTIONS[direction],
            )
        except ValueRefusedError as error:
            raise UsageError("ask for a route", why=error.why, hint=error.hint) from None


def _param(params: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind | None:
    """A parameter of that very type; None when it is absent."""
    value = params.get(name)
    if value is None or type(value) is kind:
        return value
    raise ValueRefusedError(
        f"{name} {shown(value)} is no {'text' if kind is str else 'whole number'}"
    )


def _number(params: Mapping[str, Any], name: str, most: int) -> int | None:
    value = _param(params, name, int)
    if value is not None and not 0 <= value <= most:
        raise ValueRefusedError(f"{name} {shown(value)} is not between 0 and {most}")
    return value


@dataclass(frozen=True)
class Verdict:
    """The stack that a policy gives a flow, and why. rule is numbered from 1; 0: no rule had a
    route for it.

    wanted is the stack that the route names; stack is the one that serves if wanted is up. why:
    where that is another, one of the texts of why_not(). unasked: rules that come before and may
    match, by what they ask for and the
    query does not say: (the rule's text, names of Query's fields).
    """

    stack: str
    wanted: str
    table: str | None = None
    rule: int = 0
    rule_text: str | None = None
    route: str | None = None
    why: str | None = None
    unasked: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON; rule is its text, rule_number its number."""
        return {
            "stack": self.stack,
            "wanted": self.wanted,
            "table": self.table,
            "rule": self.rule_text,
            "rule_number": self.rule,
            "route": self.route,
            "why": self.why,
            "unasked": [{"rule": rule, "needs": list(needs)} for rule, needs in self.unasked],
        }


def route_get(policy: Policy, query: Query) -> Verdict:
    """The verdict of policy on query. Raises UsageError when query.addr is not an address.

    connect: the first rule that matches and whose table has a route for the flow decides.
    listen: the first rule that matches decides, whether its table has a route or not, since a
    listener has one table before its peers are known.
    """
    try:
        family, addr = parse_address(query.addr)
    except ValueRefusedError as error:
        raise UsageError("ask for a route", why=error.why, hint=error.hint) from None
    unasked: list[tuple[str, tuple[str, ...]]] = []
    for number, rule in enumerate(policy.rules, 1):
        if needs := lacking(rule, query):
            unasked.append((policy.rule_text(number - 1), needs))
        if not rule_matches(rule, query):
            continue
        table = policy.tables[rule.table]
        index = find_route(table, family, addr, query.proto, query.port)
        if index is not None:
            route = table[index]
            why = why_not(policy, query, route.stack)
            return Verdict(
                stack=KERNEL if why else route.stack,
                wanted=route.stack,
                table=rule.table,
                rule=number,
                rule_text=policy.rule_text(number - 1),
                route=route.text(),
                why=why,
                unasked=tuple(unasked),
            )
        if query.direction == C.DMM_DIR_LISTEN:
            text = policy.rule_text(number - 1)
            return Verdict(KERNEL, KERNEL, rule.table, number, text, unasked=tuple(unasked))
    return Verdict(KERNEL, KERNEL, unasked=tuple(unasked))


def why_not(policy: Policy, query: Query, wanted: str) -> str | None:
    """Why the kernel serves a flow whose route names wanted, as bpf/connect.h and bpf/sockops.h
    have it: "udp", "loopback", "link-local", "listener" or "forwarded"; None: wanted may serve it.

    A user stack carries TCP to other hosts; UDP, and what stays on this host, is the kernel's as
    if there were no policy. A rejecting stack refuses connect(); a connection that a client has
    opened is the kernel's. What is forwarded is a user stack's or the kernel's, whose options
    are for sockets.
    """
    stack = policy.stacks[wanted]
    if query.direction == C.DMM_DIR_FORWARD and not isinstance(stack, UserStack):
        return "forwarded"
    if query.direction == C.DMM_DIR_LISTEN:
        return "listener" if isinstance(stack, RejectStack) else None
    if not isinstance(stack, UserStack):
        return None
    if query.proto != TCP:
        return "udp"
    if _is_this_host(query.addr):
        return "loopback"
    return "link-local" if _is_link_local(query.addr) else None


def _is_this_host(address: str) -> bool:
    """True for loopback addresses and for 0.0.0.0 and ::, which mean this host
    to connect() (ip(7)).
    """
    family, addr = parse_address(address)
    if family == 4:
        return addr >> 24 == 127 or addr == 0
    return addr in (0, 1)


def _is_link_local(address: str) -> bool:
    """fe80::/10 (RFC 4291 section 2.5.6)"""
    family, addr = parse_address(address)
    return family == 6 and addr >> 118 == 0xFE80 >> 6


def rule_matches(rule: Rule, query: Query) -> bool:
    """True when everything that the rule asks for is so."""
    if not rule.direction & query.direction:
        return False
    if rule.forwards and not _forward_matches(rule, query):
        return False
    if rule.cgroup is not None and not is_below(query.cgroup, rule.cgroup):
        return False
    if rule.uid is not None and (
        query.uid is None or not rule.uid.first <= query.uid <= rule.uid.last
    ):
        return False
    if rule.mark is not None and (
        query.mark is None or query.mark & rule.mark.mask != rule.mark.value
    ):
        return False
    return rule.comm in {None, query.comm} and rule.netns in {None, query.netns}


def _forward_matches(rule: Rule, query: Query) -> bool:
    if rule.sources is not None and not (query.source and _comes_from(query.source, rule.sources)):
        return False
    name = query.in_interface
    return rule.in_interface is None or (name is not None and is_named(name, rule.in_interface))


def _comes_from(source: str, prefixes: tuple[Prefix, ...]) -> bool:
    family, addr = parse_address(source)
    bits = 32 if family == 4 else 128
    return any(p.family == family and not (p.addr ^ addr) >> (bits - p.length) for p in prefixes)


def lacking(rule: Rule, query: Query) -> tuple[str, ...]:
    """What the rule asks for and the query does not say, where the rule may match by all that
    it does say.
    """
    keys = ("cgroup", "uid", "comm", "mark", "netns", "in_interface")
    needs = {key for key in keys if getattr(rule, key) is not None and getattr(query, key) is None}
    asked: dict[str, Any] = dict.fromkeys(needs)
    if not needs or not rule_matches(replace(rule, **asked), query):
        return ()
    return tuple(key for key in keys if key in needs)


def is_below(path: str | None, ancestor: str) -> bool:
    """Whether a cgroup is another one, or below it."""
    if path is None:
        return False
    parts = [part for part in path.split("/") if part]
    wanted = [part for part in ancestor.split("/") if part]
    return parts[: len(wanted)] == wanted


def find_route(table: RouteTable, family: int, addr: int, proto: int, port: int) -> int | None:
    """The index of the table's route for a flow: longest prefix, then port, then
    protocol, then order.
    """
    bits = 32 if family == 4 else 128
    best: tuple[int, int, int, int] | None = None
    best_index: int | None = None
    # Most routes are passed over here: their prefix does not contain the address.
    columns = zip(table.families, table.lengths, table.addrs_hi, table.addrs_lo, strict=True)
    for index, (route_family, length, hi, lo) in enumerate(columns):
        if route_family != family or ((hi << 64 | lo) ^ addr) >> (bits - length):
            continue
        specificity = _specificity(table.matches[table.match[index]], proto, port)
        if specificity is None:
            continue
        rank = (length, *specificity, -index)
        if best is None or rank > best:
            best, best_index = rank, index
    return best_index


def _specificity(match: Match, proto: int, port: int) -> tuple[int, int] | None:
    """(2 exact port, 1 range, 0 any; 1 protocol named, 0 not), or None when the flow
    does not match.
    """
    if match.proto and match.proto != proto:
        return None
    names_protocol = 1 if match.proto else 0
    if not match.ports:
        return 0, names_protocol
    for first, last in match.ports:
        if first <= port <= last:
            return 2 if first == last else 1, names_protocol
    return None
