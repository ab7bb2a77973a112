# SPDX-License-Identifier: Apache-2.0
"""The NICs of an instance's user stacks: which, with what facts, and our programs on them: those of
tc for any number of stacks, and XDP for the one whose AF_XDP sockets take the frames there
(ports.py says when).

A device changes while it is served: its address, its MTU, the number of its queues, its name, or it
is deleted and made anew. So each start of a stack process begins with the facts of that moment; a
change that a living process cannot follow ends it, and the next one starts with the device as it
is, or when it is there again.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import tcfilter
from dmm_ebpf.loader import Attached
from dmm_ebpf.loader.bpf import ENOTSUPP
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.threads import in_thread
from dmm_ebpf.userstack.spec import NicSpec

NO_SLOT = C.DMM_MAX_NICS  # of a device that no stack serves
_MAC_BYTES = 6
# Bytes of the longest packet, not to be cut, in front of which the kernel puts a
# link header (BPF_SKB_MAX_LEN).
_BARE_MTU = 16000

log = logging.getLogger("dmm-ebpf")


def _no_native(what: str, code: int) -> KernelFeatureError:
    """code: the errno with which the driver refused."""
    if code in (errno.EOPNOTSUPP, ENOTSUPP):
        return KernelFeatureError(
            what,
            why="its driver has no native XDP",
            hint="name the device below it, or one that has",
        )
    if code == errno.ERANGE:
        return KernelFeatureError(
            what,
            why="its driver takes no XDP program at this MTU",
            hint="lower it to at most one page",
        )
    return KernelFeatureError(what, why=f"its driver refuses native XDP: {os.strerror(code)}")


def _refuse_bare(stack: str, n: NicSpec) -> None:
    if n.bare:
        raise KernelFeatureError(
            f"serve {n.name} with stack {stack} by AF_XDP",
            why="its packets have no Ethernet header, which AF_XDP needs",
            hint='use io = "tap"',
        )


def _no_generic(what: str) -> KernelFeatureError:
    """Generic XDP runs after GRO, and sees what a sender on this host did not cut: packets of
    up to 64 KiB.
    """
    return KernelFeatureError(
        what,
        why="its driver has no native XDP for its MTU, and this kernel's AF_XDP takes no packet of more than a page, "
        "as generic XDP gives them (Linux 6.6)",
        hint='use io = "tap"',
    )


class DeviceGoneError(DmmError):
    """A NIC of a user stack is not there now."""


class Nics:
    """The NICs of one instance. Works in the calling thread's network namespace, for one thread
    at a time.
    """

    def __init__(self, attached: Attached, state: State, save: Callable[[], None]) -> None:
        """save writes state.json."""
        self._attached = attached
        self._state = state
        self._save = save
        self._tc_name = tc_name(state.instance)
        self._lock = threading.RLock()  # held while what is on a device changes

    def choose(self, devices: Sequence[str]) -> list[NicSpec]:
        """The NICs for a user stack; devices: as in the policy."""
        specs = []
        for info in hal_nic.serving_nics(devices or None):
            slot = self._state.nics.setdefault(info.name, _free_slot(self._state.nics))
            specs.append(_spec(info, slot))
        return specs

    def attach(self, stack: str, nics: Iterable[NicSpec]) -> None:
        """Our programs of tc on each of them; where they are already, nothing changes."""
        for n in nics:
            self.attach_tc(stack, n)

    def put_xdp(self, stack: str, n: NicSpec, *, explicit: bool) -> None:
        """Our XDP program on it, which as yet lets all frames pass; where it is already, nothing
        changes. explicit: the policy names the port, so what is slower than tap will do, too:
        generic XDP, and packets in several frames.
        Raises DmmError: ConflictError or KernelFeatureError where that cannot be, and then
        nothing has changed.
        """
        _refuse_bare(stack, n)
        if self._attached.attach_xdp(n.ifindex, n.name, n.mtu if explicit else 0) != "native":
            what = f"serve {n.name} with stack {stack}"
            if not explicit:
                self._attached.detach_xdp(n.ifindex)
                raise _no_native(what, self._attached.xdp_refusal(n.ifindex))
            if not self._attached.xdp_frags():
                self._attached.detach_xdp(n.ifindex)
                raise _no_generic(what)

    def take_xdp(self, stack: str, stack_id: int, n: NicSpec) -> None:
        """From now on the stack's process 0 gets its frames from that program."""
        if not self._is_entered(n, stack_id):
            log.info("XDP program on %s for stack %s", n.name, stack)
            self._enter(n, stack_id)

    def pass_xdp(self, stack_id: int, n: NicSpec) -> None:
        """From now on all that comes is for tc."""
        if self._is_entered(n, stack_id):
            self._enter(n, 0)

    def leave_xdp(self, stack_id: int, n: NicSpec) -> None:
        """pass_xdp(), and our XDP program off it, unless another stack has it."""
        self.pass_xdp(stack_id, n)
        if not self._xdp_stack(n.ifindex):
            self._attached.detach_xdp(n.ifindex)

    def attach_tc(self, stack: str, n: NicSpec) -> None:
        """Those of tc alone."""
        with self._lock:
            if not self._is_served(n.ifindex):
                self._enter(n, 0)
            self._put_tc(n.ifindex, n.name, f"for stack {stack}")

    def _put_tc(self, ifindex: int, name: str, why: str) -> None:
        if name not in self._state.tc_nics:
            log.info("tc programs on %s, %s", name, why)
            self._state.tc_nics[name] = False
        if self._attached.attach_tcx(ifindex):
            return
        if not tcfilter.has_clsact(ifindex):
            self._state.tc_nics[name] = True
        self._save()
        tcfilter.attach_nic(ifindex, self._attached.tc_fds(), self._tc_name)

    def _take_tc(self, ifindex: int, name: str) -> None:
        clsact = self._state.tc_nics.pop(name, False)
        self._attached.detach_tcx(ifindex)
        tcfilter.detach_nic(ifindex, self._tc_name, clsact=clsact)
        self._attached.maps.nics.delete(ifindex)

    def beside(self) -> dict[int, bool]:
        """Devices that have those of tc though no stack serves them (bpf/away.h), by ifindex:
        whether they are bare.
        """
        nics = self._attached.maps.nics.items()
        return {ifindex: bool(nic.bare) for ifindex, nic in nics if nic.slot == NO_SLOT}

    def put_beside(self, ifindex: int, name: str, *, bare: bool) -> None:
        """Those of tc on a device that no stack serves; where one does, nothing changes."""
        with self._lock:
            if self._is_served(ifindex):
                return
            self._enter(NicSpec(ifindex, name, NO_SLOT, 0, b"", 0, bare), 0)
            self._put_tc(ifindex, name, "by which open flows may come to leave")

    def take_beside(self, ifindex: int) -> None:
        """Takes them off again, unless a stack serves it now."""
        with self._lock:
            if self._entry(ifindex) and not self._is_served(ifindex):
                self._take_tc(ifindex, hal_nic.name_of(ifindex) or "")

    def _entry(self, ifindex: int) -> Struct | None:
        return self._attached.maps.nics.get(ifindex)

    def _is_entered(self, n: NicSpec, stack_id: int) -> bool:
        """Whether that stack gets frames from XDP there."""
        entry = self._entry(n.ifindex)
        return entry is not None and (entry.slot, entry.stack) == (n.slot, stack_id)

    def _xdp_stack(self, ifindex: int) -> int:
        """The stack that gets frames from XDP there; 0: none."""
        entry = self._entry(ifindex)
        return entry.stack if entry else 0

    def _is_served(self, ifindex: int) -> bool:
        """Whether a stack serves it."""
        entry = self._entry(ifindex)
        return entry is not None and entry.slot != NO_SLOT

    def _enter(self, n: NicSpec, stack_id: int) -> None:
        entry = abi.new("dmm_nic", slot=n.slot, stack=stack_id, bare=n.bare)
        self._attached.maps.nics[n.ifindex] = entry

    def detach(self, stack_id: int, nics: Iterable[NicSpec], shared: Collection[int] = ()) -> None:
        """Takes them off, also where the device is gone. shared: ifindexes of those that other
        stacks go on using: they keep those of tc, and XDP where it is not this stack's.
        """
        for n in nics:
            by_xdp = self._xdp_stack(n.ifindex) == stack_id
            if by_xdp or n.ifindex not in shared:
                self._attached.detach_xdp(n.ifindex)
            if n.ifindex in shared:
                if by_xdp:
                    self._enter(n, 0)
                continue
            with self._lock:
                self._take_tc(n.ifindex, n.name)
            self._state.nics.pop(n.name, None)

    def missing_tc(self, index: int) -> str:
        """That our programs of tc are not there, or not the first, as a reason; empty: they are."""
        if self._attached.has_tcx(index):
            return ""
        if not tcfilter.attached_nic(index, self._tc_name):
            return "our tc programs were taken off"
        hook = tcfilter.overtaken(index, self._tc_name)
        return f"another tc filter was put before ours at its {hook}" if hook else ""

    def renew(self, stack: str, stack_id: int, nics: Sequence[NicSpec]) -> list[NicSpec]:
        """The NICs as they are now, with our programs of tc on those that were made anew; one that
        is not there stays as it was. Raises DmmError: DeviceGoneError if none is there.
        """
        found = [_found(n) for n in nics]
        if not any(found):
            gone = ", ".join(n.name for n in nics)
            why = f"device {gone} is gone, or belongs to a bridge or a bond"
            raise DeviceGoneError(
                f"start stack {stack}", why=why, hint="it starts when the device is back"
            )
        now = [_as_it_is(n, info) if info else n for info, n in zip(found, nics, strict=True)]
        self.detach(
            stack_id,
            [old for old, new in zip(nics, now, strict=True) if old.ifindex != new.ifindex],
        )
        self.rename(nics, now)
        self.attach(stack, there(now))
        return now

    def rename(self, old: Sequence[NicSpec], new: Sequence[NicSpec]) -> None:
        """Slots go on under the names that the devices have now."""
        names = {o.name: n.name for o, n in zip(old, new, strict=True)}
        self._state.tc_nics = {
            names.get(name, name): made for name, made in self._state.tc_nics.items()
        }
        for n in old:
            self._state.nics.pop(n.name, None)
        self._state.nics.update({n.name: n.slot for n in new})


