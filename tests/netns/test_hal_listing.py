# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf hal` on real devices: veth, bridge, macvlan, vxlan, TUN, TAP, lo, and what others
put on them.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hal_tc
import hal_xdp
import pytest
from hal_lab import Host, hosts, link

from dmm_ebpf.hal import tcfilter
from dmm_ebpf.hal.choice import largest_mtu
from dmm_ebpf.rd.director.nics import tc_name

Rows = dict[str, dict[str, Any]]
CLI = (sys.executable, "-m", "dmm_ebpf.cli.main", "hal")


@pytest.fixture
def pair() -> Iterator[tuple[Host, Host]]:
    with hosts(2) as (a, b):
        link(a, b, queues=2)
        yield a, b


def told(host: Host, *names: str) -> Rows:
    out = subprocess.run(
        [*CLI, "--netns", host.name, "--json", *names], capture_output=True, text=True, check=True
    )
    assert out.stderr == ""
    return {row["name"]: row for row in json.loads(out.stdout)}


def untold(value: Any) -> bool:
    return isinstance(value, dict) and "could_not_tell" in value


def test_kinds_and_the_port_that_each_is_fit_for(pair: tuple[Host, Host]) -> None:
    a, _ = pair
    for words in (
        "ip link add mv0 link eth0 type macvlan",
        "ip link add vx0 type vxlan id 5 dstport 4789 dev eth0",
        "ip link add br0 type bridge",
        "ip link add p0 type veth peer name p1",
        "ip link set p0 master br0",
        "ip tuntap add tap0 mode tap",
        "ip tuntap add tun0 mode tun",
        "ip link add vx1 type vxlan external dstport 4790",
        "ip link add ifb9 type ifb",
    ):
        a.sh(words)
    rows = told(a)
    shown = {entry["ifname"]: entry for entry in json.loads(a.sh("ip", "-j", "link"))}
    assert rows.keys() == shown.keys()
    assert all(
        (row["mtu"], row["ifindex"]) == (shown[n]["mtu"], shown[n]["ifindex"])
        for n, row in rows.items()
    )
    assert {name: (row["kind"], row["fit_for"]["port"]) for name, row in rows.items()} == {
        "lo": ("loopback", "none"),
        "eth0": ("veth", "tap"),
        "mv0": ("macvlan", "tap"),
        "vx0": ("vxlan", "tap"),
        "br0": ("bridge", "tap"),
        "p0": ("veth", "none"),
        "p1": ("veth", "tap"),
        "tap0": ("tap", "tap"),
        "tun0": ("tun", "tap"),
        "vx1": ("vxlan", "none"),
        "ifb9": ("ifb", "none"),
    }
    assert "it is external" in rows["vx1"]["fit_for"]["why"][0]
    assert "name br0" in rows["p0"]["fit_for"]["why"][0]
    veth = rows["eth0"]
    assert veth["queues"] == {"rx": 2, "tx": 2, "rx_max": 2, "tx_max": 2}
    assert (
        veth["driver"] == "veth"
        and veth["rss"] is None
        and veth["numa_node"] is None
        and veth["rdma"] == []
    )
    assert veth["speed_mbps"] == 10000 and rows["lo"]["speed_mbps"] is None
    on = {one["name"] for one in veth["offloads"] if one["on"]}
    assert "tx-tcp-segmentation" in on
    _off(a, "eth0")
    if not untold(veth["xdp"]["native"]):
        assert {n: row["xdp"]["native"] for n, row in rows.items()} == {
            name: name in ("eth0", "p0", "p1", "tap0") for name in rows
        }
        assert veth["xdp"]["frags"] is True and veth["af_xdp"]["mode"] == "copy"
        assert veth["fit_for"]["why"] == ["driver veth has no AF_XDP zero-copy"]
        assert rows["br0"]["fit_for"]["why"] == ["driver bridge has no native XDP"]
        assert rows["br0"]["af_xdp"]["mode"] == "copy by generic XDP"


def _off(host: Host, name: str) -> None:
    """What is switched off is not shown as on: offloads are read, not assumed."""

    def switch() -> None:
        buffer = ctypes.create_string_buffer(struct.pack("=II", 0x1F, 0))  # ETHTOOL_STSO, off
        request = struct.pack("16sP16x", name.encode(), ctypes.addressof(buffer))[:40]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock.fileno(), 0x8946, request)  # SIOCETHTOOL

    host.ns.run_in(switch)
    offloads = {one["name"]: one for one in told(host, name)[name]["offloads"]}
    assert offloads["tx-tcp-segmentation"] == {
        "name": "tx-tcp-segmentation",
        "on": False,
        "changeable": True,
    }


def test_what_others_put_on_a_device_is_named(pair: tuple[Host, Host]) -> None:
    a, _ = pair
    clean = told(a)["eth0"]
    assert clean["in_the_way"] == {"xdp": None, "qdisc": None, "tc_filters": [], "nft_hooks": []}
    a.sh("tc qdisc add dev eth0 root tbf rate 50mbit burst 32k latency 50ms")
    a.sh("tc qdisc add dev eth0 clsact")
    a.sh("tc", "filter", "add", "dev", "eth0", "ingress", "bpf", "bytecode", "1,6 0 0 0")
    a.sh(
        "nft",
        "add table netdev fw; add chain netdev fw in { type filter hook ingress device eth0 priority 0; }",
    )
    row = told(a)["eth0"]
    assert row["in_the_way"] == {
        "xdp": None,
        "qdisc": "tbf",
        "tc_filters": ["ingress bpf"],
        "nft_hooks": ["fw in"],
    }
    assert row["fit_for"]["port"] == "tap"
    assert [why for why in row["fit_for"]["why"] if "gone around" in why] == [
        "qdisc tbf would be gone around",
        "tc filter ingress bpf would be gone around",
        "nft hook fw in would be gone around",
    ]
    assert told(a)["lo"]["in_the_way"]["nft_hooks"] == []


