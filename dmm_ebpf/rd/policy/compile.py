# SPDX-License-Identifier: Apache-2.0
"""From a Policy to the bytes of the policy maps.

Owns the translation, which is pure: the same policy, numbers and answers about the host give the
same bytes, and nothing is written anywhere. It refuses what only this host can tell to be wrong: a
cgroup or network namespace that does not exist, a congestion control that is not loaded.

The kernel decides with one look-up of the address and at most one of the port (abi.h, struct
dmm_route_value). A prefix whose routes take every protocol and port carries its route inline. Any
other prefix gets a port set: its own routes painted over those of the next shorter prefix of the
table, so that "longest prefix that has a route for this port" is already worked out. Equal port
sets are stored once.
"""

from __future__ import annotations

import bisect
import errno
import ipaddress
import socket
import sys
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.locate import describe
from dmm_ebpf.rd.policy.model import KernelStack, Policy, RejectStack, Rule, UserStack
from dmm_ebpf.rd.policy.portsets import MISS, Layer, PortSet, paint, trie_entries
from dmm_ebpf.rd.policy.routes import Match, RouteTable, port_rank, prefix_key, route_text
from dmm_ebpf.rd.policy.usual import LINUX, Usual
from dmm_ebpf.rd.policy.values import PORT_MAX, TCP, UDP, Prefix

CgroupLookup = Callable[[str], tuple[int, int]]
NetnsLookup = Callable[[str], int]

INNER_CONGESTION = (
    b"reno"  # the app's socket on a user stack: the inner leg loses nothing and must not be paced
)
_PORT_BITS_BEFORE = 48  # bits of struct dmm_port_key between prefixlen and port_be
_OWN = -2  # a prefix's only route, in a template
_MAX_TEMPLATES = 65536
_INHERITED = (1, 0, 0)  # precedence of a shorter prefix's routes: after all own ones

_PortTemplate = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Entries:
    """Keys and values of one map, packed end to end, ready for a batch update."""

    keys: bytes
    values: bytes
    count: int


class Labels:
    """Names for the numbers of one generation; about 30 bytes a route, texts are made
    when asked for.
    """

    def __init__(self, policy: Policy, ids: IdSpace) -> None:
        self.source = policy.source
        self.n_routes = policy.n_routes
        self._rules = [policy.rule_text(index) for index in range(len(policy.rules))]
        self._stacks = {ids.stack(name): name for name in policy.stacks}
        self._tables = {ids.table(name): name for name in policy.tables}
        self._routes = list(policy.tables.values())
        self._bases = route_bases(policy)

    def rule_text(self, index: int) -> str:
        """The rule at index, from 0: its name, or its number and conditions."""
        return self._rules[index]

    def stack_name(self, number: int) -> str:
        """The stack's name; "?" for a number this policy does not use."""
        return self._stacks.get(number, "?")

    def table_name(self, number: int) -> str:
        """The table's name; empty for 0, "?" for a number this policy does not use."""
        return self._tables.get(number, "?") if number else ""

    def route_text(self, index: int) -> str:
        """For example "203.0.113.0/24 tcp 443"; empty for DMM_ROUTE_NONE and what this policy
        does not have.
        """
        if not 0 <= index < self.n_routes:
            return ""
        at = bisect.bisect_right(self._bases, index) - 1
        table = self._routes[at]
        own = index - self._bases[at]
        return route_text(table.prefix(own), table.matches[table.match[own]])


@dataclass(frozen=True)
class Compiled:
    """One policy as map contents, for either half. Drop it once applied; keep labels and cgroups.

    rules are struct dmm_rule in order, forwards struct dmm_forward; by_device are the patterns of
    the names of the devices that each of forwards holds for, None: all. stacks map a number to
    struct dmm_stack; head is struct dmm_policy_head.
    cgroups maps each cgroup that a rule names to its id: a cgroup that is deleted and made again
    has a new id, and the policy must then be compiled again.
    """

    head: Struct
    rules: tuple[Struct, ...]
    forwards: tuple[Struct, ...]
    by_device: tuple[tuple[str, ...] | None, ...]
    stacks: Mapping[int, Struct]
    routes4: Entries
    routes6: Entries
    ports: Entries
    cgroups: Mapping[str, int]
    labels: Labels

    def route_text(self, index: int) -> str:
        """See Labels.route_text()."""
        return self.labels.route_text(index)

    def rule_text(self, index: int) -> str:
        """See Labels.rule_text()."""
        return self.labels.rule_text(index)

    @property
    def n_routes(self) -> int:
        """Routes of the policy, as it counts them."""
        return self.labels.n_routes


