# SPDX-License-Identifier: Apache-2.0
"""IPv6 sockets that speak IPv4: what the peer's host sees of their options, on either side."""

from __future__ import annotations

import socket
from typing import ClassVar

from sockets.script import IP4, Pair, attempt, noise, read_all
from sockets.sniffing import Turns

IP_MINTTL = 21
IPV6_MINHOPCOUNT = 73


class _Dual(Turns):
    """A connection between IPv6 sockets of both hosts, to an IPv4 address."""

    families = (IP4,)

    def before(self, sock):
        """Options of the socket that connects, and of the listener."""

    def client(self):
        self.meet()
        sock = self.keep(socket.socket(socket.AF_INET6))
        self.before(sock)
        sock.connect((f"::ffff:{self.there}", self.port))
        self.turns(sock, is_first=True)

    def server(self):
        listener = self.keep(socket.socket(socket.AF_INET6))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.before(listener)
        listener.bind(("::", self.port))
        listener.listen()
        self.meet()
        sock, _ = listener.accept()
        self.turns(self.keep(sock), is_first=False)


class OptionsOfFour(_Dual):
    """IP_TOS and IP_TTL, set before."""

    def before(self, sock):
        self.note("tos", attempt(sock.setsockopt, socket.IPPROTO_IP, socket.IP_TOS, 0x48))
        self.note("ttl", attempt(sock.setsockopt, socket.IPPROTO_IP, socket.IP_TTL, 33))

    def turns(self, sock, *, is_first):
        self.note("tos read", attempt(sock.getsockopt, socket.IPPROTO_IP, socket.IP_TOS))
        self.note("ttl read", attempt(sock.getsockopt, socket.IPPROTO_IP, socket.IP_TTL))
        super().turns(sock, is_first=is_first)


class OptionsOfSix(_Dual):
    """IPV6_TCLASS and IPV6_UNICAST_HOPS, set before: of IPv6 alone."""

    def before(self, sock):
        self.note("class", attempt(sock.setsockopt, socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x48))
        self.note(
            "hops", attempt(sock.setsockopt, socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 33)
        )


class ServiceOfFourChanged(_Dual):
    """IP_TOS in mid-connection."""

    values = (0x48, 0x20, 0)

    def change(self, sock, value):
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, value)


class HopsOfFourChanged(_Dual):
    """IP_TTL in mid-connection."""

    values = (64, 50, 33)

    def change(self, sock, value):
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, value)


class _Far(Pair):
    """Who is near enough: a least TTL or hop limit, told by the socket that reads."""

    least: ClassVar[int] = 255
    sent: ClassVar[int] = 255

    def set_least(self, sock):
        if self.family == IP4:
            return attempt(sock.setsockopt, socket.IPPROTO_IP, IP_MINTTL, self.least)
        return attempt(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, self.least)

    def set_sent(self, sock):
        if self.family == IP4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self.sent)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, self.sent)

    def before_connect(self, sock):
        self.set_sent(sock)
        self.note("least", self.set_least(sock))

    before_listen = before_connect

    def client_with(self, sock):
        sock.sendall(noise(50_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("answer", read_all(sock))

    def server_with(self, sock):
        self.note("question", read_all(sock))
        sock.sendall(noise(60_000))
        sock.close()


class NearEnough(_Far):
    """Both send 255 and take 255 (RFC 5082)."""


class NearEnoughByRouters(_Far):
    """Both send 200 and take 150."""

    least, sent = 150, 200


class LeastWhenOpen(_Far):
    """The same, asked for on an open connection, by both."""

    def before_connect(self, sock):
        self.set_sent(sock)

    before_listen = before_connect

    def client_with(self, sock):
        self.note("least", self.set_least(sock))
        self.meet()
        super().client_with(sock)

    def server_with(self, sock):
        self.note("least", self.set_least(sock))
        self.meet()
        super().server_with(sock)


class TooFarWhenOpen(_Far):
    """An open connection whose peer is too far from now on: its bytes do not come."""

    least, sent = 100, 64

    def before_connect(self, sock):
        self.set_sent(sock)

    before_listen = before_connect

    def client_with(self, sock):
        self.note("least", self.set_least(sock))
        self.meet()
        sock.settimeout(2)
        self.note("came", attempt(sock.recv, 10))
        self.meet()

    def server_with(self, sock):
        self.meet()
        sock.sendall(b"far")
        self.meet()
