# SPDX-License-Identifier: Apache-2.0
"""What `dmm-ebpf hal` tells of each network device, as rows of plain values.

A value is the thing itself; null where the device has no such thing; true and false are yes and no; and what nobody
could tell is {"could_not_tell": reason}. Nothing is changed on the host, and nothing is concluded from a version.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.cli.output import Row
from dmm_ebpf.errors import UsageError
from dmm_ebpf.hal import choice, genl, inway, nic, rss, sysfs
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import bpf

COULD_NOT_TELL = "could_not_tell"
_TCX = {"ingress": bpf.AttachType.TCX_INGRESS, "egress": bpf.AttachType.TCX_EGRESS}


@dataclass(frozen=True)
class _Host:
    """What is asked once for all devices."""

    nics: dict[int, nic.Nic]
    ethtool: dict[int, genl.EthtoolAnswers]
    xdp: dict[int, genl.XdpFeatures] | Unknown
    qdiscs: list[inway.Qdisc] | Unknown
    hooks: list[inway.NetdevHook] | Unknown
    rdma: tuple[sysfs.RdmaPort, ...] | Unknown
    served: frozenset[int]


def listing(devices: Sequence[str], netns: str | None) -> list[Row]:
    """A row for each device of a network namespace, or for each of those named. Raises UsageError for one that is not
    there.
    """
    with NetNS.from_arg(netns) as namespace:
        return namespace.run_in(_rows, devices)


def _rows(devices: Sequence[str]) -> list[Row]:
    everything = nic.list_nics()
    chosen = _chosen(everything, devices)
    host = _Host(
        nics={one.ifindex: one for one in everything},
        ethtool=genl.ethtool_answers([one.ifindex for one in chosen]),
        xdp=genl.xdp_features(),
        qdiscs=inway.qdiscs(),
        hooks=inway.netdev_hooks(),
        rdma=sysfs.of_this_namespace(sysfs.rdma_ports, {one.name: one.ifindex for one in everything}),
        served=frozenset(one.ifindex for one in nic.serving_nics()),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return [_row(one, host, sock) for one in chosen]


def _chosen(everything: Sequence[nic.Nic], names: Sequence[str]) -> list[nic.Nic]:
    by_name = {one.name: one for one in everything}
    for name in names:
        if name not in by_name:
            raise UsageError(
                f"tell of device {name}",
                why="there is no such device",
                hint=f"there are {', '.join(by_name)}",
            )
    return [by_name[name] for name in dict.fromkeys(names)] if names else list(everything)


def told(value: Any) -> Any:
    """value as JSON has it."""
    if isinstance(value, Unknown):
        return {COULD_NOT_TELL: value.why}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: told(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [told(one) for one in value]
    if isinstance(value, dict):
        return {key: told(one) for key, one in value.items()}
    return value


def _row(one: nic.Nic, host: _Host, sock: socket.socket) -> Row:
    ethtool = host.ethtool[one.ifindex]
    xdp = _xdp(one, host.xdp)
    facts = _facts(one, host, xdp)
    fit = choice.choose(facts)
    now = choice.auto_now(facts, ethernet=one.ethernet)
    return {
        key: told(value)
        for key, value in {
            "name": one.name,
            "ifindex": one.ifindex,
            "kind": _kind(one),
            "driver": one.driver or None,
            "bus": f"{one.bus}/{one.bus_name}" if one.bus else None,
            "up": one.up,
            "mtu": one.mtu,
            "speed_mbps": ethtool.speed,
            "numa_node": sysfs.numa_node(sysfs.SYS, one.bus, one.bus_name),
            "queues": _queues(one, ethtool.channels),
            "rss": rss.rss(sock, one.name),
            "offloads": ethtool.offloads,
            "xdp": {
                "native": xdp.native,
                "transmit": xdp.transmit,
                "frags": xdp.frags,
                "frags_transmit": xdp.frags_transmit,
                "hardware": xdp.hardware,
                "attached": {"mode": one.xdp_mode, "id": one.xdp_prog_id} if one.has_xdp else None,
            },
            "af_xdp": {"mode": _af_xdp(xdp), "zero_copy": xdp.zero_copy, "segments": xdp.zero_copy_segments},
            "metadata": {"rx": xdp.rx_metadata, "tx": xdp.tx_metadata},
            "rdma": host.rdma
            if isinstance(host.rdma, Unknown)
            else [port for port in host.rdma if one.name in port.netdevs],
            "in_the_way": {
                "xdp": facts.foreign_xdp or None,
                "qdisc": facts.qdisc or None,
                "tc_filters": facts.filters,
                "nft_hooks": facts.hooks,
            },
            "fit_for": {"port": fit.port.value, "why": fit.reasons},
            "auto_now": {
                "port": now.port.value,
                "why": now.reasons,
                "by_default": one.ifindex in host.served,
            },
        }.items()
    }


def _kind(one: nic.Nic) -> str:
    """As ip(8) calls it; TUN and TAP have one name there."""
    if one.kind == "tun" and one.ethernet:
        return "tap"
    return one.kind or ("loopback" if one.loopback else "hardware" if one.bus else "other")


def _queues(one: nic.Nic, channels: genl.Channels | Unknown | None) -> dict[str, int] | Unknown:
    if isinstance(channels, Unknown):
        return channels
    most = (channels.rx_max, channels.tx_max) if channels else (one.rx_queues, one.tx_queues)
    return {"rx": one.rx_queues, "tx": one.tx_queues, "rx_max": most[0], "tx_max": most[1]}


def _xdp(one: nic.Nic, found: dict[int, genl.XdpFeatures] | Unknown) -> genl.XdpFeatures:
    if isinstance(found, Unknown):
        features = genl.no_xdp_answer(found.why)
        # That one runs there natively is told by the device itself, on any kernel.
        return dataclasses.replace(features, native=True) if one.xdp_mode == "native" else features
    return found.get(one.ifindex) or genl.no_xdp_answer("the kernel's netdev family does not list it")


def _af_xdp(xdp: genl.XdpFeatures) -> str | Unknown:
    """How frames reach an AF_XDP socket. Without native XDP the kernel's generic XDP has it, on any device."""
    if isinstance(xdp.native, Unknown):
        return xdp.native
    if not xdp.native:
        return "copy by generic XDP"
    if isinstance(xdp.zero_copy, Unknown):
        return xdp.zero_copy
    return "zero-copy" if xdp.zero_copy else "copy"