def compile_policy(
    policy: Policy,
    ids: IdSpace,
    cgroup_lookup: CgroupLookup,
    *,
    netns_lookup: NetnsLookup | None = None,
    congestion_controls: Collection[str] | None = None,
    usual: Usual = LINUX,
    busy_stacks: Collection[int] = (),
) -> Compiled:
    """The map contents of policy.

    ids: the instance's numbers; new names get theirs, which is the only effect of this function.
    cgroup_lookup: path below the cgroup v2 mount → (cgroup id, level below the root); OSError or
    DmmError if there is none.
    netns_lookup: name → network namespace cookie, with the same errors; needed by rules with netns.
    congestion_controls: what net.ipv4.tcp_available_congestion_control lists; None: not checked.
    usual: what the host's sockets have while their programs choose nothing.
    busy_stacks: stack numbers that open flows still have.
    Raises PolicyError with the place.
    """
    ids.assign(policy.stacks, policy.tables, busy_stacks)
    host = _Host(policy, cgroup_lookup, netns_lookup)
    rules = tuple(host.rule(index, rule, ids) for index, rule in enumerate(policy.rules))
    stacks = _StackPacker(policy, ids, congestion_controls, usual)
    routes = _RouteCompiler(ids)
    for table, base in zip(policy.tables.values(), route_bases(policy), strict=True):
        routes.add_table(table, base)
    forwards, by_device = _forwards(policy.rules, ids)
    head = abi.new(
        "dmm_policy_head",
        n_rules=len(rules),
        n_routes=policy.n_routes,
        rejects=_rejects(policy),
        n_forwards=len(forwards),
    )
    return Compiled(
        head=head,
        rules=rules,
        forwards=forwards,
        by_device=by_device,
        stacks=stacks.all(),
        routes4=routes.entries(4),
        routes6=routes.entries(6),
        ports=routes.port_entries(),
        cgroups=host.cgroups,
        labels=Labels(policy, ids),
    )


def _rejects(policy: Policy) -> bool:
    """Whether a route names a stack that refuses."""
    return any(isinstance(policy.stacks[name], RejectStack) for name in policy.routed_stacks())


def _forwards(
    rules: Sequence[Rule], ids: IdSpace
) -> tuple[tuple[Struct, ...], tuple[tuple[str, ...] | None, ...]]:
    """struct dmm_forward of each rule and source, and the devices that it holds for."""
    made: list[Struct] = []
    by_device: list[tuple[str, ...] | None] = []
    for number, rule in enumerate(rules, 1):
        if not rule.forwards:
            continue
        for source in rule.sources or (None,):
            address, length, family = _source(source)
            out = abi.new(
                "dmm_forward",
                source=address,
                prefixlen=length,
                family=family,
                table=ids.table(rule.table),
                rule=number,
                named=rule.in_interface is not None,
            )
            made.append(out)
            by_device.append(rule.in_interface)
    return tuple(made), tuple(by_device)


def _source(prefix: Prefix | None) -> tuple[bytes, int, int]:
    """source, prefixlen and family of struct dmm_forward."""
    if prefix is None:
        return bytes(16), 0, 0
    if prefix.family == 4:
        return abi.addr16(ipaddress.IPv4Address(prefix.addr)), 96 + prefix.length, socket.AF_INET
    return prefix.addr.to_bytes(16, "big"), prefix.length, socket.AF_INET6


def route_bases(policy: Policy) -> list[int]:
    """For each table, in order, the index of its first route among all routes of the policy."""
    bases: list[int] = []
    total = 0
    for table in policy.tables.values():
        bases.append(total)
        total += len(table)
    return bases


def _refuse(policy: Policy, path: tuple[str | int, ...], why: str, hint: str) -> NoReturn:
    raise PolicyError(f"accept {policy.place(*path)}", why=f"{describe(path)}: {why}", hint=hint)


