# SPDX-License-Identifier: Apache-2.0
"""Options of sockets: read back fresh, set, open and accepted; wrong values; TCP_INFO."""

from __future__ import annotations

import os
import socket
import struct

from sockets.script import IP4, Pair, Script, attempt, eventually, noise, read_all, tcp_state

READ = (
    ("SOL_SOCKET", "SO_TYPE"),
    ("SOL_SOCKET", "SO_DOMAIN"),
    ("SOL_SOCKET", "SO_PROTOCOL"),
    ("SOL_SOCKET", "SO_KEEPALIVE"),
    ("SOL_SOCKET", "SO_REUSEADDR"),
    ("SOL_SOCKET", "SO_BROADCAST"),
    ("SOL_SOCKET", "SO_DONTROUTE"),
    ("SOL_SOCKET", "SO_OOBINLINE"),
    ("SOL_SOCKET", "SO_RCVLOWAT"),
    ("SOL_SOCKET", "SO_PRIORITY"),
    ("SOL_SOCKET", "SO_MARK"),
    ("SOL_SOCKET", "SO_ACCEPTCONN"),
    ("IPPROTO_TCP", "TCP_NODELAY"),
    ("IPPROTO_TCP", "TCP_CORK"),
    ("IPPROTO_TCP", "TCP_KEEPIDLE"),
    ("IPPROTO_TCP", "TCP_KEEPINTVL"),
    ("IPPROTO_TCP", "TCP_KEEPCNT"),
    ("IPPROTO_TCP", "TCP_SYNCNT"),
    ("IPPROTO_TCP", "TCP_LINGER2"),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT"),
    ("IPPROTO_TCP", "TCP_NOTSENT_LOWAT"),
    ("IPPROTO_TCP", "TCP_DEFER_ACCEPT"),
    ("IPPROTO_TCP", "TCP_FASTOPEN"),
)
SET = (
    ("SOL_SOCKET", "SO_KEEPALIVE", 1),
    ("SOL_SOCKET", "SO_PRIORITY", 5),
    ("SOL_SOCKET", "SO_MARK", 0x1234),
    ("SOL_SOCKET", "SO_RCVBUF", 70_000),
    ("SOL_SOCKET", "SO_SNDBUF", 80_000),
    ("SOL_SOCKET", "SO_OOBINLINE", 1),
    ("IPPROTO_TCP", "TCP_NODELAY", 1),
    ("IPPROTO_TCP", "TCP_KEEPIDLE", 71),
    ("IPPROTO_TCP", "TCP_KEEPINTVL", 13),
    ("IPPROTO_TCP", "TCP_KEEPCNT", 4),
    ("IPPROTO_TCP", "TCP_SYNCNT", 3),
    ("IPPROTO_TCP", "TCP_LINGER2", 17),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", 12_345),
    ("IPPROTO_TCP", "TCP_NOTSENT_LOWAT", 99_999),
    ("IPPROTO_TCP", "TCP_WINDOW_CLAMP", 30_000),
    ("IPPROTO_TCP", "TCP_QUICKACK", 1),
)


def value(sock: socket.socket, level: str, option: str) -> object:
    """An option as a number, or the error's name."""
    return attempt(sock.getsockopt, getattr(socket, level), getattr(socket, option))


def congestion(sock: socket.socket) -> bytes:
    """TCP_CONGESTION."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


# What the kernel changes by itself on an open connection: it leaves quick acknowledgments, and
# raises the clamp with the receive buffer (tcp_rcv_space_adjust()).
OF_ITS_OWN = {"TCP_QUICKACK", "TCP_WINDOW_CLAMP"}


class _Exchange(Pair):
    """A question and an answer behind what is looked at."""

    def look(self, sock):
        """What is looked at, on either side."""

    def client_with(self, sock):
        self.look(sock)
        sock.sendall(noise(50_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("answer", read_all(sock))

    def server_with(self, sock):
        self.look(sock)
        self.note("question", read_all(sock))
        sock.sendall(b"answer")
        sock.close()


class Defaults(_Exchange):
    """What nobody set, on a new socket, an open and an accepted one."""

    def before_connect(self, sock):
        self.note("new", {option: value(sock, level, option) for level, option in READ})

    before_listen = before_connect

    def look(self, sock):
        self.note("open", {option: value(sock, level, option) for level, option in READ})


class SetBefore(_Exchange):
    """Options that are set before connect() are the same after it."""

    def before_connect(self, sock):
        for level, option, number in SET:
            sock.setsockopt(getattr(socket, level), getattr(socket, option), number)

    def look(self, sock):
        if self.is_client:
            found = {o: value(sock, level, o) for level, o, _ in SET if o != "TCP_QUICKACK"}
            self.note("read", found)


class SetAfter(_Exchange):
    """Options that are set on an open connection are taken, and it goes on."""

    def look(self, sock):
        for level, option, number in SET:
            self.note(
                option,
                attempt(sock.setsockopt, getattr(socket, level), getattr(socket, option), number),
            )
        self.note("read", {o: value(sock, level, o) for level, o, _ in SET if o not in OF_ITS_OWN})


class MarkOfOpen(_Exchange):
    """A mark and a device, set on an open connection."""

    def look(self, sock):
        self.note("mark", attempt(sock.setsockopt, socket.SOL_SOCKET, socket.SO_MARK, 7))
        self.note(
            "device", attempt(sock.setsockopt, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        )
        self.note("no mark", attempt(sock.setsockopt, socket.SOL_SOCKET, socket.SO_MARK, 0))
        self.note("read", value(sock, "SOL_SOCKET", "SO_MARK"))


class TypeOfService(_Exchange):
    """IP_TOS and IPV6_TCLASS, TTL and hop limit."""

    def before_connect(self, sock):
        if self.family == IP4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x48)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x48)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 33)

    before_listen = before_connect

    def look(self, sock):
        if self.family == IP4:
            found = [sock.getsockopt(socket.IPPROTO_IP, o) for o in (socket.IP_TOS, socket.IP_TTL)]
        else:
            options = (socket.IPV6_TCLASS, socket.IPV6_UNICAST_HOPS)
            found = [sock.getsockopt(socket.IPPROTO_IPV6, o) for o in options]
        self.note("read", found)


class OwnCongestion(_Exchange):
    """A congestion control that the program chose is read back."""

    def before_connect(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")

    before_listen = before_connect

    def look(self, sock):
        self.note("read", congestion(sock))
        self.note(
            "unknown", attempt(sock.setsockopt, socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"nope")
        )


class SmallSegments(_Exchange):
    """TCP_MAXSEG of the client bounds both sides' segments."""

    def before_connect(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 600)

    def look(self, sock):
        self.note("at most 600", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 600)


