# SPDX-License-Identifier: Apache-2.0
"""The XDP link on a NIC: native or generic, never in place of another program, gone when told
and when the NIC goes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable

import pytest
from bpf_lab import netns_cookie

from dmm_ebpf import loader
from dmm_ebpf.errors import ConflictError, DmmError
from dmm_ebpf.loader import bpf
from dmm_ebpf.loader.bpf import AttachType, ProgType
from lab import Host
from lab.waiting import wait_for

# XDP_PASS without looking: r0 = 2; exit.
PASS = bytes.fromhex("b700000002000000 9500000000000000")


def nic(host: Host) -> dict[str, object]:
    """What ip(8) says of a host's NIC."""
    return json.loads(host.run(["ip", "-j", "link", "show", host.nic.name]).stdout)[0]


def ifindex(host: Host) -> int:
    """Of a host's NIC."""
    return int(str(nic(host)["ifindex"]))


def xdp_mode(host: Host) -> int | None:
    """1: native, 2: generic (enum in if_link.h, as ip(8) prints it); None: no program."""
    xdp = nic(host).get("xdp")
    return xdp["mode"] if isinstance(xdp, dict) else None


def put(attached: loader.Attached, host: Host, index: int | None = None) -> str:
    """attach_xdp in a host's namespace."""
    index = ifindex(host) if index is None else index
    return host.call(attached.attach_xdp, index, host.nic.name)


def ping(pair: tuple[Host, Host]) -> None:
    """The link still carries packets."""
    pair[0].run(["ping", "-c", "1", "-W", "5", pair[1].ip4])


def test_native_where_the_driver_can(attached: loader.Attached, pair: tuple[Host, Host]) -> None:
    assert put(attached, pair[0]) == "native"
    assert xdp_mode(pair[0]) == 1
    ping(pair)
    assert put(attached, pair[0]) == "native"  # a second time changes nothing
    assert attached.detach_xdp(ifindex(pair[0]))
    assert xdp_mode(pair[0]) is None
    assert not attached.detach_xdp(ifindex(pair[0]))
    assert put(attached, pair[0]) == "native"


def test_generic_where_it_cannot(attached: loader.Attached, pair: tuple[Host, Host]) -> None:
    for (
        host
    ) in pair:  # a veth with frames of more than a page takes no native program without fragments
        host.ip(f"link set {host.nic.name} mtu 9000")
    assert put(attached, pair[0]) == "generic"
    assert xdp_mode(pair[0]) == 2
    ping(pair)
    assert put(attached, pair[0]) == "generic"


@pytest.mark.skipif(not bpf.xsk_frags(), reason="this kernel's AF_XDP takes a page at most")
def test_native_for_several_frames_where_it_must(
    attached: loader.Attached, pair: tuple[Host, Host]
) -> None:
    for host in pair:
        host.ip(f"link set {host.nic.name} mtu 9000")
    for _ in range(2):
        assert (
            pair[0].call(attached.attach_xdp, ifindex(pair[0]), pair[0].nic.name, 9000) == "native"
        )
    assert xdp_mode(pair[0]) == 1
    pair[0].run(["ping", "-c", "1", "-W", "5", "-s", "8900", pair[1].ip4])
    assert attached.detach_xdp(ifindex(pair[0])) and xdp_mode(pair[0]) is None


@pytest.mark.parametrize("flags", [bpf.XDP_FLAGS_DRV_MODE, bpf.XDP_FLAGS_SKB_MODE])
def test_a_foreign_program_is_named_and_stays(
    attached: loader.Attached, pair: tuple[Host, Host], flags: int
) -> None:
    fd = bpf.prog_load("firewall", ProgType.XDP, PASS, attach_type=AttachType.XDP)
    link = pair[0].call(bpf.link_create, fd, ifindex(pair[0]), AttachType.XDP, flags)
    try:
        ids = bpf.prog_info(fd).id
        with pytest.raises(ConflictError, match=rf"{ids} \(firewall\) is on {pair[0].nic.name}"):
            put(attached, pair[0])
        assert xdp_mode(pair[0]) == (1 if flags == bpf.XDP_FLAGS_DRV_MODE else 2)
        assert not (attached.folder / "links" / f"xdp-{ifindex(pair[0])}").exists()
    finally:
        os.close(link)
        os.close(fd)
    assert wait_for(lambda: xdp_mode(pair[0]) is None, 5, "the foreign program to go")
    assert put(attached, pair[0]) == "native"


def test_a_device_below_one_that_has_a_program_is_refused(
    attached: loader.Attached, pair: tuple[Host, Host]
) -> None:
    host = pair[0]
    host.ip(f"link add mv0 link {host.nic.name} type macvlan", "link set mv0 up")
    above = host.call(socket.if_nametoindex, "mv0")
    assert host.call(attached.attach_xdp, above, "mv0") == "generic"
    with pytest.raises(ConflictError, match=f"stands on {host.nic.name}, as a macvlan does"):
        put(attached, host)
    assert attached.detach_xdp(above)
    assert put(attached, host) == "native"


def test_two_instances_cannot_share_a_nic(
    attached: loader.Attached, pair: tuple[Host, Host], make_cgroup, instance: Callable[[], str]
) -> None:
    put(attached, pair[0])
    name = instance()
    other = loader.attach(name, make_cgroup().path, netns_cookie=netns_cookie(pair[0]))
    try:
        with pytest.raises(ConflictError, match=r"\(dmm_xdp\)"):
            put(other, pair[0])
    finally:
        other.close()
        loader.detach(name)
    assert xdp_mode(pair[0]) == 1


def test_detach_from_another_namespace_takes_xdp_off(
    attached: loader.Attached, pair: tuple[Host, Host]
) -> None:
    put(attached, pair[0])
    removed = loader.detach(attached.instance)
    assert any(text.startswith(f"link xdp-{ifindex(pair[0])}") for text in removed)
    assert xdp_mode(pair[0]) is None


def test_an_adopted_instance_knows_its_xdp(
    attached: loader.Attached, pair: tuple[Host, Host]
) -> None:
    put(attached, pair[0])
    adopted = loader.adopt(attached.instance)
    try:
        assert put(adopted, pair[0]) == "native"
        assert adopted.detach_xdp(ifindex(pair[0])) and xdp_mode(pair[0]) is None
    finally:
        adopted.close()


def test_a_nic_that_goes_away_is_no_obstacle(
    attached: loader.Attached, pair: tuple[Host, Host]
) -> None:
    index = ifindex(pair[0])
    put(attached, pair[0])
    pair[0].ip(f"link del {pair[0].nic.name}")
    pair[0].ip(f"link add {pair[0].nic.name} index {index} type veth peer name peer0")
    assert put(attached, pair[0], index) == "native"
    pair[0].ip(f"link del {pair[0].nic.name}")
    assert attached.detach_xdp(index)
    with pytest.raises(DmmError, match=f"no device has the index {index}"):
        put(attached, pair[0], index)
    assert loader.detach(attached.instance)
