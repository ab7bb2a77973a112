# SPDX-License-Identifier: Apache-2.0
"""The NICs of an instance's user stacks: which, with what facts, and our programs on them: those of
tc for any number of stacks, and XDP for the one whose AF_XDP sockets take the frames there
(ports.py says when).

A device changes while it is served: its address, its MTU, the number of its queues, its name; it is
deleted and made anew, or goes to another namespace and comes back; it is put under a bridge or a
bond, which has its addresses from then on, and is served in its place (device_of()). Processes that
live follow (servednic.py), and each start of one begins with the facts of that moment.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import tcfilter
from dmm_ebpf.loader import Attached
from dmm_ebpf.loader.bpf import ENOTSUPP
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.userstack.spec import NicSpec

NO_SLOT = C.DMM_MAX_NICS  # of a device that no stack serves
_MAC_BYTES = 6
# Bytes of the longest packet, not to be cut, in front of which the kernel puts a
# link header (BPF_SKB_MAX_LEN).
_BARE_MTU = 16000
_MOST_MOVES = 5  # to the front of a device's tc programs, within
_MOVES_S = 60.0

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
        self._behind: set[int] = set()  # ifindexes of those on which no flow begins
        # by ifindex, when our programs moved to the front there of late (time.monotonic())
        self._moves: dict[int, list[float]] = {}
        self.renewing = threading.Lock()  # held while NICs of a stack become others

    def choose(self, devices: Sequence[str], before: Collection[str] = ()) -> list[NicSpec]:
        """The NICs for a user stack; devices: as in the policy. What a Resource Director before
        this one has served in place of one of them is so served on. before: those that processes
        which live were started with, as they were called last; where the policy names none, they
        stay, whatever the default routes are now.
        """
        specs: list[NicSpec] = []
        words = [self._called_now(word) for word in devices] or self._served_yet(before)
        for own in hal_nic.serving_nics(words or None, instead=self._state.nics):
            info = hal_nic.top_of(own)
            slot = self._slot_of(own, info)
            self._state.nic_words.setdefault(own.name, slot)
            self._state.nic_words |= {word: slot for word in devices if word in own.names}
            if info.ifindex != own.ifindex:
                self._below[slot] = (own.ifindex, own.name)
            elif not self._stands_still(slot, info):
                self._below.pop(slot, None)
            if all(n.slot != slot for n in specs):  # a bridge may stand for several
                specs.append(_spec(info, slot))
        return specs

    def _served_yet(self, before: Collection[str]) -> list[str]:
        """What those of them are called that are there."""
        slots = {self._state.nics.get(name) for name in before}
        entries = self._attached.maps.nics.items()
        names = [hal_nic.name_of(ifindex) for ifindex, nic in entries if nic.slot in slots]
        made_anew = [name for name in before if hal_nic.ifindex_of(name) is not None]
        return [name for name in names if name] or made_anew

    def _slot_of(self, own: hal_nic.Nic, info: hal_nic.Nic) -> int:
        """The slot of what a stack serves, info in place of own: that which it had before, also
        where it was served by another device then.
        """
        nics = self._state.nics
        for name, slot in list(nics.items()):
            if name != info.name and self._below.get(slot) == (own.ifindex, own.name):
                index = hal_nic.ifindex_of(name)
                if index is not None:
                    self._take_tc(index, name)
                del nics[name]
                nics.setdefault(info.name, slot)
        entry = self._entry(info.ifindex)
        before = entry.slot if entry and entry.slot != NO_SLOT else self._slot_left_to(own)
        if info.name not in nics and before is not None:
            # renamed, or made anew, while there was no Resource Director
            self._rename({name: info.name for name, slot in nics.items() if slot == before})
            return self._state.nics.setdefault(info.name, before)
        return nics.setdefault(info.name, _free_slot(nics))

    def _slot_left_to(self, own: hal_nic.Nic) -> int | None:
        """That of a device which has gone, and had been chosen by a word that own is called by."""
        words, nics = self._state.nic_words, self._state.nics
        gone = {slot for name, slot in nics.items() if hal_nic.ifindex_of(name) is None}
        return next((words[word] for word in own.names if words.get(word) in gone), None)

    def _stands_still(self, slot: int, info: hal_nic.Nic) -> bool:
        """Whether it is served in place of a device that still belongs to it: nobody named that,
        so it is this one that has the addresses, and is chosen.
        """
        own = hal_nic.find(*self._below[slot]) if slot in self._below else None
        return own is not None and hal_nic.top_of(own).ifindex == info.ifindex != own.ifindex

    @property
    def _below(self) -> dict[int, tuple[int, str]]:
        return self._state.below

    def _called_now(self, word: str) -> str:
        """What the device that was chosen by that word is called; the word where it names one."""
        slot = self._state.nic_words.get(word)
        if slot is None or hal_nic.ifindex_of(word) is not None:
            return word
        served = [ifindex for ifindex, nic in self._attached.maps.nics.items() if nic.slot == slot]
        own = [self._below[slot][0]] if slot in self._below else served
        return next(filter(None, map(hal_nic.name_of, own)), word)

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
            self.readdress(n)
            try:
                self._put_tc(n.ifindex, n.name, f"for stack {stack}")
            except ConflictError:
                self._set_behind(n, behind=True)
                raise
            self._set_behind(n, behind=False)

    def is_behind(self, device: str) -> bool:
        """Whether no flow begins on that device."""
        return hal_nic.ifindex_of(device) in self._behind

    def _set_behind(self, n: NicSpec, *, behind: bool) -> None:
        """Whether a filter of others may keep packets there from our programs: then no flow begins
        there, which it would break.
        """
        if behind == (n.ifindex in self._behind):
            return
        self._behind ^= {n.ifindex}
        log.warning(
            "new flows on %s are %s",
            n.name,
            "left to the kernel: a tc program comes before ours" if behind else "taken again",
        )
        if entry := self._entry(n.ifindex):
            entry.behind = behind
            self._attached.maps.nics[n.ifindex] = entry

    def _put_tc(self, ifindex: int, name: str, why: str) -> None:
        if name not in self._state.tc_nics:
            log.info("tc programs on %s, %s", name, why)
            self._state.tc_nics[name] = False
        self._overtake(ifindex, name)
        if self._attached.attach_tcx(ifindex):
            return
        if not tcfilter.has_clsact(ifindex):
            self._state.tc_nics[name] = True
        self._save()
        tcfilter.attach_nic(ifindex, self._attached.tc_fds(), self._tc_name)

    def _overtake(self, ifindex: int, name: str) -> None:
        """Our programs there are about to move to the front, if another's came before them.
        ConflictError where that one does the same each time: both would go on for ever.
        """
        hook = self._attached.overtaken_tcx(ifindex)
        if not hook:
            return
        now = time.monotonic()
        moves = [at for at in self._moves.get(ifindex, ()) if now - at < _MOVES_S]
        if len(moves) >= _MOST_MOVES:
            raise ConflictError(
                f"put our tc programs first on {name}",
                why=f"another tc program puts itself before ours again and again at its {hook}",
                hint="have it attached without BPF_F_BEFORE",
            )
        self._moves[ifindex] = [*moves, now]

    def _take_tc(self, ifindex: int, name: str) -> None:
        clsact = self._state.tc_nics.pop(name, False)
        self._attached.detach_tcx(ifindex)
        tcfilter.detach_nic(ifindex, self._tc_name, clsact=clsact)
        self._attached.maps.nics.delete(ifindex)
        self._behind.discard(ifindex)
        self._moves.pop(ifindex, None)

    def beside(self) -> dict[int, tuple[bool, int]]:
        """Devices that have those of tc though no stack serves them (bpf/away.h), by ifindex:
        whether they are bare, and their home (struct dmm_nic).
        """
        nics = self._attached.maps.nics.items()
        return {
            ifindex: (bool(nic.bare), int(nic.home)) for ifindex, nic in nics if nic.slot == NO_SLOT
        }

    def put_beside(self, ifindex: int, name: str, *, bare: bool, home: int) -> None:
        """Those of tc on a device that no stack serves; where one does, nothing changes."""
        with self._lock:
            if self._is_served(ifindex):
                return
            self._enter(NicSpec(ifindex, name, NO_SLOT, 0, b"", 0, bare), 0, home)
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

    def _enter(self, n: NicSpec, stack_id: int, home: int = 0) -> None:
        behind = n.ifindex in self._behind
        entry = abi.new(
            "dmm_nic",
            slot=n.slot,
            stack=stack_id,
            bare=n.bare,
            behind=behind,
            home=home,
            mac=list(n.mac),
            generic=stack_id != 0 and xdp_mode(n) == "generic",
        )
        self._attached.maps.nics[n.ifindex] = entry

    def detach(self, stack_id: int, nics: Iterable[NicSpec], shared: Collection[int] = ()) -> None:
        """Takes them off, also where the device is gone. shared: ifindexes of those that other
        stacks go on using: they keep those of tc, and XDP where it is not this stack's.
        """
        gone = list(nics)
        self._detach(stack_id, gone, shared)
        for n in gone:
            if n.ifindex not in shared:
                self._below.pop(n.slot, None)
                words = self._state.nic_words
                self._state.nic_words = {word: of for word, of in words.items() if of != n.slot}

    def _detach(self, stack_id: int, nics: Iterable[NicSpec], shared: Collection[int] = ()) -> None:
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
            hook = self._attached.overtaken_tcx(index)
            if hook:
                return f"another tc program was put before ours at its {hook}"
            return "new flows there are still left to the kernel" if index in self._behind else ""
        if not tcfilter.attached_nic(index, self._tc_name):
            return "our tc programs were taken off"
        hook = tcfilter.overtaken(index, self._tc_name)
        if hook:
            return f"another tc filter was put before ours at its {hook}"
        return "new flows there are still left to the kernel" if index in self._behind else ""

    def device_of(self, n: NicSpec) -> hal_nic.Nic | None:
        """The device that the NIC is now: the one that was chosen, whatever its number, or the
        bridge or bond to which that belongs; None: it is not there.
        """
        own = hal_nic.find(*self._below.get(n.slot, (n.ifindex, n.name))) or self._by_word(n)
        return hal_nic.top_of(own) if own else None

    def _by_word(self, n: NicSpec) -> hal_nic.Nic | None:
        """The device that has the name by which the NIC was chosen, which it had lost before it
        went; None: there is none, or it is another NIC.
        """
        for word in [word for word, of in self._state.nic_words.items() if of == n.slot]:
            index = hal_nic.ifindex_of(word)
            entry = self._entry(index) if index is not None else None
            if index is not None and (entry is None or entry.slot in (NO_SLOT, n.slot)):
                return hal_nic.find(index, word)
        return None

    def is_own(self, n: NicSpec) -> bool:
        """Whether it is the device that was chosen, and none that has its addresses meanwhile."""
        return n.slot not in self._below

    def renew(self, stack: str, stack_id: int, nics: Sequence[NicSpec]) -> list[NicSpec]:
        """The NICs as they are now, with our programs of tc on those that are other devices; one
        that is not there stays as it was. Raises DmmError: DeviceGoneError if none is there,
        ConflictError where a bridge or a bond is served already in its own right.
        """
        found = [self.device_of(n) for n in nics]
        if not any(found):
            gone = ", ".join(n.name for n in nics)
            raise DeviceGoneError(
                f"start stack {stack}",
                why=f"device {gone} is gone",
                hint="it starts when the device is back",
            )
        now = [as_it_is(n, info) if info else n for info, n in zip(found, nics, strict=True)]
        others = [
            (old, new) for old, new in zip(nics, now, strict=True) if old.ifindex != new.ifindex
        ]
        for old, new in others:
            self._stand_for(old, new)
        # Another stack may have been here before.
        self._detach(stack_id, [old for old, _ in others if self._entry(old.ifindex) is not None])
        self.rename(nics, now)
        if others:  # or the next director would look for those of before
            with suppress(DmmError):  # whoever renews keeps the state, too, and says it then
                self._save()
        self.attach(stack, there(now))
        return now

    def _stand_for(self, old: NicSpec, new: NicSpec) -> None:
        own = self._below.pop(old.slot, (old.ifindex, old.name))
        found = hal_nic.find(*own)
        if found is None or found.ifindex == new.ifindex:
            return
        entry = self._entry(new.ifindex)
        if entry is not None and entry.slot not in (NO_SLOT, new.slot):
            raise ConflictError(
                f"serve {new.name} in place of {found.name}",
                why="a user stack serves it already in its own right",
            )
        self._below[old.slot] = (found.ifindex, found.name)

    def readdress(self, n: NicSpec) -> None:
        """The device has that link-layer address now."""
        with self._lock:
            if entry := self._entry(n.ifindex):
                entry.mac = list(n.mac)
                self._attached.maps.nics[n.ifindex] = entry

    def rename(self, old: Sequence[NicSpec], new: Sequence[NicSpec]) -> None:
        """Slots go on under the names that the devices have now."""
        self._rename({o.name: n.name for o, n in zip(old, new, strict=True)})
        self._state.nics.update({n.name: n.slot for n in new})

    def _rename(self, names: Mapping[str, str]) -> None:
        state = self._state
        state.tc_nics = {names.get(name, name): made for name, made in state.tc_nics.items()}
        state.nics = {names.get(name, name): slot for name, slot in state.nics.items()}


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
    return NicSpec(info.ifindex, info.name, slot, info.rx_queues, _mac(info), _mtu(info), info.bare)


def _mac(info: hal_nic.Nic) -> bytes:
    return bytes(_MAC_BYTES) if info.bare else info.mac


def _mtu(info: hal_nic.Nic) -> int:
    """What its processes go by."""
    return min(info.mtu, _BARE_MTU) if info.bare else info.mtu


def known_of(n: NicSpec) -> tuple[int, str, int, bytes]:
    """What a process that serves it has to know."""
    return n.ifindex, n.name, n.mtu, n.mac


def as_it_is(n: NicSpec, info: hal_nic.Nic) -> NicSpec:
    """The NIC, which is that device now."""
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
