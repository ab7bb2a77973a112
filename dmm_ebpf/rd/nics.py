# SPDX-License-Identifier: Apache-2.0
"""The NICs of an instance's user stacks: which, with what facts, and our programs on them: those of tc for any number
of stacks, and XDP for the one that has AF_XDP sockets there.

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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from dmm_ebpf import abi
from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError
from dmm_ebpf.hal import choice, inway, tcfilter
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.loader import Attached
from dmm_ebpf.loader.bpf import ENOTSUPP
from dmm_ebpf.rd.guard import Item
from dmm_ebpf.rd.rundir import State
from dmm_ebpf.threads import in_thread
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

    def __init__(self, attached: Attached, state: State, save: Callable[[], None]) -> None:
        """save writes state.json."""
        self._attached = attached
        self._state = state
        self._save = save
        self._tc_name = tc_name(state.instance)

    def choose(self, devices: Sequence[str]) -> list[NicSpec]:
        """The NICs for a user stack; devices: as in the policy."""
        specs = []
        for info in hal_nic.serving_nics(devices or None):
            slot = self._state.nics.setdefault(info.name, _free_slot(self._state.nics))
            specs.append(_spec(info, slot))
        return specs

    def gone_around(self, nics: Iterable[NicSpec]) -> str:
        """What of the host's AF_XDP would go around on one of them, as a reason against it; empty: nothing."""
        qdiscs, hooks = inway.qdiscs(), inway.netdev_hooks()
        for n in nics:
            reasons = choice.gone_around(
                qdiscs if isinstance(qdiscs, Unknown) else inway.root_qdisc(qdiscs, n.ifindex),
                qdiscs if isinstance(qdiscs, Unknown) else inway.filters(qdiscs, n.ifindex),
                hooks if isinstance(hooks, Unknown) else tuple(h.what for h in hooks if h.on(n.name)),
            )
            if reasons:
                return f"on {n.name} {reasons[0]}"
        return ""

    def attach(self, stack: str, stack_id: int, port: str, nics: Iterable[NicSpec]) -> None:
        """Our programs on each of them: those of tc, and with port "af_xdp" that of XDP; where they are already,
        nothing changes.
        """
        for n in nics:
            if port == "af_xdp":
                self._attach_xdp(stack, stack_id, n)
            self.attach_tc(stack, n)

    def _attach_xdp(self, stack: str, stack_id: int, n: NicSpec) -> None:
        if self._attached.attach_xdp(n.ifindex, n.name) != "native":
            self._attached.detach_xdp(n.ifindex)
            # Generic XDP runs after GRO: merged packets would not fit an AF_XDP frame and be lost.
            raise _no_native(f"serve {n.name} with stack {stack}", self._attached.xdp_refusal(n.ifindex))
        if self._entry(n) != (n.slot, stack_id):
            log.info("XDP program on %s for stack %s", n.name, stack)
            self._enter(n, stack_id)

    def attach_tc(self, stack: str, n: NicSpec) -> None:
        """Those of tc alone."""
        if self._entry(n) is None:
            self._enter(n, 0)
        if n.name not in self._state.tc_nics:
            log.info("tc programs on %s for stack %s", n.name, stack)
            self._state.tc_nics[n.name] = False
        if self._attached.attach_tcx(n.ifindex):
            return
        if not tcfilter.has_clsact(n.ifindex):
            self._state.tc_nics[n.name] = True
        self._save()
        tcfilter.attach_nic(n.ifindex, self._attached.tc_fds(), self._tc_name)

    def _entry(self, n: NicSpec) -> tuple[int, int] | None:
        value = self._attached.maps["nics"].lookup(struct.pack("=I", n.ifindex))
        return None if value is None else struct.unpack("=II", value)

    def _enter(self, n: NicSpec, stack_id: int) -> None:
        value = abi.pack(abi.new("dmm_nic", slot=n.slot, stack=stack_id))
        self._attached.maps["nics"].update(struct.pack("=I", n.ifindex), value)

    def detach(self, stack_id: int, nics: Iterable[NicSpec], shared: Collection[int] = ()) -> None:
        """Takes them off, also where the device is gone. shared: ifindexes of those that other stacks go on using: they
        keep those of tc, and XDP where it is not this stack's.
        """
        for n in nics:
            by_xdp = (self._entry(n) or (0, 0))[1] == stack_id
            if by_xdp or n.ifindex not in shared:
                self._attached.detach_xdp(n.ifindex)
            if n.ifindex in shared:
                if by_xdp:
                    self._enter(n, 0)
                continue
            clsact = self._state.tc_nics.pop(n.name, False)
            self._attached.detach_tcx(n.ifindex)
            tcfilter.detach_nic(n.ifindex, self._tc_name, clsact=clsact)
            self._attached.maps["nics"].delete(struct.pack("=I", n.ifindex))
            self._state.nics.pop(n.name, None)

    def missing_tc(self, info: hal_nic.Nic) -> str:
        """That our programs of tc are not there, as a reason; empty: they are."""
        index = info.ifindex
        there = self._attached.has_tcx(index) or tcfilter.attached_nic(index, self._tc_name)
        return "" if there else "our tc programs were taken off"

    def renew(self, stack: str, stack_id: int, port: str, nics: Sequence[NicSpec]) -> list[NicSpec]:
        """The NICs as they are now, with our program on those that were made anew; one that is not there stays as
        it was. Raises DmmError: DeviceGoneError if none is there.
        """
        found = [_found(n) for n in nics]
        if not any(found):
            gone = ", ".join(n.name for n in nics)
            why = f"device {gone} is gone, or belongs to a bridge or a bond"
            raise DeviceGoneError(f"start stack {stack}", why=why, hint="it starts when the device is back")
        now = [_spec(info, n.slot) if info else n for info, n in zip(found, nics, strict=True)]
        self.detach(stack_id, [old for old, new in zip(nics, now, strict=True) if old.ifindex != new.ifindex])
        self.rename(nics, now)
        self.attach(stack, stack_id, port, there(now))
        return now

    def rename(self, old: Sequence[NicSpec], new: Sequence[NicSpec]) -> None:
        """Slots go on under the names that the devices have now."""
        names = {o.name: n.name for o, n in zip(old, new, strict=True)}
        self._state.tc_nics = {names.get(name, name): made for name, made in self._state.tc_nics.items()}
        for n in old:
            self._state.nics.pop(n.name, None)
        self._state.nics.update({n.name: n.slot for n in new})


