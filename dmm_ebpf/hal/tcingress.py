# SPDX-License-Identifier: Apache-2.0
"""The clsact qdisc and the direct-action BPF program at the ingress of a TUN device.

The program marks what a stack sends to the kernel. Only devices of ours are touched (they are made and die
with their stack process, and qdisc and filter with them), so nothing of anybody else's can be replaced
here.
"""

from __future__ import annotations

import errno
import socket
import struct

from dmm_ebpf.errors import UsageError
from dmm_ebpf.hal.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RouteSocket,
    attribute,
    attribute_u32,
    attributes,
    explained,
)
from dmm_ebpf.hal.nic import TUN_PREFIX

# linux/rtnetlink.h and pkt_sched.h
_RTM_NEWQDISC, _RTM_NEWTFILTER, _RTM_GETTFILTER = 36, 44, 46
_TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_PARENT_INGRESS = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
_HANDLE = 0x1
_PRIO = 1
_ETH_P_ALL = 0x0003
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS = 6, 7, 8
_TCA_BPF_FLAG_ACT_DIRECT = 1


def attach(ifindex: int, prog_fd: int, name: str = "dmm_tun") -> None:
    """Puts the program at the device's ingress, in place of a former one of ours. Raises DmmError."""
    what = f"attach a tc program to device {ifindex}"
    with explained(what), RouteSocket() as sock:
        if not socket.if_indextoname(ifindex).startswith(TUN_PREFIX):
            raise UsageError(what, why="it is not a device of a user stack")
        _ensure_clsact(sock, ifindex)
        options = (
            attribute_u32(_TCA_BPF_FD, prog_fd)
            + attribute(_TCA_BPF_NAME, name.encode() + b"\0")
            + attribute_u32(_TCA_BPF_FLAGS, _TCA_BPF_FLAG_ACT_DIRECT)
        )
        info = _PRIO << 16 | socket.htons(_ETH_P_ALL)
        payload = _TCMSG.pack(0, ifindex, _HANDLE, _PARENT_INGRESS, info)
        payload += attribute(_TCA_KIND, b"bpf\0") + attribute(_TCA_OPTIONS, options)
        sock.change(_RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, payload)


def _ensure_clsact(sock: RouteSocket, ifindex: int) -> None:
    payload = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_TCA_KIND, b"clsact\0")
    try:
        sock.change(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, payload)
    except OSError as exc:
        if exc.errno != errno.EEXIST:
            raise


def attached(ifindex: int) -> list[str]:
    """Names of the BPF programs at the device's ingress."""
    with explained(f"list the tc programs of device {ifindex}"), RouteSocket() as sock:
        found = []
        for body in sock.dump(_RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, _PARENT_INGRESS, 0)):
            options = dict(attributes(body, _TCMSG.size)).get(_TCA_OPTIONS, b"")
            name = dict(attributes(options)).get(_TCA_BPF_NAME, b"")
            if name:
                found.append(name.rstrip(b"\0").decode())
        return found
