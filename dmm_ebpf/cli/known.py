# SPDX-License-Identifier: Apache-2.0
"""Whether what a filter names is there: a name that is misspelt is refused, and not taken for one
that has no flows.

Patterns, addresses and states are no names: that they match nothing is an answer.
"""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.api import client
from dmm_ebpf.rd.policy.cgroupglob import is_glob, may_meet
from dmm_ebpf.rd.policy.evaluate import is_below
from dmm_ebpf.rd.policy.model import BUILT_IN
from dmm_ebpf.show.flowfilter import FlowFilter


def check(wanted: FlowFilter, instance: str | None) -> None:
    """check_stacks() and check_places(). Raises UsageError."""
    check_stacks(wanted, instance)
    check_places(wanted, instance)


def check_stacks(wanted: FlowFilter, instance: str | None) -> None:
    """That instance, or any if None, has or had stacks of these names. Where none is attached, or
    one cannot be asked, nothing is known to be wrong. Raises UsageError.
    """
    known = set(BUILT_IN)
    unsaid = [name for name in wanted.stack if name not in known]
    names = _names(instance) if unsaid else []
    for name in names:
        if (told := _stacks_of(name)) is None:
            return
        known |= told
    for name in unsaid if names else ():
        if name not in known:
            raise UsageError(
                f"filter by the stack {name!r}",
                why=f"{f'instance {instance}' if instance else 'no instance'} has "
                f"{'no' if instance else 'a'} stack of that name",
                hint=_meant(name, _defined(names) or known),
            )


def _defined(instances: list[str]) -> set[str]:
    """The names of the stacks that there are now; empty: one of the instances cannot be asked."""
    found = set(BUILT_IN)
    for instance in instances:
        try:
            with client.Client(instance) as rd:
                found |= {str(row["name"]) for row in rd.call("stacks")}
        except DmmError:
            return set()
    return found


def _meant(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f'did you mean "{close[0]}"?' if close else f"there are {', '.join(sorted(known))}"


def check_places(wanted: FlowFilter, instance: str | None) -> None:
    """That the process exists, and the cgroup does or is waited for. As check_stacks()."""
    names = _names(instance)
    if not names:
        return
    if wanted.pid is not None and not Path(f"/proc/{wanted.pid}").is_dir():
        raise UsageError(f"filter by the process {wanted.pid}", why="there is no such process")
    if not wanted.cgroup or cgroups.place(wanted.cgroup).is_dir():
        return
    for name in names:
        if (told := _waited_by(name)) is None or _waits(told, wanted.cgroup):
            return
    raise UsageError(
        f"filter by the cgroup {wanted.cgroup}",
        why="there is no such cgroup, and no rule waits for it",
    )


def _names(instance: str | None) -> list[str]:
    return client.instances() if instance is None else [instance]


def _stacks_of(instance: str) -> set[str] | None:
    """The names of an instance's stacks, also of those that only open flows have; None: it
    cannot be told.
    """
    from dmm_ebpf.rd.director.rundir import RunDir

    with contextlib.suppress(DmmError, OSError, ValueError):
        state = RunDir(instance).load()
        if state is not None and state.whole:
            return set(state.ids.get("stacks", ()))
    with contextlib.suppress(DmmError), client.Client(instance) as rd:
        return {row.name for row in rd.stacks()}
    return None


def _waited_by(instance: str) -> list[str] | None:
    """The cgroups that an instance is attached to or waits for, also of one whose Resource Director
    is dead; None: it cannot be told.
    """
    from dmm_ebpf.rd.director.rundir import RunDir
    from dmm_ebpf.rd.policy import parse as policies

    try:
        with client.Client(instance) as rd:
            status = rd.status()
            waiting = (entry.cgroup for entry in status.pending)
            return [status.cgroup, *(cgroup for cgroup in waiting if cgroup is not None)]
    except client.NotServingError:
        return None
    except DmmError:
        pass
    with contextlib.suppress(DmmError, OSError, ValueError):
        state = RunDir(instance).load()
        if state is not None and state.whole:
            base = Path(state.policy or "/policy").parent
            policy = policies.parse(state.policy_text or "", source="policy", base=base)
            return [state.cgroup, *(one for rule in policy.rules for one in rule.every("cgroup"))]
    return None


def _waits(waited: list[str], cgroup: str) -> bool:
    """Whether an instance is attached to that cgroup once it is made, or has a rule for it."""
    if any(is_glob(one) and may_meet(cgroup, one) for one in waited):
        return True
    return any(
        is_below(cgroup, path) or is_below(path, cgroup)
        for path in (cgroups.name_of(cgroups.place(one)) for one in waited if not is_glob(one))
        if not cgroups.place(path).is_dir()
    )
