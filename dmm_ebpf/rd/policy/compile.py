# SPDX-License-Identifier: Apache-2.0
"""From a Policy to the bytes of the policy maps.

Owns the translation, which is pure: the same policy, numbers and answers about the host give the
same bytes, and nothing is written anywhere. It refuses what only this host can tell to be wrong: a
cgroup or network namespace that does not exist, a congestion control that is not loaded.

Routes are made into entries of tries by compile_routes.py.
"""

from __future__ import annotations

import bisect
import errno
import ipaddress
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.rd.policy.cgroupglob import glob, is_glob
from dmm_ebpf.rd.policy.compile_routes import Entries, RouteCompiler
from dmm_ebpf.rd.policy.compile_rules import Check, checks, globs_in
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.livetable import LiveRoutes
from dmm_ebpf.rd.policy.locate import describe
from dmm_ebpf.rd.policy.model import BUILT_IN, KernelStack, Policy, RejectStack, UserStack
from dmm_ebpf.rd.policy.routes import RouteTable
from dmm_ebpf.rd.policy.rule import Rule
from dmm_ebpf.rd.policy.usual import LINUX, Usual
from dmm_ebpf.rd.policy.values import TCP, Prefix

NO_DEVICE = 0xFFFFFFFF  # an ifindex that nothing is bound to
NO_FILE = (0, 2**64 - 1)  # device and inode number of nothing that is executed

CgroupLookup = Callable[[str], tuple[int, int]]
NetnsLookup = Callable[[str], int]
DeviceLookup = Callable[[str], int]
ExecutableLookup = Callable[[str], tuple[int, int]]


def nowhere(_name: str) -> int:
    """A DeviceLookup that knows none."""
    return NO_DEVICE


def no_file(_path: str) -> tuple[int, int]:
    """An ExecutableLookup that knows none."""
    return NO_FILE


# The app's socket on a user stack: the inner leg loses nothing and must not be paced
INNER_CONGESTION = b"reno"


class Labels:
    """Names for the numbers of one generation; about 30 bytes a route, texts are made
    when asked for.
    """

    def __init__(self, policy: Policy, *, has_routes: bool = True) -> None:
        """has_routes: false if its routes are not those that had the numbers."""
        policy = policy.as_written  # what sets have is not named
        tables = policy.tables.values()
        self.n_routes = sum(table.n_numbers for table in tables) if has_routes else 0
        self._rules = [policy.rule_text(index) for index in range(len(policy.rules))]
        self._routes = list(tables)
        self._bases = route_bases(policy)

    def rule_text(self, index: int) -> str:
        """The rule at index, from 0: its name, or its number and conditions."""
        return self._rules[index]

    def route_text(self, index: int) -> str:
        """For example "203.0.113.0/24 tcp 443"; empty for DMM_ROUTE_NONE and what this policy
        does not have.
        """
        if not 0 <= index < self.n_routes:
            return ""
        at = bisect.bisect_right(self._bases, index) - 1
        return self._routes[at].text_of(index - self._bases[at])


