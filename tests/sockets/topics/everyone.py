# SPDX-License-Identifier: Apache-2.0
"""Datagrams to more than one: groups (multicast), everybody of a link (broadcast), and answers."""

from __future__ import annotations

import select
import socket
import struct
from typing import ClassVar

from sockets.script import IP4, IP6, Script, attempt, digest, events, noise

DEVICE = "eth0"
SO_BINDTODEVICE = socket.SO_BINDTODEVICE
IP_ADD_SOURCE_MEMBERSHIP = 39


class _Everyone(Script):
    """Events do not tell who carries datagrams."""

    carried = None

    def udp(self, port: int | None = None, address: str = "") -> socket.socket:
        made = self.keep(socket.socket(self.af, socket.SOCK_DGRAM))
        made.settimeout(10)
        if port is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, self.port + port))
        return made

    @property
    def group(self) -> str:
        """One of this run's own."""
        high, low = divmod(self.port, 256)
        return f"239.77.{high}.{low}" if self.family == IP4 else f"ff05::77:{self.port:x}"

    def join(self, sock: socket.socket) -> None:
        packed = socket.inet_pton(self.af, self.group)
        if self.family == IP4:
            request = packed + socket.inet_aton(self.here)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        else:
            request = packed + struct.pack("I", socket.if_nametoindex(DEVICE))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)

    def leave_by(self, sock: socket.socket) -> None:
        """The device that datagrams to groups leave by."""
        if self.family == IP4:
            by = socket.inet_aton(self.here)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, by)
        else:
            by = struct.pack("I", socket.if_nametoindex(DEVICE))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, by)


class ToAGroup(_Everyone):
    """Small and large datagrams to a group; its member answers the sender alone."""

    sizes: ClassVar[tuple[int, ...]] = (1, 1000, 5000)

    def client(self):
        sock = self.udp()
        self.leave_by(sock)
        self.meet()
        for size in self.sizes:
            sock.sendto(noise(size), (self.group, self.port))
            data, peer = sock.recvfrom(65_536)
            self.note(f"back {size}", [data, peer[0] == self.there, peer[1] == self.port])

    def server(self):
        sock = self.udp(0)
        self.join(sock)
        self.meet()
        for size in self.sizes:
            data, peer = sock.recvfrom(65_536)
            self.note(f"came {size}", [data, peer[0] == self.there])
            sock.sendto(digest(data).encode(), peer)


class ConnectedToAGroup(_Everyone):
    """connect() to a group: what its members answer comes from elsewhere, and is not heard."""

    def client(self):
        sock = self.udp()
        self.leave_by(sock)
        self.meet()
        self.note("connect", attempt(sock.connect, (self.group, self.port)))
        self.note("peer", sock.getpeername()[0] == self.group)
        for turn in range(3):
            sock.send(noise(500, turn))
        self.meet()
        self.note("heard", events(sock, select.POLLIN, 0.3))

    def server(self):
        sock = self.udp(0)
        self.join(sock)
        self.meet()
        for turn in range(3):
            data, peer = sock.recvfrom(65_536)
            self.note(f"came {turn}", data)
            sock.sendto(b"answer", peer)
        self.meet()


class OneSocketForAll(_Everyone):
    """One socket sends to its peer, to a group, and to its peer again; all answer."""

    def client(self):
        sock = self.udp(2)
        self.leave_by(sock)
        self.meet()
        for turn, where in enumerate((self.there, self.group, self.there, self.group)):
            sock.sendto(noise(700, turn), (where, self.port))
            data, peer = sock.recvfrom(65_536)
            self.note(f"turn {turn}", [data, peer[0] == self.there])

    def server(self):
        sock = self.udp(0)
        self.join(sock)
        self.meet()
        for _ in range(4):
            data, peer = sock.recvfrom(65_536)
            sock.sendto(digest(data).encode(), peer)


class BoundToTheGroup(_Everyone):
    """A member that is bound to the group's address hears nothing else."""

    def client(self):
        sock = self.udp()
        self.leave_by(sock)
        self.meet()
        sock.sendto(b"to the host", (self.there, self.port))
        sock.sendto(b"to the group", (self.group, self.port))
        self.meet()

    def server(self):
        sock = self.udp(0, self.group)
        self.join(sock)
        self.meet()
        self.note("came", sock.recv(100))
        self.meet()
        self.note("more", events(sock, select.POLLIN))


class OwnGroup(_Everyone):
    """A host that is a member of the group it sends to: by the loop, or not, as it asks."""

    def client(self):
        member = self.udp(0)
        self.join(member)
        sock = self.udp()
        self.leave_by(sock)
        four = self.family == IP4
        level = socket.IPPROTO_IP if four else socket.IPPROTO_IPV6
        loop = socket.IP_MULTICAST_LOOP if four else socket.IPV6_MULTICAST_LOOP
        for value in (1, 0, 1):
            sock.setsockopt(level, loop, value)
            sock.sendto(b"hello %d" % value, (self.group, self.port))
            self.note(f"loop {value}", events(member, select.POLLIN, 0.3))
            if value:
                self.note("came", member.recv(100))


class OfOneSource(_Everyone):
    """IP_ADD_SOURCE_MEMBERSHIP: of the peer alone, and of somebody else alone."""

    families = (IP4,)

    def client(self):
        sock = self.udp()
        self.leave_by(sock)
        self.meet()
        sock.sendto(b"by me", (self.group, self.port))
        sock.sendto(b"by me", (self.group, self.port + 1))
        self.meet()

    def server(self):
        here, group = (socket.inet_aton(one) for one in (self.here, self.group))
        socks = [self.udp(number, self.group) for number in (0, 1)]
        for sock, source in zip(socks, (self.there, "192.0.2.77"), strict=True):
            request = group + here + socket.inet_aton(source)
            sock.setsockopt(socket.IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, request)
        self.meet()
        self.note("wanted", socks[0].recv(100))
        self.meet()
        self.note("unwanted", events(socks[1], select.POLLIN, 0.2))


class ToEverybody(_Everyone):
    """Broadcast: refused without SO_BROADCAST; to everybody of the link, and answered."""

    families = (IP4,)

    def client(self):
        sock = self.udp(1)
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, DEVICE.encode())
        self.meet()
        everybody = ("255.255.255.255", self.port)
        self.note("refused", attempt(sock.sendto, b"x", everybody))
        self.note("connect refused", attempt(sock.connect, everybody))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for size in (10, 1400):
            sock.sendto(noise(size), everybody)
            data, peer = sock.recvfrom(65_536)
            self.note(f"back {size}", [data, peer[0] == self.there])
        sock.connect(everybody)
        sock.send(b"connected")
        self.meet()

    def server(self):
        sock = self.udp(0)
        self.meet()
        for _ in range(2):
            data, peer = sock.recvfrom(65_536)
            self.note("peer", peer[0] == self.there)
            sock.sendto(digest(data).encode(), peer)
        self.note("last", sock.recv(100))
        self.meet()


class NobodyOfAGroup(_Everyone):
    """A group without a member, and a scope of the host's own: no error comes back."""

    def client(self):
        sock = self.udp()
        self.leave_by(sock)
        self.note("sent", sock.sendto(b"x", (self.group, self.port)))
        if self.family == IP6:
            self.note("own", sock.sendto(b"x", ("ff01::77", self.port)))
        self.note("events", events(sock, select.POLLIN, 0.3))
