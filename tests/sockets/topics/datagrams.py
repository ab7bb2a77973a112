# SPDX-License-Identifier: Apache-2.0
"""UDP, whichever way it goes: lengths, errors, ancillary data, segmentation, several peers."""

from __future__ import annotations

import ctypes
import select
import socket
import struct

from sockets.script import (
    IP4,
    Script,
    attempt,
    digest,
    events,
    noise,
    so_error,
)

UDP_CORK, UDP_SEGMENT, UDP_GRO = 1, 103, 104
LIBC = ctypes.CDLL(None, use_errno=True)


class _Udp(Script):
    """Events do not tell who carries datagrams."""

    carried = None

    def udp(self, port: int | None = None) -> socket.socket:
        made = self.keep(socket.socket(self.af, socket.SOCK_DGRAM))
        made.settimeout(10)
        if port is not None:
            made.bind((self.here, self.port + port))
        return made


class Lengths(_Udp):
    """Datagrams of no byte, one, a full frame, and such that come in fragments; echoed."""

    sizes = (0, 1, 1000, 1472, 1473, 8000, 40_000)

    def client(self):
        sock = self.udp()
        self.meet()
        sock.connect(self.at())
        for size in self.sizes:
            sock.send(noise(size))
            self.note(f"back {size}", sock.recv(65_536))

    def server(self):
        sock = self.udp(0)
        self.meet()
        for _ in self.sizes:
            data, peer = sock.recvfrom(65_536)
            sock.sendto(data, peer)


class Refused(_Udp):
    """Nobody is there: ECONNREFUSED on a connected socket, by send() or recv(), and SO_ERROR."""

    def client(self):
        sock = self.udp()
        sock.connect(self.at())
        sock.send(b"anybody")
        self.note("events", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 10))
        sock.send(b"anybody")
        events(sock, select.POLLIN, 5)
        self.note("send", attempt(sock.send, b"again"))
        events(sock, select.POLLIN, 5)
        self.note("error", so_error(sock))


class RefusedUnconnected(_Udp):
    """The same with sendto(): only who asks for errors hears of it, with what it was about."""

    def client(self):
        sock = self.udp()
        level, option = (socket.IPPROTO_IP, 11) if self.family == IP4 else (socket.IPPROTO_IPV6, 25)
        sock.setsockopt(level, option, 1)
        sock.sendto(b"anybody", self.at())
        self.note("events", events(sock, select.POLLIN, 5))
        data, told, flags, peer = sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
        self.note("data", data)
        self.note("peer", peer[1] == self.port)
        self.note("flags", flags)
        self.note("told", [struct.unpack_from("IBBB", d) for _, _, d in told])


class PacketInfo(_Udp):
    """A server of all addresses answers from the address that was asked."""

    def client(self):
        sock = self.udp()
        self.meet()
        sock.connect(self.at())
        sock.send(b"which")
        self.note("answer", sock.recv(100))

    def server(self):
        sock = self.keep(socket.socket(self.af, socket.SOCK_DGRAM))
        sock.settimeout(10)
        sock.bind(("", self.port))
        level, option = (socket.IPPROTO_IP, 8) if self.family == IP4 else (socket.IPPROTO_IPV6, 49)
        sock.setsockopt(level, option, 1)
        self.meet()
        data, told, _, peer = sock.recvmsg(100, 512)
        info = [d for _, _, d in told]
        own = info[0][8:12] if self.family == IP4 else info[0][:16]
        self.note("asked", socket.inet_ntop(self.af, own) == self.here)
        kind = 8 if self.family == IP4 else 50
        sock.sendmsg([data[::-1]], [(level, kind, info[0])], 0, peer)


class Segmented(_Udp):
    """UDP_SEGMENT: ten datagrams by one call; and UDP_GRO of the receiver: all bytes, in order."""

    def client(self):
        sock = self.udp()
        self.meet()
        sock.connect(self.at())
        sock.sendmsg([noise(9500)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 1000))])
        self.note("got", sock.recv(100))

    def server(self):
        sock = self.udp(0)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        self.meet()
        data = b""
        while len(data) < 9500:
            part, _, _, peer = sock.recvmsg(65_536, 64)
            data += part
        self.note("came", digest(data))
        sock.sendto(b"all", peer)


class SegmentedPlain(_Udp):
    """UDP_SEGMENT to a receiver without UDP_GRO: ten datagrams, of their lengths."""

    def client(self):
        sock = self.udp()
        self.meet()
        sock.connect(self.at())
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sock.send(noise(9500))
        self.note("got", sock.recv(100))

    def server(self):
        sock = self.udp(0)
        self.meet()
        lengths = []
        for _ in range(10):
            data, peer = sock.recvfrom(65_536)
            lengths.append(len(data))
        self.note("lengths", lengths)
        sock.sendto(b"all", peer)


class Corked(_Udp):
    """MSG_MORE and UDP_CORK: several writes are one datagram."""

    def client(self):
        sock = self.udp()
        self.meet()
        sock.connect(self.at())
        sock.send(b"one ", socket.MSG_MORE)
        sock.send(b"datagram")
        sock.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
        sock.send(b"another ")
        sock.send(b"one")
        sock.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0)
        self.note("got", sock.recv(100))

    def server(self):
        sock = self.udp(0)
        self.meet()
        self.note("first", sock.recv(100))
        data, peer = sock.recvfrom(100)
        self.note("second", data)
        sock.sendto(b"all", peer)