def _facts(one: nic.Nic, host: _Host, xdp: genl.XdpFeatures) -> choice.Facts:
    master = host.nics.get(one.master)
    return choice.Facts(
        name=one.name,
        driver=one.driver,
        kind=_kind(one),
        loopback=one.loopback,
        own=one.name.startswith(nic.OWN_PREFIX),
        master=master.name if master else "",
        master_kind=master.kind if master else "",
        mtu=one.mtu,
        page=os.sysconf("SC_PAGE_SIZE"),
        native_xdp=xdp.native,
        zero_copy=xdp.zero_copy,
        frags=xdp.frags,
        foreign_xdp=_foreign_xdp(one),
        qdisc=host.qdiscs if isinstance(host.qdiscs, Unknown) else inway.root_qdisc(host.qdiscs, one.ifindex),
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
    except OSError as exc:
        if exc.errno == errno.EPERM:
            return Unknown("CAP_SYS_ADMIN is needed to look at BPF programs")
        return Unknown(f"BPF program {number}: {exc.strerror}")
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
            _, ids = bpf.prog_query(
                index, hook
            )  # the kernel reads an ifindex where a cgroup has its descriptor
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return ()  # a kernel without tcx
            if exc.errno == errno.EPERM:
                return Unknown("CAP_NET_ADMIN is needed to list tcx programs")
            return Unknown(f"tcx programs: {exc.strerror}")
        for number in ids:
            name = _program(number)
            if not isinstance(name, str) or not name.startswith(inway.OURS):
                found.append(
                    f"{direction} tcx {name if isinstance(name, str) and name else f'program {number}'}"
                )
    return tuple(found)


def could_not_tell(row: Row) -> dict[str, list[str]]:
    """What is not known of a device: the names of the values, by reason."""
    found: dict[str, list[str]] = {}
    _collect(row, "", found)
    return found


def _collect(value: Any, path: str, found: dict[str, list[str]]) -> None:
    if isinstance(value, list):
        for one in value:
            _collect(one, path, found)
    elif isinstance(value, dict):
        if COULD_NOT_TELL in value:
            found.setdefault(str(value[COULD_NOT_TELL]), []).append(path)
            return
        for key, one in value.items():
            _collect(one, f"{path} {key}".strip(), found)
