# SPDX-License-Identifier: Apache-2.0
"""io = "tap" on every kernel: by tcx where there is, by clsact before Linux 6.6, over devices
that only some have.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf
from lab import curl_fetch, nginx, wait_for

POLICY = """
[stacks.wan]
kind = "user"
io = "tap"
devices = ["{device}"]

[[rules]]
cgroup = "{{cgroup}}"
table = "t"

[[tables.t.routes]]
to = "default"
stack = "wan"
"""

TRACES = (
    "ip -br link; for d in $(ls /sys/class/net); do "
    "tc qdisc show dev $d; tc filter show dev $d ingress 2>/dev/null; done"
)


def _vlan_on_bond(host, number: int) -> None:
    host.ip(
        "link add bond0 type bond mode active-backup miimon 100",
        f"link set {host.nic.name} down",
        f"link set {host.nic.name} master bond0",
        "link set bond0 up",
        "link add link bond0 name vlan5 type vlan id 5",
        f"address add 192.0.2.{number}/24 dev vlan5",
        "link set vlan5 up",
    )


def _device(site, kind: str) -> tuple[str, str]:
    """The client's device, and the server's address by it."""
    if kind == "veth":
        return site.client.nic.name, site.server.ip4
    try:
        for number, host in enumerate((site.client, site.server), 1):
            _vlan_on_bond(host, number)
    except DmmError as error:
        if "DMM_GUEST_KERNEL" in os.environ:
            raise
        pytest.skip(f"this kernel: {error.why}")
    return "vlan5", "192.0.2.2"


@pytest.fixture
def asked_modules(tmp_path):
    """Gives the modules that the kernel has had modprobe(8) look for since."""
    setting = Path("/proc/sys/kernel/modprobe")
    if not setting.exists():
        yield list  # this kernel has no modules
        return
    before, log, program = setting.read_text(), tmp_path / "asked", tmp_path / "modprobe"
    log.touch()
    program.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {before.strip()} "$@"\n')
    program.chmod(0o755)
    setting.write_text(str(program))
    yield lambda: log.read_text().splitlines()
    setting.write_text(before)


def has_tcx() -> bool:
    """Whether this kernel has it (Linux 6.6)."""
    try:
        bpf.prog_query(socket.if_nametoindex("lo"), bpf.AttachType.TCX_INGRESS)
    except OSError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


@pytest.mark.parametrize("kind", ["veth", "802.1Q on a bond"])
def test_a_tap_stack_serves_and_leaves_no_trace(wired, payload, kind, asked_modules):
    device, peer = _device(wired, kind)
    path, sha256 = payload(300_000)
    url = nginx(
        wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup
    ).url(path.name)
    url = url.replace(wired.server.ip4, peer)
    host = wired.client
    before = host.run(["sh", "-c", TRACES]).stdout
    by_others = len(asked_modules())
    routed = wired.attach_client(POLICY.format(device=device))
    got = curl_fetch(host, url, cgroup=wired.client_cgroup, timeout=60)
    assert got.sha256 == sha256, got.stderr
    stack = routed.stack("wan")
    assert (stack["port"], stack["counters"]["active_open"]) == ("tap", 1)
    routed.close()
    # It does for each device that is not there and that an ioctl names.
    assert [asked for asked in asked_modules()[by_others:] if "netdev-" in asked] == []
    assert host.run(["sh", "-c", TRACES]).stdout == before


def test_a_program_of_anothers_that_ends_the_search_changes_nothing(wired, payload):
    """Before Linux 6.6 it is in one list with ours, and who comes first may keep all packets."""
    path, sha256 = payload(300_000)
    url = nginx(
        wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup
    ).url(path.name)
    host = wired.client
    device = host.nic.name
    routed = wired.attach_client(POLICY.format(device=device))
    host.run(["tc", "qdisc", "add", "dev", device, "clsact"], check=False)
    for hook in ("ingress", "egress"):
        at = f"tc filter add dev {device} {hook} pref 7 bpf da bytecode".split()
        host.run([*at, "1,6 0 0 0,"])  # TC_ACT_OK
    wait_for(lambda: not routed.ask("status")[0]["missing"], 20, "all to be well")
    for _ in range(3):
        got = curl_fetch(host, url, cgroup=wired.client_cgroup, timeout=60)
        assert got.sha256 == sha256, got.stderr
    assert routed.stack("wan")["counters"]["active_open"] == 3


@pytest.mark.timeout(900)  # an emulated machine takes long for each command
def test_behind_a_filter_that_cannot_be_overtaken_the_kernel_serves(wired, payload):
    """It comes when the stack serves already; with tcx nothing changes."""
    path, sha256 = payload(300_000)
    url = nginx(
        wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup
    ).url(path.name)
    host = wired.client
    device = host.nic.name
    routed = wired.attach_client(POLICY.format(device=device))
    host.run(["tc", "qdisc", "add", "dev", device, "clsact"], check=False)
    tcx = host.call(has_tcx)
    for hook in ("egress", "ingress"):
        at = f"dev {device} {hook} pref 1"
        host.run([*f"tc filter add {at} bpf da bytecode".split(), "1,6 0 0 0,"])  # TC_ACT_OK
        if not tcx:
            wait_for(lambda: routed.ask("status")[0]["missing"], 20, "it to be told")
            asked = routed.ask("route", "get", f"{wired.server.ip4}:80")
            assert (asked["stack"], asked["why"]) == ("kernel", "filter")
        got = curl_fetch(host, url, cgroup=wired.client_cgroup, timeout=60)
        assert got.sha256 == sha256, got.stderr
        host.run(f"tc filter del {at}".split())
        wait_for(lambda: not routed.ask("status")[0]["missing"], 20, "all to be well")
    assert routed.stack("wan")["counters"]["active_open"] == (2 if tcx else 0)
    got = curl_fetch(host, url, cgroup=wired.client_cgroup, timeout=60)
    assert got.sha256 == sha256, got.stderr
    assert routed.stack("wan")["counters"]["active_open"] == (3 if tcx else 1)


def test_a_filter_at_the_first_priority_is_told_and_nothing_is_left(wired):
    host = wired.client
    dev = host.nic.name
    host.run(["tc", "qdisc", "add", "dev", dev, "clsact"])
    host.run(
        f"tc filter add dev {dev} ingress pref 1 protocol ip u32 match u32 0 0 classid 1:1".split()
    )
    before = host.run(["sh", "-c", TRACES]).stdout
    if not host.call(has_tcx):
        with pytest.raises(DmmError, match="priority 1 at its ingress"):
            wired.attach_client(POLICY.format(device=dev))
    else:
        wired.attach_client(POLICY.format(device=dev)).close()  # tcx comes before all filters
    assert host.run(["sh", "-c", TRACES]).stdout == before