class SmallSegmentsOfListener(_Exchange):
    """TCP_MAXSEG of the listener."""

    def before_listen(self, listener):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 700)

    def look(self, sock):
        self.note("at most 700", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 700)


class Information(Pair):
    """TCP_INFO is plausible: states, bytes, a round trip, options, segment sizes."""

    def client_with(self, sock):
        sock.sendall(noise(200_000))
        self.note("answer", len(sock.recv(100)))
        self.tell_of(sock, 200_000)

    def server_with(self, sock):
        left = 200_000
        while left:
            left -= len(sock.recv(left))
        sock.sendall(b"answer")
        self.tell_of(sock, 6)

    def tell_of(self, sock, acked):
        def info():
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
            longs = struct.unpack_from("<24I", raw, 8)
            names = ("bytes_acked", "bytes_received")
            return {
                "state": raw[0],
                "timestamps": bool(raw[5] & 1),
                "sack": bool(raw[5] & 2),
                "scale": bool(raw[5] & 4),
                "mss": 500 < longs[2] <= 65_536,
                "rtt": 0 < longs[15] < 10_000_000,
                "window": longs[18] > 0,
                **dict(zip(names, struct.unpack_from("<QQ", raw, 120), strict=True)),
            }

        eventually(lambda: info()["bytes_acked"] >= acked)
        self.note("info", info())
        self.meet()


class Wrong(Script):
    """Values that are wrong."""

    carried = ()

    def client(self):
        sock = self.socket()
        for level, option, number in (
            ("IPPROTO_TCP", "TCP_KEEPIDLE", 0),
            ("IPPROTO_TCP", "TCP_KEEPCNT", 1000),
            ("IPPROTO_TCP", "TCP_MAXSEG", 1),
            ("IPPROTO_TCP", "TCP_SYNCNT", 0),
            ("IPPROTO_TCP", "TCP_USER_TIMEOUT", -1),
            ("SOL_SOCKET", "SO_TYPE", 1),
            ("SOL_SOCKET", "SO_RCVLOWAT", -1),
        ):
            self.note(
                option,
                attempt(sock.setsockopt, getattr(socket, level), getattr(socket, option), number),
            )
        self.note("unknown", attempt(sock.setsockopt, socket.SOL_SOCKET, 9999, 1))
        self.note("unknown read", attempt(sock.getsockopt, socket.IPPROTO_TCP, 9999))
        self.note(
            "device", attempt(sock.setsockopt, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"nope0")
        )


class Cookie(_Exchange):
    """SO_COOKIE is a number of the socket's own that stays."""

    def look(self, sock):
        first, again = (sock.getsockopt(socket.SOL_SOCKET, 57, 8) for _ in range(2))
        self.note("stays", first == again and any(first))


class KeepAlive(Pair):
    """Keep-alive probes of a second each are answered, and the connection stays."""

    def before_connect(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)

    def client_with(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 4, 0))
        self.note("recv", attempt(sock.recv, 1))
        self.note("state", tcp_state(sock))
        self.meet()
        self.note("then", read_all(sock))

    def server_with(self, sock):
        self.meet()
        sock.sendall(b"still here")
        sock.close()


class Timestamps(Pair):
    """SO_TIMESTAMP and SO_TIMESTAMPNS are taken on TCP."""

    def client_with(self, sock):
        sock.sendall(b"x")
        self.note("end", read_all(sock))

    def server_with(self, sock):
        self.note("set", attempt(sock.setsockopt, socket.SOL_SOCKET, 29, 1))
        data, _, flags, _ = sock.recvmsg(10, 200)
        self.note("came", [data, flags])
        sock.close()


class PacingRate(_Exchange):
    """SO_MAX_PACING_RATE is read back."""

    def before_connect(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, 47, 10_000_000)

    def look(self, sock):
        if self.is_client:
            self.note("read", sock.getsockopt(socket.SOL_SOCKET, 47))


class Blocking(_Exchange):
    """O_NONBLOCK and FD_CLOEXEC of open and accepted sockets."""

    def look(self, sock):
        self.note("flags", [os.get_blocking(sock.fileno()), os.get_inheritable(sock.fileno())])
