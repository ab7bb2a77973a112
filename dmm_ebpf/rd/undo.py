# SPDX-License-Identifier: Apache-2.0
"""Detaching an instance whose Resource Director is dead: everything that state.json and the pins name is removed.

Each step stands alone, so that one that fails keeps no other from being done; the failures are told at the end.
Order as in a live detach: hooks first, so that no new flow comes, then what the flows used.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from dmm_ebpf import loader
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import procgroup
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import Map
from dmm_ebpf.rd.processes import end_flows, group_of, numbers_of
from dmm_ebpf.rd.rundir import RunDir, State
from dmm_ebpf.rd.stacks import restore_sysctls
from dmm_ebpf.userstack.supervisor import kill_process


def undo(run_dir: RunDir) -> list[str]:
    """Remove what is left of the instance; returns what was removed, as text. DmmError names what could not be."""
    state = run_dir.load()
    removed: list[str] = []
    problems: list[str] = []

    def step(what: str, action: Callable[[], list[str]]) -> None:
        try:
            removed.extend(action())
        except (DmmError, OSError) as e:
            problems.append(f"{what}: {e}")

    maps = _open_maps(run_dir.instance)
    step("hooks", lambda: loader.detach(run_dir.instance))
    if state is not None:
        step("stack processes", lambda: _kill_stacks(state))
        step("cgroups of stack processes", lambda: _remove_groups(state))
        step("network namespace", lambda: _undo_in_netns(state, maps))
        if state.own_cgroup:
            step("cgroup", lambda: _remove_cgroup(Path(state.cgroup)))
    if problems:
        raise DmmError(
            f"detach instance {run_dir.instance} wholly",
            why="; ".join(problems),
            hint="what could be removed is gone; detach again when the cause is mended",
        )
    if run_dir.remove():
        removed.append(str(run_dir.path))
    return removed


def _kill_stacks(state: State) -> list[str]:
    gone = []
    for stack in state.stacks:
        if stack.pid and kill_process(stack.pid, stack.start_time, signal.SIGKILL):
            gone.append(f"stack {stack.label}, pid {stack.pid}")
    return gone


def _remove_groups(state: State) -> list[str]:
    for stack in state.stacks:
        procgroup.remove(group_of(state.instance, stack))
    return []


def _open_maps(instance: str) -> Mapping[str, Map]:
    """The maps, held open over the removal of their pins; none where an attach was cut off half way."""
    try:
        return loader.adopt(instance).maps
    except DmmError:
        return {}


def _undo_in_netns(state: State, maps: Mapping[str, Map]) -> list[str]:
    if not state.stacks and not state.sysctls:
        return []
    netns = NetNS.find(state.netns_inode)
    if netns is None:
        return []  # it took its devices, rules and routes along
    return netns.run_in(lambda: _undo_network(state, maps))


def _undo_network(state: State, maps: Mapping[str, Map]) -> list[str]:
    removed = []
    for stack in state.stacks:
        if "xdp_flows" in maps:
            end_flows(maps["xdp_flows"], stack)
        removed += numbers_of(stack.k).remove()
    return removed + restore_sysctls(state)


def _remove_cgroup(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    for pid in (path / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (path.parent / "cgroup.procs").write_text(pid)
    path.rmdir()
    return [f"cgroup {path}"]
