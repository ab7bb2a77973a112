# SPDX-License-Identifier: Apache-2.0
"""hal.tcfilter: our programs at both hooks of a NIC and at a device of ours, among the
filters of others.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hal_lab import Host, hosts, link

from dmm_ebpf.errors import ConflictError, UsageError
from dmm_ebpf.hal import tcfilter
from dmm_ebpf.loader import bpf
from dmm_ebpf.loader.bpf import ProgType

# r0 = -1 (TC_ACT_UNSPEC); exit.
GO_ON = bytes.fromhex("b7000000ffffffff 9500000000000000")
HOOKS = ("ingress", "egress")


@pytest.fixture
def progs() -> Iterator[tuple[int, int]]:
    """Two programs that let everything go on."""
    made = [bpf.prog_load(name, ProgType.SCHED_CLS, GO_ON) for name in ("went_in", "went_out")]
    yield made[0], made[1]
    for fd in made:
        os.close(fd)


def index_of(host: Host, name: str = "eth0") -> int:
    return host.ns.run_in(socket.if_nametoindex, name)


def filters(host: Host, hook: str, name: str = "eth0") -> list[dict[str, Any]]:
    """What tc(8) shows, in the order in which they run."""
    shown = json.loads(host.sh("tc", "-j", "filter", "show", "dev", name, hook) or "[]")
    return [one for one in shown if "bpf_name" in one.get("options", {})]


def somebodys(host: Host, hook: str, pref: int) -> None:
    """A filter of another's: a classic program that matches nothing."""
    code = ("bytecode", "1,6 0 0 0,", "flowid", "1:1")
    host.sh("tc", *f"filter add dev eth0 {hook} pref {pref} bpf".split(), *code)


def names(host: Host, hook: str) -> list[str]:
    return [one["options"]["bpf_name"] for one in filters(host, hook)]


def test_both_hooks_of_a_nic(progs: tuple[int, int]) -> None:
    with hosts(2) as (a, b):
        link(a, b)
        index = index_of(a)
        assert not a.ns.run_in(tcfilter.has_clsact, index)
        for _ in range(2):  # a second time changes nothing
            a.ns.run_in(tcfilter.attach_nic, index, progs, "dmm_tc:one")
            for hook, fd in zip(HOOKS, progs, strict=True):
                (found,) = filters(a, hook)
                assert found["options"]["prog"]["id"] == bpf.prog_info(fd).id
                assert found["options"]["direct-action"]
        assert a.ns.run_in(tcfilter.has_clsact, index)
        assert a.ns.run_in(tcfilter.attached_nic, index, "dmm_tc:one")
        a.sh("ping -c 1 -W 5 10.9.1.2")
        assert a.ns.run_in(lambda: tcfilter.detach_nic(index, "dmm_tc:one", clsact=True))
        assert not a.ns.run_in(tcfilter.has_clsact, index)
        assert not a.ns.run_in(lambda: tcfilter.detach_nic(index, "dmm_tc:one", clsact=True))
        assert not a.ns.run_in(tcfilter.attached_nic, index, "dmm_tc:one")


@pytest.mark.parametrize("lost", HOOKS)
def test_what_was_taken_off_one_hook_is_missed_and_put_back(
    progs: tuple[int, int], lost: str
) -> None:
    with hosts(2) as (a, b):
        link(a, b)
        index = index_of(a)
        a.ns.run_in(tcfilter.attach_nic, index, progs, "dmm_tc:one")
        a.sh(f"tc filter del dev eth0 {lost}")
        assert not a.ns.run_in(tcfilter.attached_nic, index, "dmm_tc:one")
        a.ns.run_in(tcfilter.attach_nic, index, progs, "dmm_tc:one")
        assert a.ns.run_in(tcfilter.attached_nic, index, "dmm_tc:one")
        assert [names(a, hook) for hook in HOOKS] == [["dmm_tc:one"]] * 2


def test_ours_come_before_others_and_leave_them(progs: tuple[int, int]) -> None:
    with hosts(2) as (a, b):
        link(a, b)
        index = index_of(a)
        a.sh("tc qdisc add dev eth0 clsact")
        somebodys(a, "egress", 7)
        for name in ("dmm_tc:one", "dmm_tc:two"):
            a.ns.run_in(tcfilter.attach_nic, index, progs, name)
        assert names(a, "egress") == ["dmm_tc:two", "dmm_tc:one"]
        assert max(one["pref"] for one in filters(a, "egress")) < 7
        assert a.ns.run_in(lambda: tcfilter.detach_nic(index, "dmm_tc:two", clsact=True))
        assert [names(a, hook) for hook in HOOKS] == [["dmm_tc:one"]] * 2
        assert a.ns.run_in(lambda: tcfilter.detach_nic(index, "dmm_tc:one", clsact=True))
        assert a.ns.run_in(tcfilter.has_clsact, index), "somebody's filter is still in it"
        assert "bytecode" in a.sh("tc filter show dev eth0 egress")


@pytest.mark.parametrize("hook", HOOKS)
def test_nothing_comes_before_priority_1(progs: tuple[int, int], hook: str) -> None:
    with hosts(2) as (a, b):
        link(a, b)
        a.sh("tc qdisc add dev eth0 clsact")
        somebodys(a, hook, 1)
        with pytest.raises(ConflictError, match=f"priority 1 at its {hook}"):
            a.ns.run_in(tcfilter.attach_nic, index_of(a), progs, "dmm_tc:one")


def test_a_device_of_a_process_and_nobody_elses(progs: tuple[int, int]) -> None:
    with hosts(2) as (a, b):
        link(a, b)
        a.sh("ip tuntap add dev dmm-0.3.in mode tap")
        index = index_of(a, "dmm-0.3.in")
        for fd in progs:  # a second one replaces the first
            a.ns.run_in(tcfilter.attach, index, fd)
            (found,) = filters(a, "ingress", "dmm-0.3.in")
            assert found["options"]["prog"]["id"] == bpf.prog_info(fd).id
        assert a.ns.run_in(tcfilter.attached, index) == ["dmm_inner"]
        with pytest.raises(UsageError):
            a.ns.run_in(tcfilter.attach, index_of(a), progs[0])


@pytest.mark.parametrize("hook", HOOKS)
def test_one_that_is_put_before_ours_is_told_and_overtaken(
    progs: tuple[int, int], hook: str
) -> None:
    with hosts(2) as (a, b):
        link(a, b)
        index = index_of(a)
        for name in ("dmm_tc:one", "dmm_tc:two"):
            a.ns.run_in(tcfilter.attach_nic, index, progs, name)
        assert a.ns.run_in(tcfilter.overtaken, index, "dmm_tc:one") == "", "ours let it go on"
        somebodys(a, hook, 7)
        for name in ("dmm_tc:one", "dmm_tc:two"):
            assert a.ns.run_in(tcfilter.overtaken, index, name) == hook
            a.ns.run_in(tcfilter.attach_nic, index, progs, name)
            assert a.ns.run_in(tcfilter.overtaken, index, name) == ""
        assert sorted(names(a, hook)) == ["dmm_tc:one", "dmm_tc:two"]
        assert max(one["pref"] for one in filters(a, hook)) < 7
        somebodys(a, hook, 1)
        with pytest.raises(ConflictError, match=f"priority 1 at its {hook}"):
            a.ns.run_in(tcfilter.attach_nic, index, progs, "dmm_tc:one")
        assert sorted(names(a, hook)) == ["dmm_tc:one", "dmm_tc:two"]