@dataclass(frozen=True)
class Compiled:
    """One policy as map contents, for either half. Drop it once applied; keep labels and cgroups.

    rules are struct dmm_rule in order, forwards struct dmm_forward; by_device are the patterns of
    the names of the devices that each of forwards holds for, None: all. stacks map a number to
    struct dmm_stack; head is struct dmm_policy_head.
    checks say of each of rules what it stands for. cgroups maps each cgroup that a rule names to
    its id, devices each device to its ifindex: what is deleted and made again has another, and the
    rules that name it must then be changed. globs are the patterns of cgroups, by their bits.
    """

    head: Struct
    rules: tuple[Struct, ...]
    checks: tuple[Check, ...]
    forwards: tuple[Struct, ...]
    by_device: tuple[tuple[str, ...] | None, ...]
    stacks: Mapping[int, Struct]
    routes: Entries
    ports: Entries
    cgroups: Mapping[str, int]
    devices: Mapping[str, int]
    globs: tuple[str, ...]
    labels: Labels
    is_adaptive: bool = False

    @property
    def makes_mptcp(self) -> bool:
        """Whether a rule has sockets made as MPTCP's."""
        return any(rule.flags & C.DMM_RULE_MPTCP for rule in self.rules)

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
    device_lookup: DeviceLookup = nowhere,
    executable_lookup: ExecutableLookup = no_file,
    congestion_controls: Collection[str] | None = None,
    usual: Usual = LINUX,
    busy_stacks: Collection[int] = (),
) -> Compiled:
    """The map contents of policy.

    ids: the instance's numbers; new names get theirs, which is the only effect of this function.
    cgroup_lookup: path below the cgroup v2 mount → (cgroup id, level below the root); OSError or
    DmmError if there is none.
    netns_lookup: name → network namespace cookie, with the same errors; needed by rules with netns.
    device_lookup: name → ifindex, or NO_DEVICE.
    executable_lookup: path → (device, inode number), as struct dmm_rule has them, or NO_FILE;
    DmmError: the host's programs cannot tell who executes it.
    congestion_controls: what net.ipv4.tcp_available_congestion_control lists; None: not checked.
    usual: what the host's sockets have while their programs choose nothing.
    busy_stacks: stack numbers that open flows still have.
    Raises PolicyError with the place.
    """
    _refuse_unlabelled(policy)
    ids.assign([*policy.stacks, *policy.autos], policy.tables, busy_stacks)
    host = _Host(policy, cgroup_lookup, netns_lookup, device_lookup, executable_lookup)
    made = tuple(checks(policy.rules))
    host.globs = globs_in(made)
    rules = tuple(host.check(one, ids) for one in made)
    stacks = _StackPacker(policy, ids, congestion_controls, usual)
    routes = RouteCompiler(ids, policy.autos)
    for table, base in zip(policy.tables.values(), route_bases(policy), strict=True):
        routes.add_table(table, base)
    forwards, by_device = _forwards(policy.rules, ids)
    _refuse_many(policy, len(forwards))
    head = abi.new(
        "dmm_policy_head",
        n_rules=len(rules),
        n_routes=policy.n_routes,
        datagrams=_datagrams(policy),
        n_forwards=len(forwards),
    )
    return Compiled(
        head=head,
        rules=rules,
        checks=made,
        forwards=forwards,
        by_device=by_device,
        stacks=stacks.all(),
        routes=routes.routes(),
        ports=routes.ports(),
        cgroups=host.cgroups,
        devices=host.devices,
        globs=host.globs,
        labels=Labels(policy),
        is_adaptive=bool(policy.autos),
    )


def _refuse_unlabelled(policy: Policy) -> None:
    """Rules for some hosts of a fleet, where nobody says what this host is."""
    for index, rule in enumerate(policy.rules):
        if rule.hosts is not None and policy.labels is None:
            why = "it is for some hosts of a fleet, and the policy does not say what labels this one has"
            hint = "follow it by --policy etcd://..., or add [labels]"
            _refuse(policy, ("rules", index, "hosts"), why, hint)


def _refuse_many(policy: Policy, sources: int) -> None:
    """More sources of what is forwarded than the kernel's programs look through."""
    if sources > C.DMM_MAX_FORWARDS:
        why = f"with what its sets have, the rules for what is forwarded have {sources} sources together"
        last = max(index for index, rule in enumerate(policy.rules) if rule.forwards)
        _refuse(policy, ("rules", last), why, f"a policy has at most {C.DMM_MAX_FORWARDS}")


def host_errors(
    policy: Policy,
    netns_lookup: NetnsLookup,
    executable_lookup: ExecutableLookup,
    congestion_controls: Collection[str],
) -> Iterator[PolicyError]:
    """All for which compile_policy() would refuse a policy on this host, and not the first alone;
    parameters as there. A cgroup, device or file that is not there is waited for.
    """
    host = _Host(policy, lambda _path: (0, 0), netns_lookup, nowhere, executable_lookup)
    for index, rule in enumerate(policy.rules):
        asked = ((host.netns, rule.every("netns")), (host.executable, rule.every("executable")[:1]))
        for look, names in asked:
            for name in names:
                try:
                    look(index, name)
                except PolicyError as error:
                    yield error
    packer = _StackPacker(policy, IdSpace(), congestion_controls, LINUX)
    for name, stack in policy.stacks.items():
        if isinstance(stack, KernelStack) and stack.congestion is not None:
            try:
                packer.check_congestion(name, stack.congestion)
            except PolicyError as error:
                yield error