def tc_name(instance: str) -> str:
    """What the instance's tc programs on NICs are called."""
    return f"{inway.OURS}tc:{instance}"


def remove_tc(instance: str, state: State | None) -> list[str]:
    """Takes the instance's tc programs off every device of the calling thread's namespace; what was removed."""
    made = state.tc_nics if state else {}
    found = [
        info.name
        for info in hal_nic.list_nics()
        if tcfilter.detach_nic(info.ifindex, tc_name(instance), clsact=made.get(info.name, False))
    ]
    return [f"tc program on {name}" for name in found]


def _spec(info: hal_nic.Nic, slot: int) -> NicSpec:
    return NicSpec(info.ifindex, info.name, slot, info.rx_queues, info.mac, info.mtu)


def _found(n: NicSpec) -> hal_nic.Nic | None:
    """The device as it is now; None: it is not there, or another one takes what it receives."""
    info = hal_nic.find(n.ifindex, n.name)
    return None if info is None or hal_nic.taker_of(info) else info


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
    port: str  # "af_xdp" or "tap"
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
    async def follow(self, nics: list[NicSpec]) -> None:
        """The NICs have other names or MTUs now."""


class ServedNic(Item):
    """A NIC of a user stack, as its processes know it."""

    def __init__(self, nics: Nics, serving: Serving, nic: NicSpec) -> None:
        super().__init__(f"device {nic.name} of stack {serving.name}")
        self._nics = nics
        self._serving = serving
        self._nic = nic
        self._now: hal_nic.Nic | None = None
        self._taker = ""

    def look(self) -> str:
        served, self._now = self._nic, hal_nic.find(self._nic.ifindex, self._nic.name)
        now = self._now
        if now is None:
            return "it is gone"
        self._taker = hal_nic.taker_of(now)
        if self._taker:
            return f"it belongs to {self._taker} now, which has the addresses"
        if self._serving.waits():
            return "it is back, and the stack is not yet"
        return self._changed(served, now) or self._nics.missing_tc(now)

    def _changed(self, served: NicSpec, now: hal_nic.Nic) -> str:
        """What is not as the processes know it."""
        if now.ifindex != served.ifindex:
            return "it was made anew"
        if now.name != served.name:
            return f"it is called {now.name} now"
        by_xdp = self._serving.port == "af_xdp"
        if by_xdp and now.rx_queues > served.queues:
            return f"it has {now.rx_queues} receive queues, and {served.queues} are served"
        if now.mtu != served.mtu:
            return f"its MTU is {now.mtu} now"
        # Nor is anybody else's there.
        return "our XDP program was taken off" if by_xdp and not now.has_xdp else ""

    async def mend(self) -> None:
        now = self._now
        if now is None:
            if all(hal_nic.find(n.ifindex, n.name) is None for n in self._serving.nics):
                self._serving.restart(f"device {self._nic.name} is gone")
        elif self._taker:
            self._serving.restart(f"device {self._nic.name} belongs to {self._taker} now")
        elif self._serving.waits():
            self._serving.hurry()
        elif self._must_restart(now):
            self._serving.restart(f"device {self._nic.name}: {self.look()}")
        elif (now.name, now.mtu) != (self._nic.name, self._nic.mtu):
            new = [
                replace(n, name=now.name, mtu=now.mtu) if n.ifindex == now.ifindex else n
                for n in self._serving.nics
            ]
            self._nics.rename(self._serving.nics, new)
            await self._serving.follow(new)
        else:
            await in_thread(self._nics.attach_tc, self._serving.name, self._nic)

    def _must_restart(self, now: hal_nic.Nic) -> bool:
        """Whether the change is one that a living process cannot follow. Frames of AF_XDP have the length that they
        had.
        """
        served = self._nic
        if now.ifindex != served.ifindex:
            return True
        if self._serving.port != "af_xdp":
            return False
        return not now.has_xdp or now.rx_queues > served.queues or now.mtu > served.mtu
