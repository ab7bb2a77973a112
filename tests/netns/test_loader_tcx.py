# SPDX-License-Identifier: Apache-2.0
"""The tcx links at both hooks of a NIC: before others, both or missed, gone when told and when
the NIC goes.
"""

from __future__ import annotations

import errno
import os
import socket

import pytest

from dmm_ebpf import loader
from dmm_ebpf.loader import bpf, tcx
from dmm_ebpf.loader.bpf import ProgType
from dmm_ebpf.loader.tcx import NIC, Hook
from lab import Host

# r0 = -1 (TC_ACT_UNSPEC, here TCX_NEXT); exit.
GO_ON = bytes.fromhex("b7000000ffffffff 9500000000000000")
LET_PASS = bytes.fromhex("b700000000000000 9500000000000000")  # TCX_PASS: others are not asked
BEFORE_ALL = 1 << 3  # BPF_F_BEFORE


@pytest.fixture(autouse=True)
def hooked(pair: tuple[Host, Host], attached: loader.Attached) -> None:
    """Our programs are at both hooks; without tcx, which the kernel tells by refusing to list
    it, there is no test.
    """
    index = index_of(pair[0])
    try:
        pair[0].call(bpf.prog_query, index, Hook.IN.value[1])
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("this kernel has no tcx")
        raise
    assert pair[0].call(attached.attach_tcx, index)


def index_of(host: Host) -> int:
    """Of a host's NIC."""
    return host.call(socket.if_nametoindex, host.nic.name)


def ids(host: Host, hook: Hook) -> list[int]:
    """Of the programs there, in the order in which they run."""
    return list(host.call(bpf.prog_query, index_of(host), hook.value[1])[1])


def ours(attached: loader.Attached) -> dict[Hook, int]:
    """The program's id for each hook."""
    return {hook: bpf.prog_info(fd).id for hook, fd in zip(NIC, attached.tc_fds(), strict=True)}


def test_each_hook_has_its_program_once(attached: loader.Attached, pair: tuple[Host, Host]) -> None:
    index = index_of(pair[0])
    assert pair[0].call(attached.attach_tcx, index)
    for hook, number in ours(attached).items():
        assert ids(pair[0], hook) == [number]
        assert tcx.pin_path(attached.folder, hook, index).exists()
    names = [bpf.prog_info(fd).name for fd in attached.tc_fds()]
    assert names == ["dmm_tcin", "dmm_tcout"]
    pair[0].run(["ping", "-c", "1", "-W", "5", pair[1].ip4])
    attached.detach_tcx(index)
    assert [ids(pair[0], hook) for hook in NIC] == [[], []]
    assert not pair[0].call(attached.has_tcx, index)
    attached.detach_tcx(index)


@pytest.mark.parametrize("hook", NIC)
def test_before_a_program_of_anothers(
    attached: loader.Attached, pair: tuple[Host, Host], hook: Hook
) -> None:
    index = index_of(pair[0])
    attached.detach_tcx(index)
    fd = bpf.prog_load("somebodys", ProgType.SCHED_CLS, GO_ON)
    link = pair[0].call(bpf.link_create, fd, index, hook.value[1], 0)
    try:
        assert pair[0].call(attached.attach_tcx, index)
        assert ids(pair[0], hook) == [ours(attached)[hook], bpf.prog_info(fd).id]
        attached.detach_tcx(index)
        assert ids(pair[0], hook) == [bpf.prog_info(fd).id]
    finally:
        os.close(link)
        os.close(fd)


@pytest.mark.parametrize("hook", NIC)
def test_one_that_somebody_puts_in_front_is_overtaken(
    attached: loader.Attached, pair: tuple[Host, Host], hook: Hook
) -> None:
    index = index_of(pair[0])
    fd = bpf.prog_load("somebodys", ProgType.SCHED_CLS, LET_PASS)
    link = pair[0].call(bpf.link_create, fd, index, hook.value[1], BEFORE_ALL)
    try:
        told = pair[0].call(attached.overtaken_tcx, index)
        assert told == {Hook.IN: "ingress", Hook.OUT: "egress"}[hook]
        assert pair[0].call(attached.attach_tcx, index)
        assert pair[0].call(attached.overtaken_tcx, index) == ""
        assert ids(pair[0], hook) == [ours(attached)[hook], bpf.prog_info(fd).id]
    finally:
        os.close(link)
        os.close(fd)


@pytest.mark.parametrize("lost", NIC)
def test_what_was_taken_off_one_hook_is_missed_and_put_back(
    attached: loader.Attached, pair: tuple[Host, Host], lost: Hook
) -> None:
    index = index_of(pair[0])
    fd = bpf.obj_get(str(tcx.pin_path(attached.folder, lost, index)))
    bpf.link_detach(fd)
    os.close(fd)
    assert not pair[0].call(attached.has_tcx, index)
    assert pair[0].call(attached.attach_tcx, index)
    assert pair[0].call(attached.has_tcx, index)
    assert {hook: ids(pair[0], hook) for hook in NIC} == {h: [n] for h, n in ours(attached).items()}


def test_a_nic_that_goes_away_is_no_obstacle(
    attached: loader.Attached, pair: tuple[Host, Host]
) -> None:
    index = index_of(pair[0])
    pair[0].ip(f"link del {pair[0].nic.name}")
    assert not pair[0].call(attached.has_tcx, index)
    pair[0].ip(f"link add {pair[0].nic.name} index {index} type veth peer name peer0")
    assert pair[0].call(attached.attach_tcx, index)
    assert [len(ids(pair[0], hook)) for hook in NIC] == [1, 1]


def test_detach_from_another_namespace_takes_both_off(
    attached: loader.Attached, pair: tuple[Host, Host]
) -> None:
    removed = loader.detach(attached.instance)
    index = index_of(pair[0])
    for end in ("in", "out"):
        assert any(text.startswith(f"link tcx-{index}-{end} ") for text in removed)
    assert [ids(pair[0], hook) for hook in NIC] == [[], []]