def test_a_filter_is_told_once_and_ours_never(pair: tuple[Host, Host]) -> None:
    """A dump names the priority of each filter once more, as one of the same kind
    without a name.
    """
    a, _ = pair
    index = a.ns.run_in(socket.if_nametoindex, "eth0")
    program = hal_tc.redirect_tcp(index)
    try:
        for name in ("theirs", tc_name("default")):
            a.ns.run_in(tcfilter.attach_nic, index, (program, program), name)
    finally:
        os.close(program)
    options = ("prio", "200", "chain", "5", "protocol", "ip", "bpf", "bytecode", "1,6 0 0 0")
    a.sh("tc", "filter", "add", "dev", "eth0", "ingress", *options)
    told_of = told(a)["eth0"]["in_the_way"]["tc_filters"]
    assert told_of == ["ingress bpf theirs", "ingress bpf", "egress bpf theirs"]


def test_a_foreign_xdp_program_is_named_and_stays(pair: tuple[Host, Host]) -> None:
    a, _ = pair
    before = told(a, "eth0")["eth0"]["xdp"]["attached"]
    _foreign(a)
    shown = json.loads(a.sh("ip", "-j", "link", "show", "eth0"))[0]["xdp"]["prog"]["id"]
    row = told(a, "eth0")["eth0"]
    assert before is None and row["xdp"]["attached"] == {"mode": "native", "id": shown}
    assert row["xdp"]["native"] is True
    assert f"(id {shown})" in row["in_the_way"]["xdp"]
    assert row["fit_for"]["port"] == "tap"
    assert json.loads(a.sh("ip", "-j", "link", "show", "eth0"))[0]["xdp"]["prog"]["id"] == shown


def _foreign(host: Host) -> None:
    """An XDP program that is not ours, on eth0."""
    maps = hal_xdp.xskmap()
    program = hal_xdp.redirect_tcp(maps)
    hal_xdp.attach(host, "eth0", program)
    os.close(program)
    os.close(maps)


def test_the_largest_mtu_is_the_kernels(pair: tuple[Host, Host]) -> None:
    a, b = pair
    _foreign(a)
    page = os.sysconf("SC_PAGE_SIZE")
    b.sh(f"ip link set eth0 mtu {largest_mtu(page)}")
    b.sh(f"ip link set eth0 mtu {largest_mtu(page) + 1}", check=False)
    assert json.loads(b.sh("ip", "-j", "link", "show", "eth0"))[0]["mtu"] == largest_mtu(page)


def test_without_root_it_says_what_it_cannot_tell(pair: tuple[Host, Host]) -> None:
    a, _ = pair
    a.sh("tc qdisc add dev eth0 root tbf rate 50mbit burst 32k latency 50ms")
    nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    done = subprocess.run(
        ["ip", "netns", "exec", a.name, *nobody, *CLI, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    row = {one["name"]: one for one in json.loads(done.stdout)}["eth0"]
    assert row["in_the_way"]["qdisc"] == "tbf"
    assert "CAP_NET_ADMIN" in row["in_the_way"]["nft_hooks"]["could_not_tell"]
    assert row["fit_for"]["port"] == "tap"


def test_a_table_a_block_and_an_error(pair: tuple[Host, Host]) -> None:
    a, _ = pair
    table = subprocess.run(
        [*CLI, "--netns", a.name], capture_output=True, text=True, check=True
    ).stdout
    assert table.splitlines()[0].split()[:4] == ["DEVICE", "KIND", "DRIVER", "FIT"]
    assert "\neth0: fit for tap: " in table and "\nlo: not for user stacks: " in table
    block = subprocess.run(
        [*CLI, "-n", a.name, "eth0"], capture_output=True, text=True, check=True
    ).stdout
    assert block.startswith("device eth0\n") and "2 to receive of at most 2" in block
    done = subprocess.run([*CLI, "-n", a.name, "eth7"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("no such device; there are lo, eth0\n")


def test_sysfs_is_of_the_namespace_that_is_asked_about(pair: tuple[Host, Host]) -> None:
    """Entered by setns(2) alone, /sys still shows the caller's devices."""
    from dmm_ebpf.hal import nic, sysfs

    a, _ = pair

    def read(root: Path) -> set[str]:
        return {path.name for path in (root / "class/net").iterdir()}

    def ask() -> tuple[bool, object]:
        indexes = {one.name: one.ifindex for one in nic.list_nics()}
        return sysfs.shows(sysfs.SYS, indexes), sysfs.of_this_namespace(read, indexes)

    mounts = Path("/proc/self/mountinfo").read_bytes()
    assert a.ns.run_in(ask) == (False, {"lo", "eth0"})
    assert Path("/proc/self/mountinfo").read_bytes() == mounts
