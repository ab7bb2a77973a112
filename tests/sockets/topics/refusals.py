# SPDX-License-Identifier: Apache-2.0
"""Firewalls that refuse: before a connection and in its middle, on the peer's host and on the
own one, with each kind of refusal, and sockets that somebody destroys.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import time
from typing import ClassVar

from sockets.script import (
    CLIENT,
    IP4,
    IP6,
    Pair,
    Script,
    attempt,
    events,
    how_long,
    so_error,
    tcp_state,
)

ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLPRI
NETLINK_NETFILTER = 12
IP_RECVERR, IPV6_RECVERR = 11, 25


def destroy(*words: str) -> bool:
    """ss -K: whether it found a socket."""
    done = subprocess.run(["ss", "-HtnK", *words], check=True, capture_output=True, text=True)
    return bool(done.stdout.strip())


def forget(family: int) -> int:
    """Flushes what conntrack knows of a family (IPCTNL_MSG_CT_DELETE without a tuple); the
    kernel's answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asked:
        asked.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, family, 0, 0))
        return struct.unpack_from("=i", asked.recv(4096), 16)[0]


class Wall:
    """An nft table of a run's own, with one rule."""

    def __init__(self, script: Script, hook: str, rule: str) -> None:
        self.table = f"inet wall{script.port}{script.family}"
        self.run(
            f"add table {self.table}",
            f"add chain {self.table} c {{ type filter hook {hook} priority 0; }}",
            f"add rule {self.table} c {rule}",
        )

    def remove(self) -> None:
        self.run(f"delete table {self.table}")

    @staticmethod
    def run(*commands: str) -> None:
        subprocess.run(["nft", ";".join(commands)], check=True)


class _Refuses(Script):
    """The server's host refuses a SYN in each way that there is."""

    carried = (CLIENT,)
    kinds: ClassVar[dict[str, tuple[str, ...]]] = {
        IP4: (
            "icmp type net-unreachable",
            "icmp type host-unreachable",
            "icmp type prot-unreachable",
            "icmp type port-unreachable",
            "icmp type net-prohibited",
            "icmp type host-prohibited",
            "icmp type admin-prohibited",
            "tcp reset",
        ),
        IP6: (
            "icmpv6 type no-route",
            "icmpv6 type admin-prohibited",
            "icmpv6 type addr-unreachable",
            "icmpv6 type port-unreachable",
            "tcp reset",
        ),
    }

    def server(self):
        for kind in self.kinds[self.family]:
            wall = Wall(self, "input", f"tcp dport {self.port} reject with {kind}")
            self.meet()
            self.meet()
            wall.remove()


class RefusedByPeersFirewall(_Refuses):
    """Of a socket that blocks."""

    def client(self):
        for kind in self.kinds[self.family]:
            self.meet()
            sock = self.socket()
            self.note(kind, attempt(sock.connect, self.at()))
            self.meet()


class RefusedByOwnFirewall(Script):
    """The client's own host refuses, before any stack hears of it."""

    carried = None
    kinds = _Refuses.kinds

    def client(self):
        for kind in self.kinds[self.family]:
            wall = Wall(self, "output", f"tcp dport {self.port} reject with {kind}")
            sock = self.socket()
            self.note(kind, attempt(sock.connect, self.at()))
            wall.remove()


class _Errs(Pair):
    """The server's host begins to refuse in mid-connection."""

    refusal: ClassVar[dict[str, str]] = {
        IP4: "icmp type port-unreachable",
        IP6: "icmpv6 type port-unreachable",
    }

    def server_with(self, sock):
        self.meet()
        wall = Wall(self, "input", f"tcp dport {self.port} reject with {self.refusal[self.family]}")
        self.meet()
        self.meet()
        wall.remove()
        self.meet()


class ErrorsReported(_Errs):
    """A socket that asks for errors (IP_RECVERR) gets one at once."""

    def client_with(self, sock):
        if self.family == IP4:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        self.meet()
        self.meet()
        sock.sendall(b"refused")
        self.note("events", events(sock, select.POLLPRI, 3))
        self.note("error", so_error(sock))
        self.note("state", tcp_state(sock))
        self.meet()
        self.meet()


class ErrorsRemembered(_Errs):
    """A socket that does not is told when its time is over (TCP_USER_TIMEOUT): the last error."""

    refusal: ClassVar[dict[str, str]] = {
        IP4: "icmp type host-unreachable",
        IP6: "icmpv6 type addr-unreachable",
    }

    def client_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000)
        self.meet()
        self.meet()
        sock.sendall(b"refused")
        began = time.monotonic()
        self.note("events", events(sock, select.POLLPRI, 12))
        self.note("took", how_long(began, 1.5))
        self.note("recv", attempt(sock.recv, 1, socket.MSG_DONTWAIT))
        self.meet()
        self.meet()


