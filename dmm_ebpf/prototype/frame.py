# SPDX-License-Identifier: Apache-2.0
"""A frame as a stack process gets it from a TAP device or gives it to one, and what it says of
its TCP segment.
"""

from __future__ import annotations

import sys
from functools import cached_property
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from dmm_ebpf import abi

VNET_BYTES, ETH_BYTES = 10, 14
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10  # RFC 9293, 3.1
_IP4, _IP6, _TCP = 0x0800, 0x86DD, 6
_IP4_MIN_BYTES, _IP6_BYTES, _TCP_MIN_BYTES = 20, 40, 20
_MAPPED = b"\0" * 10 + b"\xff\xff"  # RFC 4291 section 2.5.5.2


class _Segment(NamedTuple):
    source: bytes  # address, 16 bytes
    target: bytes
    source_port: bytes  # 2 bytes, network order
    target_port: bytes
    flags: int
    payload_bytes: int


class Frame:
    """data: a struct virtio_net_hdr (linux/virtio_net.h: checksum left open, segment longer than
    the MTU), an Ethernet header, an IP packet. To be changed as one likes, but for the first: then
    also what it says.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def ethertype(self) -> int:
        """Of the Ethernet header."""
        return int.from_bytes(self.data[VNET_BYTES + ETH_BYTES - 2 : VNET_BYTES + ETH_BYTES], "big")

    @cached_property
    def _segment(self) -> _Segment | None:
        ip = self.data[VNET_BYTES + ETH_BYTES :]
        if self.ethertype == _IP4 and len(ip) >= _IP4_MIN_BYTES and ip[9] == _TCP:
            source, target = _MAPPED + ip[12:16], _MAPPED + ip[16:20]
            header, end = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big")
        elif self.ethertype == _IP6 and len(ip) >= _IP6_BYTES and ip[6] == _TCP:
            source, target = ip[8:24], ip[24:40]
            header, end = _IP6_BYTES, _IP6_BYTES + int.from_bytes(ip[4:6], "big")
        else:
            return None
        tcp = ip[header:end]
        if len(tcp) < _TCP_MIN_BYTES:
            return None
        return _Segment(
            source, target, tcp[0:2], tcp[2:4], tcp[13], max(0, len(tcp) - (tcp[12] >> 4) * 4)
        )

    @property
    def flags(self) -> int:
        """The TCP segment's: FIN, SYN, RST, ACK and others; 0 where the frame has none that is
        whole.
        """
        return self._segment.flags if self._segment else 0

    @property
    def opens(self) -> bool:
        """It is the first segment of a connection."""
        return self.flags & (SYN | ACK | RST) == SYN

    @property
    def payload_bytes(self) -> int:
        """Of the segment; 0 where there is none."""
        return self._segment.payload_bytes if self._segment else 0

    def pair(self, *, from_app: bool) -> bytes:
        """struct dmm_addr_pair (bpf/abi.h) of the flow: laddr is this host. Empty for what
        is no TCP.
        """
        s = self._segment
        if s is None:
            return b""
        pair = abi.new(
            "dmm_addr_pair", family=AF_INET6 if self.ethertype == _IP6 else AF_INET, proto=_TCP
        )
        near, far = (s.source, s.target), (s.source_port, s.target_port)
        if not from_app:
            near, far = near[::-1], far[::-1]
        abi.ffi.memmove(pair.laddr, near[0], 16)
        abi.ffi.memmove(pair.raddr, near[1], 16)
        pair.lport_be, pair.rport_be = (int.from_bytes(port, sys.byteorder) for port in far)
        return abi.pack(pair)
