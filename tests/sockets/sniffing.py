# SPDX-License-Identifier: Apache-2.0
"""What a peer's host sees of a connection's packets: on both sides, while options are changed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import ClassVar

from sockets.script import Script, attempt, noise, read_exactly

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33


class Sniffer:
    """The packets that come to a host's port by its NIC."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self.sock.bind(("eth0", ETH_P_ALL))
        self.sock.setblocking(False)

    def seen(self) -> set[tuple[int, int]]:
        """Traffic class without its ECN bits, and TTL or hop limit, of each since the last call."""
        return {(look, ttl) for look, ttl, payload in self._come() if payload}

    def packets(self) -> int:
        """How many came since the last call, with payload or without."""
        return sum(1 for _ in self._come())

    def lengths(self) -> list[int]:
        """Bytes of payload of each that has some, since the last call; those that the NIC has put
        together are one.
        """
        return [payload for _, _, payload in self._come() if payload]

    def _come(self) -> Iterator[tuple[int, int, int]]:
        while isinstance(told := attempt(self.sock.recvfrom, 200), tuple):
            data, (_, _, kind, *_) = told
            if kind == PACKET_OUTGOING:
                continue
            if data[0] >> 4 == 4:
                look, ttl, tcp, length = (
                    data[1],
                    data[8],
                    data[20:],
                    int.from_bytes(data[2:4], "big") - 20,
                )
            else:
                look, ttl, tcp = (data[0] & 15) << 4 | data[1] >> 4, data[7], data[40:]
                length = int.from_bytes(data[4:6], "big")
            if int.from_bytes(tcp[2:4], "big") == self.port:
                yield look & ~3, ttl, length - (tcp[12] >> 4) * 4


class Turns(Script):
    """One side, and then the other, changes options before it sends; who reads looks at what comes
    in.
    """

    values: ClassVar[tuple[int, ...]] = (0,)

    def change(self, sock, value):
        """What is changed in mid-connection."""

    def turns(self, sock, *, is_first):
        sniffer = Sniffer(sock.getsockname()[1])
        self.meet()
        for value in self.values:
            for sends in (is_first, not is_first):
                if sends:
                    self.change(sock, value)
                    sock.sendall(noise(20_000))
                else:
                    read_exactly(sock, 20_000)
                    self.note(f"of {value}", sniffer.seen())
                self.meet()
