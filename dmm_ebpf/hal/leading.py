# SPDX-License-Identifier: Apache-2.0
"""The devices by which default routes lead, of any table, followed by the kernel's events.

A host may have a million routes that come and go, so it is not asked for all of them again: the
kernel hands out events of default routes alone (a classic filter, socket(7), SO_ATTACH_FILTER), and
a device by which one has led stays among them. Halves of all addresses are default routes too, as
VPNs set them.
"""

from __future__ import annotations

import array
import socket
import struct

from dmm_ebpf.closing import Closing
from dmm_ebpf.hal import netlink, rtnl
from dmm_ebpf.hal.netlink import RouteSocket

_GROUPS = 0x40 | 0x400  # RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_MOST_BITS = 1  # of the destination of such a route
_DST_LEN_AT = 17  # in a message: struct nlmsghdr, then struct rtmsg
_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_LOAD_BYTE, _IF_GREATER, _RETURN = 0x30, 0x25, 0x06  # BPF_LD|B|ABS, BPF_JMP|JGT|K, BPF_RET|K


def events() -> socket.socket:
    """An event socket (netlink.py) that hears of default routes alone."""
    program = b"".join(
        _INSTRUCTION.pack(*one)
        for one in (
            (_LOAD_BYTE, 0, 0, _DST_LEN_AT),
            (_IF_GREATER, 0, 1, _MOST_BITS),
            (_RETURN, 0, 0, 0),
            (_RETURN, 0, 0, 0xFFFFFFFF),
        )
    )
    held = array.array("B", program)
    address, _ = held.buffer_info()
    sock = netlink.event_socket(_GROUPS)
    filtering = struct.pack("@HP", len(program) // _INSTRUCTION.size, address)  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtering)
    return sock


class Leading(Closing):
    """Works in the network namespace of the thread that makes it; for one thread at a time."""

    def __init__(self) -> None:
        self._events = events()
        self._devices = _asked()

    def close(self) -> None:
        """Closes its socket."""
        self._events.close()

    def devices(self) -> set[int]:
        """Their ifindexes; of devices that have gone, too."""
        told = netlink.heard(self._events)
        if told is None:
            self._devices |= _asked()
        for kind, body in told or ():
            if kind == rtnl.RTM_NEWROUTE:
                self._devices |= _devices_of(rtnl.route_of(body))
        return self._devices


def _devices_of(route: rtnl.Route) -> set[int]:
    leads = route.dst_len <= _MOST_BITS and route.type == rtnl.RTN_UNICAST
    return set(route.devices) if leads else set()


def _asked() -> set[int]:
    found: set[int] = set()
    with RouteSocket() as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in rtnl.routes(sock, family):
                found |= _devices_of(route)
    return found