def _datagrams(policy: Policy) -> int:
    """Bits of enum dmm_datagrams."""
    refuses = any(isinstance(policy.stacks[name], RejectStack) for name in policy.routed_stacks())
    carrying = {name for name, table in policy.tables.items() if _carries_datagrams(policy, table)}
    served = any(
        rule.table in carrying and rule.direction & C.DMM_DIR_LISTEN for rule in policy.rules
    )
    return int(
        C.DMM_DATAGRAMS_REJECT * refuses
        | C.DMM_DATAGRAMS_USER * bool(carrying)
        | C.DMM_DATAGRAMS_SERVED * served
    )


def _carries_datagrams(policy: Policy, table: RouteTable) -> bool:
    """Whether a route of the table gives UDP to a user stack that carries it."""
    beside = (one.table(table.name) for one in (policy.live, policy.fleet) if one)
    return any(
        one.matches[match].proto != TCP
        and any(_carries(policy, name) for name in policy.may_serve(one.stack_names[stack]))
        for one in (table, *beside)
        if one is not None
        for stack, match in one.pairs()
    )


def datagrams_of(policy: Policy, live: LiveRoutes) -> int:
    """Of enum dmm_datagrams, what these routes alone ask of the programs beside that policy."""
    found = 0
    for one in live.routes.values():
        if isinstance(policy.stacks.get(one.stack, BUILT_IN.get(one.stack)), RejectStack):
            found |= C.DMM_DATAGRAMS_REJECT
        elif one.match.proto != TCP and _carries(policy, one.stack):
            listens = (
                rule.table == one.table and rule.direction & C.DMM_DIR_LISTEN
                for rule in policy.rules
            )
            found |= C.DMM_DATAGRAMS_USER | C.DMM_DATAGRAMS_SERVED * any(listens)
    return int(found)


def _carries(policy: Policy, name: str) -> bool:
    """Whether it is a user stack that carries datagrams."""
    stack = policy.stacks[name]
    return isinstance(stack, UserStack) and stack.udp


def _forwards(
    rules: Sequence[Rule], ids: IdSpace
) -> tuple[tuple[Struct, ...], tuple[tuple[str, ...] | None, ...]]:
    """struct dmm_forward of each rule and source, and the devices that it holds for."""
    made: list[Struct] = []
    by_device: list[tuple[str, ...] | None] = []
    for number, rule in enumerate(rules, 1):
        if not rule.forwards:
            continue
        for source in (None,) if rule.sources is None else rule.source_prefixes:
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
    """For each table, in order, the number of its first route among all routes of the policy."""
    bases: list[int] = []
    total = 0
    for table in policy.tables.values():
        bases.append(total)
        total += table.n_numbers
    return bases


def _refuse(policy: Policy, path: tuple[str | int, ...], why: str, hint: str) -> NoReturn:
    raise PolicyError(f"accept {policy.place(*path)}", why=f"{describe(path)}: {why}", hint=hint)


# What says that a condition counts
_FLAGS = {
    "cgroup": C.DMM_RULE_CGROUP,
    "uid": C.DMM_RULE_UID,
    "gid": C.DMM_RULE_GID,
    "comm": C.DMM_RULE_COMM,
    "mark": C.DMM_RULE_MARK,
    "dscp": C.DMM_RULE_DSCP,
    "netns": C.DMM_RULE_NETNS,
    "local_port": C.DMM_RULE_LPORT,
    "interface": C.DMM_RULE_DEVICE,
    "executable": C.DMM_RULE_EXECUTABLE,
}
# Conditions of which a value is a range, and what its two members of struct dmm_rule begin with
_SPANS = {"uid": "uid", "gid": "gid", "local_port": "lport"}


def _flag(key: str, value: Any) -> int:
    is_pattern = key == "cgroup" and is_glob(value)
    return int(C.DMM_RULE_GLOB if is_pattern else _FLAGS[key])


