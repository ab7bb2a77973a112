# SPDX-License-Identifier: Apache-2.0
"""What becomes of the flows of a stack process that is gone: its entries in xdp_flows go, its sockets are reset.

Only sockets whose 5-tuple the process owned are reset: one with its mark that is not among them was made after it went,
by the main table, and is well. All of it takes long with many flows; call it in a thread of the instance's namespace.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from dmm_ebpf import abi
from dmm_ebpf.hal import sockdiag
from dmm_ebpf.hal.sockdiag import SocketId
from dmm_ebpf.loader import Map
from dmm_ebpf.rd.rundir import StackState

_MAPPED = abi.addr16("0.0.0.0")[:12]
_OWNER = struct.Struct("=II")  # struct dmm_xdp_flow
_PORTS_AT = abi.offset("dmm_addr_pair", "lport_be")
_PAIR_BYTES = abi.sizeof("dmm_addr_pair")


def disown(xdp_flows: Map, record: StackState, mark: int, mask: int) -> tuple[int, list[SocketId]]:
    """Delete the process's entries; how many there were, and the sockets that are to be reset.

    A process that takes the dead one's place may start afterwards: what it owns, and new sockets, are not among them.
    """
    owner = _OWNER.pack(record.stack_id, record.tap)
    return _disown(xdp_flows, {key for key, value in xdp_flows.items() if value == owner}, [mark], mask)


def disown_all(xdp_flows: Map, marks: Iterable[int], mask: int) -> tuple[int, list[SocketId]]:
    """The same for all processes of an instance, whose sockets bear these marks."""
    return _disown(xdp_flows, {key for key, _ in xdp_flows.items()}, marks, mask)


def _disown(xdp_flows: Map, owned: set[bytes], marks: Iterable[int], mask: int) -> tuple[int, list[SocketId]]:
    for key in owned:
        xdp_flows.delete(key)
    sockets = (one for mark in marks if owned for one in sockdiag.find_by_mark(mark, mask))
    return len(owned), [one for one in sockets if _pair(one) in owned]


def _pair(one: SocketId) -> bytes:
    """The socket's struct dmm_addr_pair, whose family is that of its packets."""
    lport, rport, laddr, raddr = one.pair
    family = one.family
    if family == socket.AF_INET:
        laddr, raddr = _MAPPED + laddr[:4], _MAPPED + raddr[:4]
    elif raddr[:12] == _MAPPED:
        family = socket.AF_INET
    pair = laddr + raddr + lport + rport + bytes((family, socket.IPPROTO_TCP))
    return pair.ljust(_PAIR_BYTES, b"\0")


if _PORTS_AT != 32 or abi.sizeof("dmm_xdp_flow") != _OWNER.size:
    raise AssertionError("struct dmm_addr_pair and struct dmm_xdp_flow are not as they are read here")
