# SPDX-License-Identifier: Apache-2.0
"""Direct-action BPF programs at ingress and egress of devices: the clsact qdisc, and filters known
by a name of ours.

On a device of a stack process nobody else has anything; qdisc and filter die with the device. A NIC
is the host's, and there this is for kernels without tcx (before 6.6): our filter goes in front of
those that it meets, each instance has its own, and clsact is taken away again only by who made it,
when nothing is left in it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dmm_ebpf.errors import ConflictError, UsageError
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
from dmm_ebpf.hal.nic import OWN_PREFIX
from dmm_ebpf.hal.tcmsg import (
    HOOKS,
    INGRESS,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TCA_BPF_FD,
    TCA_BPF_FLAGS,
    TCA_BPF_NAME,
    TCA_KIND,
    TCA_OPTIONS,
    TCMSG,
)

# linux/pkt_sched.h and pkt_cls.h
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_HANDLE = 0x1
_PRIO = 1
_NIC_PRIO = 100  # or less, so as to come before what is there
_ETH_P_ALL = 0x0003
_TCA_BPF_FLAG_ACT_DIRECT = 1
_GONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)  # no such filter, no clsact, no device
_DEVICE_NAME = "dmm_inner"
NAME_PREFIX = "dmm_tc:"  # of the filters of every instance


@dataclass(frozen=True)
class _Filter:
    handle: int
    info: int  # priority and protocol, as struct tcmsg has them
    name: str  # of a BPF program; empty: another kind

    @property
    def prio(self) -> int:
        """1 comes first."""
        return self.info >> 16


def attach(ifindex: int, prog_fd: int) -> None:
    """Puts the program at the ingress of a stack process's device, in place of a former one of
    ours. Raises DmmError.
    """
    what = f"attach a tc program to device {ifindex}"
    with explained(what), RouteSocket() as sock:
        if not socket.if_indextoname(ifindex).startswith(OWN_PREFIX):
            raise UsageError(what, why="it is not a device of a user stack")
        _ensure_clsact(sock, ifindex)
        _add(
            sock,
            ifindex,
            INGRESS,
            prog_fd,
            _DEVICE_NAME,
            prio=_PRIO,
            flags=NLM_F_CREATE | NLM_F_REPLACE,
        )


def attach_nic(ifindex: int, prog_fds: Sequence[int], name: str) -> None:
    """Puts programs at ingress and, if there are two, egress of a device, before the filters of
    others that are there, under that name. One that is there already stays, or moves to the front.
    Raises DmmError.
    """
    with explained(f"attach a tc program to device {ifindex}"), RouteSocket() as sock:
        for parent, prog_fd in zip(HOOKS, prog_fds, strict=False):
            _attach_first(sock, ifindex, parent, prog_fd, name)


def _attach_first(sock: RouteSocket, ifindex: int, parent: int, prog_fd: int, name: str) -> None:
    there = list(_filters(sock, ifindex, parent))
    if any(one.name == name for one in there) and not _overtakes(there, name):
        return
    first = min((one.prio for one in there), default=_NIC_PRIO + 1)
    if first <= 1:
        raise ConflictError(
            f"attach a tc program to device {ifindex}",
            why=f"another tc filter has priority 1 at its {HOOKS[parent]}, and nothing comes before that",
            hint="give that one another priority: tc filter add ... pref 100",
        )
    _ensure_clsact(sock, ifindex)
    prio = min(first - 1, _NIC_PRIO)
    _add(sock, ifindex, parent, prog_fd, name, prio=prio, flags=NLM_F_CREATE | NLM_F_EXCL)
    for one in there:
        if one.name == name:
            _delete(sock, ifindex, parent, one)


def _overtakes(there: Sequence[_Filter], name: str) -> bool:
    """Whether a filter of another's comes before ours: what it lets pass, or ends, ours never
    sees (tc-bpf(8): any action but TC_ACT_UNSPEC ends the search).
    """
    ours = min((one.prio for one in there if one.name == name), default=0)
    return any(one.prio < ours and not one.name.startswith(NAME_PREFIX) for one in there)


def has_clsact(ifindex: int) -> bool:
    """Whether the device has the qdisc, whoever made it. Raises DmmError."""
    with explained(f"list the qdiscs of device {ifindex}"), RouteSocket() as sock:
        return b"clsact\0" in _qdiscs(sock, ifindex)


def _qdiscs(sock: RouteSocket, ifindex: int) -> list[bytes]:
    """The kinds of the device's qdiscs, as the kernel writes them."""
    bodies = sock.dump(RTM_GETQDISC, TCMSG.pack(0, ifindex, 0, 0, 0))
    return [
        dict(attributes(body, TCMSG.size)).get(TCA_KIND, b"")
        for body in bodies
        if TCMSG.unpack_from(body)[1] == ifindex
    ]