def tc_name(instance: str) -> str:
    """What the instance's tc programs on NICs are called."""
    return f"{tcfilter.NAME_PREFIX}{instance}"


def remove_tc(instance: str, state: State | None) -> list[str]:
    """Takes the instance's tc programs off every device of the calling thread's namespace;
    what was removed.
    """
    made = {**state.tc_inside, **state.tc_nics} if state else {}
    found = [
        info.name
        for info in hal_nic.list_nics()
        if tcfilter.detach_nic(info.ifindex, tc_name(instance), clsact=made.get(info.name, False))
    ]
    return [f"tc program on {name}" for name in found]


def _spec(info: hal_nic.Nic, slot: int) -> NicSpec:
    mac = bytes(_MAC_BYTES) if info.bare else info.mac
    return NicSpec(info.ifindex, info.name, slot, info.rx_queues, mac, _mtu(info), info.bare)


def _mtu(info: hal_nic.Nic) -> int:
    """What its processes go by."""
    return min(info.mtu, _BARE_MTU) if info.bare else info.mtu


def _as_it_is(n: NicSpec, info: hal_nic.Nic) -> NicSpec:
    now = _spec(info, n.slot)
    return replace(
        n,
        ifindex=now.ifindex,
        name=now.name,
        queues=now.queues,
        mac=now.mac,
        mtu=now.mtu,
        bare=now.bare,
    )


