# SPDX-License-Identifier: Apache-2.0
"""How `dmm-ebpf hal` looks to a person: a table of all devices, or a block for each that was named.

Pure, except that the print functions print. In the table "?" is what could not be told; below
it stands why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dmm_ebpf.cli.hardware import COULD_NOT_TELL, could_not_tell
from dmm_ebpf.cli.output import Column, Row, print_table
from dmm_ebpf.show import units

_WAYS = (("rx", "receive"), ("tx", "send"))
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


def _unknown(value: Any) -> bool:
    return isinstance(value, dict) and COULD_NOT_TELL in value


def _shown(value: Any, text: Callable[[Any], str]) -> str:
    """? for what could not be told, - for what is not there."""
    if _unknown(value):
        return "?"
    return units.NONE if value is None else text(value)


def _yes_no(value: Any) -> str:
    return _shown(value, lambda known: "yes" if known else "no")


def _speed(value: Any) -> str:
    return _shown(value, lambda mbps: units.quantity(mbps * 1e6) + "bit/s")


def _queues(value: Any) -> str:
    return _shown(value, lambda q: f"{q['rx']}+{q['tx']} of {q['rx_max']}+{q['tx_max']}")


def _rss(value: Any) -> str:
    return _shown(value, lambda r: f"{r['queues']} queues" if r["queues"] != 1 else "1 queue")


def _rss_long(value: Any) -> str:
    if isinstance(value, dict) and not _unknown(value):
        return f"{_rss(value)} in {value['entries']} entries, {value['hash']}, a key of {value['key_bytes']} bytes"
    return "no" if value is None else "?"


def _words(value: Any) -> str:
    return _shown(value, lambda words: units.clean(", ".join(words) or None))


def _offloads(value: Any) -> str:
    def named(features: list[Row]) -> str:
        on = {one["name"] for one in features if one["on"]}
        return ", ".join(name for name, any_of in _OFFLOADS.items() if on & set(any_of)) or "none"

    return _shown(value, named)


def _rdma(value: Any) -> str:
    return _shown(value, lambda ports: units.clean(", ".join(p["device"] for p in ports) or None))


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: units.clean(row.get(key))


def print_devices(rows: list[Row]) -> None:
    """The table, why each device is fit for its port, and what could not be told."""
    print_table(
        [
            Column("DEVICE", _text("name")),
            Column("KIND", _text("kind"), rank=1),
            Column("DRIVER", _text("driver"), rank=3),
            Column("FIT FOR", lambda r: units.clean(r["fit_for"]["port"])),
            Column(
                "XDP",
                lambda r: _shown(r["xdp"]["native"], lambda yes: "native" if yes else "generic"),
            ),
            Column(
                "AF_XDP",
                lambda r: _shown(r["af_xdp"]["mode"], lambda m: units.clean(m.partition(" ")[0])),
            ),
            Column("FRAGS", lambda r: _yes_no(r["xdp"]["frags"]), rank=6),
            Column("MTU", lambda r: str(r["mtu"]), right=True, rank=2),
            Column("SPEED", lambda r: _speed(r["speed_mbps"]), right=True, rank=4),
            Column("QUEUES", lambda r: _queues(r["queues"]), rank=5),
            Column("RSS", lambda r: _rss(r["rss"]), rank=7),
            Column("NUMA", lambda r: _shown(r["numa_node"], str), right=True, rank=10),
            Column("RDMA", lambda r: _rdma(r["rdma"]), rank=8),
            Column("METADATA", lambda r: _words(r["metadata"]["rx"]), rank=9),
            Column("OFFLOADS", lambda r: _offloads(r["offloads"]), rank=11),
        ],
        rows,
    )
    print()
    for row in rows:
        print(f"{units.clean(row['name'])}: {_fit(row)}")
    for reason, names in _untold(rows).items():
        print(f"could not tell {names}: {units.clean(reason)}")


def _fit(row: Row) -> str:
    port, why = row["fit_for"]["port"], units.clean("; ".join(row["fit_for"]["why"]))
    return f"not for user stacks: {why}" if port == "none" else f"fit for {port}: {why}"


def _untold(rows: list[Row]) -> dict[str, str]:
    """What could not be told of which devices, by reason. Reasons that repeat another's belong
    to the way, not here.
    """
    found: dict[str, tuple[list[str], list[str]]] = {}
    for row in rows:
        for reason, values in could_not_tell(row).items():
            devices, names = found.setdefault(reason, ([], []))
            devices.append(units.clean(row["name"]))
            names += [name for name in values if name not in names]
    return {
        reason: f"{', '.join(name.replace('_', ' ') for name in names)} of {', '.join(devices)}"
        for reason, (devices, names) in found.items()
    }


def print_device(row: Row) -> None:
    """All of one device, as a block."""
    xdp, af_xdp, way = row["xdp"], row["af_xdp"], row["in_the_way"]
    attached = xdp["attached"]
    driver = f"driver {units.clean(row['driver'])}" if row["driver"] else "no driver named"
    on = f", on {units.clean(row['bus'])}" if row["bus"] else ""
    lines = [
        ("kind", f"{units.clean(row['kind'])}, {driver}{on}, {'up' if row['up'] else 'down'}"),
        (
            "link",
            f"speed {_speed(row['speed_mbps'])}, MTU {row['mtu']}, NUMA node {_shown(row['numa_node'], str)}",
        ),
        ("queues", _shown(row["queues"], _queues_long)),
        ("RSS", _rss_long(row["rss"])),
        (
            "XDP",
            f"native {_yes_no(xdp['native'])}, transmits {_yes_no(xdp['transmit'])}, frags {_yes_no(xdp['frags'])}, "
            f"in hardware {_yes_no(xdp['hardware'])}, "
            + (
                f"attached {attached['mode']} (id {attached['id']})"
                if attached
                else "none attached"
            ),
        ),
        ("AF_XDP", _af_xdp(af_xdp)),
        (
            "metadata",
            f"received {_words(row['metadata']['rx'])}; sent {_words(row['metadata']['tx'])}",
        ),
        ("offloads", _offloads(row["offloads"])),
        *(("RDMA", text) for text in _rdma_long(row["rdma"])),
        *((title, text) for title, text in _way(way)),
        ("fit for", _fit(row).removeprefix("fit for ")),
    ]
    lines.append(
        (
            "default",
            "where a policy names no devices"
            if row["fit_for"]["by_default"]
            else "only where named",
        )
    )
    print(f"device {units.clean(row['name'])}")
    for title, text in lines:
        print(f"  {title:<11}{text}".rstrip())
    for reason, names in could_not_tell(row).items():
        print(
            f"  could not tell {', '.join(name.replace('_', ' ') for name in names)}: {units.clean(reason)}"
        )


def _queues_long(queues: Row) -> str:
    receive, send = (
        f"{queues[way]} to {verb} of at most {queues[f'{way}_max']}" for way, verb in _WAYS
    )
    return f"{receive}, {send}"


def _af_xdp(af_xdp: Row) -> str:
    """Copy or not, and of how long packets."""
    segments, text = af_xdp["segments"], _shown(af_xdp["mode"], units.clean)
    sums = f"metadata {_yes_no(af_xdp['metadata'])}, checksums left to it {_yes_no(af_xdp['sums'])}"
    if _unknown(segments) or not segments:
        return f"{text}, {sums}"
    of = "frames of one buffer alone" if segments == 1 else f"packets of up to {segments} buffers"
    return f"{text} of {of}, {sums}"


def _rdma_long(ports: Any) -> list[str]:
    if _unknown(ports):
        return ["?"]
    return [
        f"{units.clean(p['device'])} port {p['port']}: {units.clean(p['state'])}, "
        f"{units.clean(', '.join(p['protocols']))}, "
        f"{units.clean(p['rate'])}, could carry {_words(p['transports'])}; no transport of dmm-ebpf uses it"
        for p in ports
    ] or ["none"]


def _way(way: Row) -> list[tuple[str, str]]:
    return [
        (title, _shown(way[key], units.clean if isinstance(way[key], str) else _words))
        for title, key in (
            ("other XDP", "xdp"),
            ("qdisc", "qdisc"),
            ("tc filters", "tc_filters"),
            ("nft hooks", "nft_hooks"),
        )
        if way[key]
    ]
