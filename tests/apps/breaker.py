# SPDX-License-Identifier: Apache-2.0
"""A router that breaks TCP packets to one of its two hosts into fragments, in the order that is
asked for, or puts IPv6 extension headers in front; the other way is the kernel's.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

from lab import Host

_ETH_BYTES = 14
_SO_RCVBUFFORCE = 33
_TCP = socket.IPPROTO_TCP

# From a whole IP packet that carries TCP to what goes out instead
Break = Callable[[bytes], Sequence[bytes]]


def _is_tcp(packet: bytes) -> bool:
    if packet[0] >> 4 == 4:
        return packet[9] == _TCP and not struct.unpack_from(">H", packet, 6)[0] & 0x3FFF
    return packet[6] == _TCP


def _length(packet: bytes) -> int:
    at, more = (2, 0) if packet[0] >> 4 == 4 else (4, 40)
    return int(struct.unpack_from(">H", packet, at)[0]) + more


def _packet_socket(name: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    made.bind((name, 0))
    made.setblocking(False)
    return made


class Breaker:
    """From when it is made until close(): TCP from there on to the near host, which is one hop
    away, is broken.

    router joins near and far; far is known to it by the interface far_nic.
    """

    def __init__(self, router: Host, near_nic: str, far_nic: str, near: Host, how: Break) -> None:
        self.how, self.broken = how, 0
        self._near_mac = _mac(near, near.nic.name)
        self._own_mac = _mac(router, near_nic)
        self._far_mac = _mac(router, far_nic)
        self._in, self._out = (router.call(_packet_socket, name) for name in (far_nic, near_nic))
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        rule = f'iifname "{far_nic}" oifname "{near_nic}" meta l4proto tcp drop'
        router.run(
            ["nft", "add table inet b; add chain inet b f { type filter hook forward priority 0; };"
             f" add rule inet b f {rule}"]
        )  # fmt: skip
        self._thread.start()

    def close(self) -> None:
        """The thread ends; TCP from there goes nowhere any more."""
        os.close(self._stopper)
        self._thread.join()
        for one in (self._in, self._out):
            one.close()
        os.close(self._stop)

    def _carry(self) -> None:
        while True:
            ready, _, _ = select.select([self._in, self._stop], [], [])
            if self._stop in ready:
                return
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, where = self._in.recvfrom(70000)
                    if where[2] == socket.PACKET_HOST and data[12:14] in (b"\x08\0", b"\x86\xdd"):
                        self._take(data[_ETH_BYTES:], data[12:14])

    def _take(self, packet: bytes, kind: bytes) -> None:
        packet = packet[: _length(packet)]
        if not _is_tcp(packet):
            return
        for one in self.how(packet):
            with contextlib.suppress(BlockingIOError, OSError):
                self._out.send(self._near_mac + self._own_mac + kind + one)
        self.broken += 1


def _mac(host: Host, name: str) -> bytes:
    (link,) = json.loads(host.run(["ip", "-j", "link", "show", name]).stdout)
    return bytes.fromhex(link["address"].replace(":", ""))


@contextlib.contextmanager
def breaking(router: Host, near: Host, how: Break) -> Iterator[Breaker]:
    """eth0 of the router leads to near, eth1 to the other host."""
    made = Breaker(router, router.nics[0].name, router.nics[1].name, near, how)
    try:
        yield made
    finally:
        made.close()
