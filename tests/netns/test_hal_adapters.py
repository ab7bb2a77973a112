# SPDX-License-Identifier: Apache-2.0
"""The C adapters by themselves: an AF_XDP socket on a veth, a TAP device with offload,
against the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
from contextlib import contextmanager

import hal_xdp
import pytest
from dmm_ebpf.userstack._core import ffi, lib
from hal_frames import frame, is_ours, number_of, packet_socket, received_numbers, send_numbered
from hal_lab import Host, hosts, link, wait_until
from pieces import checksum

from dmm_ebpf.abi import C
from dmm_ebpf.hal import tuning
from dmm_ebpf.loader import bpf
from lab.netns import offloads_off

VNET = ffi.new("struct dmm_vnet *")  # of what AF_XDP brings nothing is known


@contextmanager
def xsk_on(host: Host, frames: int = 64, mtu: int = 1500, packets: int = lib.DMM_XSK_PLAIN):
    """An AF_XDP socket on eth0's queue 0 that gets the host's TCP frames."""
    xsks = hal_xdp.xskmap(1)
    prog = hal_xdp.redirect_tcp(xsks, frags=packets == lib.DMM_XSK_FRAGS)
    hal_xdp.attach(host, "eth0", prog)
    error, out = ffi.new("struct dmm_hal_error *"), ffi.new("struct dmm_xsk **")
    index = host.ns.run_in(socket.if_nametoindex, "eth0")
    opened = host.ns.run_in(lib.dmm_xsk_open, index, 0, mtu, frames, packets, out, error)
    assert opened == 0, ffi.string(error.what)
    try:
        assert lib.dmm_xsk_register(out[0], xsks, 0, error) == 0
        yield out[0]
    finally:
        lib.dmm_xsk_close(out[0])
        os.close(prog)
        os.close(xsks)


def commit(xsk, length: int, vnet=None, payload=None) -> None:
    """What stands in the frame at hand goes, as it is unless vnet says otherwise."""
    vnet, payload = vnet or ffi.new("struct dmm_vnet *"), payload or ffi.new("struct dmm_payload *")
    lib.dmm_xsk_tx_commit(xsk, length, payload, vnet)


def test_receiving_more_than_the_rings_hold_in_order():
    with hosts(2) as (a, b):
        link(a, b)
        with xsk_on(a) as xsk, packet_socket(b) as sender:
            length = ffi.new("uint32_t *")
            got: list[int] = []
            for start in range(0, 1000, 20):  # the fill ring has 32 frames
                for number in range(start, start + 20):
                    sender.send(frame(number))
                while len(got) < start + 20:
                    assert select.select([lib.dmm_xsk_fd(xsk)], [], [], 5)[0]
                    count = lib.dmm_xsk_rx_peek(xsk, ffi.NULL, 7)
                    for i in range(count):
                        raw = lib.dmm_xsk_rx_frame(xsk, i, length, VNET)
                        data = bytes(ffi.buffer(raw, length[0]))
                        got.append(number_of(data))
                        assert data == frame(got[-1])
                    lib.dmm_xsk_rx_release(xsk, count)
            assert got == list(range(1000))


def test_sending_more_than_the_rings_hold_in_order():
    with hosts(2) as (a, b):
        link(a, b)
        with xsk_on(a) as xsk, packet_socket(b) as receiver:
            receiver.settimeout(5)
            send_numbered(xsk, 1000, lib.dmm_xsk_tx_begin, commit, lib.dmm_xsk_tx_kick)
            wait_until(lambda: lib.dmm_xsk_tx_kick(xsk) == 0)
            assert received_numbers(receiver, 1000) == list(range(1000))
            stats = ffi.new("struct dmm_port_stats *")
            lib.dmm_xsk_stats(xsk, stats)
            assert (stats.tx_refused, stats.rx_dropped) == (0, 0)
            assert stats.kicks > 0


needs_metadata = pytest.mark.skipif(
    bpf.xsk_metadata() is not True,
    reason="this kernel's AF_XDP has no metadata of frames to be sent",
)


def open_sum(number: int, size: int) -> tuple[bytes, bytes]:
    """A TCP frame with the pseudo-header's sum in the checksum's place, and as it must arrive."""
    left = bytearray(frame(number, size))
    left[50:52] = b"\x12\x34"
    whole = bytearray(left)
    whole[50:52] = checksum(bytes(left[34:])).to_bytes(2)
    return bytes(left), bytes(whole)


def leave_open(xsk, data: bytes, start: int = 20, in_parts: int = 0) -> None:
    """Sends it with its checksum left open; start: where that begins to count, behind
    the Ethernet header.
    """
    vnet = ffi.new("struct dmm_vnet *", {"flags": 1, "csum_start": start, "csum_offset": 16})
    payload, held = ffi.new("struct dmm_payload *"), ffi.from_buffer(data)
    if in_parts:
        half, at = in_parts // 2, len(data) - in_parts
        payload.n, payload.bytes = 2, in_parts
        for i, (begin, bytes_) in enumerate(((at, half), (at + half, in_parts - half))):
            payload.part[i].data, payload.part[i].bytes = held + begin, bytes_
    wait_until(lambda: lib.dmm_xsk_tx_begin(xsk) != ffi.NULL)
    ffi.memmove(lib.dmm_xsk_tx_begin(xsk), data, len(data) - in_parts)
    commit(xsk, len(data), vnet, payload)


@pytest.mark.parametrize(
    ("mtu", "packets"),
    [
        (1500, lib.DMM_XSK_PLAIN),
        pytest.param(
            9000,
            lib.DMM_XSK_FRAGS,
            marks=pytest.mark.skipif(
                not bpf.xsk_frags(), reason="this kernel's AF_XDP takes a page at most"
            ),
        ),
    ],
)
@pytest.mark.parametrize("offload", ["off", "on"])
@needs_metadata
def test_checksums_left_open_are_right_on_the_wire(mtu, packets, offload):
    sizes = [60, 61, 1000, mtu + 14]
    with hosts(2) as (a, b):
        link(a, b)
        for host in (a, b):
            host.sh(f"ip link set eth0 mtu {mtu}")
        if offload == "off":
            a.ns.run_in(offloads_off, "eth0")
        with xsk_on(a, mtu=mtu, packets=packets) as xsk, packet_socket(b) as other:
            assert lib.dmm_xsk_leave_sums(xsk)
            other.settimeout(5)
            heard = filter(is_ours, iter(lambda: other.recv(65536), None))
            for number in range(200):  # a side has 32 frames
                left, whole = open_sum(number, sizes[number % len(sizes)])
                leave_open(xsk, left, in_parts=(len(left) - 54 if number % 3 else 0))
                wait_until(lambda: lib.dmm_xsk_tx_kick(xsk) == 0)
                assert next(heard) == (whole if offload == "off" else left)
            assert lib.dmm_xsk_caps(xsk).csum
            stats = ffi.new("struct dmm_port_stats *")
            lib.dmm_xsk_stats(xsk, stats)
            assert stats.tx_refused == 0


@needs_metadata
def test_when_metadata_are_refused_checksums_are_filled_in_here():
    """The kernel takes none that lie beyond the packet, and would never go on."""
    with hosts(2) as (a, b):
        link(a, b)
        with xsk_on(a) as xsk, packet_socket(b) as other:
            other.settimeout(5)
            heard = filter(is_ours, iter(lambda: other.recv(65536), None))
            assert lib.dmm_xsk_leave_sums(xsk)
            wrong = frame(1, 200)
            leave_open(xsk, wrong, start=1900)
            frames = [open_sum(number, 200 + number) for number in (2, 3, 4)]
            for left, _ in frames[:2]:
                leave_open(xsk, left)
            wait_until(lambda: lib.dmm_xsk_tx_kick(xsk) == 0)
            assert not lib.dmm_xsk_caps(xsk).csum
            leave_open(xsk, frames[2][0], in_parts=100)
            wait_until(lambda: lib.dmm_xsk_tx_kick(xsk) == 0)
            assert [next(heard) for _ in range(4)] == [wrong, *(whole for _, whole in frames)]


def test_a_packet_of_the_largest_mtu_fits_a_frame():
    with hosts(2) as (a, b):
        link(a, b)
        for host in (a, b):
            host.sh("ip link set eth0 mtu 3000")
        with xsk_on(a, mtu=3000) as xsk, packet_socket(b) as sender:
            sender.send(frame(1, 3014))
            assert select.select([lib.dmm_xsk_fd(xsk)], [], [], 5)[0]
            assert lib.dmm_xsk_rx_peek(xsk, ffi.NULL, 9) == 1
            length = ffi.new("uint32_t *")
            lib.dmm_xsk_rx_frame(xsk, 0, length, VNET)
            assert length[0] == 3014


@pytest.mark.skipif(not bpf.xsk_frags(), reason="this kernel's AF_XDP takes a page at most")
def test_packets_of_several_frames_in_order_between_short_ones():
    sizes = (9014, 60, 4096, 4097, 8192, 200)
    with hosts(2) as (a, b):
        link(a, b)
        for host in (a, b):
            host.sh("ip link set eth0 mtu 9000")
        with xsk_on(a, mtu=9000, packets=lib.DMM_XSK_FRAGS) as xsk, packet_socket(b) as other:
            other.settimeout(5)
            length = ffi.new("uint32_t *")
            for start in range(0, 600, 6):  # the fill ring has 32 frames
                sent = [frame(start + i, size) for i, size in enumerate(sizes)]
                for one in sent:
                    other.send(one)
                got: list[bytes] = []
                while len(got) < len(sent):
                    assert select.select([lib.dmm_xsk_fd(xsk)], [], [], 5)[0]
                    count = lib.dmm_xsk_rx_peek(xsk, ffi.NULL, 4)
                    order = [*range(count), *reversed(range(count))]  # any order, and again
                    read = {}
                    for i in order:
                        raw = lib.dmm_xsk_rx_frame(xsk, i, length, VNET)
                        read[i] = bytes(ffi.buffer(raw, length[0]))
                    got += [read[i] for i in range(count) if is_ours(read[i])]
                    lib.dmm_xsk_rx_release(xsk, count)
                assert got == sent
                for one in sent:
                    wait_until(lambda: lib.dmm_xsk_tx_begin(xsk) != ffi.NULL)
                    ffi.memmove(lib.dmm_xsk_tx_begin(xsk), one, len(one))
                    commit(xsk, len(one))
                wait_until(lambda: lib.dmm_xsk_tx_kick(xsk) == 0)
                heard = filter(is_ours, iter(lambda: other.recv(65536), None))
                assert list(itertools.islice(heard, len(sent))) == sent
            stats = ffi.new("struct dmm_port_stats *")
            lib.dmm_xsk_stats(xsk, stats)
            assert (stats.tx_refused, stats.rx_dropped, stats.rx_ring_full) == (0, 0, 0)


@pytest.mark.parametrize(
    ("index", "queue", "mtu", "frames", "code"),
    [
        (None, 0, lib.DMM_XSK_MAX_MTU + 1, 0, errno.ERANGE),
        (None, 0, 1500, 100, errno.EINVAL),
        (None, 9, 1500, 64, errno.EINVAL),
        (99999, 0, 1500, 64, errno.ENODEV),
    ],
)
def test_what_cannot_be_opened_says_why(index, queue, mtu, frames, code):
    with hosts(2) as (a, b):
        link(a, b)
        error, out = ffi.new("struct dmm_hal_error *"), ffi.new("struct dmm_xsk **")
        index = index or a.ns.run_in(socket.if_nametoindex, "eth0")
        assert (
            a.ns.run_in(lib.dmm_xsk_open, index, queue, mtu, frames, lib.DMM_XSK_PLAIN, out, error)
            == -code
        )
        assert error.code == code
        assert f"(receive queue {queue})" in ffi.string(error.what).decode()
        assert out[0] == ffi.NULL


MAC = "02:00:00:00:00:09"  # of both ends: a device without ARP sends to its own address


@contextmanager
def tap_on(host: Host, name: str, address: str, *, marked: bool = True):
    """A device of an inner leg that the host's own packets go to; marked: as our tc
    programs mark theirs.
    """
    error = ffi.new("struct dmm_hal_error *")
    fd = host.ns.run_in(lib.dmm_tap_open, name.encode(), error)
    assert fd >= 0, ffi.string(error.what)
    try:
        host.sh(f"ip link set {name} address {MAC}")
        host.ns.run_in(tuning.prepare_device, name)
        assert host.ns.run_in(lib.dmm_tap_up, name.encode(), 1500, 1000, error) == 1000
        host.sh(f"ip addr add {address} dev {name}")
        if marked:
            rule = "add table ip t; add chain ip t c { type filter hook postrouting priority 0; }; "
            host.sh("nft", f"{rule} add rule ip t c oifname {name} meta mark set {C.DMM_TCIN_MARK}")
        yield fd
    finally:
        os.close(fd)


def test_a_tap_device_is_exclusive_and_goes_with_its_descriptor():
    with hosts(1) as (a,):
        error = ffi.new("struct dmm_hal_error *")
        with tap_on(a, "dmm-9.0.in", "10.97.0.1/24"):
            again = a.ns.run_in(lib.dmm_tap_open, b"dmm-9.0.in", error)
            assert again == -errno.EBUSY
            assert "dmm-9.0.in" in ffi.string(error.what).decode()
            shown = a.sh("ip -d link show dmm-9.0.in")
            assert "qlen 1000" in shown and "tun type tap" in shown and "NOARP" in shown
        assert "dmm-9" not in a.sh("ip link")
        long = a.ns.run_in(lib.dmm_tap_open, b"x" * 16, error)
        assert long == -errno.ENAMETOOLONG


def test_what_the_host_sends_by_itself_is_not_read():
    with hosts(1) as (a,), tap_on(a, "dmm-9.0.in", "10.97.0.1/24", marked=False) as fd:
        buf = ffi.new("uint8_t[]", lib.DMM_TAP_HEADROOM + lib.DMM_TAP_MAX_PKT)
        vnet = ffi.new("struct dmm_vnet *")
        with (
            a.ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            packet_socket(a, "dmm-9.0.in") as raw,
        ):
            sender.sendto(b"a program's", ("10.97.0.2", 9))
            raw.send(frame(1))
            assert lib.dmm_tap_read(fd, buf, vnet) == 0
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, C.DMM_TCIN_MARK)
            sender.sendto(b"one of ours", ("10.97.0.2", 9))
            assert lib.dmm_tap_read(fd, buf, vnet) == 20 + 8 + 11


def test_offsets_count_from_the_ip_header_both_ways():
    """An open checksum of 8 bytes behind the IP header, read and written again, is where it was."""
    with (
        hosts(2) as (a, b),
        tap_on(a, "dmm-9.0.in", "10.97.0.1/24") as left,
        tap_on(b, "dmm-9.0.in", "10.97.0.2/24") as right,
    ):
        buf = ffi.new("uint8_t[]", lib.DMM_TAP_HEADROOM + lib.DMM_TAP_MAX_PKT)
        vnet = ffi.new("struct dmm_vnet *")
        with (
            a.ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            b.ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        ):
            receiver.bind(("10.97.0.2", 0))
            receiver.settimeout(5)
            sender.sendto(b"hello", receiver.getsockname())
            length = lib.dmm_tap_read(left, buf, vnet)
            assert (length, buf[lib.DMM_TAP_HEADROOM]) == (33, 0x45)
            assert (vnet.flags, vnet.csum_start, vnet.csum_offset) == (
                lib.DMM_VNET_NEEDS_CSUM,
                20,
                6,
            )
            before = bytes(ffi.buffer(vnet))
            assert lib.dmm_tap_write(right, buf, length, ffi.NULL, vnet) == 0
            assert bytes(ffi.buffer(vnet)) == before, "the caller's record is its own"
            assert receiver.recv(100) == b"hello"


def test_segmentation_is_left_out_both_ways_between_two_kernels():
    """Packets of up to 64 KiB, with open checksums, from one kernel's TCP to another's and back."""
    with (
        hosts(2) as (a, b),
        tap_on(a, "dmm-9.0.in", "10.97.0.1/24") as left,
        tap_on(b, "dmm-9.0.in", "10.97.0.2/24") as right,
    ):
        buf = ffi.new("uint8_t[]", lib.DMM_TAP_HEADROOM + lib.DMM_TAP_MAX_PKT)
        vnet = ffi.new("struct dmm_vnet *")
        longest = {left: 0, right: 0}

        def move(source: int, sink: int) -> None:
            while (length := lib.dmm_tap_read(source, buf, vnet)) > 0:
                ip = lib.DMM_TAP_HEADROOM
                if buf[ip] >> 4 != 4:
                    continue
                longest[source] = max(longest[source], length)
                if vnet.gso_type:
                    assert vnet.hdr_len == 20 + (buf[ip + 32] >> 4) * 4
                assert lib.dmm_tap_write(sink, buf, length, ffi.NULL, vnet) in (0, -errno.EAGAIN)

        server = b.ns.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.bind(("10.97.0.2", 0))
        server.listen()
        client = a.ns.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
        ends: list[socket.socket] = []
        data = os.urandom(4_000_000)
        sent = {0: 0, 1: 0}
        got = {0: bytearray(), 1: bytearray()}
        while len(got[0]) + len(got[1]) < 2 * len(data):
            ready, _, _ = select.select([left, right, server, *ends], [], [], 5)
            assert ready, "nothing moves"
            move(left, right)
            move(right, left)
            if not ends and server in ready:
                accepted, _ = server.accept()
                accepted.setblocking(False)
                ends = [client, accepted]
            for i, end in enumerate(ends):
                if end in ready:
                    got[i] += end.recv(1 << 20)
                if sent[i] < len(data):
                    with contextlib.suppress(BlockingIOError):
                        sent[i] += end.send(data[sent[i] :])
        assert bytes(got[0]) == bytes(got[1]) == data
        assert min(longest.values()) > 20000
        for sock in (server, *ends):
            sock.close()
