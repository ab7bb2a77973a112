# SPDX-License-Identifier: Apache-2.0
"""IP packets in fragments, or with IPv6 extension headers in front of what they carry;
the Internet checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

PIECE_BYTES = 504  # of what the IP header carries; a multiple of 8
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of data."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Pieces:
    """Fragments of packets, which have no options: called with one, it says what goes out. order:
    of the list of its fragments; first: bytes in the first of them; behind: IPv6 extension headers
    that are cut with the rest.
    The order may be changed on the way; what numbers a packet's fragments goes on.
    """

    def __init__(
        self,
        order: Callable[[list[bytes]], list[bytes]] = list,
        first: int = PIECE_BYTES,
        behind: Sequence[int] = (),
    ) -> None:
        self.order, self._first, self._behind = order, first, behind
        self._number = 0

    def __call__(self, packet: bytes) -> Sequence[bytes]:
        self._number += 1
        if len(packet) <= PIECE_BYTES:
            return [packet]
        if packet[0] >> 4 == 4:
            return self.order(self._pieces4(packet))
        if self._behind:
            packet = headers(packet, self._behind)
        return self.order(self._pieces6(packet))

    def _cuts(self, data: bytes) -> list[tuple[int, bytes]]:
        starts = [0, *range(self._first, len(data), PIECE_BYTES)]
        return [
            (at, data[at:end]) for at, end in zip(starts, [*starts[1:], len(data)], strict=True)
        ]

    def _pieces4(self, packet: bytes) -> list[bytes]:
        made = []
        for at, part in self._cuts(packet[20:]):
            more = at + len(part) < len(packet) - 20
            head = packet[:2] + struct.pack(
                ">HHHBBH",
                20 + len(part),
                self._number % 65536,
                more << 13 | at >> 3,
                packet[8],
                packet[9],
                0,
            )
            head += packet[12:20]
            made.append(head[:10] + struct.pack(">H", checksum(head)) + head[12:] + part)
        return made

    def _pieces6(self, packet: bytes) -> list[bytes]:
        made = []
        for at, part in self._cuts(packet[40:]):
            more = at + len(part) < len(packet) - 40
            extra = struct.pack(">BBHI", packet[6], 0, at | more, self._number)
            made.append(
                packet[:4]
                + struct.pack(">HB", 8 + len(part), FRAGMENT)
                + packet[7:40]
                + extra
                + part
            )
        return made


def headers(packet: bytes, kinds: Sequence[int]) -> bytes:
    """An IPv6 packet with these extension headers in front of what it carries; a fragment's is
    an atomic one's.
    """
    kind, body = packet[6], packet[40:]
    for one in reversed(kinds):
        if one == FRAGMENT:
            extra = struct.pack(">BBHI", kind, 0, 0, 7)
        elif one == ROUTING:
            extra = struct.pack(">BBBB", kind, 2, 4, 0) + bytes(20)  # RFC 8754, at its end
        else:
            extra = bytes([kind, 1, 1, 12]) + bytes(12)  # PadN
        body, kind = extra + body, one
    return packet[:4] + struct.pack(">HB", len(body), kind) + packet[7:40] + body
