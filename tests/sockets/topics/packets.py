# SPDX-License-Identifier: Apache-2.0
"""What the peer's host sees of an open connection's packets when their sender changes
options in mid-connection.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import ClassVar

from sockets.script import (
    IP4,
    IP6,
    Pair,
    Script,
    attempt,
    eventually,
    how_long,
    noise,
    read_exactly,
)
from sockets.sniffing import Turns

SO_MAX_PACING_RATE = 47
SO_TXTIME = 61
CLOCK_MONOTONIC = 1
IPV6_2292PKTOPTIONS = 6
IPV6_FLOWINFO = 11
IPV6_FLOWLABEL_MGR = 32
IPV6_FLOWINFO_SEND = 33
LABEL_GET = 0
LABEL_CREATE = 1
LABEL_SHARE_ANY = 255
LABEL = 0x54321


class _Changed(Turns, Pair):
    """The client, and then the server, changes options between three questions and answers."""

    option: ClassVar[dict[str, tuple[int, int]]] = {}  # by family: level and name

    def change(self, sock, value):
        """What is changed."""
        sock.setsockopt(*self.option[self.family], value)

    def client_with(self, sock):
        self.turns(sock, is_first=True)

    def server_with(self, sock):
        self.turns(sock, is_first=False)


class ServiceChanged(_Changed):
    """IP_TOS and IPV6_TCLASS."""

    values = (0x48, 0x20, 0)
    option: ClassVar = {
        IP4: (socket.IPPROTO_IP, socket.IP_TOS),
        IP6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    }


class HopsChanged(_Changed):
    """IP_TTL and IPV6_UNICAST_HOPS, less each time."""

    values = (64, 50, 33)
    option: ClassVar = {
        IP4: (socket.IPPROTO_IP, socket.IP_TTL),
        IP6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
    }


class HopsRaised(HopsChanged):
    """The same, more each time."""

    values = (64, 100, 200)


class PriorityChanged(_Changed):
    """SO_PRIORITY is read back, and the bytes go on; the peer sees nothing of it."""

    values = (5, 0, 6)

    def change(self, sock, value):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, value)
        self.note("read", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY))


class PacingChanged(Pair):
    """SO_MAX_PACING_RATE of an open connection: 2 MB at 1 MB/s, then as fast as they go."""

    def client_with(self, sock):
        sock.sendall(noise(1000))
        self.meet()
        for rate in (1_000_000, (1 << 32) - 1):
            sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("Q", rate))
            sock.sendall(noise(2_000_000))
            self.meet()

    def server_with(self, sock):
        read_exactly(sock, 1000)
        self.meet()
        for least in (1.5, 0.0):
            began = time.monotonic()
            read_exactly(sock, 2_000_000)
            self.note("took", how_long(began, least))
            if not least:
                self.note("soon", time.monotonic() - began < 1.5)
            self.meet()


class LaunchTime(Pair):
    """SO_TXTIME and SCM_TXTIME are taken as TCP takes them."""

    def client_with(self, sock):
        self.note(
            "set",
            attempt(
                sock.setsockopt, socket.SOL_SOCKET, SO_TXTIME, struct.pack("iI", CLOCK_MONOTONIC, 0)
            ),
        )
        self.note("read", attempt(sock.getsockopt, socket.SOL_SOCKET, SO_TXTIME, 8))
        when = struct.pack("Q", time.monotonic_ns() + 300_000_000)
        self.note("send", attempt(sock.sendmsg, [b"later"], [(socket.SOL_SOCKET, SO_TXTIME, when)]))
        self.meet()

    def server_with(self, sock):
        self.note("came", sock.recv(10))
        self.meet()


class FlowLabelSent(Script):
    """A flow label that the client leases and connects with, and the class beside it: as its
    peer reads them.
    """

    families = (IP6,)

    def client(self):
        self.meet()
        sock = self.socket()
        there = socket.inet_pton(socket.AF_INET6, self.there)
        label = struct.pack("!I", LABEL)
        request = (
            there
            + label
            + struct.pack("=BBHHHI", LABEL_GET, LABEL_SHARE_ANY, LABEL_CREATE, 60, 6, 0)
        )
        self.note(
            "lease", attempt(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, request)
        )
        self.note("send", attempt(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 1))
        self.note("send read", attempt(sock.getsockopt, socket.IPPROTO_IPV6, IPV6_FLOWINFO_SEND))
        self.note("connect", attempt(sock.connect, (self.there, self.port, LABEL, 0)))
        self.meet()  # data that comes with the last ACK of the handshake tells nothing
        for turn in range(3):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x20 * turn)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 50 - turn)
            sock.sendall(b"x")
            self.meet()

    def server(self):
        listener = self.listen()
        for option in (IPV6_FLOWINFO, socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPLIMIT):
            listener.setsockopt(socket.IPPROTO_IPV6, option, 1)
        self.meet()
        sock, peer = listener.accept()
        self.meet()
        self.note("peer", peer[2:])
        for option in (IPV6_FLOWINFO, socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPLIMIT):
            self.note("set", attempt(sock.setsockopt, socket.IPPROTO_IPV6, option, 1))
        for turn in range(3):
            read_exactly(sock, 1)
            hops = 50 - turn
            told = eventually(lambda hops=hops: _told(sock, hops), 2)
            self.note(f"turn {turn}", told or _told(sock))
            self.meet()


def _told(sock: socket.socket, hops: int | None = None) -> dict[str, str]:
    """What ancillary data the latest packet has left (RFC 2292 section 9), but for its ECN bits, of
    which each TCP makes what it will; {} if it came with other hops.
    """
    raw = sock.getsockopt(socket.IPPROTO_IPV6, IPV6_2292PKTOPTIONS, 400)
    found, at = {}, 0
    while at + 16 <= len(raw):
        length, _, kind = struct.unpack_from("QiI", raw, at)
        if kind == socket.IPV6_TCLASS:
            found["class"] = hex(struct.unpack_from("i", raw, at + 16)[0] & ~3)
        elif kind == IPV6_FLOWINFO:
            found["flow"] = hex(struct.unpack_from("!I", raw, at + 16)[0] & ~(3 << 20))
        elif kind == socket.IPV6_HOPLIMIT:
            found["hops"] = str(struct.unpack_from("i", raw, at + 16)[0])
        at += (length + 7) & ~7
    return found if hops is None or found.get("hops") == str(hops) else {}
