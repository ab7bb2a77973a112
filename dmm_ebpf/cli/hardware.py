# SPDX-License-Identifier: Apache-2.0
"""What `dmm-ebpf hal` tells of each network device, as rows of plain values.

A value is the thing itself; null where the device has no such thing; true and false are yes and no;
and what nobody could tell is {"could_not_tell": reason}. Nothing is changed on the host, and
nothing is concluded from a version.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.cli.output import Row
from dmm_ebpf.errors import UsageError
from dmm_ebpf.hal import choice, genl, nic, rss, sysfs
from dmm_ebpf.hal.answer import Unknown, YesNo
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import bpf
from dmm_ebpf.rd.director import portfacts

COULD_NOT_TELL = "could_not_tell"


@dataclass(frozen=True)
class _Host:
    """What is asked once for all devices."""

    ethtool: dict[int, genl.EthtoolAnswers]
    found: portfacts.Host
    rdma: tuple[sysfs.RdmaPort, ...] | Unknown
    served: frozenset[int]


def listing(devices: Sequence[str], netns: str | None) -> list[Row]:
    """A row for each device of a network namespace, or for each of those named. Raises UsageError
    for one that is not there.
    """
    with NetNS.from_arg(netns) as namespace:
        return namespace.run_in(_rows, devices)


def _rows(devices: Sequence[str]) -> list[Row]:
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
    xdp = portfacts.xdp_of(one, host.found)
    facts = portfacts.facts(one, host.found)
    fit = choice.choose(facts)
    return {
        key: told(value)
        for key, value in {
            "name": one.name,
            "ifindex": one.ifindex,
            "kind": portfacts.kind_of(one),
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
            "af_xdp": {
                "mode": _af_xdp(xdp),
                "zero_copy": xdp.zero_copy,
                "segments": xdp.zero_copy_segments,
                "metadata": bpf.xsk_metadata(),
                "sums": _sums(xdp),
            },
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
            "fit_for": {
                "port": fit.port.value,
                "why": fit.reasons,
                "by_default": one.ifindex in host.served,
            },
        }.items()
    }


def _queues(one: nic.Nic, channels: genl.Channels | Unknown | None) -> dict[str, int] | Unknown:
    if isinstance(channels, Unknown):
        return channels
    most = (channels.rx_max, channels.tx_max) if channels else (one.rx_queues, one.tx_queues)
    return {"rx": one.rx_queues, "tx": one.tx_queues, "rx_max": most[0], "tx_max": most[1]}


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
