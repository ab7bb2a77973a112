# SPDX-License-Identifier: Apache-2.0
"""What is asked of network devices before a port is chosen for them (hal/choice.py): gathered from
the kernel, for the listing of `dmm-ebpf hal` and for the Resource Director alike.

In the calling thread's network namespace. Reading changes nothing.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from dmm_ebpf.hal import choice, genl, inway, nic
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.loader import bpf

_TCX = {"ingress": bpf.AttachType.TCX_INGRESS, "egress": bpf.AttachType.TCX_EGRESS}


@dataclass(frozen=True)
class Host:
    """What is asked once for all devices. nics: those known, by ifindex."""

    nics: dict[int, nic.Nic]
    xdp: dict[int, genl.XdpFeatures] | Unknown
    qdiscs: list[inway.Qdisc] | Unknown
    hooks: list[inway.NetdevHook] | Unknown


def look(nics: Iterable[nic.Nic]) -> Host:
    """For these devices, as they have just been found."""
    return Host(
        nics={one.ifindex: one for one in nics},
        xdp=genl.xdp_features(),
        qdiscs=inway.qdiscs(),
        hooks=inway.netdev_hooks(),
    )


def gather(nics: Iterable[nic.Nic]) -> dict[int, choice.Facts]:
    """The facts of these devices, by ifindex."""
    host = look(nics)
    masters = {one.master for one in host.nics.values()} - {0} - host.nics.keys()
    host.nics.update({index: found for index in masters if (found := nic.find(index, ""))})
    return {
        one.ifindex: facts(one, host) for one in host.nics.values() if one.ifindex not in masters
    }


def xdp_of(one: nic.Nic, host: Host) -> genl.XdpFeatures:
    """What a device's driver has of XDP."""
    if isinstance(host.xdp, Unknown):
        features = genl.no_xdp_answer(host.xdp.why)
        # That one runs there natively is told by the device itself, on any kernel.
        return dataclasses.replace(features, native=True) if one.xdp_mode == "native" else features
    return host.xdp.get(one.ifindex) or genl.no_xdp_answer(
        "the kernel's netdev family does not list it"
    )


def kind_of(one: nic.Nic) -> str:
    """As ip(8) calls it; TUN and TAP have one name there."""
    if one.kind == "tun" and one.ethernet:
        return "tap"
    return one.kind or ("loopback" if one.loopback else "hardware" if one.bus else "other")


def facts(one: nic.Nic, host: Host) -> choice.Facts:
    """Those of one device of the host's."""
    master = host.nics.get(one.master)
    xdp = xdp_of(one, host)
    return choice.Facts(
        name=one.name,
        driver=one.driver,
        kind=kind_of(one),
        loopback=one.loopback,
        own=one.name.startswith(nic.OWN_PREFIX),
        external=one.external,
        carries_ip=one.carries_ip,
        bare=one.bare,
        master=master.name if master else "",
        master_kind=master.kind if master else "",
        mtu=one.mtu,
        page=os.sysconf("SC_PAGE_SIZE"),
        native_xdp=xdp.native,
        zero_copy=xdp.zero_copy,
        frags=xdp.frags,
        foreign_xdp=_foreign_xdp(one),
        qdisc=host.qdiscs
        if isinstance(host.qdiscs, Unknown)
        else inway.root_qdisc(host.qdiscs, one.ifindex),
        filters=_filters(one, host.qdiscs),
        hooks=host.hooks
        if isinstance(host.hooks, Unknown)
        else tuple(hook.what for hook in host.hooks if hook.on(one.name)),
    )


def _foreign_xdp(one: nic.Nic) -> str | Unknown:
    """The program that is not ours, by name and id."""
    if not one.has_xdp:
        return ""
    name = _program(one.xdp_prog_id)
    if isinstance(name, Unknown):
        return name
    return "" if name.startswith(inway.OURS) else f"{name or 'without name'} (id {one.xdp_prog_id})"


def _program(number: int) -> str | Unknown:
    try:
        fd = bpf.prog_by_id(number)
    except OSError as error:
        if error.errno == errno.EPERM:
            return Unknown("CAP_SYS_ADMIN is needed to look at BPF programs")
        return Unknown(f"BPF program {number}: {error.strerror}")
    try:
        return bpf.prog_info(fd).name
    finally:
        os.close(fd)


def _filters(one: nic.Nic, qdiscs: list[inway.Qdisc] | Unknown) -> tuple[str, ...] | Unknown:
    """Those of tc(8) and those of BPF links (tcx), which tc does not list."""
    classic = qdiscs if isinstance(qdiscs, Unknown) else inway.filters(qdiscs, one.ifindex)
    links = _tcx(one.ifindex)
    if isinstance(classic, Unknown):
        return classic
    return links if isinstance(links, Unknown) else (*classic, *links)


def _tcx(index: int) -> tuple[str, ...] | Unknown:
    found: list[str] = []
    for direction, hook in _TCX.items():
        try:
            # The kernel reads an ifindex where a cgroup has its descriptor.
            _, ids = bpf.prog_query(index, hook)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return ()  # a kernel without tcx
            if error.errno == errno.EPERM:
                return Unknown("CAP_NET_ADMIN is needed to list tcx programs")
            return Unknown(f"tcx programs: {error.strerror}")
        for number in ids:
            name = _program(number)
            if not isinstance(name, str) or not name.startswith(inway.OURS):
                found.append(
                    f"{direction} tcx {name if isinstance(name, str) and name else f'program {number}'}"
                )
    return tuple(found)