def detach_nic(ifindex: int, name: str, *, clsact: bool) -> bool:
    """Takes the programs of that name off a NIC, which may be gone; clsact: the qdisc too, if it is
    empty then. Returns whether there was one. Raises DmmError.
    """
    with explained(f"take the tc programs off device {ifindex}"), RouteSocket() as sock:
        found = [
            (parent, one)
            for parent in HOOKS
            for one in _filters(sock, ifindex, parent)
            if one.name == name
        ]
        for parent, one in found:
            _delete(sock, ifindex, parent, one)
        if clsact and not any(one for parent in HOOKS for one in _filters(sock, ifindex, parent)):
            payload = TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(
                TCA_KIND, b"clsact\0"
            )
            _change_if_there(sock, RTM_DELQDISC, payload)
        return bool(found)


def _add(
    sock: RouteSocket, ifindex: int, parent: int, prog_fd: int, name: str, *, prio: int, flags: int
) -> None:
    options = (
        attribute_u32(TCA_BPF_FD, prog_fd)
        + attribute(TCA_BPF_NAME, name.encode() + b"\0")
        + attribute_u32(TCA_BPF_FLAGS, _TCA_BPF_FLAG_ACT_DIRECT)
    )
    info = prio << 16 | socket.htons(_ETH_P_ALL)
    payload = TCMSG.pack(0, ifindex, _HANDLE, parent, info)
    payload += attribute(TCA_KIND, b"bpf\0") + attribute(TCA_OPTIONS, options)
    sock.change(RTM_NEWTFILTER, flags, payload)


def _delete(sock: RouteSocket, ifindex: int, parent: int, one: _Filter) -> None:
    payload = TCMSG.pack(0, ifindex, one.handle, parent, one.info)
    _change_if_there(sock, RTM_DELTFILTER, payload + attribute(TCA_KIND, b"bpf\0"))


def _change_if_there(sock: RouteSocket, kind: int, payload: bytes) -> None:
    try:
        sock.change(kind, 0, payload)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _ensure_clsact(sock: RouteSocket, ifindex: int) -> None:
    payload = TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(TCA_KIND, b"clsact\0")
    try:
        sock.change(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, payload)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        # It has the same handle, and takes filters for egress as if they were for ingress.
        if b"ingress\0" in _qdiscs(sock, ifindex):
            raise ConflictError(
                f"attach a tc program to device {ifindex}",
                why="it has an ingress qdisc, beside which the kernel takes no clsact",
                hint="make that a clsact, which has its hook, too: tc qdisc del dev ... ingress; "
                "tc qdisc add dev ... clsact",
            ) from error


def _filters(sock: RouteSocket, ifindex: int, parent: int) -> Iterator[_Filter]:
    try:
        bodies = sock.dump(RTM_GETTFILTER, TCMSG.pack(0, ifindex, 0, parent, 0))
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return
    for body in bodies:
        _, _, handle, _, info = TCMSG.unpack_from(body)
        options = dict(attributes(body, TCMSG.size)).get(TCA_OPTIONS, b"")
        name = (
            dict(attributes(options)).get(TCA_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
        )
        if handle:  # a dump names each priority once more, without a handle
            yield _Filter(handle, info, name)


def attached(ifindex: int) -> list[str]:
    """Names of the BPF programs at the device's ingress."""
    return _names(ifindex, INGRESS)


def attached_nic(ifindex: int, name: str) -> bool:
    """Whether the programs of that name are at both of the NIC's hooks."""
    return all(name in _names(ifindex, parent) for parent in HOOKS)


def overtaken(ifindex: int, name: str) -> str:
    """The hook at which a filter of another's comes before ours of that name; empty: none does."""
    with explained(f"list the tc filters of device {ifindex}"), RouteSocket() as sock:
        for parent in HOOKS:
            if _overtakes(list(_filters(sock, ifindex, parent)), name):
                return HOOKS[parent]
    return ""


def attached_inside(ifindex: int, name: str) -> bool:
    """Whether a program of that name is at the device's ingress."""
    return name in _names(ifindex, INGRESS)


def _names(ifindex: int, parent: int) -> list[str]:
    with explained(f"list the tc programs of device {ifindex}"), RouteSocket() as sock:
        return [one.name for one in _filters(sock, ifindex, parent) if one.name]
