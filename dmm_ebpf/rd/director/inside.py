# SPDX-License-Identifier: Apache-2.0
"""The devices by which packets of others come in, and our program at their ingress: hosts' ends of
containers' veths, bridges, a gateway's LAN.

They come and go: a container that starts brings its own. So they are looked at like everything that
has to stand (guard.py), at once when the kernel tells of a new device. Which rules for forwarded
flows hold for which device is told to the programs by a bit for each rule (`inside`), for both
halves of the policy; of a NIC of a user stack, too, whose own program asks for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from dmm_ebpf import abi
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal import rtnl, tcfilter
from dmm_ebpf.hal.netlink import RouteSocket
from dmm_ebpf.loader import Attached
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.nics import tc_name
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.rd.policy.values import is_named
from dmm_ebpf.threads import in_thread

_ARPHRD_ETHER = 1
_IFF_LOOPBACK = 0x8
_PAIRS = frozenset(
    {"veth", "netkit"}
)  # kinds of devices that come in twos, one of them in a container

log = logging.getLogger("dmm-ebpf")

ByDevice = Sequence[tuple[str, ...] | None]


class Device(NamedTuple):
    """bits: see bits_of(); bare: without link header; ours: our program is to be there."""

    name: str
    bits: int
    bare: bool
    ours: bool


def bits_of(names: Iterable[str], taken: bool, by_device: ByDevice) -> int:
    """Which rules hold for packets that come in by a device. names: all that it is called. taken: a
    bridge or a bond takes what it receives; then only rules that name it are meant. by_device: for
    each rule the patterns of names; None: every device.
    """
    found, called = 0, tuple(names)
    for number, patterns in enumerate(by_device):
        if not taken if patterns is None else any(is_named(name, patterns) for name in called):
            found |= 1 << number
    return found


def is_outside(link: rtnl.Link) -> bool:
    """Whether nothing of others comes in by it that we could look at: lo, our own devices,
    those that carry no IP.
    """
    return (
        not (link.type == _ARPHRD_ETHER or hal_nic.is_bare(link))
        or bool(link.flags & _IFF_LOOPBACK)
        or link.name.startswith(hal_nic.OWN_PREFIX)
    )


def is_containers(link: rtnl.Link) -> bool:
    """Whether what comes in by it may have a container's socket still. A bridge's port is asked,
    not the bridge: there netfilter has taken the socket off (br_netfilter).
    """
    return link.kind in _PAIRS and link.peer_away


def wanted(
    links: Iterable[rtnl.Link], nics: Collection[int], by_device: ByDevice, *, containers: bool
) -> dict[int, Device]:
    """Devices by ifindex. nics: those that have the programs of a NIC."""
    every = list(links)
    takers = {link.index for link in every if link.kind in hal_nic.TAKE_ALL}
    found = {}
    for link in every:
        if is_outside(link):
            continue
        bits = bits_of(link.names, link.master in takers, by_device)
        if bits or (containers and is_containers(link)):
            found[link.index] = Device(
                link.name, bits, hal_nic.is_bare(link), link.index not in nics
            )
    return found


class Inside(Item):
    """Those of one instance. Works in its network namespace."""

    def __init__(
        self,
        attached: Attached,
        state: State,
        nics: Callable[[], set[int]],
        save: Callable[[], None],
    ) -> None:
        """nics: the ifindexes of devices that have the programs of a NIC now.
        save writes state.json.
        """
        super().__init__("devices by which packets of others come in")
        self._attached = attached
        self._state = state
        self._nics = nics
        self._save = save
        self._by_device: ByDevice = ()
        self._half = 0
        self._closed = False
        self._lock = (
            threading.Lock()
        )  # what is looked at by the guard is also changed by a new policy
        self._wanted: dict[int, Device] = {}

    def prepare(self, half: int, by_device: ByDevice) -> None:
        """Before a policy is in force: its half of every device's bits."""
        for ifindex, device in self._now(by_device).items():
            self._write(ifindex, half, device)

    def put_in_force(self, half: int, by_device: ByDevice) -> None:
        """From now on these rules hold. What cannot be done now the guard tries
        again, and tells.
        """
        with self._lock, suppress(DmmError, OSError):
            self._half, self._by_device = half, by_device
            self._mend()

    def _now(self, by_device: ByDevice) -> dict[int, Device]:
        if self._closed or not (by_device or self._state.containers):
            return {}
        with RouteSocket() as sock:
            links = rtnl.links(sock)
        return wanted(links, self._nics(), by_device, containers=self._state.containers)

    def _write(self, ifindex: int, half: int, device: Device) -> None:
        inside = self._attached.maps.inside
        known = inside.get(ifindex)
        if known is None or known.forwards[half] != device.bits:
            entry = known or abi.new("dmm_inside")
            entry.forwards[half], entry.bare = device.bits, device.bare
            inside[ifindex] = entry

    def _known(self) -> dict[int, int]:
        """The bits in force of each device that the programs know."""
        return {
            ifindex: one.forwards[self._half] for ifindex, one in self._attached.maps.inside.items()
        }

    def look(self) -> str:
        """See Item."""
        with self._lock:
            return self._look()

    def _look(self) -> str:
        self._wanted = self._now(self._by_device)
        known = self._known()
        if known != {ifindex: device.bits for ifindex, device in self._wanted.items()}:
            return "others than before are there"
        off = [one.name for index, one in self._wanted.items() if one.ours != self._is_on(index)]
        return f"our tc program on {', '.join(off)} is not as it should be" if off else ""

    def _is_on(self, ifindex: int) -> bool:
        return self._attached.has_inside(ifindex) or (
            not self._attached.has_tcx(ifindex) and self._has_filter(ifindex)
        )

    def _has_filter(self, ifindex: int) -> bool:
        name = tc_name(self._state.instance)
        return tcfilter.attached_inside(ifindex, name) and not tcfilter.attached_nic(ifindex, name)

    async def mend(self) -> None:
        """See Item."""
        await in_thread(self._mend_locked)

    def _mend_locked(self) -> None:
        with self._lock:
            self._mend()

    def _mend(self) -> None:
        self._wanted = self._now(self._by_device)
        for ifindex in self._known().keys() - self._wanted.keys():
            self._take_off(ifindex)
            self._attached.maps.inside.delete(ifindex)
        for ifindex, device in self._wanted.items():
            self._write(ifindex, self._half, device)
            if not device.ours:
                self._take_off(ifindex)
            elif not self._is_on(ifindex):
                self._put_on(ifindex, device.name)

    def _put_on(self, ifindex: int, name: str) -> None:
        log.info("tc program on %s, by which packets of others come in", name)
        if self._attached.attach_inside(ifindex):
            return
        self._state.tc_inside[name] = not tcfilter.has_clsact(ifindex)
        self._save()
        tcfilter.attach_nic(ifindex, (self._attached.inside_fd(),), tc_name(self._state.instance))

    def _take_off(self, ifindex: int) -> None:
        self._attached.detach_inside(ifindex)
        name = hal_nic.name_of(ifindex)
        if name is not None and self._has_filter(ifindex):
            clsact = self._state.tc_inside.pop(name, False)
            tcfilter.detach_nic(ifindex, tc_name(self._state.instance), clsact=clsact)

    def close(self) -> None:
        """Takes the program off every device."""
        with self._lock:
            self._closed = True
            for ifindex in self._known():
                self._take_off(ifindex)
                self._attached.maps.inside.delete(ifindex)
