# SPDX-License-Identifier: Apache-2.0
"""The NICs of an instance's user stacks: which, with what facts, and our XDP program on them.

A device changes while it is served: its address, its MTU, the number of its queues, its name, or it is deleted and made
anew. So each start of a stack process begins with the facts of that moment; a change that a living process cannot
follow ends it, and the next one starts with the device as it is, or when it is there again.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dmm_ebpf import abi
from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.loader import Attached
from dmm_ebpf.loader.bpf import ENOTSUPP
from dmm_ebpf.rd.guard import Item
from dmm_ebpf.rd.rundir import State
from dmm_ebpf.userstack.spec import NicSpec

C = abi.C

log = logging.getLogger("dmm-ebpf")


def _no_native(what: str, code: int) -> KernelFeatureError:
    """code: the errno with which the driver refused."""
    if code in (errno.EOPNOTSUPP, ENOTSUPP):
        return KernelFeatureError(
            what, why="its driver has no native XDP", hint="name the device below it, or one that has"
        )
    if code == errno.ERANGE:
        return KernelFeatureError(
            what, why="its driver takes no XDP program at this MTU", hint="lower it to at most one page"
        )
    return KernelFeatureError(what, why=f"its driver refuses native XDP: {os.strerror(code)}")


class DeviceGoneError(DmmError):
    """A NIC of a user stack is not there now."""


class Nics:
    """The NICs of one instance. Works in the calling thread's network namespace, for one thread at a time."""

    def __init__(self, attached: Attached, state: State) -> None:
        self._attached = attached
        self._state = state

    def choose(self, devices: Sequence[str], taken: Mapping[str, str]) -> list[NicSpec]:
        """The NICs for a user stack; devices: as in the policy. taken: the stack of each NIC that has one."""
        specs = []
        for info in hal_nic.serving_nics(devices or None):
            if info.name in taken:
                raise ConflictError(
                    f"serve {info.name} with one more user stack",
                    why=f"stack {taken[info.name]} holds its queues, and a queue has one AF_XDP UMEM",
                    hint="give each user stack devices of its own",
                )
            slot = self._state.nics.setdefault(info.name, _free_slot(self._state.nics))
            specs.append(_spec(info, slot))
        return specs

    def attach(self, stack: str, stack_id: int, nics: Iterable[NicSpec]) -> None:
        """Our XDP program on each of them; where it is already, nothing changes."""
        for n in nics:
            if self._attached.attach_xdp(n.ifindex, n.name) != "native":
                self._attached.detach_xdp(n.ifindex)
                # Generic XDP runs after GRO: merged packets would not fit an AF_XDP frame and be lost.
                raise _no_native(f"serve {n.name} with stack {stack}", self._attached.xdp_refusal(n.ifindex))
            key = struct.pack("=I", n.ifindex)
            value = abi.pack(abi.new("dmm_nic", slot=n.slot, stack=stack_id))
            if self._attached.maps["nics"].lookup(key) != value:
                log.info("XDP program on %s for stack %s", n.name, stack)
                self._attached.maps["nics"].update(key, value)

    def detach(self, nics: Iterable[NicSpec]) -> None:
        """Takes it off them, also where the device is gone."""
        for n in nics:
            self._attached.detach_xdp(n.ifindex)
            self._attached.maps["nics"].delete(struct.pack("=I", n.ifindex))
            self._state.nics.pop(n.name, None)

    def renew(self, stack: str, stack_id: int, nics: Sequence[NicSpec]) -> list[NicSpec]:
        """The NICs as they are now, with our XDP program on those that were made anew; one that is not there stays as
        it was. Raises DmmError: DeviceGoneError if none is there.
        """
        found = [hal_nic.find(n.ifindex, n.name) for n in nics]
        if not any(found):
            gone = ", ".join(n.name for n in nics)
            raise DeviceGoneError(
                f"start stack {stack}", why=f"device {gone} is gone", hint="it starts when the device is back"
            )
        now = [_spec(info, n.slot) if info else n for info, n in zip(found, nics, strict=True)]
        self.detach(old for old, new in zip(nics, now, strict=True) if old.ifindex != new.ifindex)
        self.rename(nics, now)
        self.attach(stack, stack_id, there(now))
        return now

    def rename(self, old: Iterable[NicSpec], new: Iterable[NicSpec]) -> None:
        """Slots go on under the names that the devices have now."""
        for n in old:
            self._state.nics.pop(n.name, None)
        self._state.nics.update({n.name: n.slot for n in new})


def _spec(info: hal_nic.Nic, slot: int) -> NicSpec:
    return NicSpec(info.ifindex, info.name, slot, info.rx_queues, info.mac, info.mtu)


def there(nics: Iterable[NicSpec]) -> list[NicSpec]:
    """Those that are there now."""
    return [n for n in nics if hal_nic.name_of(n.ifindex) is not None]


def _free_slot(nics: Mapping[str, int]) -> int:
    used = set(nics.values())
    for slot in range(C.DMM_MAX_NICS):
        if slot not in used:
            return slot
    raise ConflictError("serve one more NIC", why=f"an instance serves {C.DMM_MAX_NICS} at most")


class Serving(ABC):
    """What the guard of a NIC asks of the stack that the NIC belongs to."""

    name: str
    nics: list[NicSpec]

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
    def follow_names(self, nics: list[NicSpec]) -> None:
        """The NICs have other names now."""


class ServedNic(Item):
    """A NIC of a user stack, as its processes know it."""

    def __init__(self, nics: Nics, serving: Serving, nic: NicSpec) -> None:
        super().__init__(f"device {nic.name} of stack {serving.name}")
        self._nics = nics
        self._serving = serving
        self._nic = nic
        self._now: hal_nic.Nic | None = None

    def look(self) -> str:
        served, self._now = self._nic, hal_nic.find(self._nic.ifindex, self._nic.name)
        now = self._now
        if now is None:
            return "it is gone"
        if self._serving.waits():
            return "it is back, and the stack is not yet"
        if now.ifindex != served.ifindex:
            return "it was made anew"
        if now.name != served.name:
            return f"it is called {now.name} now"
        if now.rx_queues > served.queues:
            return f"it has {now.rx_queues} receive queues, and {served.queues} are served"
        return "" if now.has_xdp else "our XDP program was taken off"

    async def mend(self) -> None:
        now = self._now
        if now is None:
            if all(hal_nic.find(n.ifindex, n.name) is None for n in self._serving.nics):
                self._serving.restart(f"device {self._nic.name} is gone")
        elif self._serving.waits():
            self._serving.hurry()
        elif now.ifindex == self._nic.ifindex and now.name != self._nic.name:
            new = [replace(n, name=hal_nic.name_of(n.ifindex) or n.name) for n in self._serving.nics]
            self._nics.rename(self._serving.nics, new)
            self._serving.follow_names(new)
        else:
            self._serving.restart(f"device {self._nic.name}: {self.look()}")
