# SPDX-License-Identifier: Apache-2.0
"""The items that an instance's guard looks after (guard.py): devices of user stacks, the network
namespace and the cgroup that the instance is in, its hooks and its pins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from dmm_ebpf.hal import netns, nic, tcfilter, tuning
from dmm_ebpf.loader import Attached, restore
from dmm_ebpf.rd.director.groups import Groups
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.rundir import RunDir, State
from dmm_ebpf.threads import in_thread

_NAMED = 3  # of the pins that are gone


class StackDevice(Item):
    """A TAP device of a stack process that lives: it is up, with the settings that it was given.
    One that is gone ends the process, which tells that itself.
    """

    def __init__(self, stack: str, name: str) -> None:
        super().__init__(f"device {name} of stack {stack}")
        self._name = name

    def look(self) -> str:
        up = nic.is_up(self._name)
        if up is None:
            return ""
        if not up:
            return "it is down"
        wrong = tuning.unprepared(self._name)
        return f"its settings were changed ({', '.join(wrong)})" if wrong else ""

    async def mend(self) -> None:
        await asyncio.to_thread(nic.set_up, self._name)
        tuning.prepare_device(self._name)


class Ingress(Item):
    """The tc program at the ingress of a device of a stack process."""

    def __init__(self, stack: str, name: str, prog_fd: int) -> None:
        super().__init__(f"tc program at device {name} of stack {stack}")
        self._name = name
        self._prog_fd = prog_fd

    def look(self) -> str:
        index = nic.ifindex_of(self._name)
        return "" if index is None or tcfilter.attached(index) else "it was taken away"

    async def mend(self) -> None:
        index = nic.ifindex_of(self._name)
        if index is not None:
            await asyncio.to_thread(tcfilter.attach, index, self._prog_fd)


class StateFile(Item):
    """state.json says what there is."""

    def __init__(self, run: RunDir, state: State) -> None:
        super().__init__(f"state of instance {run.instance}")
        self._run = run
        self._state = state

    def look(self) -> str:
        return self._run.unsaved

    async def mend(self) -> None:
        self._run.save(self._state)


class Namespace(Item):
    """The network namespace. When the name that it had is gone, and no process but ours is seen in
    it, only we keep it from ending, and gone is called. One that had no name is let be: whose it is
    may be out of our sight.
    """

    def __init__(
        self,
        label: str,
        inode: int,
        own_pids: Callable[[], Iterable[int]],
        gone: Callable[[], None],
    ) -> None:
        """own_pids: of this process and its stack processes."""
        super().__init__(f"network namespace {label}")
        self._inode = inode
        self._own_pids = own_pids
        self._gone = gone
        self._home = netns.name_of(inode)
        self._named = self._home is not None

    def look(self) -> str:
        if not self._named:
            return ""
        if self._home is None or netns.inode_at(self._home) != self._inode:
            self._home = netns.home_of(self._inode, set(self._own_pids()))
        return "" if self._home else "it was deleted: nothing but this instance is left in it"

    async def mend(self) -> None:
        self._gone()


class Hooks(Item):
    """The programs on the instance's cgroup."""

    def __init__(self, attached: Attached, cgroup: Path, groups: Groups) -> None:
        super().__init__(f"cgroup {cgroup}")
        self._attached = attached
        self._groups = groups

    def look(self) -> str:
        if self._groups.missing:
            return "it does not exist; its sockets are routed from the moment it is made"
        if self._groups.moved:
            return "it was made anew without the hooks"
        off = restore.unhooked(self._attached)
        refused = f"; {self._groups.refused}" if self._groups.refused else ""
        return f"somebody detached {', '.join(off)}{refused}" if off else ""

    async def mend(self) -> None:
        await self._groups.look(mend=True)


class Pins(Item):
    """What lets the instance outlive its Resource Director, and detach work without it."""

    def __init__(self, attached: Attached) -> None:
        super().__init__(f"pins in {attached.folder}")
        self._attached = attached

    def look(self) -> str:
        if restore.is_unmounted():
            return "somebody unmounted the BPF file system"
        gone = restore.removed(self._attached)
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        return f"somebody removed {', '.join(gone[:_NAMED])}{more}" if gone else ""

    async def mend(self) -> None:
        await in_thread(restore.pin, self._attached)
