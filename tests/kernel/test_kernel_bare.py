# SPDX-License-Identifier: Apache-2.0
"""User stacks on the kinds of devices without link header that kernels have: both ways,
by both families
as far as the kind carries them.

A kernel without a kind skips it on the host; in a guest of `tools/kernelvm` (DMM_GUEST_KERNEL) it
must be there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sitefixtures import by
from talking import PORT, SEND, SINK, server

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import Client

POLICY = by("tap", "top0")
BYTES = 200_000


def _tunnel(kind, *more):
    def make(near, far):
        near.ip(" ".join([f"link add top0 type {kind} local {near.ip4} remote {far.ip4}", *more]))

    return make


def _tunnel6(kind, *more):
    def make(near, far):
        near.ip(" ".join([f"link add top0 type {kind} local {near.ip6} remote {far.ip6}", *more]))

    return make


KINDS = {
    "ipip": (_tunnel("ipip"), ("ip4",)),
    "gre": (_tunnel("gre"), ("ip4", "ip6")),
    "sit": (_tunnel("sit"), ("ip6",)),
    "ip6tnl": (_tunnel6("ip6tnl", "mode any"), ("ip4", "ip6")),
    "wireguard": (None, ("ip4", "ip6")),
}


def _key_pair(host):
    private = host.run(["wg", "genkey"]).stdout.strip()
    return private, host.run(["wg", "pubkey"], input=private + "\n").stdout.strip()


def _wire_guard(hosts):
    keys = {host: _key_pair(host) for host in hosts}
    for host, other in (hosts, hosts[::-1]):
        host.ip("link add top0 type wireguard")
        host.run(
            ["wg", "set", "top0", "listen-port", "51820", "private-key", "/dev/stdin",
             "peer", keys[other][1], "endpoint", f"{other.ip4}:51820", "allowed-ips", "0.0.0.0/0,::/0"],
            input=keys[host][0],
        )  # fmt: skip


def _no_fallback_devices():
    """Else the first device of a kind leaves tunl0, gre0 and the like on the whole host."""
    Path("/proc/sys/net/core/fb_tunnels_only_for_init_net").write_text("2")


def _make(kind, hosts):
    if "DMM_GUEST_KERNEL" in os.environ:
        _no_fallback_devices()
    make = KINDS[kind][0]
    try:
        if make is None:
            _wire_guard(hosts)
        else:
            for host, other in (hosts, hosts[::-1]):
                make(host, other)
    except DmmError as error:
        if "DMM_GUEST_KERNEL" in os.environ:
            raise
        pytest.skip(f"this kernel: {error.why}")
    for number, host in enumerate(hosts, 1):
        host.ip(
            f"address add 198.18.40.{number}/24 dev top0",
            f"address add 2001:db8:40::{number}/64 dev top0 nodad",
            "link set top0 up",
        )


@pytest.mark.timeout(900)  # a guest is emulated
@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_each_way(wired, python, kind):
    _make(kind, (wired.client, wired.server))
    routed = [wired.attach_client(POLICY), wired.attach_server(POLICY)]
    server(wired.server, wired.server_cgroup, SINK, str(PORT))
    for number, family in enumerate(KINDS[kind][1], 1):
        to = "198.18.40.2" if family == "ip4" else "2001:db8:40::2"
        words = (SEND, to, str(PORT), str(BYTES), "120")
        sent, back = python(wired.client, wired.client_cgroup, *words, timeout=300).split()
        assert sent == back
        for one in routed:
            with Client(one.instance) as client:
                counters = client.call("status")["counters"]
            assert counters["xdp_listener" if one is routed[1] else "xdp_flow"] >= number
