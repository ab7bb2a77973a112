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

from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import nic, rtnl
from dmm_ebpf.hal.netlink import RouteSocket
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.rd.director.groups import known_cgroup
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.model import KERNEL, KernelStack, Policy, UserStack


@dataclass(frozen=True)
class Here:
    """What an instance knows. attached: its cgroup, as rules name it. takes_flows and devices: of a
    user stack, whether new flows reach it, and the names of those that it serves.
    """

    policy: Policy | None
    attached: str
    netns_cookie: int
    takes_flows: Callable[[str], bool]
    devices: Callable[[str], list[str]]


def route_get(here: Here, params: dict[str, Any]) -> dict[str, Any]:
    """The answer to a route_get request. Of a socket whose cgroup is not said, that it is in
    the instance's own; then the answer says so (assumed). What is forwarded has no socket, and
    so no cgroup.
    """
    query = evaluate.Query.from_params(params)
    policy = here.policy or policies.parse("", source="none", base=Path("/"))
    known_cgroup(policy, query)
    assumed: dict[str, str] = {}
    if query.cgroup is None and query.direction != C.DMM_DIR_FORWARD:
        assumed = {"cgroup": here.attached}
        query = replace(query, cgroup=here.attached)
    query = replace(query, netns=query.netns or _netns_of(policy, here.netns_cookie))
    answer: dict[str, Any] = {"attached": here.attached, "assumed": assumed}
    if query.cgroup is not None and not evaluate.is_below(query.cgroup, here.attached):
        return answer | evaluate.Verdict(KERNEL, KERNEL, why="outside").to_dict()
    answer |= evaluate.route_get(policy, query).to_dict()
    config = policy.stacks.get(answer["wanted"])
    if answer["why"] is None and isinstance(config, UserStack):
        answer |= _instead(here, policy, config, answer["wanted"], query)
    return answer


def _instead(
    here: Here, policy: Policy, config: UserStack, wanted: str, query: evaluate.Query
) -> dict[str, Any]:
    """Who serves instead of a user stack, and why; empty: it does."""
    if not here.takes_flows(wanted):
        return {"stack": config.fallback, "why": "down"}
    if query.direction != C.DMM_DIR_CONNECT:
        return {}
    device = _leaves_by(query)
    if device is None or device in here.devices(wanted):
        return {}
    # At a device nothing is refused any more.
    kernel = config.fallback == KERNEL or isinstance(
        policy.stacks.get(config.fallback), KernelStack
    )
    return {"stack": config.fallback if kernel else KERNEL, "why": "device", "device": device}


def _leaves_by(query: evaluate.Query) -> str | None:
    """The device by which the kernel would send it; None: by none."""
    with contextlib.suppress(OSError), RouteSocket() as sock:
        found = rtnl.route_to(sock, query.addr, mark=query.mark or 0, uid=query.uid)
        return nic.name_of(found.devices[0]) if found.devices else None
    return None


def _netns_of(policy: Policy, cookie: int) -> str | None:
    """The instance's network namespace as a rule of the policy names it, if one does."""
    for rule in policy.rules:
        with contextlib.suppress(DmmError, OSError):
            if rule.netns is not None and netns_cookie(rule.netns) == cookie:
                return rule.netns
    return None


def netns_cookie(name: str) -> int:
    """The cookie of a network namespace, by its name. DmmError as NetNS.from_arg()."""
    with NetNS.from_arg(name) as netns:
        return netns.cookie
