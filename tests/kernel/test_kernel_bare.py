# SPDX-License-Identifier: Apache-2.0
"""User stacks on the kinds of devices without link header that kernels have, all of them at once:
both ways, by both families as far as the kind carries them.

A kernel without a kind goes without it, and without any it skips on the host; in a guest of
`tools/kernelvm` (DMM_GUEST_KERNEL) all must be there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sitefixtures import by
from talking import PORT, SEND, SINK, server

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import Client

BYTES = 200_000
# What each carries. The words of `ip link add`: by which family's addresses, and what else.
CARRIES = {
    "ipip": ("ip4",),
    "gre": ("ip4", "ip6"),
    "sit": ("ip6",),
    "ip6tnl": ("ip4", "ip6"),
    "wireguard": ("ip4", "ip6"),
}
TUNNELS = {
    "ipip": ("ip4", ""),
    "gre": ("ip4", ""),
    "sit": ("ip4", ""),
    "ip6tnl": ("ip6", "mode any"),
}


def _key_pair(host):
    private = host.run(["wg", "genkey"]).stdout.strip()
    return private, host.run(["wg", "pubkey"], input=private + "\n").stdout.strip()


def _wire_guard(hosts, device):
    keys = {host: _key_pair(host) for host in hosts}
    for host, other in (hosts, hosts[::-1]):
        host.ip(f"link add {device} type wireguard")
        host.run(
            ["wg", "set", device, "listen-port", "51820", "private-key", "/dev/stdin",
             "peer", keys[other][1], "endpoint", f"{other.ip4}:51820", "allowed-ips", "0.0.0.0/0,::/0"],
            input=keys[host][0],
        )  # fmt: skip


def _tunnel(hosts, device, kind):
    family, more = TUNNELS[kind]
    for host, other in (hosts, hosts[::-1]):
        ends = f"local {getattr(host, family)} remote {getattr(other, family)}"
        host.ip(f"link add {device} type {kind} {ends} {more}")


def _no_fallback_devices():
    """Else the first device of a kind leaves tunl0, gre0 and the like on the whole host."""
    Path("/proc/sys/net/core/fb_tunnels_only_for_init_net").write_text("2")


def _make(hosts):
    """A device of each kind that this kernel has: kind to the server's addresses on it."""
    made, lacks = {}, []
    for place, kind in enumerate(CARRIES):
        device = f"top{place}"
        try:
            _wire_guard(hosts, device) if kind == "wireguard" else _tunnel(hosts, device, kind)
        except DmmError as error:
            lacks.append(f"{kind}: {error.why}")
            continue
        made[kind] = {"ip4": f"198.18.4{place}.2", "ip6": f"2001:db8:4{place}::2"}
        for number, host in enumerate(hosts, 1):
            host.ip(
                f"address add 198.18.4{place}.{number}/24 dev {device}",
                f"address add 2001:db8:4{place}::{number}/64 dev {device} nodad",
                f"link set {device} up",
            )
    assert not lacks or "DMM_GUEST_KERNEL" not in os.environ, lacks
    if not made:
        pytest.skip(f"this kernel: {'; '.join(lacks)}")
    return made


@pytest.mark.timeout(900)  # a guest is emulated
def test_a_flow_each_way(wired, python):
    if "DMM_GUEST_KERNEL" in os.environ:
        _no_fallback_devices()
    made = _make((wired.client, wired.server))
    policy = by("tap", *(f"top{place}" for place, kind in enumerate(CARRIES) if kind in made))
    routed = [wired.attach_client(policy), wired.attach_server(policy)]
    server(wired.server, wired.server_cgroup, SINK, str(PORT))
    carried = 0
    for kind, addresses in made.items():
        for family in CARRIES[kind]:
            carried += 1
            words = (SEND, addresses[family], str(PORT), str(BYTES), "120")
            sent, back = python(wired.client, wired.client_cgroup, *words, timeout=300).split()
            assert sent == back, (kind, family)
            for one in routed:
                with Client(one.instance) as client:
                    counters = client.call("status")["counters"]
                counter = "xdp_listener" if one is routed[1] else "xdp_flow"
                assert counters[counter] >= carried, (kind, family)