def _found(n: NicSpec) -> hal_nic.Nic | None:
    """The device as it is now; None: it is not there, or another one takes what it receives."""
    info = hal_nic.find(n.ifindex, n.name)
    return None if info is None or hal_nic.taker_of(info) else info


def there(nics: Iterable[NicSpec]) -> list[NicSpec]:
    """Those that are there now."""
    return [n for n in nics if hal_nic.name_of(n.ifindex) is not None]


def xdp_mode(n: NicSpec) -> str:
    """Of the XDP program that is on it now: "native", "generic" or "none"."""
    info = hal_nic.find(n.ifindex, n.name)
    return info.xdp_mode if info else "none"


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
    def by_xdp(self, nic: NicSpec) -> bool:
        """Whether the policy says that frames of nic are to come by AF_XDP, and they do."""

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
        return self._changed(served, now) or self._nics.missing_tc(now.ifindex)

    def _changed(self, served: NicSpec, now: hal_nic.Nic) -> str:
        """What is not as the processes know it."""
        if now.ifindex != served.ifindex:
            return "it was made anew"
        if now.name != served.name:
            return f"it is called {now.name} now"
        if _mtu(now) != served.mtu:
            return f"its MTU is {now.mtu} now"
        # Nor is anybody else's there.
        return (
            "our XDP program was taken off"
            if self._serving.by_xdp(served) and not now.has_xdp
            else ""
        )

    async def mend(self) -> None:
        now = self._now
        if now is None:
            if all(hal_nic.find(n.ifindex, n.name) is None for n in self._serving.nics):
                self._serving.restart(f"device {self._nic.name} is gone")
        elif self._taker:
            self._serving.restart(f"device {self._nic.name} belongs to {self._taker} now")
        elif self._serving.waits():
            self._serving.hurry()
        elif now.ifindex != self._nic.ifindex:
            self._serving.restart(f"device {self._nic.name}: {self.look()}")
        elif (now.name, _mtu(now)) != (self._nic.name, self._nic.mtu):
            new = [
                replace(n, name=now.name, mtu=_mtu(now)) if n.ifindex == now.ifindex else n
                for n in self._serving.nics
            ]
            self._nics.rename(self._serving.nics, new)
            await self._serving.follow(new)
        elif self._serving.by_xdp(self._nic) and not now.has_xdp:
            await self._serving.take_back(self._nic)
        else:
            await in_thread(self._nics.attach_tc, self._serving.name, self._nic)
