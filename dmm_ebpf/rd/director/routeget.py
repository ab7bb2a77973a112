# SPDX-License-Identifier: Apache-2.0
"""What a new flow would get now (`dmm-ebpf route get`): the policy's verdict, and what this
host makes of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmm_ebpf import records
from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.hal import nic, rtnl
from dmm_ebpf.hal.netlink import RouteSocket
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.rd.director.executables import by_file
from dmm_ebpf.rd.director.groups import known_cgroup
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.model import KERNEL, KernelStack, Policy, UserStack
from dmm_ebpf.rd.policy.rule import Rule
from dmm_ebpf.rd.policy.values import is_named
from dmm_ebpf.records.record import ABSENT, Maybe


@dataclass(frozen=True)
class Here:
    """What an instance knows. attached: its cgroup, as rules name it. turns_away and devices: of a
    user stack, why new flows do not reach it (StackManager.turns_away()), and the names of those
    that it serves. is_behind: of a device, whether no flow begins there (Nics.is_behind()).
    path_to and paths_to: who serves an adaptive route (Adaptive.path_to()).
    """

    instance: str
    policy: Policy | None
    attached: str
    netns_cookie: int
    turns_away: Callable[[str], records.policy.TurnsAway]
    devices: Callable[[str], list[str]]
    is_behind: Callable[[str], bool]
    path_to: Callable[[str, str], records.path.Path | None]
    paths_to: Callable[[str, str], list[records.path.Path]]


def route_get(here: Here, params: dict[str, Any]) -> records.policy.RouteAnswer:
    """The answer to a route_get request. Of a socket whose cgroup is not said, that it is in
    the instance's own; then the answer says so (assumed). What is forwarded has no socket, and
    so no cgroup.
    """
    query = evaluate.Query.from_params(params)
    policy = here.policy or policies.parse("", source="none", base=Path("/"))
    known_cgroup(policy, query)
    query = by_file(policy, _by_device(policy, query))
    assumed: dict[str, str] = {}
    if query.cgroup is None and query.direction != C.DMM_DIR_FORWARD:
        assumed = {"cgroup": here.attached}
        query = replace(query, cgroup=here.attached)
    query = replace(query, netns=query.netns or netns_of(policy, here.netns_cookie))
    if query.cgroup is not None and not evaluate.is_below(query.cgroup, here.attached):
        outside = evaluate.Verdict(KERNEL, KERNEL, why="outside")
        return outside.answer(here.instance, here.attached, assumed)
    verdict = evaluate.route_get(policy, query)
    path = here.path_to(verdict.wanted, query.addr)
    if path is not None and verdict.why is None:
        why = evaluate.why_not(policy, query, path.chosen)
        stack = KERNEL if why else path.chosen
        verdict = replace(verdict, wanted=path.chosen, stack=stack, why=why)
    answer = _answer(here, policy, query, verdict, assumed)
    if path is None:
        return answer
    around = here.paths_to(path.stack, query.addr) if params.get("reasons") else ABSENT
    return replace(answer, path=path, paths=around)


def _answer(
    here: Here,
    policy: Policy,
    query: evaluate.Query,
    verdict: evaluate.Verdict,
    assumed: dict[str, str],
) -> records.policy.RouteAnswer:
    """With what this host makes of a verdict."""
    config = policy.stacks.get(verdict.wanted)
    if verdict.why is None and isinstance(config, UserStack):
        stack, why, device = _instead(here, policy, config, verdict, query)
        served = replace(verdict, stack=stack, why=why)
        transport = evaluate.transport_of(policy, query, stack)
        return served.answer(here.instance, here.attached, assumed, device, transport)
    return verdict.answer(here.instance, here.attached, assumed)


def _by_device(policy: Policy, query: evaluate.Query) -> evaluate.Query:
    """With all that the device by which the flow is to come in is called. UsageError if that, or
    the one that its socket is bound to, is not there, and no rule names it.
    """
    _known_device(query.interface, lambda name, rule: name in rule.every("interface"), policy)
    name = query.in_interface
    _known_device(name, lambda name, rule: is_named(name, rule.in_interface or ()), policy)
    return query if name is None else replace(query, in_names=nic.names_of(name))


def _known_device(name: str | None, waits: Callable[[str, Rule], bool], policy: Policy) -> None:
    if not name or nic.names_of(name) or any(waits(name, rule) for rule in policy.rules):
        return
    raise UsageError("ask for a route", why=f"there is no device {name}, and no rule waits for it")


def _instead(
    here: Here,
    policy: Policy,
    config: UserStack,
    verdict: evaluate.Verdict,
    query: evaluate.Query,
) -> tuple[str, records.policy.WhyNot | None, Maybe[str]]:
    """Who serves for a user stack, why, and by which device it would leave, where that is why."""
    # What a client has opened is not refused any more, and neither is anything at a device.
    kernel = config.fallback == KERNEL or isinstance(
        policy.stacks.get(config.fallback), KernelStack
    )
    late = config.fallback if kernel else KERNEL
    connects = query.direction == C.DMM_DIR_CONNECT
    if query.direction == C.DMM_DIR_FORWARD:
        why = here.turns_away(verdict.wanted)
        return KERNEL if why else verdict.stack, why or None, ABSENT
    if why := here.turns_away(verdict.wanted):
        return config.fallback if connects else late, why, ABSENT
    device = _leaves_by(query)
    behind = device is not None and here.is_behind(device)
    served = device is None or (device in here.devices(verdict.wanted) and not behind)
    # By which device a client's packets come the routes do not say, but of those of this host.
    if served or not (connects or device == "lo"):
        return verdict.stack, None, ABSENT
    return late, "filter" if behind else "device", device or ABSENT


def _leaves_by(query: evaluate.Query) -> str | None:
    """The device by which the kernel would send it; None: by none."""
    if query.interface:
        return query.interface
    with contextlib.suppress(OSError), RouteSocket() as sock:
        found = rtnl.route_to(sock, query.addr, mark=query.mark or 0, uid=query.uid)
        return nic.name_of(found.devices[0]) if found.devices else None
    return None


def netns_of(policy: Policy, cookie: int) -> str | None:
    """The instance's network namespace as a rule of the policy names it, if one does."""
    for rule in policy.rules:
        with contextlib.suppress(DmmError, OSError):
            for name in rule.every("netns"):
                if netns_cookie(name) == cookie:
                    return str(name)
    return None


def netns_cookie(name: str) -> int:
    """The cookie of a network namespace, by its name. DmmError as NetNS.from_arg()."""
    with NetNS.from_arg(name) as netns:
        return netns.cookie
