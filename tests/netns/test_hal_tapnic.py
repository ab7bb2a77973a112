# SPDX-License-Identifier: Apache-2.0
"""A NIC shared by TAP device and packet socket, by itself: frames in and out, in order, and
from nobody else.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hal_tc
from dmm_ebpf.userstack._core import ffi, lib
from hal_frames import frame, number_of, packet_socket, received_numbers, send_numbered
from hal_lab import Host, hosts, link, wait_until

from dmm_ebpf.hal import tcfilter

TAP = "dmm-9.0.out"
PROGRAM = "dmm_test"
VNET = ffi.new("struct dmm_vnet *")  # nothing is left to the device
WHOLE = ffi.new("struct dmm_payload *")  # no part of a frame is elsewhere


@contextmanager
def tapnic_on(host: Host) -> Iterator[Any]:
    """TAP device dmm-9.0.out that gets the TCP frames of the host's eth0."""
    error, out = ffi.new("struct dmm_hal_error *"), ffi.new("struct dmm_tapnic **")
    index = host.ns.run_in(socket.if_nametoindex, "eth0")
    opened = host.ns.run_in(lib.dmm_tapnic_open, TAP.encode(), index, False, out, error)
    assert opened == 0, ffi.string(error.what)
    try:
        assert host.ns.run_in(lib.dmm_tap_up, TAP.encode(), 1500, 4096, error) == 4096, ffi.string(
            error.what
        )
        prog = hal_tc.redirect_tcp(host.ns.run_in(socket.if_nametoindex, TAP))
        host.ns.run_in(tcfilter.attach_nic, index, (prog,), PROGRAM)
        os.close(prog)
        yield out[0]
    finally:
        lib.dmm_tapnic_close(out[0])
        host.ns.run_in(lambda: tcfilter.detach_nic(index, PROGRAM, clsact=True))


def commit(tap: Any, size: int) -> None:
    """A frame that needs nothing."""
    lib.dmm_tapnic_tx_commit(tap, size, WHOLE, VNET)


def read(tap: Any, most: int) -> list[bytes]:
    """What is at hand, taken over."""
    length = ffi.new("uint32_t *")
    buf = ffi.new("uint8_t[]", lib.DMM_TAPNIC_FRAME_BYTES)
    got: list[bytes] = []
    while len(got) < most and lib.dmm_tapnic_rx_peek(tap, buf, 1):
        raw = lib.dmm_tapnic_rx_frame(tap, 0, length, VNET)
        got.append(bytes(ffi.buffer(raw, length[0])))
    return got


def test_redirected_frames_come_in_order():
    with hosts(2) as (a, b):
        link(a, b)
        with tapnic_on(a) as tap, packet_socket(b) as sender:
            got: list[bytes] = []
            for start in range(0, 1000, 100):
                for number in range(start, start + 100):
                    sender.send(frame(number, 60 + number))
                while len(got) < start + 100:
                    assert select.select([lib.dmm_tapnic_fd(tap)], [], [], 5)[0]
                    got += read(tap, 7)
            assert got == [frame(number, 60 + number) for number in range(1000)]


def test_frames_are_sent_in_order():
    with hosts(2) as (a, b):
        link(a, b)
        with tapnic_on(a) as tap, packet_socket(b) as receiver:
            receiver.settimeout(5)
            send_numbered(tap, 1000, lib.dmm_tapnic_tx_begin, commit, lib.dmm_tapnic_tx_kick)
            wait_until(lambda: lib.dmm_tapnic_tx_kick(tap) == 0)
            assert lib.dmm_tapnic_tx_unkicked(tap) == 0
            assert received_numbers(receiver, 1000) == list(range(1000))