class ErrorsForgiven(_Errs):
    """The refusal goes by, and the connection goes on."""

    def client_with(self, sock):
        self.meet()
        self.meet()
        sock.sendall(b"refused")
        self.note("events", events(sock, select.POLLIN, 0.7))
        self.meet()
        self.meet()
        self.note("came", attempt(sock.recv, 10))

    def server_with(self, sock):
        super().server_with(sock)
        self.note("came", attempt(sock.recv, 10))
        sock.sendall(b"all right")


class ResetByPeersFirewall(_Errs):
    """reject with tcp reset, in the middle."""

    refusal: ClassVar[dict[str, str]] = {IP4: "tcp reset", IP6: "tcp reset"}

    def client_with(self, sock):
        self.meet()
        self.meet()
        sock.sendall(b"refused")
        self.note("events", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))
        self.meet()
        self.meet()


class ResetByOwnFirewall(Pair):
    """The same on the client's host, outgoing; the peer hears nothing of it until it sends."""

    def client_with(self, sock):
        self.meet()
        wall = Wall(self, "output", f"tcp dport {self.port} reject with tcp reset")
        sock.sendall(b"refused")
        self.note("events", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))
        wall.remove()
        self.meet()

    def server_with(self, sock):
        self.meet()
        self.meet()
        self.note("before", events(sock, ALL, 0.3))
        self.note("send", attempt(sock.send, b"hello"))
        self.note("after", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))


class ResetIncoming(Pair):
    """The client's host rejects what comes in: the peer is reset."""

    def client_with(self, sock):
        self.meet()
        wall = Wall(self, "input", f"tcp sport {self.port} reject with tcp reset")
        self.meet()
        self.meet()
        wall.remove()
        self.note("before", events(sock, ALL, 0.3))
        sock.sendall(b"still here")
        self.note("events", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))

    def server_with(self, sock):
        self.meet()
        self.meet()
        self.note("send", attempt(sock.send, b"hello"))
        self.note("after", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))
        self.meet()


class Destroyed(Pair):
    """ss -K of the client's socket: ECONNABORTED here, ECONNRESET there."""

    def client_with(self, sock):
        self.meet()
        self.note("found", destroy("dport", "=", f":{self.port}"))
        self.note("events", events(sock, ALL, 5))
        self.note("recv", attempt(sock.recv, 1))
        self.note("state", tcp_state(sock))

    def server_with(self, sock):
        self.meet()
        self.note("events", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))


class DestroyedByServer(Pair):
    """The same of the accepted socket."""

    def client_with(self, sock):
        self.meet()
        self.note("events", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))

    def server_with(self, sock):
        self.meet()
        self.note("found", destroy("state", "established", "sport", "=", f":{self.port}"))
        self.note("events", events(sock, ALL, 5))
        self.note("recv", attempt(sock.recv, 1))
        self.note("state", tcp_state(sock))


class DestroyedListener(Script):
    """ss -K of a listener: it is closed, and whoever comes is refused."""

    carried = (CLIENT,)

    def client(self):
        self.meet()
        self.note("connect", attempt(self.socket().connect, self.at()))
        self.meet()

    def server(self):
        listener = self.listen()
        self.note("found", destroy("state", "listening", "sport", "=", f":{self.port}"))
        self.note("state", tcp_state(listener))
        self.meet()
        self.meet()
        self.note("listen again", attempt(listener.listen, 5))
        self.note("bind again", attempt(listener.bind, self.at()))


class DestroyedInConnect(Script):
    """ss -K of a socket that is being connected to a silent peer."""

    carried = (CLIENT,)

    def client(self):
        self.meet()
        sock = self.socket()
        sock.setblocking(False)
        self.note("connect", sock.connect_ex(self.at()))
        self.note("found", destroy("state", "syn-sent", "dport", "=", f":{self.port}"))
        self.note("events", events(sock, ALL, 5))
        self.note("error", so_error(sock))
        self.meet()

    def server(self):
        wall = Wall(self, "input", f"tcp dport {self.port} drop")
        self.meet()
        self.meet()
        wall.remove()


class ConntrackFlushed(Pair):
    """A stateful firewall of the client's host forgets the connection in the middle."""

    def client_with(self, sock):
        wall = Wall(self, "output", f"tcp dport {self.port} ct state invalid drop")
        self.meet()
        for turn in range(3):
            sock.sendall(b"question")
            self.note(f"answer {turn}", attempt(sock.recv, 10))
            self.note(f"flushed {turn}", attempt(forget, self.af))
        wall.remove()
        sock.close()

    def server_with(self, sock):
        self.meet()
        while question := sock.recv(10):
            sock.sendall(question[::-1])
        self.note("end")


class LostInConntrack(Pair):
    """The same, where only what conntrack knows may come in."""

    def client_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000)
        wall = Wall(self, "input", f"tcp sport {self.port} ct state != established drop")
        self.meet()
        sock.sendall(b"question")
        self.note("answer", attempt(sock.recv, 10))
        wall.remove()
        sock.close()

    def server_with(self, sock):
        self.meet()
        while question := sock.recv(10):
            sock.sendall(question[::-1])
        self.note("end")
