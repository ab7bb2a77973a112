# SPDX-License-Identifier: Apache-2.0
"""hal.choice: which port is fit for a device, over all that can speak for or against one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dmm_ebpf.hal.answer import Unknown
from dmm_ebpf.hal.choice import Facts, Port, choose, largest_mtu

BEST = Facts(
    name="eth0",
    driver="mlx5_core",
    kind="hardware",
    loopback=False,
    own=False,
    external=False,
    carries_ip=True,
    bare=False,
    master="",
    master_kind="",
    mtu=1500,
    page=4096,
    native_xdp=True,
    zero_copy=True,
    frags=False,
    foreign_xdp="",
    qdisc="",
    filters=(),
    hooks=(),
)
WHY = Unknown("nobody was there")
TOO_LARGE = largest_mtu(4096) + 1


def test_zero_copy_with_nothing_in_the_way_gets_af_xdp() -> None:
    got = choose(BEST)
    assert (got.port, got.reason) == (
        Port.AF_XDP,
        "driver mlx5_core has zero-copy, and nothing is in the way",
    )
    assert choose(replace(BEST, mtu=largest_mtu(4096))).port == Port.AF_XDP
    assert choose(replace(BEST, mtu=9000, frags=True)).port == Port.AF_XDP
    assert choose(replace(BEST, mtu=9000, page=65536)).port == Port.AF_XDP
    assert choose(replace(BEST, master="red", master_kind="vrf")).port == Port.AF_XDP


def test_the_largest_mtu_is_what_veth_takes_of_a_page() -> None:
    assert largest_mtu(4096) == 3506  # tests/netns/test_hal_listing.py asks the kernel


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"native_xdp": False}, "driver mlx5_core has no native XDP"),
        ({"native_xdp": False, "driver": ""}, "hardware has no native XDP"),
        ({"bare": True}, "its packets have no Ethernet header"),
        ({"native_xdp": WHY}, "could not tell whether it has native XDP: nobody was there"),
        ({"zero_copy": False}, "driver mlx5_core has no AF_XDP zero-copy"),
        ({"zero_copy": WHY}, "could not tell whether it has AF_XDP zero-copy: nobody was there"),
        ({"foreign_xdp": "cilium (id 7)"}, "the XDP program cilium (id 7) is on it"),
        ({"foreign_xdp": WHY}, "could not tell whose XDP program is on it: nobody was there"),
        (
            {"mtu": TOO_LARGE},
            "at an MTU of 3507 a packet does not fit a page, and XDP takes no fragments",
        ),
        ({"mtu": TOO_LARGE, "frags": WHY}, "could not tell whether XDP takes packets in fragments"),
        ({"qdisc": "tbf"}, "qdisc tbf would be gone around"),
        ({"qdisc": WHY}, "could not tell whether somebody set its qdisc: nobody was there"),
        (
            {"filters": ("ingress u32", "egress bpf x")},
            "tc filter ingress u32, egress bpf x would be gone around",
        ),
        ({"filters": WHY}, "could not tell whether it has a tc filter: nobody was there"),
        ({"hooks": ("fw in",)}, "nft hook fw in would be gone around"),
        ({"hooks": WHY}, "could not tell whether it has a nft hook: nobody was there"),
    ],
)
def test_all_else_gets_tap_and_says_why(changed: dict[str, Any], why: str) -> None:
    got = choose(replace(BEST, **changed))
    assert got.port == Port.TAP
    assert len(got.reasons) == 1
    assert why in got.reason


def test_every_obstacle_is_said_and_what_follows_from_another_is_not() -> None:
    got = choose(replace(BEST, qdisc="htb", hooks=("fw in",), mtu=9000))
    assert [reason.split()[0] for reason in got.reasons] == ["at", "qdisc", "nft"]
    got = choose(replace(BEST, native_xdp=False, zero_copy=False, qdisc="htb"))
    assert got.reasons == ("driver mlx5_core has no native XDP", "qdisc htb would be gone around")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"loopback": True}, "stays on this host"),
        ({"own": True}, "a device of a user stack"),
        ({"external": True}, "it is external"),
        ({"kind": "ifb"}, "comes back to the device"),
        ({"kind": "vrf"}, "by one of its ports"),
        ({"carries_ip": False}, "it carries no IP packets"),
        (
            {"master": "br0", "master_kind": "bridge"},
            "it belongs to bridge br0, which has the addresses: name br0",
        ),
        ({"master": "b", "master_kind": "bond"}, "name b"),
    ],
)
def test_what_no_user_stack_can_serve(changed: dict[str, Any], why: str) -> None:
    got = choose(replace(BEST, **changed))
    assert got.port == Port.NONE
    assert why in got.reason
