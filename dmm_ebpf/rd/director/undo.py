# SPDX-License-Identifier: Apache-2.0
"""Detaching an instance whose Resource Director is dead: everything that state.json and the pins
name is removed.

Each step stands alone, so that one that fails keeps no other from being done; the failures are told
at the end.
Order as in a live detach: hooks first, so that no new flow comes, then the processes and their
flows, then the rest. What names a thing goes after it, so that an undoing that is killed can
be done again. What a lost state.json does not name is looked for (found.py); what cannot be
found is said.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dmm_ebpf import loader
from dmm_ebpf.hal import procgroup, stackdevice
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import Maps
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.director import found, rundir
from dmm_ebpf.rd.director.found import FoundProcess
from dmm_ebpf.rd.director.nics import remove_tc
from dmm_ebpf.rd.director.processes import end_all_flows
from dmm_ebpf.rd.director.rundir import RunDir, State
from dmm_ebpf.rd.director.steps import Steps
from dmm_ebpf.userstack import pidfile


@dataclass
class Undone:
    """removed: what went, as text. unknown: what could not be found out, as sentences."""

    removed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def undo(run_dir: RunDir) -> Undone:
    """clear(), and the run directory too."""
    undone = clear(run_dir)
    if run_dir.remove():
        undone.removed.append(str(run_dir.path))
    return undone


def clear(run_dir: RunDir) -> Undone:
    """Remove what is left of an instance that the caller has claimed; DmmError names what could
    not be removed.
    """
    state = run_dir.load()
    processes = found.stack_processes(run_dir.instance)
    maps = loader.open_maps(run_dir.instance)
    netns = (
        NetNS.find(state.netns_inode, state.netns_cookie)
        if state
        else found.namespace(processes, maps)
    )
    steps = Steps(f"detach instance {run_dir.instance} wholly")
    steps.do("hooks", lambda: loader.unhook(run_dir.instance))
    if state is not None and state.whole:
        state.whole = False  # an attach that comes after a SIGKILL clears away what is left
        run_dir.keep(state)
    steps.do("stack processes", lambda: _end_processes(_named(state, processes)))
    steps.do(
        "their cgroups", lambda: procgroup.remove_all(cgroups.find_cgroup2(), run_dir.instance)
    )
    if netns is not None:
        _clear_network(
            steps, run_dir.instance, netns, state, _numbers(state, processes, maps), maps
        )
    if state is None and (processes or found.numbers_in(maps) or run_dir.had_stacks()):
        _clear_unnamed(steps, run_dir.instance, netns)
    if netns is not None:
        netns.close()
    steps.do("pins", lambda: loader.detach(run_dir.instance))
    if state is not None and state.own_cgroup:
        steps.do("cgroup", lambda: cgroups.dissolve(Path(state.cgroup), state.home))
    steps.finish()
    run_dir.forget()
    return Undone(steps.removed, steps.unknown)


def _clear_network(  # noqa: PLR0917 - what clear() has gathered
    steps: Steps,
    instance: str,
    netns: NetNS,
    state: State | None,
    ks: set[int],
    maps: Maps,
) -> None:
    steps.do("flows", lambda: netns.run_in(_end_flows, maps))
    if ks and "xdp_flows" not in maps:
        steps.unknown.append(
            "the maps are lost, and with them which connections user stacks carried: those wait until they time out"
        )
    for k in sorted(ks):
        steps.do(f"number {k} of user stacks", partial(netns.run_in, stackdevice.remove_all, k))
    steps.do("tc programs", lambda: netns.run_in(remove_tc, instance, state))


def _end_flows(maps: Maps) -> None:
    end_all_flows(maps)


def _end_processes(processes: Iterable[FoundProcess]) -> list[str]:
    alive = [p for p in processes if pidfile.kill_process(p.pid, p.start_time, signal.SIGTERM)]
    for process in alive:
        pidfile.kill_process(process.pid, process.start_time)
    return [f"stack {p.label}, pid {p.pid}" for p in alive]


def _named(state: State | None, processes: list[FoundProcess]) -> list[FoundProcess]:
    by_pid = {p.pid: p for p in processes}
    for s in state.stacks if state else ():
        if s.pid:
            by_pid[s.pid] = FoundProcess(s.pid, s.start_time, s.label, s.k)
    return list(by_pid.values())


def _numbers(state: State | None, processes: list[FoundProcess], maps: Maps) -> set[int]:
    """Numbers that are the instance's and nobody else's by now."""
    if state is not None:
        return {s.k for s in state.stacks}
    others = {s.k for other in rundir.all_states() for s in other.stacks}
    return {p.k for p in processes if p.k is not None} | (found.numbers_in(maps) - others)


def _clear_unnamed(steps: Steps, instance: str, netns: NetNS | None) -> None:
    """What state.json should have named, as far as it shows."""
    if netns is None:
        netns = NetNS.from_arg()
        steps.unknown.append(
            "state.json is lost, and nothing says which network namespace the instance worked in: tc programs were"
            " looked for in this one alone"
        )
    steps.do("tc programs", lambda: netns.run_in(remove_tc, instance, None))
