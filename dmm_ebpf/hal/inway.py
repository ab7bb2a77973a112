# SPDX-License-Identifier: Apache-2.0
"""What of other people's stands on a device, that packets on AF_XDP would go around: qdiscs, tc
filters, nft hooks.

By rtnetlink and nfnetlink, in the calling thread's network namespace. Reading changes nothing.
Messages are decoded by pure functions, in the layouts of tcmsg.py and linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.hal.netlink import NetlinkSocket, RouteSocket, attributes
from dmm_ebpf.hal.tcmsg import (
    HOOKS,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    TCA_BPF_NAME,
    TCA_CHAIN,
    TCA_KIND,
    TCA_OPTIONS,
    TCMSG,
)

_TC_H_ROOT = 0xFFFFFFFF

_NETLINK_NETFILTER = 12
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_GETCHAIN, _GETFLOWTABLE = 4, 23
_NFGENMSG = struct.Struct("=BBH")  # struct nfgenmsg: family, version, resource
_CHAIN_NAME, _CHAIN_HOOK = 3, 4
_FLOWTABLE_NAME, _FLOWTABLE_HOOK = 2, 3
_HOOK_DEV, _HOOK_DEVS = 3, 4
_FLOWTABLE_HOOK_DEVS = 3
_TABLE = 1
_DEVICE_NAME, _DEVICE_PREFIX = 1, 2

OURS = "dmm_"  # so begin the names of our BPF programs


@dataclass(frozen=True)
class Qdisc:
    """One of a device. made: by somebody, not by the kernel, whose own have no handle."""

    index: int
    kind: str
    root: bool
    made: bool


@dataclass(frozen=True)
class NetdevHook:
    """What an nft chain or flowtable hooks to devices. prefixes: of the names of more."""

    what: str
    devices: tuple[str, ...]
    prefixes: tuple[str, ...] = ()

    def on(self, device: str) -> bool:
        """Whether it is on a device of that name."""
        return device in self.devices or device.startswith(self.prefixes)


def qdisc_of(body: bytes) -> Qdisc | None:
    """From an answer to RTM_GETQDISC; None: it is cut short."""
    if len(body) < TCMSG.size:
        return None
    _, index, handle, parent, _ = TCMSG.unpack_from(body)
    kind = _text(dict(attributes(body, TCMSG.size)).get(TCA_KIND, b""))
    return Qdisc(index, kind, parent == _TC_H_ROOT, handle != 0)


@dataclass(frozen=True)
class Filter:
    """A record of a dump of tc filters. place: its priority, protocol and chain. told: its kind,
    and the name of its BPF program. whole: it is a filter, and not what the dump says of each place
    besides, without a handle.
    """

    place: tuple[int, bytes]
    told: str
    ours: bool
    whole: bool


def filter_of(body: bytes) -> Filter | None:
    """From an answer to RTM_GETTFILTER; None: it is cut short."""
    if len(body) < TCMSG.size:
        return None
    _, _, handle, _, info = TCMSG.unpack_from(body)
    values = dict(attributes(body, TCMSG.size))
    kind = _text(values.get(TCA_KIND, b""))
    program = (
        _text(dict(attributes(values.get(TCA_OPTIONS, b""))).get(TCA_BPF_NAME, b""))
        if kind == "bpf"
        else ""
    )
    place = (info, values.get(TCA_CHAIN, b""))
    return Filter(place, f"{kind} {program}".strip(), program.startswith(OURS), handle != 0)


def others(bodies: Iterable[bytes]) -> list[str]:
    """Other people's filters of a dump, each that tells itself apart once. Of a place without any
    (cls_fw has no handle when it is the old kind, by the mark alone) its kind.
    """
    found = [one for one in map(filter_of, bodies) if one is not None]
    filled = {one.place for one in found if one.whole}
    told = (one.told for one in found if not one.ours and (one.whole or one.place not in filled))
    return list(dict.fromkeys(told))


def hook_of(body: bytes, *, flowtable: bool = False) -> NetdevHook | None:
    """From an answer to NFT_MSG_GETCHAIN or NFT_MSG_GETFLOWTABLE; None: it hooks to no device."""
    values = dict(attributes(body, _NFGENMSG.size))
    name, hook, named = (
        (_FLOWTABLE_NAME, _FLOWTABLE_HOOK, _FLOWTABLE_HOOK_DEVS)
        if flowtable
        else (_CHAIN_NAME, _CHAIN_HOOK, _HOOK_DEVS)
    )
    nested = dict(attributes(values.get(hook, b"")))
    listed = list(attributes(nested.get(named, b"")))
    devices = [_text(value) for kind, value in listed if kind == _DEVICE_NAME]
    if not flowtable and _HOOK_DEV in nested:
        devices.insert(0, _text(nested[_HOOK_DEV]))
    prefixes = [_text(value) for kind, value in listed if kind == _DEVICE_PREFIX]
    if not devices and not prefixes:
        return None
    what = f"{'flowtable ' if flowtable else ''}{_text(values.get(_TABLE, b''))} {_text(values.get(name, b''))}"
    return NetdevHook(what.strip(), tuple(dict.fromkeys(devices)), tuple(prefixes))


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")


def qdiscs() -> list[Qdisc] | Unknown:
    """Of every device."""
    try:
        with RouteSocket() as sock:
            found = [qdisc_of(body) for body in sock.dump(RTM_GETQDISC, bytes(TCMSG.size))]
    except OSError as error:
        return Unknown(os.strerror(error.errno or 0))
    return [one for one in found if one is not None]


def root_qdisc(of_all: Iterable[Qdisc], index: int) -> str:
    """The kind of the root qdisc that somebody gave to a device; empty: it has the kernel's
    default, or none.
    """
    return next((one.kind for one in of_all if one.index == index and one.root and one.made), "")


def filters(of_all: Iterable[Qdisc], index: int) -> tuple[str, ...] | Unknown:
    """Other people's tc filters at a device's ingress and egress; those of other qdiscs come
    with a root qdisc.
    """
    if not any(one.index == index and one.kind in ("clsact", "ingress") for one in of_all):
        return ()
    try:
        with RouteSocket() as sock:
            return tuple(dict.fromkeys(_filters(sock, index)))
    except OSError as error:
        return Unknown(os.strerror(error.errno or 0))


def _filters(sock: RouteSocket, index: int) -> Iterator[str]:
    for parent, direction in HOOKS.items():
        for told in others(sock.dump(RTM_GETTFILTER, TCMSG.pack(0, index, 0, parent, 0))):
            yield f"{direction} {told}"


def netdev_hooks() -> list[NetdevHook] | Unknown:
    """Every nft chain and flowtable with a hook at a device. CAP_NET_ADMIN is needed."""
    found: list[NetdevHook | None] = []
    try:
        with NetlinkSocket(_NETLINK_NETFILTER) as sock:
            for message in (_GETCHAIN, _GETFLOWTABLE):
                bodies = sock.dump(_NFTABLES << 8 | message, _NFGENMSG.pack(0, 0, 0))
                found += [hook_of(body, flowtable=message == _GETFLOWTABLE) for body in bodies]
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return []  # a kernel without nf_tables
        if error.errno in (errno.EPERM, errno.EACCES):
            return Unknown("CAP_NET_ADMIN is needed to list nft hooks")
        return Unknown(os.strerror(error.errno or 0))
    return [one for one in found if one is not None]
