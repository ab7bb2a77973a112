# SPDX-License-Identifier: Apache-2.0
"""The devices that no user stack serves, and by which packets of an open flow may come to leave all
the same, as when a
VPN comes up: our tc programs stand there too, so that the flow goes on and nothing of its inner leg
gets to the wire (bpf/away.h).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from dmm_ebpf import abi
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import rtnl
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.nics import Nics
from dmm_ebpf.threads import in_thread

_MOST = (
    abi.C.DMM_MAX_DEVICES - abi.C.DMM_MAX_NICS
)  # the places of NICs that stacks serve are theirs


class Beside(Item):
    """All of them: they come and go with the host's devices and addresses."""

    def __init__(self, nics: Nics, served: Callable[[], Collection[int]]) -> None:
        """served: ifindexes of the NICs that stacks serve now."""
        super().__init__("devices that no stack serves")
        self._nics = nics
        self._served = served
        self._lacking: list[rtnl.Link] = []
        self._stale: list[int] = []

    def look(self) -> str:
        served = self._served()
        wanted = {link.index: link for link in hal_nic.leaving() if link.index not in served}
        wanted = dict(list(wanted.items())[:_MOST])
        there = self._nics.beside()
        self._lacking = [
            link
            for index, link in wanted.items()
            if there.get(index) != hal_nic.is_bare(link) or self._nics.missing_tc(index)
        ]
        self._stale = [index for index in there if index not in wanted and index not in served]
        names = ", ".join(link.name for link in self._lacking)
        if names:
            return f"our tc programs are not on {names}"
        return "some that have our tc programs are down or gone" if self._stale else ""

    async def mend(self) -> None:
        await in_thread(self.put_right)

    def put_right(self) -> None:
        """What look() has found wanting."""
        for index in self._stale:
            self._nics.take_beside(index)
        for link in self._lacking:
            self._nics.put_beside(link.index, link.name, bare=hal_nic.is_bare(link))


def leave(nics: Nics) -> None:
    """Takes our programs off all of them."""
    for index in nics.beside():
        nics.take_beside(index)
