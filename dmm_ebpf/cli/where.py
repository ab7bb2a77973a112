# SPDX-License-Identifier: Apache-2.0
"""--cgroup, --container, --pid and --unit: one place, whichever way it was named.

rd/places/finding.py, which finds the last three, is imported only for them.
"""

from __future__ import annotations

from dmm_ebpf.digits import whole
from dmm_ebpf.errors import UsageError
from dmm_ebpf.rd.places.place import Place


def place(
    what: str,
    *,
    cgroup: str | None,
    container: str | None,
    unit: str | None,
    pid: str | None = None,
    pending: bool = False,
) -> Place | None:
    """Where the one that was typed is; None when none was. A cgroup is taken as it is. what:
    for the sentence.
    pending: or where a unit that does not run will be.

    Raises UsageError when two were, or when it cannot be found.
    """
    given = {"--cgroup": cgroup, "--container": container, "--pid": pid, "--unit": unit}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(what, why=f"{' and '.join(named)} exclude each other")
    if cgroup is not None:
        return Place(None, cgroup, None)
    if not named:
        return None
    from dmm_ebpf.rd.places import finding as places

    if container is not None:
        return places.of_container(container)
    if unit is not None:
        return places.of_unit(unit, pending=pending)
    return None if pid is None else places.of_pid(number(pid, what))


def attachable(
    what: str,
    *,
    cgroup: str | None,
    container: str | None,
    pid: str | None,
    unit: str | None,
    pending: bool,
) -> Place:
    """place() of what is to be attached to: one must be named, and it must be
    its own. UsageError.
    """
    found = place(what, cgroup=cgroup, container=container, unit=unit, pid=pid, pending=pending)
    if found is None:
        raise UsageError(
            what,
            why="nothing is named that it could be attached to",
            hint="name it by --cgroup, --container, --pid or --unit",
        )
    if pid is not None and found.cgroup == "/":
        raise UsageError(
            what,
            why=f"{found.what} is in the root cgroup, as all are that have none of their own",
            hint="name it by --cgroup / if all of them are meant",
        )
    return found


def netns(what: str, netns: str | None, container: str | None) -> str | None:
    """The network namespace that --netns names, or that a container has; None when none
    was named. UsageError.
    """
    if container is None:
        return netns
    if netns is not None:
        raise UsageError(what, why="--netns and --container exclude each other")
    from dmm_ebpf.rd.places import finding as places

    return places.of_container(container).netns


def number(pid: str, what: str) -> int:
    """A pid that was typed. Raises UsageError, which starts with what."""
    if found := whole(pid, 2**31):
        return found
    raise UsageError(what, why=f"{pid!r} is not a pid")
