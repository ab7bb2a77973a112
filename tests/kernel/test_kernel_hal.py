# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf hal` on devices that Debian's kernels have as modules, and on a kernel without
the netdev family.
"""

from __future__ import annotations

import json
import os
import sys

import pytest

from dmm_ebpf.errors import DmmError


def test_modules_devices_are_listed_and_nothing_is_guessed(lab):
    host = lab.host("a")
    lab.wire(host, lab.host("b"))
    try:
        for words in (
            "link add bond0 type bond mode active-backup",
            "link add d0 type dummy",
            "link set d0 master bond0",
            f"link add link {host.nic.name} name vlan5 type vlan id 5",
            "link add wg0 type wireguard",
        ):
            host.ip(words)
    except DmmError as error:
        if "DMM_GUEST_KERNEL" in os.environ:
            raise
        pytest.skip(f"this kernel: {error.why}")
    done = host.run([sys.executable, "-m", "dmm_ebpf.cli.main", "hal", "--json"])
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    kinds = {name: rows[name]["kind"] for name in ("bond0", "d0", "vlan5", "wg0")}
    assert kinds == {"bond0": "bond", "d0": "dummy", "vlan5": "vlan", "wg0": "wireguard"}
    ports = {name: rows[name]["fit_for"]["port"] for name in kinds}
    assert ports == {"bond0": "tap", "d0": "none", "vlan5": "tap", "wg0": "tap"}
    assert "name bond0" in rows["d0"]["fit_for"]["why"][0]
    native = rows[host.nic.name]["xdp"]["native"]
    assert native is True or "no netlink family netdev" in native["could_not_tell"]
