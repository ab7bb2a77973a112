# SPDX-License-Identifier: Apache-2.0
"""The least tc program that gives TCP to a TAP device, as bytecode, so that hal is tested
without the loader.
"""

from __future__ import annotations

from hal_xdp import if_tcp, insn, load

from dmm_ebpf.abi import C

_PROG_SCHED_CLS = 3
_DATA, _UNSPEC = 76, -1  # in struct __sk_buff; TC_ACT_UNSPEC


def redirect_tcp(ifindex: int) -> int:
    """TCP over IPv4 or IPv6 to that device, marked as its filter wants it; the rest
    to the kernel.
    """
    to_device = [
        insn(0xB7, 2, 0, 0, C.DMM_TCIN_MARK),
        insn(0x63, 1, 2, 8),  # mark = r2
        insn(0xB7, 1, 0, 0, ifindex),
        insn(0xB7, 2),
        insn(0x85, 0, 0, 0, 23),  # bpf_redirect
        insn(0x95),
    ]
    return load(_PROG_SCHED_CLS, if_tcp(_DATA, to_device, _UNSPEC))
