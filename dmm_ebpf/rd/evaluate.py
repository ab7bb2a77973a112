# SPDX-License-Identifier: Apache-2.0
"""What a policy says of one flow, worked out from the policy itself.

Owns route_get(), the answer of `dmm-ebpf route get`. It is written to be read: it goes over the rules and over every
route of a table as docs/policy.md tells, with no index and nothing shared with compile.py, so that the tests can hold
the compiled maps against it. A million routes take it well under a second.

A fact that the query does not give (None) matches no rule that asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dmm_ebpf.abi import C
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.model import KERNEL, Policy, RejectStack, Rule, UserStack
from dmm_ebpf.rd.routes import Match, RouteTable
from dmm_ebpf.rd.values import TCP, ValueRefusedError, parse_address, parse_protocol, shown

Kind = TypeVar("Kind", str, int)
DIRECTIONS = {"connect": C.DMM_DIR_CONNECT, "listen": C.DMM_DIR_LISTEN}


@dataclass(frozen=True)
class Query:
    """A flow as rules and routes see it.

    addr is the peer's address, in both directions. port is the peer's for connect, the local one for listen; 0, or
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
    direction: int = C.DMM_DIR_CONNECT

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Query:
        """From the parameters of the RD's route_get request; None is as good as absent. Raises UsageError."""
        try:
            addr = _param(params, "addr", str)
            if addr is None:
                raise ValueRefusedError("addr is missing")
            proto = parse_protocol((_param(params, "proto", str) or "tcp").lower()) or TCP
            parse_address(addr)
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
                direction=DIRECTIONS[direction],
            )
        except ValueRefusedError as error:
            raise UsageError("ask for a route", why=error.why, hint=error.hint) from None


def _param(params: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind | None:
    """A parameter of that very type; None when it is absent."""
    value = params.get(name)
    if value is None or type(value) is kind:
        return value
    raise ValueRefusedError(f"{name} {shown(value)} is no {'text' if kind is str else 'whole number'}")


def _number(params: Mapping[str, Any], name: str, most: int) -> int | None:
    value = _param(params, name, int)
    if value is not None and not 0 <= value <= most:
        raise ValueRefusedError(f"{name} {shown(value)} is not between 0 and {most}")
    return value


@dataclass(frozen=True)
class Verdict:
    """The stack that a policy gives a flow, and why. rule is numbered from 1; 0: no rule had a route for it.

    wanted is the stack that the route names; stack is the one that serves if wanted is up (see served_stack()).
    """

    stack: str
    wanted: str
    table: str | None = None
    rule: int = 0
    rule_text: str | None = None
    route: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; rule is its text, rule_number its number."""
        return {
            "stack": self.stack,
            "wanted": self.wanted,
            "table": self.table,
            "rule": self.rule_text,
            "rule_number": self.rule,
            "route": self.route,
        }


def route_get(policy: Policy, query: Query) -> Verdict:
    """The verdict of policy on query. Raises UsageError when query.addr is not an address.

    connect: the first rule that matches and whose table has a route for the flow decides.
    listen: the first rule that matches decides, whether its table has a route or not, since a listener has one
    table before its peers are known.
    """
    try:
        family, addr = parse_address(query.addr)
    except ValueRefusedError as error:
        raise UsageError("ask for a route", why=error.why, hint=error.hint) from None
    for number, rule in enumerate(policy.rules, 1):
        if not rule_matches(rule, query):
            continue
        table = policy.tables[rule.table]
        index = find_route(table, family, addr, query.proto, query.port)
        if index is not None:
            route = table[index]
            return Verdict(
                stack=served_stack(policy, query, route.stack),
                wanted=route.stack,
                table=rule.table,
                rule=number,
                rule_text=policy.rule_text(number - 1),
                route=route.text(),
            )
        if query.direction == C.DMM_DIR_LISTEN:
            return Verdict(KERNEL, KERNEL, rule.table, number, policy.rule_text(number - 1))
    return Verdict(KERNEL, KERNEL)


def served_stack(policy: Policy, query: Query, wanted: str) -> str:
    """The stack that serves a flow whose route names wanted, as bpf/connect.h and bpf/sockops.h have it.

    A user stack carries TCP to other hosts; UDP, and what stays on this host, is the kernel's as if there were no
    policy. A rejecting stack refuses connect(); a connection that a client has opened is the kernel's.
    """
    stack = policy.stacks[wanted]
    if query.direction == C.DMM_DIR_LISTEN:
        return KERNEL if isinstance(stack, RejectStack) else wanted
    if isinstance(stack, UserStack) and (query.proto != TCP or _is_this_host(query.addr)):
        return KERNEL
    return wanted


def _is_this_host(address: str) -> bool:
    """True for loopback addresses and for 0.0.0.0 and ::, which mean this host to connect() (ip(7))."""
    family, addr = parse_address(address)
    if family == 4:
        return addr >> 24 == 127 or addr == 0
    return addr in (0, 1)


def rule_matches(rule: Rule, query: Query) -> bool:
    """True when everything that the rule asks for is so."""
    if not rule.direction & query.direction:
        return False
    if rule.cgroup is not None and not _is_below(query.cgroup, rule.cgroup):
        return False
    if rule.uid is not None and (query.uid is None or not rule.uid.first <= query.uid <= rule.uid.last):
        return False
    if rule.comm is not None and query.comm != rule.comm:
        return False
    if rule.mark is not None and (query.mark is None or query.mark & rule.mark.mask != rule.mark.value):
        return False
    return rule.netns is None or query.netns == rule.netns


def _is_below(path: str | None, ancestor: str) -> bool:
    if path is None:
        return False
    parts = [part for part in path.split("/") if part]
    wanted = [part for part in ancestor.split("/") if part]
    return parts[: len(wanted)] == wanted


def find_route(table: RouteTable, family: int, addr: int, proto: int, port: int) -> int | None:
    """The index of the table's route for a flow: longest prefix, then port, then protocol, then order."""
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
    """(2 exact port, 1 range, 0 any; 1 protocol named, 0 not), or None when the flow does not match."""
    if match.proto and match.proto != proto:
        return None
    names_protocol = 1 if match.proto else 0
    if not match.ports:
        return 0, names_protocol
    for first, last in match.ports:
        if first <= port <= last:
            return 2 if first == last else 1, names_protocol
    return None
