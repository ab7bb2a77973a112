# SPDX-License-Identifier: Apache-2.0
"""What `dmm-ebpf hal` tells of each network device, and of the host, as records.

Nothing is changed on the host, and nothing is concluded from a version.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dmm_ebpf.errors import UsageError
from dmm_ebpf.hal import choice, genl, nic, rss, sysfs
from dmm_ebpf.hal.answer import Unknown, YesNo
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import bpf, groupmade, protocolprobe
from dmm_ebpf.rd.director import portfacts
from dmm_ebpf.records import device
from dmm_ebpf.records.device import DeviceRow, Told, Untold
from dmm_ebpf.records.record import Record

T = TypeVar("T")


@dataclass(frozen=True)
class _Host:
    """What is asked once for all devices."""

    ethtool: dict[int, genl.EthtoolAnswers]
    found: portfacts.Host
    rdma: tuple[sysfs.RdmaPort, ...] | Unknown
    served: frozenset[int]


def listing(devices: Sequence[str], netns: str | None) -> list[DeviceRow]:
    """A row for each device of a network namespace, or for each of those named. Raises UsageError
    for one that is not there.
    """
    with NetNS.from_arg(netns) as namespace:
        return namespace.run_in(_rows, devices)


def host(netns: str | None) -> device.HostRow:
    """What has nothing to do with a device."""
    with NetNS.from_arg(netns) as namespace:
        mptcp = namespace.run_in(protocolprobe.why_not)
    return device.HostRow(mptcp=_answer(mptcp), cgroups=_answer(groupmade.why_not()))


def _answer(why_not: str | Unknown) -> Told[device.Answer]:
    if isinstance(why_not, Unknown):
        return Untold(why_not.why)
    return device.Answer(yes=not why_not, why=why_not)


def _rows(devices: Sequence[str]) -> list[DeviceRow]:
    everything = nic.list_nics()
    chosen = _chosen(everything, devices)
    host = _Host(
        ethtool=genl.ethtool_answers([one.ifindex for one in chosen]),
        found=portfacts.look(everything),
        rdma=sysfs.of_this_namespace(
            sysfs.rdma_ports, {one.name: one.ifindex for one in everything}
        ),
        served=frozenset(one.ifindex for one in nic.serving_nics()),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return [_row(one, host, sock) for one in chosen]


def _chosen(everything: Sequence[nic.Nic], names: Sequence[str]) -> list[nic.Nic]:
    by_name = {name: one for one in everything for name in one.names}
    for name in names:
        if name not in by_name:
            raise UsageError(
                f"tell of device {name}",
                why="there is no such device",
                hint=f"there are {', '.join(one.name for one in everything)}",
            )
    chosen = {by_name[name].ifindex: by_name[name] for name in names}
    return list(chosen.values()) if names else list(everything)


def told(value: T | Unknown) -> Told[T]:
    """An answer as a record has it."""
    return Untold(value.why) if isinstance(value, Unknown) else value


def _listed(values: Sequence[T] | Unknown) -> Told[list[T]]:
    return Untold(values.why) if isinstance(values, Unknown) else list(values)


def rdma_port(port: sysfs.RdmaPort) -> device.RdmaPort:
    """As a record."""
    return device.RdmaPort(
        device=port.device,
        port=port.port,
        state=port.state,
        link_layer=port.link_layer,
        rate=port.rate,
        protocols=list(port.protocols),
        transports=_listed(port.transports),
        netdevs=list(port.netdevs),
    )


def _row(one: nic.Nic, host: _Host, sock: socket.socket) -> DeviceRow:
    ethtool = host.ethtool[one.ifindex]
    xdp = portfacts.xdp_of(one, host.found)
    facts = portfacts.facts(one, host.found)
    fit = choice.choose(facts)
    return DeviceRow(
        name=one.name,
        altnames=list(one.altnames),
        ifindex=one.ifindex,
        kind=portfacts.kind_of(one),
        driver=one.driver or None,
        bus=f"{one.bus}/{one.bus_name}" if one.bus else None,
        up=one.up,
        mtu=one.mtu,
        speed_mbps=told(ethtool.speed),
        numa_node=told(sysfs.numa_node(sysfs.SYS, one.bus, one.bus_name)),
        queues=_queues(one, ethtool.channels),
        rss=_rss(rss.rss(sock, one.name)),
        offloads=_offloads(ethtool.offloads),
        xdp=_xdp(one, xdp),
        af_xdp=device.AfXdp(
            mode=told(_af_xdp(xdp)),
            zero_copy=told(xdp.zero_copy),
            segments=told(xdp.zero_copy_segments),
            metadata=told(bpf.xsk_metadata()),
            sums=told(_sums(xdp)),
        ),
        metadata=device.Metadata(rx=_listed(xdp.rx_metadata), tx=_listed(xdp.tx_metadata)),
        rdma=_rdma(one, host.rdma),
        in_the_way=device.InTheWay(
            xdp=told(facts.foreign_xdp) or None,
            qdisc=told(facts.qdisc) or None,
            tc_filters=_listed(facts.filters),
            nft_hooks=_listed(facts.hooks),
        ),
        fit_for=device.FitFor(fit.port.value, list(fit.reasons), one.ifindex in host.served),
    )


def _queues(one: nic.Nic, channels: genl.Channels | Unknown | None) -> Told[device.Queues]:
    if isinstance(channels, Unknown):
        return told(channels)
    most = (channels.rx_max, channels.tx_max) if channels else (one.rx_queues, one.tx_queues)
    return device.Queues(one.rx_queues, one.tx_queues, *most)


def _rss(found: rss.Rss | Unknown | None) -> Told[device.Rss | None]:
    if isinstance(found, rss.Rss):
        return device.Rss(found.entries, found.queues, found.hash, found.key_bytes)
    return told(found)


def _offloads(
    found: Sequence[genl.Offload] | Unknown | None,
) -> Told[list[device.Offload] | None]:
    if found is None or isinstance(found, Unknown):
        return told(found)
    return [device.Offload(one.name, one.on, one.changeable) for one in found]


def _xdp(one: nic.Nic, features: genl.XdpFeatures) -> device.Xdp:
    return device.Xdp(
        native=told(features.native),
        transmit=told(features.transmit),
        frags=told(features.frags),
        frags_transmit=told(features.frags_transmit),
        hardware=told(features.hardware),
        attached=device.XdpAttached(one.xdp_mode, one.xdp_prog_id) if one.has_xdp else None,
    )


def _rdma(one: nic.Nic, ports: Sequence[sysfs.RdmaPort] | Unknown) -> Told[list[device.RdmaPort]]:
    if isinstance(ports, Unknown):
        return told(ports)
    return [rdma_port(port) for port in ports if one.name in port.netdevs]


def _af_xdp(xdp: genl.XdpFeatures) -> str | Unknown:
    """How frames reach an AF_XDP socket. Without native XDP the kernel's generic XDP has it,
    on any device.
    """
    if isinstance(xdp.native, Unknown):
        return xdp.native
    if not xdp.native:
        return "copy by generic XDP"
    if isinstance(xdp.zero_copy, Unknown):
        return xdp.zero_copy
    return "zero-copy" if xdp.zero_copy else "copy"


def _sums(xdp: genl.XdpFeatures) -> YesNo:
    """Whether a stack leaves the checksums of what it sends by AF_XDP to the device (metadata):
    with zero-copy, to a driver that has that. In copy mode the kernel would do it, but that costs
    no less than to sum while copying.
    """
    kernel = bpf.xsk_metadata()
    if kernel is not True:
        return kernel
    mode = _af_xdp(xdp)
    return mode if isinstance(mode, Unknown) else xdp.sums if mode == "zero-copy" else False


def could_not_tell(row: Record) -> dict[str, list[str]]:
    """What is not known of a device: the names of the values, by reason."""
    found: dict[str, list[str]] = {}
    _collect(row, "", found)
    return found


def _collect(value: Any, path: str, found: dict[str, list[str]]) -> None:
    if isinstance(value, list):
        for one in value:
            _collect(one, path, found)
    elif isinstance(value, Untold):
        found.setdefault(value.could_not_tell, []).append(path)
    elif isinstance(value, Record):
        for key, one in value.to_map().items():
            _collect(one, f"{path} {key}".strip(), found)