class _Host:
    """Makes rules[], asking the host for the numbers of cgroups, devices and network namespaces."""

    def __init__(
        self,
        policy: Policy,
        cgroup_lookup: CgroupLookup,
        netns_lookup: NetnsLookup | None,
        device_lookup: DeviceLookup,
        executable_lookup: ExecutableLookup,
    ) -> None:
        self.policy = policy
        self.cgroup_lookup = cgroup_lookup
        self.netns_lookup = netns_lookup
        self.device_lookup = device_lookup
        self.executable_lookup = executable_lookup
        self.cgroups: dict[str, int] = {}
        self.devices: dict[str, int] = {}
        self.globs: tuple[str, ...] = ()

    def check(self, one: Check, ids: IdSpace) -> Struct:
        rule, index = self.policy.rules[one.rule], one.rule
        out = abi.new(
            "dmm_rule", directions=rule.direction, number=index + 1, skip=one.skip, choose=0
        )
        if not one.skip:
            out.table = ids.table(rule.table) if rule.table else 0
            out.choose = sum(1 << ids.stack(name) for name in rule.choose)
            out.flags = C.DMM_RULE_MPTCP if self.policy.makes_mptcp(rule) else 0
        for key, value in one.wanted.items():
            out.flags |= _flag(key, value)
            if key == "cgroup":
                out.cgroup_id, out.cgroup_level = self._cgroup(index, value)
            elif key in _SPANS:
                for end, number in zip(("first", "last"), value, strict=True):
                    setattr(out, f"{_SPANS[key]}_{end}", number)
            elif key == "comm":
                out.comm = value.encode()
            elif key == "mark":
                out.mark, out.mark_mask = value
            elif key == "dscp":
                out.dscp = value
            elif key == "netns":
                out.netns_cookie = self.netns(index, value)
            elif key == "executable":
                out.exe_device, out.exe_inode = self.executable(index, value)
            else:
                out.device = self.devices[value] = self.device_lookup(value)
        return out

    def _cgroup(self, index: int, path: str) -> tuple[int, int]:
        if is_glob(path):
            return 1 << self.globs.index(path), glob(path).level
        try:
            cgroup_id, level = self.cgroup_lookup(path)
        except (OSError, DmmError) as error:
            why = f"the cgroup {path} cannot be used ({_reason(error)})"
            _refuse(
                self.policy, ("rules", index, "cgroup"), why, "create it first, or correct the path"
            )
        self.cgroups[path] = cgroup_id
        return cgroup_id, level

    def netns(self, index: int, name: str) -> int:
        """Its cookie; PolicyError: there is none."""
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

    def executable(self, index: int, path: str) -> tuple[int, int]:
        """Its device and inode number; PolicyError: the host's programs cannot tell."""
        try:
            return self.executable_lookup(path)
        except DmmError as error:
            why = f"this host's kernel cannot be asked who executes {path} ({error.why})"
            hint = "match by comm or cgroup instead"
            _refuse(self.policy, ("rules", index, "executable"), why, hint)


def _reason(error: OSError | DmmError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return error.why if isinstance(error, DmmError) else (error.strerror or str(error)).lower()


class _StackPacker:
    """Makes stacks. A user stack that no route names, and nobody may choose, has its name alone: no
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
            else:
                out[self.ids.stack(name)] = abi.new("dmm_stack")
            out[self.ids.stack(name)].name = name.encode()
        return out

    def _user(self, stack: UserStack) -> Struct:
        out = abi.new(
            "dmm_stack",
            kind=C.DMM_STACK_USER,
            flags=C.DMM_SET_CONGESTION | (C.DMM_CARRIES_UDP if stack.udp else 0),
            fallback=self.ids.stack(stack.fallback),
            congestion=INNER_CONGESTION,
            usual=self.usual.congestion.encode(),
        )
        self._patience(out, stack)
        return out

    def _kernel(self, name: str, stack: KernelStack) -> Struct:
        out = abi.new("dmm_stack", kind=C.DMM_STACK_KERNEL)
        if stack.congestion is not None:
            self.check_congestion(name, stack.congestion)
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
        out.flags |= C.DMM_SET_KEEPALIVE if stack.keepalive else 0
        for key in ("keepalive_time_s", "keepalive_intvl_s", "keepalive_probes"):
            setattr(usual, key, getattr(self.usual, key))
            setattr(wanted, key, getattr(stack, key) or 0)

    def check_congestion(self, name: str, congestion: str) -> None:
        """PolicyError: the host has no such congestion control."""
        known = self.congestion_controls
        if known is not None and congestion not in known:
            why = f'the congestion control "{congestion}" is not loaded'
            hint = f"run modprobe tcp_{congestion}, or use one of {', '.join(sorted(known))}"
            _refuse(self.policy, ("stacks", name, "congestion"), why, hint)
