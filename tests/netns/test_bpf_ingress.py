# SPDX-License-Identifier: Apache-2.0
"""The tc program: which mark a packet from a user stack's device carries into the kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from bpf_lab import MARK_MASK, USER_MARK, netns_cookie, u32
from lab import Cgroup, Lab

from dmm_ebpf import abi, loader
from dmm_ebpf.loader import bpf

TC_ACT_OK = 0
FRAME = bytes(12) + b"\x08\0" + bytes(46)
SKB_BYTES = 192  # sizeof(struct __sk_buff)
MARK_AT, IFINDEX_AT = 8, 40  # offsets in it (linux/bpf.h)


def context(mark: int, ifindex: int) -> bytes:
    """A struct __sk_buff as BPF_PROG_TEST_RUN takes it."""
    skb = bytearray(SKB_BYTES)
    struct.pack_into("=I", skb, MARK_AT, mark)
    struct.pack_into("=I", skb, IFINDEX_AT, ifindex)
    return bytes(skb)


@pytest.fixture
def run(lab: Lab, cgroup: Cgroup, instance: Callable[[], str]) -> Iterator[Callable[[int], int]]:
    """The mark after the program for the mark before it, on lo, which stands for a stack's device."""
    host = lab.host("a")
    with ExitStack() as stack:
        name = instance()
        stack.callback(loader.detach, name)
        attached = loader.attach(name, cgroup.path, netns_cookie=netns_cookie(host), mark_mask=MARK_MASK)
        stack.callback(attached.close)

        def mark_after(mark: int, entry: tuple[int, int] | None = None) -> int:
            if entry is not None:
                value = abi.pack(abi.new("dmm_tun_mark", mark=entry[0], mask=entry[1]))
                attached.maps["tun_marks"].update(u32(1), value)
            fd = attached.ingress_fd()
            done = host.call(lambda: bpf.prog_test(fd, FRAME, context=context(mark, 1)))
            assert done.retval == TC_ACT_OK and done.data[: len(FRAME)] == FRAME
            return int(struct.unpack_from("=I", done.context, MARK_AT)[0])

        yield mark_after


def test_a_device_without_an_entry_keeps_its_marks(run: Callable[..., int]) -> None:
    assert run(0x1234) == 0x1234


def test_the_stacks_bits_are_set_and_the_others_stay(run: Callable[..., int]) -> None:
    entry = (USER_MARK + (3 << 20), MARK_MASK)
    assert run(0, entry) == USER_MARK + (3 << 20)
    assert run(0xFFFFFFFF) == 0xF00FFFFF | (USER_MARK + (3 << 20))
    assert run(0x00A00077) == 0x77 | (USER_MARK + (3 << 20))
