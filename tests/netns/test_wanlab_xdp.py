# SPDX-License-Identifier: Apache-2.0
"""Hosts of the laboratory may attach native XDP to their interfaces and send by AF_XDP
in copy mode.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import Host, Lab, Wire, curl_fetch, nginx, wait_for
from lab.build import bpf_object
from lab.links import WanLink

# linux/if_xdp.h
AF_XDP = 44
SOL_XDP = 283
XDP_MMAP_OFFSETS = 1
XDP_TX_RING = 3
XDP_UMEM_REG = 4
XDP_UMEM_FILL_RING = 5
XDP_UMEM_COMPLETION_RING = 6
XDP_PGOFF_TX_RING = 0x80000000
XDP_COPY = 1 << 1
FRAME_BYTES = 2048
FRAMES = 64
PORT = 9000

XDP_PASS = """
__attribute__((section("xdp"), used)) int pass(void *ctx) { return 2; }
char LICENSE[] __attribute__((section("license"), used)) = "GPL";
"""


@pytest.fixture
def xdp_pass(tmp_path: Path) -> Path:
    """An XDP program that passes every frame, compiled."""
    return bpf_object(XDP_PASS, tmp_path / "pass.o")


def attach(host: Host, program: Path) -> None:
    host.ip(f"link set dev eth0 xdpdrv obj {program} sec xdp")
    assert " xdp " in host.run(["ip", "link", "show", "eth0"]).stdout


def join(lab: Lab, kind: str) -> tuple[Host, Host, WanLink | Wire]:
    a, b = lab.host("client"), lab.host("server")
    if kind == "wire":
        return a, b, lab.wire(a, b, neighbours="static")
    return a, b, lab.wan(a, b, rate="200mbit", delay="2ms", neighbours="static")


@pytest.mark.parametrize("kind", ["wan", "wire"])
def test_kernel_tcp_past_native_xdp(
    lab: Lab, tmp_path: Path, xdp_pass: Path, payload: Callable[[int], tuple[Path, str]], kind: str
) -> None:
    a, b, link = join(lab, kind)
    path, sha256 = payload(4_000_000)
    server = nginx(b, path.parent, tmp_path / "nginx")
    for host in (a, b):
        attach(host, xdp_pass)
        for ipv6 in (False, True):
            fetched = curl_fetch(a, server.url(path.name, ipv6=ipv6))
            assert (fetched.exit_code, fetched.sha256) == (0, sha256)
    if isinstance(link, WanLink):
        assert link.stats().own_drops == 0


def udp_frame(number: int) -> bytes:
    """A datagram from the first to the second host of a Lab; the UDP checksum is 0,
    none (RFC 768).
    """
    body = struct.pack("!I", number)
    udp = struct.pack("!HHHH", PORT, PORT, 8 + len(body), 0) + body
    addresses = socket.inet_aton("198.18.0.1") + socket.inet_aton("198.18.0.2")
    fields = [0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0]
    header = struct.pack("!BBHHHBBH", *fields) + addresses
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    fields[-1] = ~(total + (total >> 16)) & 0xFFFF
    ethernet = bytes.fromhex("02dd00000002") + bytes.fromhex("02dd00000001") + b"\x08\x00"
    return ethernet + struct.pack("!BBHHHBBH", *fields) + addresses + udp


class XdpSender:
    """An AF_XDP socket in copy mode that only sends; made in the namespace of its interface."""

    def __init__(self, interface: str) -> None:
        self.sock = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
        self.umem = mmap.mmap(-1, FRAMES * FRAME_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.umem))
        region = struct.pack("=QQIIII", address, FRAMES * FRAME_BYTES, FRAME_BYTES, 0, 0, 0)
        self.sock.setsockopt(SOL_XDP, XDP_UMEM_REG, region)
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_TX_RING):
            self.sock.setsockopt(SOL_XDP, ring, FRAMES)
        offsets = struct.unpack("=16Q", self.sock.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, 128))
        self.producer, self.consumer, self.descriptors = offsets[4:7]
        size = self.descriptors + FRAMES * 16
        self.ring = mmap.mmap(self.sock.fileno(), size, offset=XDP_PGOFF_TX_RING)
        bound = struct.pack("=HHIII", AF_XDP, XDP_COPY, socket.if_nametoindex(interface), 0, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(self.sock.fileno(), bound, len(bound)) < 0:
            raise OSError(ctypes.get_errno(), f"bind AF_XDP to {interface}")

    def send(self, frames: list[bytes]) -> None:
        """Puts up to FRAMES frames into the ring and kicks until the kernel has taken
        all of them.
        """
        for i, frame in enumerate(frames):
            self.umem[i * FRAME_BYTES : i * FRAME_BYTES + len(frame)] = frame
            at = self.descriptors + i * 16
            self.ring[at : at + 16] = struct.pack("=QII", i * FRAME_BYTES, len(frame), 0)
        self.ring[self.producer : self.producer + 4] = struct.pack("=I", len(frames))

        def taken() -> bool:
            try:
                self.sock.send(b"", socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno not in {errno.EAGAIN, errno.EBUSY, errno.ENOBUFS}:
                    raise
            return struct.unpack_from("=I", self.ring, self.consumer)[0] == len(frames)

        wait_for(taken, 5, "AF_XDP to take the frames")

    def close(self) -> None:
        self.sock.close()


@pytest.mark.parametrize("kind", ["wan", "wire"])
def test_af_xdp_copy_mode_sends(lab: Lab, xdp_pass: Path, kind: str) -> None:
    a, b, link = join(lab, kind)
    attach(a, xdp_pass)
    attach(b, xdp_pass)
    receiver = b.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sender = a.call(XdpSender, "eth0")
    try:
        receiver.bind((b.ip4, PORT))
        receiver.settimeout(5)
        sender.send([udp_frame(number) for number in range(FRAMES)])
        numbers = [struct.unpack("!I", receiver.recv(64))[0] for _ in range(FRAMES)]
    finally:
        sender.close()
        receiver.close()
    assert numbers == list(range(FRAMES))
    if isinstance(link, WanLink):
        assert link.stats().own_drops == 0
