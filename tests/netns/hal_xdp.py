# SPDX-License-Identifier: Apache-2.0
"""The least XDP program that gives TCP to AF_XDP sockets, as bytecode, so that hal is tested without the
loader.
"""

from __future__ import annotations

import ctypes
import os
import struct

from hal_lab import Host
from pyroute2 import IPRoute

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_MAP_CREATE, _LOOKUP, _PROG_LOAD = 0, 1, 5
_XSKMAP, _DEVMAP, _PROG_XDP = 17, 14, 6
_DRV_MODE = 1 << 2
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


def devmap(entries: int = 1024) -> int:
    return make_map(_DEVMAP, 4, 4, entries)


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, off, imm)


def redirect_tcp(xsks_fd: int) -> int:
    """XDP program: TCP over IPv4 or IPv6 to xsks[receive queue], the rest to the kernel. The map may be one of
    devices.
    """
    program = [
        _insn(0xBF, 6, 1),  # r6 = ctx
        _insn(0x61, 2, 1, 0),  # r2 = data
        _insn(0x61, 3, 1, 4),  # r3 = data_end
        _insn(0xBF, 4, 2),
        _insn(0x07, 4, 0, 0, 34),
        _insn(0x2D, 4, 3, 13),  # too short: pass
        _insn(0x69, 5, 2, 12),  # ethertype
        _insn(0x15, 5, 0, 3, 0x0008),  # IPv4: skip to its protocol
        _insn(0x55, 5, 0, 10, 0xDD86),  # not IPv6: pass
        _insn(0x71, 5, 2, 20),  # next header
        _insn(0x05, 0, 0, 1),
        _insn(0x71, 5, 2, 23),  # protocol
        _insn(0x55, 5, 0, 6, 6),  # not TCP: pass
        _insn(0x61, 2, 6, 16),  # rx_queue_index
        _insn(0x18, 1, 1, 0, xsks_fd),
        _insn(0),
        _insn(0xB7, 3, 0, 0, 2),  # XDP_PASS where there is no socket
        _insn(0x85, 0, 0, 0, 51),  # bpf_redirect_map
        _insn(0x95),
        _insn(0xB7, 0, 0, 0, 2),
        _insn(0x95),
    ]
    return _load(_PROG_XDP, program)


def _load(kind: int, program: list[bytes]) -> int:
    code = ctypes.create_string_buffer(b"".join(program))
    text = ctypes.create_string_buffer(b"Apache-2.0")
    attr = struct.pack("=IIQQ", kind, len(program), ctypes.addressof(code), ctypes.addressof(text))
    return _bpf(_PROG_LOAD, attr)


def attach(host: Host, device: str, prog_fd: int) -> None:
    """In native mode; it goes with the device."""

    def work() -> None:
        with IPRoute() as ipr:
            index = ipr.link_lookup(ifname=device)[0]
            ipr.link("set", index=index, xdp_fd=prog_fd, xdp_flags=_DRV_MODE)

    host.ns.run_in(work)
