# SPDX-License-Identifier: Apache-2.0
"""The numbers of stack processes, by which their devices are named: each is one process's alone in
a network namespace, whatever instance that belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from dmm_ebpf.errors import ConflictError, DmmError
from dmm_ebpf.hal import stackdevice
from dmm_ebpf.rd.director import rundir
from dmm_ebpf.rd.director.rundir import RunDir, StackState, State


def number(run: RunDir, state: State, wanted: Mapping[str, int]) -> None:
    """Numbers those processes of an instance's user stacks that have no number yet, and writes that
    down; wanted: how many each stack has. Raises DmmError; then nothing has changed.
    """
    with rundir.host_lock():
        used = _used_by_others(state) | stackdevice.numbers_in_use()
        used |= {s.k for s in state.stacks}
        before, known = len(state.stacks), {(s.name, s.process) for s in state.stacks}
        for name, process in _each(wanted):
            if (name, process) not in known:
                k = _free(used)
                used.add(k)
                state.stacks.append(
                    StackState(name=name, stack_id=0, k=k, nics=[], process=process)
                )
        if len(state.stacks) == before:
            return
        try:
            run.save(state)
        except DmmError:
            state.stacks[before:] = []
            raise


def are_numbered(state: State, wanted: Mapping[str, int]) -> bool:
    """Whether number() would have nothing to do."""
    return {(s.name, s.process) for s in state.stacks} >= set(_each(wanted))


def _each(wanted: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    return ((name, process) for name, count in wanted.items() for process in range(count))


def _used_by_others(state: State) -> set[int]:
    """By other instances in the same network namespace."""
    return {
        s.k
        for other in rundir.all_states()
        if other.netns_inode == state.netns_inode and other.instance != state.instance
        for s in other.stacks
    }


def _free(used: Collection[int]) -> int:
    """The lowest that nobody in the namespace uses."""
    for k in range(stackdevice.MAX_K):
        if k not in used:
            return k
    raise ConflictError(
        "number another process of a user stack",
        why=f"all {stackdevice.MAX_K} numbers are taken in this network namespace",
        hint="detach an instance, or use fewer user stacks or fewer processes",
    )
