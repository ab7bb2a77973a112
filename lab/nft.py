# SPDX-License-Identifier: Apache-2.0
"""A transaction of one element of a set of nft(8), by netlink and without the program: as soon as
it is sent, the kernel has it, and has told of it.
"""

from __future__ import annotations

import socket
import struct


def _attribute(kind: int, value: bytes) -> bytes:
    """struct nlattr, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


# linux/netfilter/nf_tables.h: NFT_MSG_*SETELEM, the last one since Linux 6.3
NEW, DELETE, DESTROY = 12, 14, 30
CATCH_ALL = _attribute(3, struct.pack(">I", 2))  # NFTA_SET_ELEM_FLAGS: NFT_SET_ELEM_CATCHALL

_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 16, 17  # linux/netfilter/nfnetlink.h, NFNL_MSG_BATCH_*
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NFPROTO_INET = 1
_REQUEST, _REQUEST_ACK_CREATE = 0x1, 0x405
_WITHIN_S = 10.0


def address(text: str) -> bytes:
    """An element of IPv4 addresses."""
    return _attribute(1, _attribute(1, socket.inet_aton(text)))


def change(message: int, table: str, name: str, element: bytes) -> int:
    """Put (NEW) or take away one element of a set of the family inet, in the calling thread's
    namespace; the kernel's errno, 0: it is done.
    """
    names = _attribute(1, table.encode() + b"\0") + _attribute(2, name.encode() + b"\0")
    body = _message(_NFPROTO_INET, 0) + names + _attribute(3, _attribute(1, element))
    sent = [
        (_BATCH_BEGIN, _REQUEST, _message(0, _SUBSYSTEM)),
        (_SUBSYSTEM << 8 | message, _REQUEST_ACK_CREATE, body),
        (_BATCH_END, _REQUEST, _message(0, _SUBSYSTEM)),
    ]
    data = b"".join(
        struct.pack("=IHHII", 16 + len(said), kind, flags, number, 0) + said
        for number, (kind, flags, said) in enumerate(sent)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_WITHIN_S)
        sock.send(data)
        answer = sock.recv(1 << 16)
    return -int(struct.unpack_from("=i", answer, 16)[0])  # struct nlmsgerr, behind its header


def _message(family: int, resource: int) -> bytes:
    return struct.pack(">BBH", family, 0, resource)
