# SPDX-License-Identifier: Apache-2.0
"""The devices that no user stack serves, and by which packets of an open flow may come to leave all
the same, as when a
VPN comes up: our tc programs stand there too, so that the flow goes on and nothing of its inner leg
gets to the wire (bpf/away.h).

Where a default route leads by such a device, new flows of the stacks that follow default routes
begin there, through a NIC that these serve: one that is up, or else any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from dmm_ebpf import abi
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import rtnl
from dmm_ebpf.hal.leading import Leading
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.nics import Nics
from dmm_ebpf.rd.director.onestack import Stack
from dmm_ebpf.threads import in_thread

_MOST = (
    abi.C.DMM_MAX_DEVICES - abi.C.DMM_MAX_NICS
)  # the places of NICs that stacks serve are theirs


class _Device(NamedTuple):
    """bare, home: see Nics.beside()."""

    link: rtnl.Link
    bare: bool
    home: int


class Beside(Item):
    """All of them: they come and go with the host's devices and addresses."""

    def __init__(self, nics: Nics, stacks: Callable[[], Iterable[Stack]]) -> None:
        """stacks: those that there are now."""
        super().__init__("devices that no stack serves")
        self._nics = nics
        self._stacks = stacks
        self._leading: Leading | None = None
        self._lacking: list[_Device] = []
        self._stale: list[int] = []

    def look(self) -> str:
        stacks = list(self._stacks())
        served = {n.ifindex for s in stacks for n in s.nics}
        wanted = {one.link.index: one for one in self._wanted(stacks, served)[:_MOST]}
        there = self._nics.beside()
        self._lacking = [
            one
            for index, one in wanted.items()
            if there.get(index) != (one.bare, one.home) or self._nics.missing_tc(index)
        ]
        self._stale = [index for index in there if index not in wanted and index not in served]
        names = ", ".join(one.link.name for one in self._lacking)
        if names:
            return f"our tc programs are not on {names}, or not as they should be"
        return "some that have our tc programs are down or gone" if self._stale else ""

    def _wanted(self, stacks: Collection[Stack], served: Collection[int]) -> list[_Device]:
        leaving = hal_nic.leaving()
        up = {link.index for link in leaving}
        following = [n for s in stacks if s.follows_routes for n in s.nics]
        following.sort(key=lambda n: n.ifindex not in up)
        home = following[0].slot + 1 if following else 0
        leading = self._devices_of_defaults() if home else ()
        return [
            _Device(link, hal_nic.is_bare(link), home if link.index in leading else 0)
            for link in leaving
            if link.index not in served
        ]

    def _devices_of_defaults(self) -> Collection[int]:
        if self._leading is None:
            self._leading = Leading()
        return self._leading.devices()

    async def mend(self) -> None:
        await in_thread(self.put_right)

    def put_right(self) -> None:
        """What look() has found wanting."""
        for index in self._stale:
            self._nics.take_beside(index)
        for one in self._lacking:
            self._nics.put_beside(one.link.index, one.link.name, bare=one.bare, home=one.home)

    def leave(self) -> None:
        """Takes our programs off all of them."""
        if self._leading is not None:
            self._leading.close()
            self._leading = None
        for index in self._nics.beside():
            self._nics.take_beside(index)
