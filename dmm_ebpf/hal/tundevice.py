# SPDX-License-Identifier: Apache-2.0
"""Taking away TUN and TAP devices of stack processes that have ended.

The kernel removes them with their process, unless somebody has made one persistent or holds its descriptor too. Only
devices of kind tun are touched. Works in the calling thread's namespace.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from dmm_ebpf.hal.netlink import RouteSocket, attributes, explained
from dmm_ebpf.hal.nic import ifindex_of

_RTM_DELLINK, _RTM_GETLINK = 17, 18
_IFLA_LINKINFO, _IFLA_CARRIER = 18, 33
_IFLA_INFO_KIND = 1
_GONE = (errno.ENODEV, errno.ENXIO)


def _ifinfo(index: int) -> bytes:
    """struct ifinfomsg"""
    return struct.pack("=BxHiII", 0, 0, index, 0, 0)


def _may_go(link: bytes, idle_only: bool) -> bool:
    values = dict(attributes(link, 16))
    info = dict(attributes(values.get(_IFLA_LINKINFO, b"")))
    if info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") != b"tun":
        return False
    # The driver takes the carrier away with the last descriptor.
    return not (idle_only and values.get(_IFLA_CARRIER) == b"\1")


def remove(names: Iterable[str], *, idle_only: bool = False) -> list[str]:
    """Removes those of the devices that are there, or only those that no process has open; returns their names. Raises
    DmmError.
    """
    found = {name: index for name in names if (index := ifindex_of(name)) is not None}
    if not found:
        return []
    removed = []
    with explained(f"remove the devices {', '.join(found)}"), RouteSocket() as sock:
        for name, index in found.items():
            try:
                if _may_go(sock.get(_RTM_GETLINK, _ifinfo(index)), idle_only):
                    sock.change(_RTM_DELLINK, 0, _ifinfo(index))
                    removed.append(name)
            except OSError as exc:
                if exc.errno not in _GONE:
                    raise
    return removed
