# SPDX-License-Identifier: Apache-2.0
"""Prefixes of peers for which what is learnt counts."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

V4 = 96  # bits before an IPv4 address that is v4-mapped
V4_LENGTHS = (V4 + 24, V4 + 16)  # from the longest; 0 is the root of both families
V6_LENGTHS = (48, 32)
_MAPPED = bytes(10) + b"\xff\xff"
_BITS = 128


class Prefix(NamedTuple):
    """Of a v4-mapped or IPv6 address: how many bits count, and the address as a number."""

    length: int
    number: int

    @property
    def packed(self) -> bytes:
        """Its address, 16 bytes in network order."""
        return self.number.to_bytes(16, "big")

    def __str__(self) -> str:
        if not self.length:
            return "default"
        if self.packed.startswith(_MAPPED):
            address = ipaddress.IPv4Address(self.packed[12:])
            return f"{address}/{self.length - V4}"
        return f"{ipaddress.IPv6Address(self.number)}/{self.length}"


ROOT = Prefix(0, 0)


def prefixes(address: bytes) -> list[Prefix]:
    """Those that a sample of a peer counts for, from the longest to the root."""
    number = int.from_bytes(address, "big")
    lengths = V4_LENGTHS if address.startswith(_MAPPED) else V6_LENGTHS
    return [
        *(Prefix(length, number >> (_BITS - length) << (_BITS - length)) for length in lengths),
        ROOT,
    ]


def parent(prefix: Prefix) -> Prefix | None:
    """The prefix around it; None: it is the root."""
    if not prefix.length:
        return None
    around = prefixes(prefix.packed)
    return around[around.index(prefix) + 1]


def prefix_of(length: object, address: object) -> Prefix | None:
    """One of those that a tree has, from what was kept or told; None: it is none."""
    if type(length) is not int or not isinstance(address, str) or len(address) != 32:
        return None
    try:
        packed = bytes.fromhex(address)
    except ValueError:
        return None
    return next(
        (one for one in prefixes(packed) if one.length == length and one.packed == packed), None
    )
