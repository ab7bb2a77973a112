# SPDX-License-Identifier: Apache-2.0
"""What `dmm-ebpf hal` reads, without a kernel: answers as they come, cut short, and nonsense."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli_lab import DEVICE, RDMA
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf.cli import hardware
from dmm_ebpf.hal import genl, inway, rss, sysfs
from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.hal.netlink import attribute
from dmm_ebpf.records.device import Untold

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(st.text(max_size=5), inner), max_size=3).map(
            lambda pairs: {"attrs": pairs}
        )
    ),
    max_leaves=8,
)


def msg(**values: Any) -> dict[str, Any]:
    return {"attrs": list(values.items())}


def bitset(**bits: bool) -> dict[str, Any]:
    """Bits by name, with _ for -; with a value of their own or not."""
    listed = []
    for name, has_value in bits.items():
        bit = [("ETHTOOL_A_BITSET_BIT_NAME", name.replace("_", "-"))]
        listed.append(
            (
                "BIT",
                {"attrs": [*bit, *([("ETHTOOL_A_BITSET_BIT_VALUE", True)] if has_value else [])]},
            )
        )
    return msg(ETHTOOL_A_BITSET_SIZE=64, ETHTOOL_A_BITSET_BITS={"attrs": listed})


def test_xdp_features_by_bit() -> None:
    virtio = genl.xdp_of(
        genl.tree(msg(IFINDEX=4, XDP_FEATURES=43, ZC_MAX_SEGS=1, RX_METADATA=5, XSK_FEATURES=8))
    )
    assert virtio == genl.XdpFeatures(
        native=True,
        transmit=False,
        frags=True,
        frags_transmit=False,
        hardware=False,
        zero_copy=True,
        zero_copy_segments=1,
        rx_metadata=("timestamp", "VLAN tag"),
        tx_metadata=("bits 0x8",),
    )
    assert genl.xdp_of({"XDP_FEATURES": 1}).native is False, (
        "without redirects no frame reaches AF_XDP"
    )
    old = genl.xdp_of({"XDP_FEATURES": 11})
    assert (old.zero_copy, old.zero_copy_segments) == (True, 1)
    assert isinstance(old.rx_metadata, Unknown)
    assert isinstance(genl.xdp_of({}).native, Unknown)


def test_ethtool_answers() -> None:
    assert genl.speed_of({"SPEED": 25000}) == 25000
    assert genl.speed_of({"SPEED": 0xFFFFFFFF}) is genl.speed_of({}) is None
    channels = genl.channels_of(
        {"RX_COUNT": 2, "COMBINED_COUNT": 3, "COMBINED_MAX": 8, "TX_MAX": 1}
    )
    assert channels == genl.Channels(rx=5, tx=3, rx_max=8, tx_max=9)
    found = genl.offloads_of(
        msg(
            HW=bitset(tx_lro=True, rx_gro=True, highdma=False, rx_fcs=True),
            ACTIVE=bitset(rx_gro=False, highdma=False),
            NOCHANGE=bitset(rx_fcs=False),
        )
    )
    assert found == (
        genl.Offload("highdma", on=True, changeable=False),
        genl.Offload("rx-fcs", on=False, changeable=False),
        genl.Offload("rx-gro", on=True, changeable=True),
        genl.Offload("tx-lro", on=False, changeable=True),
    )


@given(ANYTHING)
def test_nonsense_of_generic_netlink_is_no_answer(value: Any) -> None:
    values = genl.tree(value)
    genl.xdp_of(values)
    genl.speed_of(values)
    genl.channels_of(values)
    genl.offloads_of(value)
    genl.offloads_of({"attrs": [("ACTIVE", value), ("HW", value)]})
    genl.xdp_of({"XDP_FEATURES": value, "ZC_MAX_SEGS": value})


def rxfh(table: tuple[int, ...], key: bytes, function: int = 1) -> bytes:
    head = struct.pack("=IIIIBB2xI", 0x46, 0, len(table), len(key), function, 0, 0)
    return head + struct.pack(f"={len(table)}I", *table) + key


def test_rss() -> None:
    assert rss.rss_of(rxfh((0, 1, 2, 0), b"k" * 40)) == rss.Rss(4, 3, "toeplitz", 40)
    assert rss.rss_of(rxfh((0,), b"", 0)) == rss.Rss(1, 1, "not named", 0)
    assert rss.rss_of(rxfh((), b"")) is None
    whole = rxfh((0, 1), b"key")
    assert isinstance(rss.rss_of(whole), rss.Rss)
    assert all(isinstance(rss.rss_of(whole[:n]), Unknown) for n in range(len(whole)))
    huge = struct.pack("=IIIIBB2xI", 0x46, 0, 0xFFFFFFFF, 0, 1, 0, 0)
    assert isinstance(rss.rss_of(huge), Unknown)


def tcmsg(index: int, handle: int, parent: int) -> bytes:
    return struct.pack("=BxxxiIII", 0, index, handle, parent, 0)


def test_qdiscs_and_filters() -> None:
    body = tcmsg(3, 0x80010000, 0xFFFFFFFF) + attribute(1, b"tbf\0")
    made = inway.qdisc_of(body)
    assert made == inway.Qdisc(3, "tbf", root=True, made=True)
    default = inway.qdisc_of(tcmsg(4, 0, 0xFFFFFFFF) + attribute(1, b"fq_codel\0"))
    assert default == inway.Qdisc(4, "fq_codel", root=True, made=False)
    below = inway.Qdisc(5, "fq", root=False, made=True)
    assert [inway.root_qdisc([made, default, below], index) for index in (3, 4, 5, 6)] == [
        "tbf",
        "",
        "",
        "",
    ]
    assert inway.qdisc_of(body[:19]) is None
    theirs = attribute(1, b"bpf\0") + attribute(2, attribute(7, b"cil_from_netdev\0"))
    ours = attribute(1, b"bpf\0") + attribute(2, attribute(7, b"dmm_out\0"))
    u32, bpf, chain = attribute(1, b"u32\0"), attribute(1, b"bpf\0"), attribute(11, b"\1\0\0\0")
    assert inway.others([tcmsg(3, 1, 2) + theirs, tcmsg(3, 1, 2) + ours]) == ["bpf cil_from_netdev"]
    # A dump names each priority of each chain once more, without a handle.
    assert inway.others([tcmsg(3, 0, 2) + bpf, tcmsg(3, 1, 2) + theirs]) == ["bpf cil_from_netdev"]
    assert inway.others([tcmsg(3, 0, 2) + bpf, tcmsg(3, 1, 2) + ours]) == []
    assert inway.others([tcmsg(3, 0, 2) + u32, tcmsg(3, 1, 2) + ours + chain]) == ["u32"]
    assert inway.others([b""]) == []


def test_nft_hooks() -> None:
    names = attribute(1, b"fw\0") + attribute(3, b"in\0")
    one = bytes(4) + names + attribute(4, attribute(1, bytes(4)) + attribute(3, b"eth0\0"))
    assert inway.hook_of(one) == inway.NetdevHook("fw in", ("eth0",))
    devices = attribute(
        4, attribute(1, b"eth0\0") + attribute(1, b"eth1\0") + attribute(2, b"veth\0")
    )
    several = inway.hook_of(bytes(4) + names + attribute(4, devices))
    assert several == inway.NetdevHook("fw in", ("eth0", "eth1"), ("veth",))
    assert [several.on(name) for name in ("eth1", "veth9", "eth2")] == [True, True, False]
    assert inway.hook_of(bytes(4) + names + attribute(4, attribute(1, bytes(4)))) is None, (
        "a hook of no device"
    )
    table = (
        attribute(1, b"fw\0")
        + attribute(2, b"ft\0")
        + attribute(3, attribute(3, attribute(1, b"eth0\0")))
    )
    assert inway.hook_of(bytes(4) + table, flowtable=True) == inway.NetdevHook(
        "flowtable fw ft", ("eth0",)
    )


@given(st.binary(max_size=80), st.booleans())
def test_nonsense_of_netlink_is_no_answer(body: bytes, flowtable: bool) -> None:
    inway.qdisc_of(body)
    inway.filter_of(body)
    inway.hook_of(body, flowtable=flowtable)
    assert isinstance(rss.rss_of(body), rss.Rss | Unknown | None)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def rdma(root: Path, name: str, node: str, layer: str, **files: str) -> None:
    port = f"class/infiniband/{name}/ports/1"
    tree(
        root,
        {
            f"class/infiniband/{name}/node_type": node,
            f"{port}/link_layer": layer,
            f"{port}/state": "4: ACTIVE",
            f"{port}/rate": "100 Gb/sec (4X EDR)",
            **{
                f"class/infiniband/{name}/{file.replace('__', '/')}": text
                for file, text in files.items()
            },
        },
    )


def test_rdma_devices(tmp_path: Path) -> None:
    assert sysfs.rdma_ports(tmp_path) == ()
    roce = {
        "ports__1__gid_attrs__types__0": "IB/RoCE v1",
        "ports__1__gid_attrs__types__1": "RoCE v2",
    }
    rdma(tmp_path, "mlx5_0", "1: CA", "Ethernet", ports__1__gid_attrs__ndevs__0="eth0", **roce)
    rdma(tmp_path, "mlx5_1", "1: CA", "InfiniBand", device__net__ib0__x="")
    rdma(tmp_path, "iw0", "4: RNIC", "Ethernet", parent="eth1")
    rdma(tmp_path, "efa_0", "7: unspecified", "Unspecified")
    found = {port.device: port for port in sysfs.rdma_ports(tmp_path)}
    one = found["mlx5_0"]
    assert one == sysfs.RdmaPort(
        "mlx5_0", 1, "ACTIVE", "Ethernet", "100 Gb/sec (4X EDR)",
        ("RoCE v1", "RoCE v2"), ("RC", "UC", "UD"), ("eth0",),
    )  # fmt: skip
    assert (found["mlx5_1"].protocols, found["mlx5_1"].netdevs) == (("InfiniBand",), ("ib0",))
    iwarp = found["iw0"]
    assert (iwarp.protocols, iwarp.transports, iwarp.netdevs) == (("iWARP",), ("RC",), ("eth1",))
    assert isinstance(found["efa_0"].transports, Unknown)
    assert isinstance(hardware.rdma_port(found["efa_0"]).transports, Untold)
    assert hardware.rdma_port(one).transports == ["RC", "UC", "UD"]


def test_numa_nodes(tmp_path: Path) -> None:
    pci = "devices/pci0000:00/0000:00:03.0"
    tree(
        tmp_path,
        {f"{pci}/numa_node": "1", f"{pci}/virtio2/vendor": "x", "devices/platform/nic/x": ""},
    )
    tree(
        tmp_path,
        {"devices/pci0000:00/0000:00:04.0/numa_node": "-1", "devices/bad/numa_node": "many"},
    )
    for bus, name, target in (
        ("virtio", "virtio2", f"{pci}/virtio2"),
        ("pci", "0000:00:04.0", "devices/pci0000:00/0000:00:04.0"),
        ("platform", "nic", "devices/platform/nic"),
        ("platform", "bad", "devices/bad"),
    ):
        (tmp_path / f"bus/{bus}/devices").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"bus/{bus}/devices/{name}").symlink_to(tmp_path / target)
    assert sysfs.numa_node(tmp_path, "virtio", "virtio2") == 1
    assert sysfs.numa_node(tmp_path, "pci", "0000:00:04.0") is None
    assert sysfs.numa_node(tmp_path, "platform", "nic") is sysfs.numa_node(tmp_path, "", "") is None
    assert isinstance(sysfs.numa_node(tmp_path, "platform", "bad"), Unknown)
    assert isinstance(sysfs.numa_node(tmp_path, "pci", "gone"), Unknown)


def test_a_device_that_is_not_there_is_named_with_those_that_are(cli: Any) -> None:
    said = cli("hal", "nosuch0", "--json")
    assert (said.code, json.loads(said.out)["error"]["why"]) == (2, "there is no such device")
    said = cli("hal", "nosuch0")
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "no such device" in said.err and "lo" in said.err


def test_what_could_not_be_told_is_collected_by_reason() -> None:
    x, y = Untold("x"), Untold("y")
    row = replace(
        DEVICE,
        speed_mbps=x,
        xdp=replace(DEVICE.xdp, native=x),
        rdma=[replace(RDMA, transports=y)],
    )
    assert hardware.could_not_tell(row) == {
        "x": ["speed_mbps", "xdp native"],
        "y": ["rdma transports"],
    }