class Truncated(_Udp):
    """MSG_TRUNC and MSG_PEEK: how long it is, and that it stays."""

    def client(self):
        sock = self.udp()
        self.meet()
        sock.sendto(noise(900), self.at())
        sock.sendto(noise(300), self.at())

    def server(self):
        sock = self.udp(0)
        self.meet()
        part = bytearray(10)
        self.note("peek", sock.recv_into(part, 10, socket.MSG_PEEK | socket.MSG_TRUNC))
        data, _, flags, _ = sock.recvmsg(20)
        self.note("cut", [len(data), bool(flags & socket.MSG_TRUNC)])
        self.note("next", len(sock.recv(1000)))


class Elsewhere(_Udp):
    """connect(), again to another port, then to nobody, then sendto()."""

    def client(self):
        sock = self.udp()
        self.meet()
        for number in (0, 1):
            sock.connect(self.at(number))
            sock.send(b"to %d" % number)
            self.note(f"from {number}", sock.recv(100))
        nobody = struct.pack("H14x", socket.AF_UNSPEC)
        self.note("dissolved", LIBC.connect(sock.fileno(), nobody, len(nobody)))
        self.note("send", attempt(sock.send, b"x"))
        sock.sendto(b"loose", self.at(1))
        self.note("loose", sock.recv(100))

    def server(self):
        socks = [self.udp(0), self.udp(1)]
        self.meet()
        for sock in (socks[0], socks[1], socks[1]):
            data, peer = sock.recvfrom(100)
            sock.sendto(data[::-1], peer)


class ManyPeers(_Udp):
    """One socket, three peers' sockets, in turn; each gets its own answer."""

    def client(self):
        sock = self.udp()
        self.meet()
        for number in (0, 1, 2, 0, 1, 2):
            sock.sendto(b"q%d" % number, self.at(number))
            data, peer = sock.recvfrom(100)
            self.note("answer", [data, peer[1] - self.port])

    def server(self):
        socks = [self.udp(n) for n in range(3)]
        self.meet()
        for _ in range(2):
            for number, sock in enumerate(socks):
                data, peer = sock.recvfrom(100)
                sock.sendto(data + b" by %d" % number, peer)


class OnlyPeer(_Udp):
    """A connected socket hears its peer alone."""

    def client(self):
        sock = self.udp(3)
        self.meet()
        sock.connect(self.at(0))
        sock.send(b"hello")
        self.note("from peer", sock.recv(100))
        self.meet()
        self.note("from another", events(sock, select.POLLIN, 0.5))

    def server(self):
        own, other = self.udp(0), self.udp(1)
        self.meet()
        data, peer = own.recvfrom(100)
        own.sendto(data, peer)
        other.sendto(b"stranger", peer)
        self.meet()


class TooBig(_Udp):
    """Longer than a packet may be: EMSGSIZE; with DF and longer than the MTU, too."""

    def client(self):
        sock = self.udp()
        sock.connect(self.at())
        self.note("over 64 KiB", attempt(sock.send, bytes(70_000)))
        if self.family == IP4:
            sock.setsockopt(socket.IPPROTO_IP, 10, 2)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, 23, 2)
        self.note("over the MTU", attempt(sock.send, bytes(3_000)))


class Class(_Udp):
    """The class and TTL or hop limit that the client sets are what the server gets."""

    def client(self):
        sock = self.udp()
        self.meet()
        if self.family == IP4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xB8)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 33)
        sock.sendto(b"marked", self.at())
        self.note("got", sock.recv(10))

    def server(self):
        sock = self.udp(0)
        if self.family == IP4:
            sock.setsockopt(socket.IPPROTO_IP, 13, 1)
            sock.setsockopt(socket.IPPROTO_IP, 12, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, 66, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, 51, 1)
        self.meet()
        _, told, _, peer = sock.recvmsg(100, 512)
        self.note("told", sorted([kind, d[0]] for _, kind, d in told))
        sock.sendto(b"ok", peer)


class Beginner(_Udp):
    """The side that is called server begins, and the client's bound socket answers."""

    def client(self):
        sock = self.udp(2)
        self.meet()
        data, peer = sock.recvfrom(100)
        self.note("asked", [data, peer[1] - self.port])
        sock.sendto(b"served", peer)

    def server(self):
        sock = self.udp(1)
        self.meet()
        sock.sendto(b"you begin", (self.there, self.port + 2))
        self.note("answer", sock.recv(100))


class Burst(_Udp):
    """Two hundred datagrams, of which each tenth is answered: all come, in order."""

    def client(self):
        sock = self.udp()
        self.meet()
        sock.connect(self.at())
        for start in range(0, 200, 10):
            for number in range(start, start + 10):
                sock.send(struct.pack("I", number))
            sock.recv(10)
        self.note("done")

    def server(self):
        sock = self.udp(0)
        self.meet()
        seen = []
        for number in range(200):
            data, peer = sock.recvfrom(100)
            seen.append(struct.unpack("I", data)[0])
            if number % 10 == 9:
                sock.sendto(b"ten", peer)
        self.note("in order", seen == list(range(200)))
