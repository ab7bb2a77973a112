# SPDX-License-Identifier: Apache-2.0
"""Devices and queueing disciplines that Debian's kernels have as modules: they can be made,
and carry packets.

A kernel without one of them skips it on the host; in a guest of `tools/kernelvm` (DMM_GUEST_KERNEL)
it must be there.
"""

from __future__ import annotations

import os
import re

import pytest

from dmm_ebpf.errors import DmmError


def _made(host, *lines):
    try:
        host.ip(*lines)
    except DmmError as error:
        if "DMM_GUEST_KERNEL" in os.environ:
            raise
        pytest.skip(f"this kernel: {error.why}")


def _ping_ms(host, address):
    """Round trip of the last of two echoes: the first may have waited for a neighbour."""
    said = host.run(["ping", "-n", "-c2", "-i0.2", "-W10", address]).stdout
    return float(re.findall(r"time=([0-9.]+) ms", said)[-1])


@pytest.fixture
def wire(lab):
    hosts = lab.host("a"), lab.host("b")
    lab.wire(*hosts)
    return hosts


def test_8021q(wire):
    for number, host in enumerate(wire, 1):
        _made(
            host,
            f"link add link {host.nic.name} name vlan5 type vlan id 5",
            f"address add 192.0.2.{number}/24 dev vlan5",
            "link set vlan5 up",
        )
    assert _ping_ms(wire[0], "192.0.2.2") > 0


def test_bonding(wire):
    for number, host in enumerate(wire, 1):
        _made(
            host,
            "link add bond0 type bond mode active-backup miimon 100",
            f"link set {host.nic.name} down",
            f"link set {host.nic.name} master bond0",
            "link set bond0 up",
            f"address add 192.0.2.{number}/24 dev bond0",
        )
    assert _ping_ms(wire[0], "192.0.2.2") > 0


def test_wireguard_and_dummy(wire):
    host = wire[0]
    _made(
        host, "link add wg0 type wireguard", "address add 192.0.2.1/24 dev wg0", "link set wg0 up"
    )
    _made(host, "link add d0 type dummy", "address add 198.51.100.1/32 dev d0", "link set d0 up")
    assert _ping_ms(host, "198.51.100.1") > 0
    assert "wireguard" in host.run(["ip", "-d", "link", "show", "wg0"]).stdout


def test_fq_and_netem(wire):
    host = wire[0]
    for qdisc in ("fq", "netem delay 200ms"):
        done = host.run(
            ["tc", "qdisc", "replace", "dev", host.nic.name, "root", *qdisc.split()], check=False
        )
        if done.returncode and "DMM_GUEST_KERNEL" not in os.environ:
            pytest.skip(f"this kernel: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
    assert _ping_ms(host, wire[1].ip4) >= 200
