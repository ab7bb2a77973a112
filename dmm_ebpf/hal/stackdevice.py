# SPDX-License-Identifier: Apache-2.0
"""The TAP devices of stack processes: their names by the process's number, and taking away those
that were left.

The kernel removes them with their process, unless somebody has made one persistent or holds its
descriptor too. Only devices of kind tun are touched. Works in the calling thread's namespace.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable

from dmm_ebpf import abi
from dmm_ebpf.hal import rtnl
from dmm_ebpf.hal.netlink import RouteSocket, explained
from dmm_ebpf.hal.nic import OWN_PREFIX

_GONE = (errno.ENODEV, errno.ENXIO)


MAX_K = abi.C.DMM_MAX_STACKS  # process numbers of a namespace are below it


def name_of(k: int) -> str:
    """What the names of all devices of process number k begin with, and what listings call it."""
    return f"{OWN_PREFIX}{k}"


def inner(name: str, slot: int) -> str:
    """The device by which the process has its inner leg on the NIC of that slot. name:
    name_of() its number.
    """
    return f"{name}.{slot}.in"


def outer(name: str, slot: int) -> str:
    """The device by which packets come from the wire of that NIC, where no AF_XDP
    socket takes them.
    """
    return f"{name}.{slot}.out"


def numbers_in_use() -> set[int]:
    """Every number of which a device exists in this namespace, whoever made it."""
    with explained("list devices"), RouteSocket() as sock:
        names = [link.name for link in rtnl.links(sock)]
    numbers = (
        name.removeprefix(OWN_PREFIX).split(".")[0] for name in names if name.startswith(OWN_PREFIX)
    )
    return {int(number) for number in numbers if number.isdecimal()}


def dropped() -> dict[str, int]:
    """By the name of a process (name_of()) the packets that found the queue of a device of its
    full. What it writes to them is not told by the kernel alone: a question that was answered
    (struct dmm_ask) counts as dropped there. Raises DmmError.
    """
    with explained("read the counters of devices"), RouteSocket() as sock:
        found = rtnl.tx_dropped(sock)
    totals: Counter[str] = Counter()
    for device, packets in found.items():
        if device.startswith(OWN_PREFIX):
            totals[device.split(".")[0]] += packets
    return dict(totals)


def remove_all(k: int) -> list[str]:
    """Takes away what outlived process number k, and tells what went. Idempotent."""
    slots = range(abi.C.DMM_MAX_NICS)
    names = [leg(name_of(k), slot) for slot in slots for leg in (inner, outer)]
    return [f"device {name}" for name in remove(names)]


def _may_go(link: rtnl.Link, idle_only: bool) -> bool:
    # The driver takes the carrier away with the last descriptor.
    return link.kind == "tun" and not (idle_only and link.carrier)


def remove(names: Iterable[str], *, idle_only: bool = False) -> list[str]:
    """Removes those of the devices that are there, or only those that no process has open; returns
    their names. Raises DmmError.
    """
    removed = []
    with RouteSocket() as sock:
        for name in names:
            with explained(f"remove the device {name}"):
                if _remove(sock, name, idle_only):
                    removed.append(name)
    return removed


def _remove(sock: RouteSocket, name: str, idle_only: bool) -> bool:
    link = rtnl.named(sock, name)
    if link is None or not _may_go(link, idle_only):
        return False
    try:
        rtnl.remove(sock, link.index)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return False
    return True