def test_a_frame_that_the_nic_does_not_take_is_left_out_and_counted():
    with hosts(2) as (a, b):
        link(a, b)
        with tapnic_on(a) as tap, packet_socket(b) as receiver:
            receiver.settimeout(5)
            for number, size in ((1, 200), (2, 3000), (3, 200)):
                ffi.memmove(lib.dmm_tapnic_tx_begin(tap), frame(number, size), size)
                lib.dmm_tapnic_tx_commit(tap, size, WHOLE, VNET)
            assert lib.dmm_tapnic_tx_kick(tap) == 0
            ours = (
                raw
                for raw in iter(lambda: receiver.recv(4000), b"")
                if raw[6:12] == b"\2\0\0\0\0\1"
            )
            assert [number_of(next(ours)), number_of(next(ours))] == [1, 3]
            stats = ffi.new("struct dmm_port_stats *")
            lib.dmm_tapnic_stats(tap, stats)
            assert stats.tx_refused == 1
            a.sh("ip link set eth0 down")
            for number in (4, 5):
                ffi.memmove(lib.dmm_tapnic_tx_begin(tap), frame(number), 200)
                lib.dmm_tapnic_tx_commit(tap, 200, WHOLE, VNET)
            assert lib.dmm_tapnic_tx_kick(tap) == -errno.ENETDOWN
            lib.dmm_tapnic_stats(tap, stats)
            assert stats.tx_refused == 3
            a.sh("ip link set eth0 up")
            ffi.memmove(lib.dmm_tapnic_tx_begin(tap), frame(6), 200)
            lib.dmm_tapnic_tx_commit(tap, 200, WHOLE, VNET)
            assert lib.dmm_tapnic_tx_kick(tap) == 0
            assert number_of(next(ours)) == 6


def test_a_nic_that_is_made_anew_is_sent_by_once_it_is_named():
    """The packet socket has lost its device for good."""
    with hosts(2) as (a, b):
        link(a, b)
        with tapnic_on(a) as tap:
            a.sh("ip link del eth0")
            assert _sent(tap, 1) == -errno.ENETDOWN
            link(a, b)
            with packet_socket(b) as receiver:
                receiver.settimeout(5)
                assert _sent(tap, 2) == -errno.ENETDOWN
                lib.dmm_tapnic_move(tap, a.ns.run_in(socket.if_nametoindex, "eth0"))
                assert _sent(tap, 3) == 0
                ours = (
                    raw
                    for raw in iter(lambda: receiver.recv(4000), b"")
                    if raw[6:12] == b"\2\0\0\0\0\1"
                )
                assert number_of(next(ours)) == 3
            stats = ffi.new("struct dmm_port_stats *")
            lib.dmm_tapnic_stats(tap, stats)
            assert stats.tx_refused == 2


def _sent(tap: Any, number: int) -> int:
    """What becomes of one frame."""
    ffi.memmove(lib.dmm_tapnic_tx_begin(tap), frame(number), 200)
    commit(tap, 200)
    return int(lib.dmm_tapnic_tx_kick(tap))


def test_local_programs_cannot_speak_to_the_stack_through_its_device():
    with hosts(2) as (a, b):
        link(a, b)
        with tapnic_on(a) as tap, packet_socket(a, TAP) as local, packet_socket(b) as sender:
            for number in range(10):
                local.send(frame(number))
            sender.send(frame(77))
            assert select.select([lib.dmm_tapnic_fd(tap)], [], [], 5)[0]
            assert read(tap, 64) == [frame(77)]


def test_the_device_goes_with_its_descriptor():
    with hosts(2) as (a, b):
        link(a, b)
        with tapnic_on(a):
            error, out = ffi.new("struct dmm_hal_error *"), ffi.new("struct dmm_tapnic **")
            index = a.ns.run_in(socket.if_nametoindex, "eth0")
            again = a.ns.run_in(lib.dmm_tapnic_open, TAP.encode(), index, False, out, error)
            assert (again, out[0]) == (-errno.EBUSY, ffi.NULL)
            assert TAP in ffi.string(error.what).decode()
            assert (
                a.ns.run_in(lib.dmm_tapnic_open, b"x" * 16, index, False, out, error)
                == -errno.ENAMETOOLONG
            )
            assert (
                a.ns.run_in(lib.dmm_tapnic_open, b"dmm-8.0.out", 99999, False, out, error)
                == -errno.ENODEV
            )
        assert TAP not in a.sh("ip link")
