# SPDX-License-Identifier: Apache-2.0
"""A tunnel of IPsec's between two hosts with user stacks on the device below it: what it protects
is the kernel's, either way, and nothing of it is on the wire.

This kernel may lack ESP; in a guest of `tools/kernelvm` (DMM_GUEST_KERNEL) it must be there.
"""

from __future__ import annotations

import os

import pytest
from sitefixtures import TAP
from talking import PORT, SEND, SINK, server

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import Client

INSIDE = "192.0.2"
BYTES = 100_000
CRYPTO = "auth hmac(sha256) 0x" + 32 * "17" + " enc ecb(cipher_null) ''"


def _protect(hosts):
    near, far = hosts
    try:
        for host in hosts:
            for src, dst, spi in ((near, far, 1), (far, near, 2)):
                ends = f"src {src.ip4} dst {dst.ip4}"
                host.ip(f"xfrm state add {ends} proto esp spi {spi} mode tunnel {CRYPTO}")
    except DmmError as error:
        if "DMM_GUEST_KERNEL" in os.environ:
            raise
        pytest.skip(f"this kernel: {error.why}")
    for number, (host, other) in enumerate((hosts, hosts[::-1]), 1):
        here, there = f"{INSIDE}.{number}", f"{INSIDE}.{3 - number}"
        host.ip(
            f"address add {here}/32 dev {host.nic.name}",
            f"route add {there}/32 via {other.ip4} src {here}",
        )
        for ends, way, outer in (
            (f"src {here} dst {there}", "out", f"src {host.ip4} dst {other.ip4}"),
            (f"src {there} dst {here}", "in", f"src {other.ip4} dst {host.ip4}"),
        ):
            host.ip(f"xfrm policy add {ends} dir {way} tmpl {outer} proto esp mode tunnel")


@pytest.mark.timeout(900)  # a guest is emulated
def test_what_ipsec_protects_is_the_kernels(wired, python):
    _protect((wired.client, wired.server))
    routed = wired.attach_client(TAP), wired.attach_server(TAP)
    server(wired.server, wired.server_cgroup, SINK, str(PORT))
    for to, carried in ((f"{INSIDE}.2", 0), (wired.server.ip4, 1)):
        words = (SEND, to, str(PORT), str(BYTES), "120")
        sent, back = python(wired.client, wired.client_cgroup, *words, timeout=300).split()
        assert sent == back
        for one, counter in zip(routed, ("active_open", "passive_open"), strict=True):
            with Client(one.instance) as client:
                (stack,) = (s for s in client.call("stacks") if s["name"] == "wan")
                assert stack["counters"][counter] == carried
