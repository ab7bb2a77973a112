# SPDX-License-Identifier: Apache-2.0
"""hal.stackdevice: which numbers are in use, and what of a process's devices is taken away."""

from __future__ import annotations

import os

from dmm_ebpf.userstack._core import ffi, lib
from hal_lab import Host, hosts

from dmm_ebpf.hal import stackdevice


def links(host: Host) -> set[str]:
    return {line.split(": ")[1].split("@")[0] for line in host.sh("ip -o link").splitlines()}


def persistent(host: Host, *names: str) -> None:
    for name in names:
        host.sh(f"ip tuntap add dev {name} mode tap")


def test_numbers_in_use() -> None:
    with hosts(1) as (a,):
        assert a.ns.run_in(stackdevice.numbers_in_use) == set()
        persistent(a, stackdevice.inner("dmm-0", 3), stackdevice.outer("dmm-63", 15))
        a.sh("ip link add dmm-7 type veth peer name dmm-x")
        assert a.ns.run_in(stackdevice.numbers_in_use) == {0, 7, 63}


def test_a_processs_devices_go_and_nobody_elses() -> None:
    with hosts(1) as (a,):
        persistent(a, "dmm-1.0.in", "dmm-1.15.in", "dmm-1.0.out", "dmm-11.0.in")
        a.sh("ip link add dmm-1.2.in type veth peer name other")
        assert a.ns.run_in(stackdevice.remove_all, 1) == [
            "device dmm-1.0.in",
            "device dmm-1.0.out",
            "device dmm-1.15.in",
        ]
        assert links(a) == {"lo", "dmm-11.0.in", "dmm-1.2.in", "other"}
        assert a.ns.run_in(stackdevice.remove_all, 1) == []


def test_one_that_a_process_has_open_may_stay() -> None:
    with hosts(1) as (a,):
        error = ffi.new("struct dmm_hal_error *")
        fd = a.ns.run_in(lib.dmm_tap_open, b"dmm-1.0.in", error)
        assert fd >= 0, ffi.string(error.what)
        try:
            assert a.ns.run_in(lib.dmm_tap_up, b"dmm-1.0.in", 1500, 100, error) == 100
            persistent(a, "dmm-1.1.in")
            both = ("dmm-1.0.in", "dmm-1.1.in")
            assert a.ns.run_in(lambda: stackdevice.remove(both, idle_only=True)) == ["dmm-1.1.in"]
            assert a.ns.run_in(lambda: stackdevice.remove(both)) == ["dmm-1.0.in"]
        finally:
            os.close(fd)
        assert links(a) == {"lo"}
