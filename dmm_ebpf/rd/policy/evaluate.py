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

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dmm_ebpf import records
from dmm_ebpf.abi import C
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.cgroupglob import is_in
from dmm_ebpf.rd.policy.model import KERNEL, Policy, RejectStack, UserStack
from dmm_ebpf.rd.policy.routes import Match, RouteTable
from dmm_ebpf.rd.policy.rule import (
    DIRECTIONS,
    SOCKET_KEYS,
    Conditions,
    Rule,
    executable_path,
)
from dmm_ebpf.rd.policy.values import (
    PORT_MAX,
    TCP,
    Prefix,
    ValueRefusedError,
    is_named,
    parse_address,
    parse_protocol,
    shown,
)
from dmm_ebpf.records.record import ABSENT, Maybe

if TYPE_CHECKING:
    from dmm_ebpf.records.policy import WhyNot

Kind = TypeVar("Kind", str, int)
# What a rule may ask for beside the direction: fields of Query, and of Rule
CONDITIONS = {
    **{key: key for key in SOCKET_KEYS},
    "source": "sources",
    "in_interface": "in_interface",
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
    gid: int | None = None
    comm: str | None = None
    executable: str | None = None
    same_files: tuple[str, ...] = ()  # all paths of that very file, where they are known
    mark: int | None = None
    dscp: int | None = None
    netns: str | None = None
    local_port: int | None = None  # the socket's own; 0: none yet
    interface: str | None = None  # that the socket is bound to; "": none
    source: str | None = None
    in_interface: str | None = None
    in_names: tuple[str, ...] = ()  # all that this device is called, where that is known
    direction: int = C.DMM_DIR_CONNECT
    choice: str | None = None  # the stack that the program has chosen by DMM_STACK (bpf/dmm.h)

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
            if source is not None and parse_address(source)[0] != parse_address(addr)[0]:
                raise ValueRefusedError(
                    f"no flow goes from {shown(source)} to {shown(addr)}: one is IPv4, the other IPv6"
                )
            comm = _param(params, "comm", str)
            if comm is not None and len(os.fsencode(comm)) >= C.DMM_COMM_LEN:
                raise ValueRefusedError(
                    f"comm {shown(comm)} is no process's: a name has at most {C.DMM_COMM_LEN - 1} bytes"
                )
            executable = _param(params, "executable", str)
            direction = _param(params, "direction", str) or "connect"
            if direction not in DIRECTIONS:
                raise ValueRefusedError(f"direction {shown(direction)} is unknown")
            return cls(
                addr=addr,
                port=_number(params, "port", 0xFFFF) or 0,
                proto=proto,
                cgroup=_param(params, "cgroup", str),
                uid=_number(params, "uid", 0xFFFFFFFF),
                gid=_number(params, "gid", 0xFFFFFFFF),
                comm=comm,
                executable=None if executable is None else executable_path(executable),
                mark=_number(params, "mark", 0xFFFFFFFF),
                dscp=_number(params, "dscp", 63),
                netns=_param(params, "netns", str),
                local_port=_number(params, "local_port", PORT_MAX),
                interface=_param(params, "interface", str),
                source=source,
                in_interface=_param(params, "in_interface", str),
                direction=DIRECTIONS[direction],
                choice=_param(params, "choice", str),
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

    element: where the route leads to a set, the prefix in it that decides. live: whether the route
    stands beside the policy.

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
    why: WhyNot | None = None
    # what becomes of the program's choice, where the query says one
    choice: Maybe[Literal["taken", "refused"]] = ABSENT
    unasked: tuple[tuple[str, tuple[str, ...]], ...] = ()
    element: Maybe[str] = ABSENT
    live: Maybe[bool] = ABSENT

    def answer(
        self,
        instance: Maybe[str] = ABSENT,
        attached: Maybe[str] = ABSENT,
        assumed: Maybe[dict[str, str]] = ABSENT,
        device: Maybe[str] = ABSENT,
        transport: Maybe[str] = ABSENT,
    ) -> records.policy.RouteAnswer:
        """As `route get` says it, with what an instance that was asked adds; transport: see
        transport_of().
        """
        return records.policy.RouteAnswer(
            instance,
            attached,
            assumed,
            self.stack,
            self.wanted,
            self.table,
            self.rule_text,
            self.rule,
            self.route,
            self.why,
            [records.policy.Unasked(rule, list(needs)) for rule, needs in self.unasked],
            device,
            self.choice,
            transport,
            element=self.element,
            live=self.live,
        )


def transport_of(policy: Policy, query: Query, stack: str) -> Maybe[str]:
    """By which the stack would speak to the peer, as the policy names it; ABSENT: it has none to
    choose, as the kernel's, a program of one's own, or one that carries a datagram.
    """
    config = policy.stacks.get(stack)
    if not isinstance(config, UserStack) or config.command or query.proto != TCP:
        return ABSENT
    return config.transport


def answer(policy: Policy, query: Query) -> records.policy.RouteAnswer:
    """What `route get` says by a policy alone. UsageError as route_get()."""
    verdict = route_get(policy, query)
    return verdict.answer(transport=transport_of(policy, query, verdict.stack))


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
    if query.choice is None:
        return _by_rules(policy, query, family, addr)
    if query.choice not in policy.stacks:
        known = ", ".join(policy.stacks)
        why = f"the policy has no stack {shown(query.choice)} that a program could choose"
        raise UsageError("ask for a route", why=why, hint=f"known are {known}")
    number = lets_choose(policy, query, query.choice)
    if not number:
        return replace(_by_rules(policy, query, family, addr), choice="refused")
    reason = why_not(policy, query, query.choice)
    return Verdict(
        stack=KERNEL if reason else query.choice,
        wanted=query.choice,
        rule=number,
        rule_text=policy.rule_text(number - 1),
        why=reason,
        choice="taken",
    )


def _by_rules(policy: Policy, query: Query, family: int, addr: int) -> Verdict:
    """The verdict where no program has chosen."""
    unasked: list[tuple[str, tuple[str, ...]]] = []
    for number, rule in enumerate(policy.rules, 1):
        if not rule.table:
            continue
        if rule.hosts is not None and policy.labels is None:
            unasked.append((policy.rule_text(number - 1), ("hosts",)))
            continue
        if needs := lacking(rule, query):
            unasked.append((policy.rule_text(number - 1), needs))
        if not rule_matches(rule, query):
            continue
        found = find_in(policy, rule.table, (family, addr), query)
        if found is not None:
            table, index = found
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
                element=str(route.prefix) if route.through else ABSENT,
                live=table.is_live or ABSENT,
            )
        if query.direction == C.DMM_DIR_LISTEN:
            text = policy.rule_text(number - 1)
            return Verdict(KERNEL, KERNEL, rule.table, number, text, unasked=tuple(unasked))
    return Verdict(KERNEL, KERNEL, unasked=tuple(unasked))


def lets_choose(policy: Policy, query: Query, stack: str) -> int:
    """The number, from 1, of the first rule that lets the program of such a flow choose that stack;
    0: none does.
    """
    for number, rule in enumerate(policy.rules, 1):
        elsewhere = rule.hosts is not None and policy.labels is None
        if stack in rule.choose and not elsewhere and rule_matches(rule, query):
            return number
    return 0


def why_not(policy: Policy, query: Query, wanted: str) -> WhyNot | None:
    """Why the kernel serves a flow whose route names wanted, as bpf/connect.h and bpf/opened.h
    have it: "udp", "loopback", "link-local", "group", "listener" or "forwarded"; None:
    wanted may serve it.

    A user stack carries TCP of other hosts, and UDP if it says so; what stays on this host, and
    datagrams to many, are the kernel's as if there were no policy. A rejecting stack refuses
    connect(); a connection that a client has opened is the kernel's. What is forwarded is a user
    stack's or the kernel's, whose options are for sockets.
    """
    stack = policy.stacks.get(wanted)
    if stack is None:  # of an adaptive route: who serves can be told by the director alone
        return None
    if query.direction == C.DMM_DIR_FORWARD and not isinstance(stack, UserStack):
        return "forwarded"
    if query.direction == C.DMM_DIR_LISTEN and isinstance(stack, RejectStack):
        return "listener"
    if not isinstance(stack, UserStack):
        return None
    if query.proto != TCP and not (stack.udp and query.direction != C.DMM_DIR_FORWARD):
        return "udp"
    return _bars(query)


def _bars(query: Query) -> WhyNot | None:
    """What is at a peer's address that no user stack carries its flow."""
    if _is_this_host(query.addr):
        return "loopback"
    if query.proto != TCP and _is_group(query.addr):
        return "group"
    return "link-local" if _is_link_local(query.addr) else None


def _is_this_host(address: str) -> bool:
    """True for loopback addresses and for 0.0.0.0 and ::, which mean this host
    to connect() (ip(7)).
    """
    family, addr = parse_address(address)
    if family == 4:
        return addr >> 24 == 127 or addr == 0
    return addr in (0, 1)


def _is_group(address: str) -> bool:
    """A multicast group (RFC 5771, RFC 4291 section 2.7), or everybody."""
    family, addr = parse_address(address)
    return addr >> 28 == 0xE or addr == 0xFFFFFFFF if family == 4 else addr >> 120 == 0xFF


def _is_link_local(address: str) -> bool:
    """fe80::/10 (RFC 4291 section 2.5.6)"""
    family, addr = parse_address(address)
    return family == 6 and addr >> 118 == 0xFE80 >> 6


def rule_matches(rule: Rule, query: Query) -> bool:
    """True when everything that the rule asks for is so, and nothing that it excepts."""
    return _match(rule, query) is True


def _match(rule: Rule, query: Query) -> bool | None:
    """The same; None: it depends on what the query does not say."""
    if not rule.direction & query.direction:
        return False
    found = [holds(rule, query), _forward_matches(rule, query)]
    found += [_other(holds(one, query)) for one in rule.excepted]
    if False in found:
        return False
    return None if None in found else True


def _other(said: bool | None) -> bool | None:
    return None if said is None else not said


# Whether a value of a condition is what a query says
_IS: dict[str, Callable[[Any, Any], bool]] = {
    "cgroup": lambda wanted, given: is_in(given, wanted),
    "uid": lambda wanted, given: wanted.first <= given <= wanted.last,
    "gid": lambda wanted, given: wanted.first <= given <= wanted.last,
    "comm": operator.eq,
    "executable": lambda wanted, given: wanted in given,
    "mark": lambda wanted, given: given & wanted.mask == wanted.value,
    "dscp": operator.eq,
    "netns": operator.eq,
    "local_port": lambda wanted, given: wanted[0] <= given <= wanted[1],
    "interface": operator.eq,
}


def holds(conditions: Conditions, query: Query) -> bool | None:
    """Whether all that is asked of the socket is so; None: the query does not say it."""
    unsaid = False
    for key, values in conditions.asked():
        given = known_fact(query, key)
        if given is None:
            unsaid = True
        elif not any(_IS[key](one, given) for one in values):
            return False
    return None if unsaid else True


def known_fact(query: Query, key: str) -> Any:
    """What the query says, in itself or by another fact; None: nothing."""
    if key == "local_port" and query.direction == C.DMM_DIR_LISTEN:
        return query.port
    if key == "executable" and query.executable is not None:
        return (query.executable, *query.same_files)
    return getattr(query, key)


def _forward_matches(rule: Rule, query: Query) -> bool | None:
    found: list[bool | None] = [True]
    if rule.sources is not None:
        if query.source is None:
            found.append(None if _may_come_from(rule, query) else False)
        else:
            found.append(_comes_from(query.source, rule.source_prefixes))
    if rule.in_interface is not None:
        names = query.in_names or ((query.in_interface,) if query.in_interface is not None else ())
        found.append(any(is_named(one, rule.in_interface) for one in names) if names else None)
    if False in found:
        return False
    return None if None in found else True


def _comes_from(source: str, prefixes: tuple[Prefix, ...]) -> bool:
    family, addr = parse_address(source)
    bits = 32 if family == 4 else 128
    return any(p.family == family and not (p.addr ^ addr) >> (bits - p.length) for p in prefixes)


def lacking(rule: Rule, query: Query) -> tuple[str, ...]:
    """What the rule asks for and the query does not say, where the rule may match by all that
    it does say.
    """
    if _match(rule, query) is not None:
        return ()
    parts = [rule, *(one for one in rule.excepted if holds(one, query) is None)]
    asked = {key for one in parts for key, _ in one.asked()}
    asked |= {"source"} if rule.sources is not None else set()
    asked |= {"in_interface"} if rule.in_interface is not None else set()
    return tuple(key for key in CONDITIONS if key in asked and known_fact(query, key) is None)


def _may_come_from(rule: Rule, query: Query) -> bool:
    """Whether a source of the rule's is of the peer's address family."""
    family, _ = parse_address(query.addr)
    return any(prefix.family == family for prefix in rule.source_prefixes)


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
    best = _best(table, family, addr, proto, port)
    return None if best is None else -best[-1]


def find_in(
    policy: Policy, name: str, peer: tuple[int, int], query: Query
) -> tuple[RouteTable, int] | None:
    """The same of a policy's table and of what stands beside it. peer: family and address."""
    tables = policy.tables_of(name)
    found = [(_best(one, *peer, query.proto, query.port), one) for one in tables]
    ranked = [
        ((*best[:-1], one.precedence), one, -best[-1]) for best, one in found if best is not None
    ]
    if not ranked:
        return None
    _, table, index = max(ranked, key=operator.itemgetter(0))
    return table, index


def _best(
    table: RouteTable, family: int, addr: int, proto: int, port: int
) -> tuple[int, int, int, int] | None:
    """Of the route that counts: prefix length, how_specific(), and its index, less than 0."""
    best: tuple[int, int, int, int] | None = None
    for index in bulk.containing(table, family, addr):
        specificity = how_specific(table.matches[table.match[index]], proto, port)
        if specificity is None:
            continue
        rank = (table.lengths[index], *specificity, -index)
        if best is None or rank > best:
            best = rank
    return best


def how_specific(match: Match, proto: int, port: int) -> tuple[int, int] | None:
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
