# SPDX-License-Identifier: Apache-2.0
"""Instances whose cgroups lie within each other: both have hooks on the sockets of
the lower one.
"""

from __future__ import annotations

from dmm_ebpf import records
from dmm_ebpf.rd.director.rundir import RunDir, State, all_states
from dmm_ebpf.rd.policy.evaluate import is_below


def nested(instance: str) -> list[records.status.Nested]:
    """The other instances that decide about sockets for which this one decides, too.
    DmmError as all_states().
    """
    mine = RunDir(instance).load()
    if mine is None:
        return []
    found = []
    for other in all_states():
        above = is_below(mine.cgroup, other.cgroup)
        if other.instance == instance or not (above or is_below(other.cgroup, mine.cgroup)):
            continue
        if _share_sockets(*((other, mine) if above else (mine, other))):
            found.append(records.status.Nested(other.instance, other.cgroup, above))
    return found


def _share_sockets(upper: State, lower: State) -> bool:
    same = (upper.netns_inode, upper.netns_cookie) == (lower.netns_inode, lower.netns_cookie)
    return same or upper.containers


def nested_text(one: records.status.Nested) -> str:
    """A sentence about an entry of nested()."""
    where = "around this one" if one.above else "within this one"
    first = f"instance {one.instance} is attached to {one.cgroup}, {where}"
    return f"{first}: both decide about the sockets of the lower, and of options that both set the upper's count"
