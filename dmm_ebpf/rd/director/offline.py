# SPDX-License-Identifier: Apache-2.0
"""Looking at an instance whose Resource Director is dead: listings from pins, state.json
and inet_diag alone.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from dmm_ebpf import loader, records
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import ConflictError, DmmError, NotAttachedError
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import Attached, Maps
from dmm_ebpf.loader.cgroup import NOWHERE
from dmm_ebpf.rd.director import away, carriers, executables, flows, globbed, load
from dmm_ebpf.rd.director.datagrams import Datagrams
from dmm_ebpf.rd.director.earlier import Earlier
from dmm_ebpf.rd.director.generations import Generations, again, in_force
from dmm_ebpf.rd.director.groups import lookup, waiting
from dmm_ebpf.rd.director.live import with_sockets
from dmm_ebpf.rd.director.liveroutes import Journal
from dmm_ebpf.rd.director.load import Loads
from dmm_ebpf.rd.director.names import Names
from dmm_ebpf.rd.director.openflows import passing_of, records_of, rows_of
from dmm_ebpf.rd.director.phase import HUNG, Phase
from dmm_ebpf.rd.director.rundir import RunDir, StackState, State
from dmm_ebpf.rd.policy.cgroupglob import is_glob
from dmm_ebpf.rd.policy.compile import NO_FILE
from dmm_ebpf.rd.policy.compile_rules import checks
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.userstack.pidfile import start_time


def offline_status(instance: str) -> records.status.Status:
    """`status` from pins and state.json alone. problem: why the pins cannot be read, as those of
    another version; then what they would have told is None, or "unknown" of a stack.
    """
    state = _state(instance)
    told = records.status.Status(
        instance=instance,
        pid=None,
        netns=state.netns,
        cgroup=state.cgroup,
        policy=state.policy,
        policy_refused=None,
        generation=state.generation,
        uptime_s=None,
        flows=None,
        listeners=None,
        rules=None,
        routes=None,
        counters={},
        nics=[],
        problem=None,
        missing=[],
        pending=[],
        earlier=None,
        stacks=[],
    )
    try:
        attached = loader.adopt(instance, unhooked=state.whole)
    except (ConflictError, NotAttachedError) as error:
        unknown = [_offline_stack(state, s, None) for s in _stacks(state)]
        return replace(told, problem=str(error), stacks=unknown)
    maps = attached.maps
    counts = Counter(row.stack for row in _rows(state, attached) if not row.carrier)
    policy = _in_force(state)
    return replace(
        told,
        flows=counts.total(),
        rules=len(policy.rules) if policy else None,
        routes=policy.n_routes if policy else None,
        pending=_pending(policy, maps, state.generation) if policy else [],
        listeners=maps.listeners.count(),
        counters=flows.counters_dict(maps.counters.percpu),
        stacks=[
            replace(_offline_stack(state, s, maps), flows=counts[s.name]) for s in _stacks(state)
        ],
    )


def _state(instance: str) -> State:
    """DmmError: it is lost; NotAttachedError: and nothing is attached either."""
    state = RunDir(instance).load()
    if state is None:
        what = f"tell of instance {instance}"
        if instance not in loader.instances():
            raise NotAttachedError(what, why="it is not attached")
        raise DmmError(
            what,
            why="its state.json, which says by whom it is attached, is lost",
            hint=f"run `dmm-ebpf detach --instance {instance}`, and attach it again",
        )
    return state


def _stacks(state: State) -> list[StackState]:
    """Of each user stack its first process."""
    return [s for s in state.stacks if s.process == 0]


def _in_force(state: State) -> Policy | None:
    """None: there is none, or it cannot be read again."""
    with contextlib.suppress(DmmError):
        return again(in_force(state)) if state.policy_text is not None else None
    return None


def _pending(policy: Policy, maps: Maps, generation: int) -> list[records.status.Pending]:
    """The rules that match nothing, since their cgroup, or the file of their executable, is gone or
    was made anew meanwhile.
    """
    first = (generation & 1) * C.DMM_MAX_CHECKS
    texts = [policy.rule_text(index) for index in range(len(policy.rules))]
    made = list(checks(policy.rules))

    def waits(index: int, key: str) -> bool:
        """Also if the cgroup, or the file, is another than the one that the hooks know."""
        path, known = made[index].wanted[key], maps.rules[first + index]
        if key == "cgroup" and is_glob(path):
            seen = (maps.globbed.get(number) for number in globbed.find([path]).ids)
            return not any(one and one.globs[generation & 1] & known.cgroup_id for one in seen)
        if key == "cgroup":
            number = lookup(path)[0]
            return number == NOWHERE or number != known.cgroup_id
        file = executables.find(path)
        return file == NO_FILE or file != (known.exe_device, known.exe_inode)

    return waiting(texts, made, waits)


def _seen(state: State, stack: StackState, said: Struct, loads: Loads) -> str:
    """What a stack does whose bits in stack_state[] nobody clears: they do not tell that a process
    has died since.
    """
    ours = [p for p in state.stacks if p.name == stack.name]
    alive = [p for p in ours if said.up >> p.process & 1 and start_time(p.pid) == p.start_time != 0]
    if any(not load.hung(loads, p.stack_id, p.process) for p in alive):
        return Phase.UP
    return HUNG if alive else Phase.DOWN


def _offline_stack(state: State, stack: StackState, maps: Maps | None) -> records.stack.StackRow:
    """maps: if they can be read."""
    said = maps.stack_state[stack.stack_id] if maps else None
    shown = _seen(state, stack, said, maps.stack_load) if maps and said else "unknown"
    return records.stack.StackRow(
        state.instance,
        stack.name,
        stack.stack_id,
        "user",
        shown,
        pid=(stack.pid or None) if said is None else said.pid,
        device=stack.device,
        processes=[_offline_process(p) for p in state.stacks if p.name == stack.name],
    )


def offline_flows(instance: str) -> list[records.flow.Flow]:
    """`flows` from the pinned maps and inet_diag; what the stack processes know of their outer
    legs is missing.
    """
    state = _state(instance)
    return list(_rows(state, loader.adopt(instance, unhooked=state.whole)))


def _rows(state: State, attached: Attached) -> Iterator[records.flow.Flow]:
    home = attached.maps.control[0].netns_cookie
    noted = {flow.cookie: flow for flow in records_of(attached, Earlier(attached, home))}
    others = carriers.carriers(state.instance, noted.values())
    now_ns = time.monotonic_ns()
    known = flows.Known(state.instance, _names(state), now_ns, carriers=others, netns_cookie=home)
    elsewhere = away.sockets(noted, home) if state.containers else {}
    netns = NetNS.find(state.netns_inode, state.netns_cookie)
    if netns is None:  # and with it every socket
        return
    with netns:
        here = netns.run_in(lambda: list(with_sockets(dict(noted))))
        live = ((flow, socket or elsewhere.get(flow.cookie)) for flow, socket in here)
        yield from netns.run_in(lambda: list(rows_of(live, passing_of(attached.maps), known, home)))
        exchanges = netns.run_in(lambda: list(Datagrams(attached.maps).open()))
        yield from (flows.of_datagrams(flow, known) for flow in exchanges)


def offline_listeners(instance: str) -> list[records.flow.Listener]:
    """`listeners` from the pinned map."""
    state = _state(instance)
    names = _names(state)
    return [
        flows.of_listener(key, one, instance, state.generation, names)
        for key, one in loader.adopt(instance, unhooked=state.whole).maps.listeners.items()
    ]


def _offline_process(record: StackState) -> records.stack.ProcessRow:
    return records.stack.ProcessRow(record.process, pid=record.pid or None, device=record.device)


def _names(state: State) -> Names:
    """As far as state.json knows them."""
    ids = IdSpace.from_dict(state.ids) if state.ids else IdSpace()
    known, journal = Generations(state), Journal(RunDir(state.instance).path)
    known.extend(state.generation, journal)
    return Names(lambda: ids, known.labels, mark="#", live=journal.name)
