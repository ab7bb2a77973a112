# SPDX-License-Identifier: Apache-2.0
"""Looking at an instance whose Resource Director is dead: listings from pins, state.json
and inet_diag alone.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from dmm_ebpf import loader
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import ConflictError, DmmError, NotAttachedError
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader.table import Table
from dmm_ebpf.rd.director import carriers, flows
from dmm_ebpf.rd.director.rundir import RunDir, StackState, State
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import Labels
from dmm_ebpf.rd.policy.ids import IdSpace


def offline_status(instance: str) -> dict[str, Any]:
    """`status` from pins and state.json alone; the shape is that of a live RD's answer. problem:
    why the pins cannot be read, as those of another version; then what they would have told is
    None, or "unknown" of a stack.
    """
    state = RunDir(instance).load() or State(instance, 0, "", 0)
    told: dict[str, Any] = {
        "instance": instance,
        "pid": None,
        "netns": state.netns,
        "cgroup": state.cgroup,
        "policy": state.policy,
        "policy_refused": None,
        "generation": state.generation,
        "uptime_s": None,
        "flows": None,
        "listeners": None,
        "rules": None,
        "routes": None,
        "counters": {},
        "nics": [],
        "problem": None,
        "missing": [],
        "pending": [],
        "earlier": None,
    }
    try:
        attached = loader.adopt(instance, unhooked=state.whole)
    except (ConflictError, NotAttachedError) as exc:
        return told | {
            "problem": str(exc),
            "stacks": [_offline_stack(state, s, None) for s in _stacks(state)],
        }
    maps = attached.maps
    return told | {
        "flows": len(carriers.carried_here(instance, attached.flows())),
        "listeners": maps.listeners.count(),
        "counters": flows.counters_dict(maps.counters.percpu),
        "stacks": [_offline_stack(state, s, maps.stack_state) for s in _stacks(state)],
    }


def _stacks(state: State) -> list[StackState]:
    """Of each user stack its first process."""
    return [s for s in state.stacks if s.process == 0]


def _offline_stack(
    state: State, stack: StackState, states: Table[int, Struct] | None
) -> dict[str, Any]:
    """states: the map stack_state, if it can be read."""
    return {
        "instance": state.instance,
        "name": stack.name,
        "id": stack.stack_id,
        "kind": "user",
        "device": stack.device,
        **(
            _offline_stack_state(states[stack.stack_id])
            if states
            else {"state": "unknown", "pid": stack.pid or None}
        ),
        "processes": [_offline_process(p) for p in state.stacks if p.name == stack.name],
    }


def offline_flows(instance: str) -> list[dict[str, Any]]:
    """`flows` from the pinned maps and inet_diag; what the stack processes know of their outer
    legs is missing.
    """
    state = RunDir(instance).load() or State(instance, 0, "", 0)
    names = _OfflineNames(state)
    now_ns = time.monotonic_ns()
    records = list(loader.adopt(instance, unhooked=state.whole).flows())
    others = carriers.told(instance, records)
    rows = [
        flows.flow_dict(flow, instance, names, now_ns) | others.get(flow.cookie, {})
        for flow in records
    ]
    netns = NetNS.find(state.netns_inode, state.netns_cookie)
    if netns is None:  # and with it every socket
        return []
    with netns:
        sockets = netns.run_in(sockdiag.list_tcp, listeners=False)
    return flows.merge_live(rows, {s.cookie: vars(s) for s in sockets}, {})


def offline_listeners(instance: str) -> list[dict[str, Any]]:
    """`listeners` from the pinned map."""
    state = RunDir(instance).load() or State(instance, 0, "", 0)
    names = _OfflineNames(state)
    return [
        flows.listener_dict(key, one, instance, state.generation, names)
        for key, one in loader.adopt(instance, unhooked=state.whole).maps.listeners.items()
    ]


def labels_left(state: State, ids: IdSpace) -> Labels | None:
    """The names of what state.generation has decided; None: they cannot be told, since the text is
    not all of its policy (a routes file may have changed), or cannot be read again.
    """
    if not state.policy_text:
        return None
    base = Path(state.policy).parent if state.policy else Path("/")
    with contextlib.suppress(DmmError):
        policy = policies.parse(state.policy_text, source=state.policy or "policy", base=base)
        return None if policy.files else Labels(policy, ids)
    return None


def _offline_stack_state(stack: Struct) -> dict[str, Any]:
    return {"state": "up" if stack.up else "down", "pid": stack.pid}


def _offline_process(record: StackState) -> dict[str, Any]:
    return {"process": record.process, "pid": record.pid or None, "device": record.device}


class _OfflineNames:
    """Names as far as state.json knows them; rules and routes of an earlier
    generation stay numbers.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._ids = IdSpace.from_dict(state.ids) if state.ids else IdSpace()
        self._labels = labels_left(state, self._ids)
        self._cgroup_paths: dict[int, str | None] = {}

    def stack(self, stack_id: int) -> str:
        return self._ids.stack_name(stack_id) or f"#{stack_id}"

    def table(self, table: int) -> str | None:
        return self._ids.table_name(table) or None

    def rule(self, generation: int, rule: int) -> str | None:
        if rule and self._labels and generation == self.state.generation:
            return self._labels.rule_text(rule - 1)
        return f"#{rule} of generation {generation}" if rule else None

    def route(self, generation: int, route: int) -> str | None:
        if route == C.DMM_ROUTE_NONE or not generation:
            return None
        if self._labels and generation == self.state.generation:
            return self._labels.route_text(route)
        return f"#{route} of generation {generation}"

    def cgroup(self, cgroup_id: int) -> str | None:
        if cgroup_id not in self._cgroup_paths:
            self._cgroup_paths[cgroup_id] = cgroups.path_of(cgroup_id) if cgroup_id else None
        return self._cgroup_paths[cgroup_id]
