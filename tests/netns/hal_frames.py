# SPDX-License-Identifier: Apache-2.0
"""Numbered TCP frames, and a packet socket at the far end: what the tests of the NIC adapters
send and look for.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from dmm_ebpf.userstack._core import ffi
from hal_lab import Host

SOURCE = b"\2\0\0\0\0\1"


def frame(number: int, size: int = 200) -> bytes:
    """An Ethernet frame that says it is IPv4 and TCP, with a number in it."""
    head = b"\xff" * 6 + SOURCE + b"\x08\x00" + b"\x45" + bytes(8) + b"\x06"
    return (head + struct.pack("=I", number)).ljust(size, b"z")


def is_ours(raw: bytes) -> bool:
    """Whether it is such a frame: the kernels of both ends speak, too."""
    return raw[6:12] == SOURCE


def number_of(raw: bytes) -> int:
    """The number in a frame."""
    return int(struct.unpack_from("=I", raw, 24)[0])


def packet_socket(host: Host, device: str = "eth0") -> socket.socket:
    """Sends and receives whole frames on a device."""
    sock = host.ns.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((device, 3))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    return sock


def send_numbered(adapter: Any, count: int, begin: Any, commit: Any, kick: Any) -> None:
    """Frames 0 to count - 1 through an adapter, by its three functions; the last may
    still be unsent.
    """
    for number in range(count):
        data = frame(number)
        while (room := begin(adapter)) == ffi.NULL:
            assert kick(adapter) in (0, 1)
        ffi.memmove(room, data, len(data))
        commit(adapter, len(data))


def received_numbers(receiver: socket.socket, count: int) -> list[int]:
    """The numbers of so many frames of ours, in the order in which they came, each whole."""
    got: list[int] = []
    while len(got) < count:
        raw = receiver.recv(2000)
        if is_ours(raw):
            got.append(number_of(raw))
            assert raw == frame(got[-1])
    return got
