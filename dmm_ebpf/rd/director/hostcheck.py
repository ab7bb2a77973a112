# SPDX-License-Identifier: Apache-2.0
"""What this host makes of a policy before anything of it is changed: the plug-ins and programs that
it names, its cgroups, network namespaces and congestion controls.

The director asks before it applies a policy, and `policy apply --dry-run` asks and leaves it
at that. Whether processes of user stacks can start is found out by starting them (stacks.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Self

from dmm_ebpf import records
from dmm_ebpf.errors import DmmError, PolicyError, PrivilegeError
from dmm_ebpf.hal import exefile, nic, tuning
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.loader import protocolprobe
from dmm_ebpf.loader.cgroup import NOWHERE
from dmm_ebpf.rd.director import executables, globbed, routeget, sets
from dmm_ebpf.rd.director.groups import device_lookup, lookup, waiting, waits
from dmm_ebpf.rd.director.reading import Readings
from dmm_ebpf.rd.director.usual import read_usual
from dmm_ebpf.rd.policy.cgroupglob import is_glob
from dmm_ebpf.rd.policy.compile import NO_FILE, Compiled, compile_policy
from dmm_ebpf.rd.policy.compile import host_errors as compile_errors
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.locate import describe
from dmm_ebpf.rd.policy.model import Policy, UserStack, is_mptcp
from dmm_ebpf.rd.policy.usual import Usual


@dataclass(frozen=True)
class HostFacts:
    """What a network namespace has for the sockets in it."""

    congestion_controls: tuple[str, ...]
    usual: Usual

    @classmethod
    def read(cls) -> Self:
        """Of the thread's namespace. DmmError as tuning.read()."""
        known = tuning.read("net/ipv4/tcp_available_congestion_control").split()
        return cls(tuple(known), read_usual())

    def compile(self, policy: Policy, ids: IdSpace, busy_stacks: Collection[int] = ()) -> Compiled:
        """compile_policy() with this host's cgroups and network namespaces."""
        return compile_policy(
            policy,
            ids,
            lookup,
            netns_lookup=routeget.netns_cookie,
            device_lookup=device_lookup,
            executable_lookup=executables.lookup,
            congestion_controls=self.congestion_controls,
            usual=self.usual,
            busy_stacks=busy_stacks,
        )


def host_errors(policy: Policy, facts: HostFacts, readings: Readings) -> Iterator[PolicyError]:
    """All for which this host would refuse the policy: network namespaces, congestion controls, and
    devices of user stacks that it does not have, and sets of nft's that are none of addresses.
    readings: of those that the policy names.
    """
    yield from sets.errors(policy, readings)
    yield from compile_errors(policy, routeget.netns_cookie, _executable, facts.congestion_controls)
    for name, stack in served(policy).items():
        try:
            nic.serving_nics(stack.devices)
        except DmmError as error:
            path = ("stacks", name, "devices") if stack.devices else ("stacks", name)
            why = f"{describe(path)}: this host cannot {error.what}: {error.why}"
            yield PolicyError(f"accept {policy.place(*path)}", why=why, hint=error.hint)


def _executable(path: str) -> tuple[int, int]:
    """executables.lookup(), by anybody: who may not ask the kernel is told of nothing."""
    try:
        return executables.lookup(path)
    except PrivilegeError:
        return executables.find(path)


def host_warnings(policy: Policy, readings: Readings) -> Iterator[records.policy.Warned]:
    """What rules and routes wait for: cgroups, devices, files and nft sets that this host does not
    have; and files that no process executes. readings: as for host_errors().
    """
    yield from sets.waiting(policy, readings)
    yield from _mptcp_warnings(policy)
    for index, rule in enumerate(policy.rules):
        text = f"rule {policy.rule_text(index)}"
        for path in rule.every("cgroup"):
            if is_glob(path) and not globbed.is_matched(path):
                why = f"{text}: no cgroup of this host matches {path}, and one is waited for"
                yield records.policy.Warned(policy.place("rules", index), why)
            elif not is_glob(path) and lookup(path)[0] == NOWHERE:
                why = f"{text}: the cgroup {path} does not exist on this host, and is waited for"
                yield records.policy.Warned(policy.place("rules", index), why)
        for path in rule.every("executable"):
            if why := _of_file(path):
                yield records.policy.Warned(policy.place("rules", index), f"{text}: {why}")
        patterns = (name for name in rule.in_interface or () if not set("*?[") & set(name))
        for name in (*rule.every("interface"), *patterns):
            if not nic.names_of(name):
                why = f"{text}: the device {name} does not exist on this host, and is waited for"
                yield records.policy.Warned(policy.place("rules", index), why)


def _mptcp_warnings(policy: Policy) -> Iterator[records.policy.Warned]:
    """Stacks with mptcp whose sockets this host's kernel makes as TCP's."""
    multi = [name for name in policy.routed_stacks() if is_mptcp(policy.stacks[name])]
    why = protocolprobe.why_not() if multi else ""
    for name in multi if why else ():
        said = why.why if isinstance(why, Unknown) else why
        text = f"stack {name}: its sockets stay TCP's on this host: {said}"
        yield records.policy.Warned(policy.place("stacks", name), text)


def _of_file(path: str) -> str:
    """What to warn of where a rule names that path; empty: nothing."""
    if executables.find(path) == NO_FILE:
        return f"the file {path} does not exist on this host, and is waited for"
    if instead := exefile.interpreter(path):
        return f"{path} is a script, which no process executes; its processes execute {instead}"
    return ""


def served(policy: Policy) -> dict[str, UserStack]:
    """The user stacks that have processes once the policy is in force, by name."""
    users = policy.user_stacks()
    return {name: users[name] for name in policy.routed_stacks() if name in users}


def pending(policy: Policy, compiled: Compiled) -> list[records.status.Pending]:
    """The rules whose cgroup or file does not exist; Groups.pending() of a policy that is not in
    force.
    """
    texts = [policy.rule_text(index) for index in range(len(policy.rules))]
    matched = globbed.matched_by(globbed.find(compiled.globs).ids.values())
    return waiting(
        texts, compiled.checks, lambda index, key: waits(compiled.rules[index], key, matched)
    )