class _Host:
    """Makes rules, asking the host for the numbers of cgroups and network namespaces."""

    def __init__(
        self, policy: Policy, cgroup_lookup: CgroupLookup, netns_lookup: NetnsLookup | None
    ) -> None:
        self.policy = policy
        self.cgroup_lookup = cgroup_lookup
        self.netns_lookup = netns_lookup
        self.cgroups: dict[str, int] = {}

    def rule(self, index: int, rule: Rule, ids: IdSpace) -> Struct:
        out = abi.new("dmm_rule", table=ids.table(rule.table), directions=rule.direction)
        if rule.cgroup is not None:
            out.flags |= C.DMM_RULE_CGROUP
            out.cgroup_id, out.cgroup_level = self._cgroup(index, rule.cgroup)
        if rule.uid is not None:
            out.flags |= C.DMM_RULE_UID
            out.uid_first, out.uid_last = rule.uid
        if rule.comm is not None:
            out.flags |= C.DMM_RULE_COMM
            out.comm = rule.comm.encode()
        if rule.mark is not None:
            out.flags |= C.DMM_RULE_MARK
            out.mark, out.mark_mask = rule.mark
        if rule.netns is not None:
            out.flags |= C.DMM_RULE_NETNS
            out.netns_cookie = self._netns(index, rule.netns)
        return out

    def _cgroup(self, index: int, path: str) -> tuple[int, int]:
        try:
            cgroup_id, level = self.cgroup_lookup(path)
        except (OSError, DmmError) as error:
            why = f"the cgroup {path} cannot be used ({_reason(error)})"
            _refuse(
                self.policy, ("rules", index, "cgroup"), why, "create it first, or correct the path"
            )
        self.cgroups[path] = cgroup_id
        return cgroup_id, level

    def _netns(self, index: int, name: str) -> int:
        key = ("rules", index, "netns")
        if self.netns_lookup is None:
            _refuse(
                self.policy, key, "network namespaces cannot be looked up here", "leave netns out"
            )
        try:
            return self.netns_lookup(name)
        except (OSError, DmmError) as error:
            why = f"the network namespace {name} cannot be used ({_reason(error)})"
            _refuse(self.policy, key, why, f"create it first: ip netns add {name}")


