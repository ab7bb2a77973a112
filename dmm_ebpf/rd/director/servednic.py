# SPDX-License-Identifier: Apache-2.0
"""A NIC of a user stack under the eyes of the guard: what others do to the device, and how the
processes that serve it follow, so that open flows go on where the kernel's own would.

While the device is gone nothing is sent, as on a link that is down; what both ends send again
finds its way once it is back. Only what a living process cannot follow ends it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from dmm_ebpf.errors import ConflictError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.nics import Nics, as_it_is, known_of
from dmm_ebpf.threads import in_thread
from dmm_ebpf.userstack.spec import NicSpec


class Serving(ABC):
    """What the guard of a NIC asks of the stack that the NIC belongs to."""

    name: str
    stack_id: int
    nics: list[NicSpec]

    @abstractmethod
    def by_xdp(self, nic: NicSpec) -> bool:
        """Whether the policy says that frames of nic are to come by AF_XDP, and they do."""

    @abstractmethod
    def kept_out(self, nic: NicSpec) -> str:
        """Why AF_XDP, which the policy names, cannot be had on nic now; empty: it can."""

    @abstractmethod
    async def take_back(self, nic: NicSpec) -> None:
        """Put our XDP program on nic again. Raises DmmError."""

    @abstractmethod
    def waits(self) -> bool:
        """Whether a process of the stack cannot start for want of a device."""

    @abstractmethod
    def restart(self, reason: str) -> None:
        """End the processes that live, so that they start anew."""

    @abstractmethod
    def hurry(self) -> None:
        """Start at once what waits for a device."""

    @abstractmethod
    def knows(self, nic: NicSpec) -> bool:
        """Whether every process that serves nic has been told what it is."""

    @abstractmethod
    def can_follow(self, nic: NicSpec) -> bool:
        """Whether its processes can go on by another device."""

    @abstractmethod
    async def follow(self, nics: list[NicSpec]) -> None:
        """The NICs are that now: its processes are told."""


class ServedNic(Item):
    """A NIC of a user stack, as its processes know it."""

    def __init__(self, nics: Nics, serving: Serving, nic: NicSpec) -> None:
        super().__init__(f"device {nic.name} of stack {serving.name}")
        self._nics = nics
        self._serving = serving
        self._nic = nic
        self._now: hal_nic.Nic | None = None

    def look(self) -> str:
        self._now = now = self._nics.device_of(self._nic)
        if now is None:
            return "it is gone"
        if self._serving.waits():
            return "it is back, and the stack is not yet"
        return self._changed(now) or self._nics.missing_tc(now.ifindex) or self._kept_out()

    def _kept_out(self) -> str:
        why = self._serving.kept_out(self._nic)
        return why and f"{why}; until it is gone flows go by tap there"

    def _changed(self, now: hal_nic.Nic) -> str:
        """What is not as the processes know it."""
        served, is_now = self._nic, as_it_is(self._nic, now)
        if is_now.ifindex != served.ifindex:
            same = now.name == served.name
            return "it was made anew" if same else f"{now.name} is in its place now"
        if is_now.name != served.name:
            return f"it is called {now.name} now"
        if is_now.mtu != served.mtu:
            return f"its MTU is {now.mtu} now"
        if is_now.mac != served.mac:
            return f"its address is {now.mac.hex(':')} now"
        if not self._serving.knows(served):
            return "its processes do not know yet what it is"
        # Nor is anybody else's there.
        return (
            "our XDP program was taken off"
            if self._serving.by_xdp(served) and not now.has_xdp
            else ""
        )

    async def mend(self) -> None:
        if self._now is not None:
            await self._follow(self._now)
            # What it is now is no fault.
            here = (n for n in self._serving.nics if n.slot == self._nic.slot)
            self._nic = next(here, self._nic)

    async def _follow(self, now: hal_nic.Nic) -> None:
        nic, serving = self._nic, self._serving
        is_now = as_it_is(nic, now)
        if serving.waits():
            serving.hurry()
        elif now.ifindex != nic.ifindex:
            await self._go_on_by(is_now)
        elif known_of(is_now) != known_of(nic) or not serving.knows(nic):
            now_nic = replace(nic, name=is_now.name, mtu=is_now.mtu, mac=is_now.mac)
            new = [now_nic if n.slot == nic.slot else n for n in serving.nics]
            self._nics.rename(serving.nics, new)
            self._nics.readdress(now_nic)
            await serving.follow(new)
        elif serving.by_xdp(nic) and not now.has_xdp:
            await serving.take_back(nic)
        else:
            await in_thread(self._nics.attach_tc, serving.name, nic)

    async def _go_on_by(self, is_now: NicSpec) -> None:
        """The NIC is another device now."""
        serving = self._serving
        if is_now.bare != self._nic.bare or not serving.can_follow(self._nic):
            serving.restart(f"device {self._nic.name}: {self.look()}")
            return
        try:
            new = await in_thread(self._renewed)
        except ConflictError as error:
            serving.restart(str(error))
            raise
        await serving.follow(new)

    def _renewed(self) -> list[NicSpec]:
        serving = self._serving
        with self._nics.renewing:
            return self._nics.renew(serving.name, serving.stack_id, serving.nics)
