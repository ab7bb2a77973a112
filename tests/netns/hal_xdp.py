# SPDX-License-Identifier: Apache-2.0
"""The least XDP program that gives TCP to AF_XDP sockets, as bytecode, so that hal is tested
without the loader.
"""

from __future__ import annotations

import ctypes
import os
import struct

from hal_lab import Host
from pyroute2 import IPRoute

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_MAP_CREATE, _LOOKUP, _PROG_LOAD = 0, 1, 5
_XSKMAP, _PROG_XDP = 17, 6
_DATA, _PASS = 0, 2  # in struct xdp_md; XDP_PASS
_DRV_MODE = 1 << 2
_HAS_FRAGS = 1 << 5
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, 152)
    result = _libc.syscall(_SYS_BPF, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}")
    return result


def make_map(kind: int, key: int, value: int, entries: int) -> int:
    return _bpf(_MAP_CREATE, struct.pack("=4I", kind, key, value, entries))


def xskmap(entries: int = 1024) -> int:
    return make_map(_XSKMAP, 4, 4, entries)


def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, off, imm)


def if_tcp(data: int, then: list[bytes], otherwise: int) -> list[bytes]:
    """A program: then, with r1 = ctx, for TCP over IPv4 or IPv6; for the rest it returns otherwise.
    data: where in the context that field is, with data_end behind it.
    """
    left = len(then)
    return [
        insn(0x61, 2, 1, data),  # r2 = data
        insn(0x61, 3, 1, data + 4),  # r3 = data_end
        insn(0xBF, 4, 2),
        insn(0x07, 4, 0, 0, 34),
        insn(0x2D, 4, 3, left + 7),  # too short
        insn(0x69, 5, 2, 12),  # ethertype
        insn(0x15, 5, 0, 3, 0x0008),  # IPv4: skip to its protocol
        insn(0x55, 5, 0, left + 4, 0xDD86),  # not IPv6
        insn(0x71, 5, 2, 20),  # next header
        insn(0x05, 0, 0, 1),
        insn(0x71, 5, 2, 23),  # protocol
        insn(0x55, 5, 0, left, 6),  # not TCP
        *then,
        insn(0xB7, 0, 0, 0, otherwise),
        insn(0x95),
    ]


def redirect_tcp(xsks_fd: int, *, frags: bool = False) -> int:
    """XDP program: TCP over IPv4 or IPv6 to xsks[receive queue], the rest to the kernel. frags: it
    takes packets in several frames.
    """
    to_socket = [
        insn(0x61, 2, 1, 16),  # rx_queue_index
        insn(0x18, 1, 1, 0, xsks_fd),
        insn(0),
        insn(0xB7, 3, 0, 0, _PASS),  # where there is no socket
        insn(0x85, 0, 0, 0, 51),  # bpf_redirect_map
        insn(0x95),
    ]
    program = if_tcp(_DATA, to_socket, _PASS)
    return load(_PROG_XDP, program, _HAS_FRAGS if frags else 0)


def load(kind: int, program: list[bytes], flags: int = 0) -> int:
    code = ctypes.create_string_buffer(b"".join(program))
    text = ctypes.create_string_buffer(b"Apache-2.0")
    attr = struct.pack(
        "=IIQQIIQII",
        kind,
        len(program),
        ctypes.addressof(code),
        ctypes.addressof(text),
        0,
        0,
        0,
        0,
        flags,
    )
    return _bpf(_PROG_LOAD, attr)


def attach(host: Host, device: str, prog_fd: int) -> None:
    """In native mode; it goes with the device."""

    def work() -> None:
        with IPRoute() as ipr:
            index = ipr.link_lookup(ifname=device)[0]
            ipr.link("set", index=index, xdp_fd=prog_fd, xdp_flags=_DRV_MODE)

    host.ns.run_in(work)
