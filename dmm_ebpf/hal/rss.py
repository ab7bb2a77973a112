# SPDX-License-Identifier: Apache-2.0
"""Receive-side scaling: how a NIC spreads flows over its receive queues, by
ethtool's ioctl (ETHTOOL_GRSSH).

By ioctl because the netlink way is younger than Linux 6.1. Works in the calling thread's network
namespace; needs no privilege and changes nothing. The key itself is not told to anybody: who knows
it can aim flows at one queue.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from dmm_ebpf.hal import nic
from dmm_ebpf.hal.answer import Unknown

_ETHTOOL_GRSSH = 0x46
# struct ethtool_rxfh: cmd, rss_context, indir_size, key_size, hfunc, input_xfrm, then the table
# (u32 each) and the key.
_RXFH = struct.Struct("=IIIIBB2xI")
_HASHES = ("toeplitz", "xor", "crc32")  # ETH_RSS_HASH_*_BIT
_LARGEST = 1 << 16  # entries, and bytes of key: more than any hardware has


@dataclass(frozen=True)
class Rss:
    """entries: of the indirection table, each a queue; queues: different ones among them; hash:
    which gives a flow its entry; key_bytes: length of the hash's key.
    """

    entries: int
    queues: int
    hash: str
    key_bytes: int


def rss_of(answer: bytes) -> Rss | Unknown | None:
    """From a struct ethtool_rxfh with its table and key. None: the device has neither."""
    if len(answer) < _RXFH.size:
        return Unknown("the driver's answer about RSS is cut short")
    _, _, entries, key_bytes, function, _, _ = _RXFH.unpack_from(answer)
    if not entries and not key_bytes:
        return None
    if (
        entries > _LARGEST
        or key_bytes > _LARGEST
        or len(answer) < _RXFH.size + 4 * entries + key_bytes
    ):
        return Unknown("the driver's answer about RSS does not hold what it names")
    table = struct.unpack_from(f"={entries}I", answer, _RXFH.size)
    return Rss(entries, len(set(table)), _hash_name(function), key_bytes)


def _hash_name(bits: int) -> str:
    named = [name for bit, name in enumerate(_HASHES) if bits & 1 << bit]
    return ", ".join(named) or ("not named" if not bits else f"hash {bits:#x}")


def rss(sock: socket.socket, name: str) -> Rss | Unknown | None:
    """Of a device. None: its driver has none. sock: any of the device's namespace."""
    try:
        sizes = nic.ethtool(sock, name, _RXFH.pack(_ETHTOOL_GRSSH, 0, 0, 0, 0, 0, 0))
        if sizes is None:
            return None
        _, _, entries, key_bytes, *_ = _RXFH.unpack_from(sizes)
        if entries > _LARGEST or key_bytes > _LARGEST:
            return Unknown("the driver names an RSS table that no hardware has")
        # Sizes that are not the device's are refused, so this is not a guess.
        request = _RXFH.pack(_ETHTOOL_GRSSH, 0, entries, key_bytes, 0, 0, 0) + bytes(
            4 * entries + key_bytes
        )
        whole = nic.ethtool(sock, name, request)
    except OSError as error:
        return Unknown(os.strerror(error.errno or errno.EIO))
    return (
        Unknown("the driver names the size of its RSS table and not the table")
        if whole is None
        else rss_of(whole)
    )
