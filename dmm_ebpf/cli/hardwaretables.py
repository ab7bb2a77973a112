# SPDX-License-Identifier: Apache-2.0
"""How `dmm-ebpf hal` looks to a person: a table of all devices, or a block for each that was named.

Pure, except that the print functions print. In the table "?" is what could not be told; below
it stands why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dmm_ebpf.cli.hardware import could_not_tell
from dmm_ebpf.cli.output import Column, print_table
from dmm_ebpf.records import device
from dmm_ebpf.records.device import DeviceRow, HostRow, Told, Untold
from dmm_ebpf.show import units

T = TypeVar("T")

# What tells most of a NIC, by the features of ethtool that mean it.
_OFFLOADS = {
    "TX checksum": ("tx-checksum-ip-generic", "tx-checksum-ipv4"),
    "RX checksum": ("rx-checksum",),
    "TSO": ("tx-tcp-segmentation",),
    "USO": ("tx-udp-segmentation",),
    "GRO": ("rx-gro",),
    "GRO in hardware": ("rx-gro-hw",),
    "LRO": ("rx-lro",),
    "TLS": ("tls-hw-tx-offload",),
    "IPsec": ("esp-hw-offload",),
}


def _shown(value: Told[T | None], text: Callable[[T], str]) -> str:
    """? for what could not be told, - for what is not there."""
    if isinstance(value, Untold):
        return "?"
    return units.NONE if value is None else text(value)


def _yes_no(value: Told[bool]) -> str:
    return _shown(value, lambda known: "yes" if known else "no")


def _speed(value: Told[int | None]) -> str:
    return _shown(value, lambda mbps: units.quantity(mbps * 1e6) + "bit/s")


def _queues(value: Told[device.Queues]) -> str:
    return _shown(value, lambda q: f"{q.rx}+{q.tx} of {q.rx_max}+{q.tx_max}")


def _rss(value: Told[device.Rss | None]) -> str:
    return _shown(value, lambda r: f"{r.queues} queues" if r.queues != 1 else "1 queue")


def _rss_long(value: Told[device.Rss | None]) -> str:
    if isinstance(value, device.Rss):
        return (
            f"{_rss(value)} in {value.entries} entries, {value.hash}, "
            f"a key of {value.key_bytes} bytes"
        )
    return "no" if value is None else "?"


def _words(value: Told[list[str]]) -> str:
    return _shown(value, lambda words: units.clean(", ".join(words) or None))


def _offloads(value: Told[list[device.Offload] | None]) -> str:
    def named(features: list[device.Offload]) -> str:
        on = {one.name for one in features if one.on}
        return ", ".join(name for name, any_of in _OFFLOADS.items() if on & set(any_of)) or "none"

    return _shown(value, named)


def _rdma(value: Told[list[device.RdmaPort]]) -> str:
    return _shown(value, lambda ports: units.clean(", ".join(p.device for p in ports) or None))


def print_devices(rows: list[DeviceRow]) -> None:
    """The table, why each device is fit for its port, and what could not be told."""
    print_table(
        [
            Column("DEVICE", lambda r: units.clean(r.name)),
            Column("KIND", lambda r: units.clean(r.kind), rank=1),
            Column("DRIVER", lambda r: units.clean(r.driver), rank=3),
            Column("FIT FOR", lambda r: units.clean(r.fit_for.port)),
            Column(
                "XDP",
                lambda r: _shown(r.xdp.native, lambda yes: "native" if yes else "generic"),
            ),
            Column(
                "AF_XDP",
                lambda r: _shown(r.af_xdp.mode, lambda m: units.clean(m.partition(" ")[0])),
            ),
            Column("FRAGS", lambda r: _yes_no(r.xdp.frags), rank=6),
            Column("MTU", lambda r: str(r.mtu), right=True, rank=2),
            Column("SPEED", lambda r: _speed(r.speed_mbps), right=True, rank=4),
            Column("QUEUES", lambda r: _queues(r.queues), rank=5),
            Column("RSS", lambda r: _rss(r.rss), rank=7),
            Column("NUMA", lambda r: _shown(r.numa_node, str), right=True, rank=10),
            Column("RDMA", lambda r: _rdma(r.rdma), rank=8),
            Column("METADATA", lambda r: _words(r.metadata.rx), rank=9),
            Column("OFFLOADS", lambda r: _offloads(r.offloads), rank=11),
        ],
        rows,
    )
    print()
    for row in rows:
        print(f"{units.clean(row.name)}: {_fit(row)}")
    for reason, names in _untold(rows).items():
        print(f"could not tell {names}: {units.clean(reason)}")


def print_host(row: HostRow) -> None:
    """What has nothing to do with a device, a line each."""
    for title, told in {
        "MPTCP by policy": row.mptcp,
        "cgroups routed from their first connection": row.cgroups,
    }.items():
        if isinstance(told, Untold):
            print(f"could not tell {title}: {units.clean(told.could_not_tell)}")
        else:
            print(f"{title}: {'yes' if told.yes else f'no: {units.clean(told.why)}'}")


def _fit(row: DeviceRow) -> str:
    port, why = row.fit_for.port, units.clean("; ".join(row.fit_for.why))
    return f"not for user stacks: {why}" if port == "none" else f"fit for {port}: {why}"


def _untold(rows: list[DeviceRow]) -> dict[str, str]:
    """What could not be told of which devices, by reason. Reasons that repeat another's belong
    to the way, not here.
    """
    found: dict[str, tuple[list[str], list[str]]] = {}
    for row in rows:
        for reason, values in could_not_tell(row).items():
            devices, names = found.setdefault(reason, ([], []))
            devices.append(units.clean(row.name))
            names += [name for name in values if name not in names]
    return {
        reason: f"{', '.join(name.replace('_', ' ') for name in names)} of {', '.join(devices)}"
        for reason, (devices, names) in found.items()
    }


def print_device(row: DeviceRow) -> None:
    """All of one device, as a block."""
    xdp, attached = row.xdp, row.xdp.attached
    driver = f"driver {units.clean(row.driver)}" if row.driver else "no driver named"
    on = f", on {units.clean(row.bus)}" if row.bus else ""
    lines = [
        ("kind", f"{units.clean(row.kind)}, {driver}{on}, {'up' if row.up else 'down'}"),
        (
            "link",
            f"speed {_speed(row.speed_mbps)}, MTU {row.mtu}, NUMA node {_shown(row.numa_node, str)}",
        ),
        ("queues", _shown(row.queues, _queues_long)),
        ("RSS", _rss_long(row.rss)),
        (
            "XDP",
            f"native {_yes_no(xdp.native)}, transmits {_yes_no(xdp.transmit)}, frags {_yes_no(xdp.frags)}, "
            f"in hardware {_yes_no(xdp.hardware)}, "
            + (f"attached {attached.mode} (id {attached.id})" if attached else "none attached"),
        ),
        ("AF_XDP", _af_xdp(row.af_xdp)),
        (
            "metadata",
            f"received {_words(row.metadata.rx)}; sent {_words(row.metadata.tx)}",
        ),
        ("offloads", _offloads(row.offloads)),
        *(("RDMA", text) for text in _rdma_long(row.rdma)),
        *((title, text) for title, text in _way(row.in_the_way)),
        ("fit for", _fit(row).removeprefix("fit for ")),
    ]
    lines.append(
        (
            "default",
            "where a policy names no devices" if row.fit_for.by_default else "only where named",
        )
    )
    print(f"device {units.clean(row.name)}")
    for title, text in lines:
        print(f"  {title:<11}{text}".rstrip())
    for reason, names in could_not_tell(row).items():
        print(
            f"  could not tell {', '.join(name.replace('_', ' ') for name in names)}: {units.clean(reason)}"
        )


def _queues_long(queues: device.Queues) -> str:
    return (
        f"{queues.rx} to receive of at most {queues.rx_max}, "
        f"{queues.tx} to send of at most {queues.tx_max}"
    )


def _af_xdp(af_xdp: device.AfXdp) -> str:
    """Copy or not, and of how long packets."""
    segments, text = af_xdp.segments, _shown(af_xdp.mode, units.clean)
    sums = f"metadata {_yes_no(af_xdp.metadata)}, checksums left to it {_yes_no(af_xdp.sums)}"
    if isinstance(segments, Untold) or not segments:
        return f"{text}, {sums}"
    of = "frames of one buffer alone" if segments == 1 else f"packets of up to {segments} buffers"
    return f"{text} of {of}, {sums}"


def _rdma_long(ports: Told[list[device.RdmaPort]]) -> list[str]:
    if isinstance(ports, Untold):
        return ["?"]
    return [
        f"{units.clean(p.device)} port {p.port}: {units.clean(p.state)}, "
        f"{units.clean(', '.join(p.protocols))}, "
        f"{units.clean(p.rate)}, could carry {_words(p.transports)}; no transport of dmm-ebpf uses it"
        for p in ports
    ] or ["none"]


def _way(way: device.InTheWay) -> list[tuple[str, str]]:
    return [
        (title, text)
        for title, there, text in (
            ("other XDP", way.xdp, _shown(way.xdp, units.clean)),
            ("qdisc", way.qdisc, _shown(way.qdisc, units.clean)),
            ("tc filters", way.tc_filters, _words(way.tc_filters)),
            ("nft hooks", way.nft_hooks, _words(way.nft_hooks)),
        )
        if there
    ]