def _reason(error: OSError | DmmError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return error.why if isinstance(error, DmmError) else (error.strerror or str(error)).lower()


class _StackPacker:
    """Makes stacks. A user stack that no route names is left out: nothing can choose it, no
    process serves it.
    """

    def __init__(
        self,
        policy: Policy,
        ids: IdSpace,
        congestion_controls: Collection[str] | None,
        usual: Usual,
    ) -> None:
        self.policy = policy
        self.ids = ids
        self.congestion_controls = congestion_controls
        self.usual = usual

    def all(self) -> dict[int, Struct]:
        routed = set(self.policy.routed_stacks())
        out: dict[int, Struct] = {}
        for name, stack in self.policy.stacks.items():
            if isinstance(stack, KernelStack):
                out[self.ids.stack(name)] = self._kernel(name, stack)
            elif isinstance(stack, RejectStack):
                refusal = getattr(errno, stack.errno)
                out[self.ids.stack(name)] = abi.new(
                    "dmm_stack", kind=C.DMM_STACK_REJECT, refusal=refusal
                )
            elif name in routed:
                out[self.ids.stack(name)] = self._user(stack)
        return out

    def _user(self, stack: UserStack) -> Struct:
        out = abi.new(
            "dmm_stack",
            kind=C.DMM_STACK_USER,
            flags=C.DMM_SET_CONGESTION,
            fallback=self.ids.stack(stack.fallback),
            congestion=INNER_CONGESTION,
            usual=self.usual.congestion.encode(),
        )
        self._patience(out, stack)
        return out

    def _kernel(self, name: str, stack: KernelStack) -> Struct:
        out = abi.new("dmm_stack", kind=C.DMM_STACK_KERNEL)
        if stack.congestion is not None:
            self._check_congestion(name, stack.congestion)
            out.flags |= C.DMM_SET_CONGESTION
            out.congestion = stack.congestion.encode()
        if stack.dscp is not None:
            out.flags |= C.DMM_SET_DSCP
            out.dscp = stack.dscp
        if stack.mark is not None:
            out.flags |= C.DMM_SET_MARK
            out.mark, out.mark_mask = stack.mark
        if stack.pacing_rate_Bps is not None:
            out.flags |= C.DMM_SET_PACING
            out.max_pacing_rate_Bps = stack.pacing_rate_Bps
        if stack.priority is not None:
            out.flags |= C.DMM_SET_PRIORITY
            out.priority = stack.priority
        self._patience(out, stack)
        return out

    def _patience(self, out: Any, stack: KernelStack | UserStack) -> None:
        wanted, usual = out.patience, out.usual_patience
        if stack.user_timeout_ms is not None:
            out.flags |= C.DMM_SET_USER_TIMEOUT
            wanted.user_timeout_ms = stack.user_timeout_ms
        if stack.keepalive:
            out.flags |= C.DMM_SET_KEEPALIVE
            wanted.keepalive_time_s = stack.keepalive_time_s or 0
            wanted.keepalive_intvl_s = stack.keepalive_intvl_s or 0
            wanted.keepalive_probes = stack.keepalive_probes or 0
        usual.keepalive_time_s = self.usual.keepalive_time_s
        usual.keepalive_intvl_s = self.usual.keepalive_intvl_s
        usual.keepalive_probes = self.usual.keepalive_probes

    def _check_congestion(self, name: str, congestion: str) -> None:
        known = self.congestion_controls
        if known is not None and congestion not in known:
            why = f'the congestion control "{congestion}" is not loaded'
            hint = f"run modprobe tcp_{congestion}, or use one of {', '.join(sorted(known))}"
            _refuse(self.policy, ("stacks", name, "congestion"), why, hint)


class _Words:
    """Growing columns of 32-bit words, joined into packed records at the end."""

    def __init__(self, host_order: int, network_order: int) -> None:
        self.columns = [array("I") for _ in range(host_order + network_order)]
        self.host_order = host_order

    def packed(self) -> bytes:
        if sys.byteorder == "little":
            for column in self.columns[self.host_order :]:
                column.byteswap()
        width = len(self.columns)
        out = array("I", bytes(4 * width * len(self.columns[0])))
        for offset, column in enumerate(self.columns):
            out[offset::width] = column
        return out.tobytes()


class _RouteCompiler:
    """Gathers the entries of routes4, routes6 and ports over all tables."""

    def __init__(self, ids: IdSpace) -> None:
        self.ids = ids
        self.keys = {4: _Words(2, 1), 6: _Words(2, 4)}
        self.values = {4: _Words(3, 0), 6: _Words(3, 0)}
        self.n_port_sets = 0
        self.port_keys = _Words(2, 1)
        self.port_values = _Words(2, 0)

    def add_table(self, table: RouteTable, base: int) -> None:
        """Add every prefix of table; base is the policy-wide index of its first route."""
        number = self.ids.table(table.name)
        stacks = [self.ids.stack(name) for name in table.stack_names]
        inline = [match.takes_all for match in table.matches]
        if all(inline) and not table.duplicates:
            for index, stack in enumerate(table.stack):
                self._add_prefix(table, index, number, (base + index, stacks[stack], 0))
            return
        tree = _PrefixTree(table)
        numbers: dict[PortSet, int] = {}  # port sets of this table; no two tables share a route
        for key, index in tree.first.items():
            group = table.duplicates.get(key)
            if group is None:
                match = table.match[index]
                if inline[match]:
                    value = (base + index, stacks[table.stack[index]], 0)
                else:
                    value = (
                        C.DMM_ROUTE_NONE,
                        0,
                        self._add_ports(table, base, stacks, tree.single(index, match), index),
                    )
                self._add_prefix(table, index, number, value)
                continue
            port_set = tree.port_set(key)
            whole = _whole(port_set)
            if whole is not None:
                value = (base + whole, stacks[table.stack[whole]], 0)
            else:
                if port_set not in numbers:
                    numbers[port_set] = self._add_ports(
                        table, base, stacks, _port_template(port_set)
                    )
                value = (C.DMM_ROUTE_NONE, 0, numbers[port_set])
            self._add_prefix(table, index, number, value)

    def _add_prefix(
        self, table: RouteTable, index: int, number: int, value: tuple[int, int, int]
    ) -> None:
        family = table.families[index]
        columns = self.keys[family].columns
        lo = table.addrs_lo[index]
        columns[0].append(32 + table.lengths[index])
        columns[1].append(number)
        if family == 4:
            columns[2].append(lo)
        else:
            hi = table.addrs_hi[index]
            columns[2].append(hi >> 32)
            columns[3].append(hi & 0xFFFFFFFF)
            columns[4].append(lo >> 32)
            columns[5].append(lo & 0xFFFFFFFF)
        route, stack, port_set = self.values[family].columns
        route.append(value[0])
        stack.append(value[1])
        port_set.append(value[2])

    def _add_ports(
        self, table: RouteTable, base: int, stacks: list[int], template: _PortTemplate, own: int = 0
    ) -> int:
        """Add a port set's entries; returns its number. Routes are indexes into table, _OWN
        stands for own.
        """
        self.n_port_sets += 1
        prefixlen, set_column, proto_port = self.port_keys.columns
        route_column, stack_column = self.port_values.columns
        for length, word, named in template:
            prefixlen.append(length)
            set_column.append(self.n_port_sets)
            proto_port.append(word)
            if named == MISS:
                route_column.append(C.DMM_ROUTE_NONE)
                stack_column.append(0)
            else:
                route = own if named == _OWN else named
                route_column.append(base + route)
                stack_column.append(stacks[table.stack[route]])
        return self.n_port_sets

    def entries(self, family: int) -> Entries:
        """The entries of routes4 or routes6; takes the columns, so call it once."""
        count = len(self.values[family].columns[0])
        return Entries(self.keys.pop(family).packed(), self.values.pop(family).packed(), count)

    def port_entries(self) -> Entries:
        """The entries of ports."""
        count = len(self.port_values.columns[0])
        return Entries(self.port_keys.packed(), self.port_values.packed(), count)


def _port_template(port_set: PortSet) -> _PortTemplate:
    """The entries of a port set but for its number: prefixlen, the word of proto, pad and
    port_be, the route.
    """
    return tuple(
        (_PORT_BITS_BEFORE + bits, proto << 24 | first, route)
        for proto, segments in ((TCP, port_set.tcp), (UDP, port_set.udp))
        for first, bits, route in trie_entries(segments)
    )


def _whole(port_set: PortSet) -> int | None:
    """The route that takes every port of both protocols, if there is one."""
    if len(port_set.tcp) != 1 or port_set.tcp != port_set.udp:
        return None
    first, last, route = port_set.tcp[0]
    return route if (first, last) == (0, PORT_MAX) else None


class _PrefixTree:
    """The prefixes of one table, and what each says of every port; routes are indexes
    into the table.
    """

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self.first = table.first_by_prefix()
        self.inherited: dict[
            int, PortSet
        ] = {}  # port sets of prefixes that have longer ones below them
        self.templates: dict[tuple[int, int | None], _PortTemplate] = {}
        lengths = set(zip(table.families, table.lengths, strict=True))
        self.lengths = {
            family: sorted((length for own, length in lengths if own == family), reverse=True)
            for family in (4, 6)
        }

    def single(self, index: int, match: int) -> _PortTemplate:
        """The port entries of a prefix with the one route index, as _OWN, and not every port.

        In a big table most prefixes are alike: one match, and one shorter prefix around them all.
        """
        key = (match, self._parent(index, match))
        found = self.templates.get(key)
        if found is None:
            if len(self.templates) >= _MAX_TEMPLATES:
                self.templates.clear()
            found = _port_template(self._painted([(_OWN, self.table.matches[match])], key[1]))
            self.templates[key] = found
        return found

    def port_set(self, key: int) -> PortSet:
        """The routes of a prefix, and below them those of the shorter prefixes around it."""
        table = self.table
        index = self.first[key]
        group = table.duplicates.get(key) or [index]
        own = [(i, table.matches[table.match[i]]) for i in group]
        takes_all = any(match.takes_all for _, match in own)
        return self._painted(own, None if takes_all else self._parent(index))

    def _painted(self, own: list[tuple[int, Match]], parent: int | None) -> PortSet:
        layers: dict[int, list[Layer]] = {TCP: [], UDP: []}
        if parent is not None:
            below = self._inherited(parent)
            layers[TCP] += [Layer(_INHERITED, *segment) for segment in below.tcp]
            layers[UDP] += [Layer(_INHERITED, *segment) for segment in below.udp]
        for index, match in own:
            for first, last in match.ports or ((0, PORT_MAX),):
                precedence = (-port_rank(match.ports, first, last), 0 if match.proto else 1, index)
                for proto in (match.proto,) if match.proto else (TCP, UDP):
                    layers[proto].append(Layer(precedence, first, last, index))
        return PortSet(paint(layers[TCP]), paint(layers[UDP]))

    def _inherited(self, key: int) -> PortSet:
        found = self.inherited.get(key)
        if found is None:
            found = self.inherited[key] = self.port_set(key)
        return found

    def _parent(self, index: int, hidden: int = -1) -> int | None:
        """The key of the next shorter prefix of the table that contains route index's prefix.

        Prefixes whose one route has the match hidden are passed over: a route with that
        match hides them.
        """
        table = self.table
        family, length = table.families[index], table.lengths[index]
        addr = (
            table.addrs_lo[index]
            if family == 4
            else table.addrs_hi[index] << 64 | table.addrs_lo[index]
        )
        bits = 32 if family == 4 else 128
        first = self.first
        for shorter in self.lengths[family]:
            if shorter < length:
                key = prefix_key(family, addr >> (bits - shorter) << (bits - shorter), shorter)
                found = first.get(key)
                if found is not None and (table.match[found] != hidden or key in table.duplicates):
                    return key
        return None
