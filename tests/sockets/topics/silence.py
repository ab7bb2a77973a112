# SPDX-License-Identifier: Apache-2.0
"""A host whose own firewall drops what its kernel answers, in mid-connection: to the peer it is
dead, and when the firewall lets go it is there again.
"""

from __future__ import annotations

import select
import socket
import time

from sockets.script import Pair, attempt, events, eventually, how_long, noise, read_all, tcp_state
from sockets.topics.refusals import Wall

TICK_S = 0.1


class _Walled(Pair):
    """What a host sends of one connection is dropped."""

    def wall(self, sock):
        own, other = sock.getsockname()[1], sock.getpeername()[1]
        return Wall(self, "output", f"tcp sport {own} tcp dport {other} drop")


class _Silent(_Walled):
    """One side talks on; the other side's host sends nothing of the connection."""

    seconds = 60.0
    after_s = 3.0

    def silences(self, sock):
        """The side whose host is silent, until the other one has seen what that does."""
        self.meet()
        wall = self.wall(sock)
        self.meet()
        self.meet()
        wall.remove()
        self.meet()

    def waits(self, sock):
        """The side that is to notice."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self.after_s * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.meet()
        self.meet()
        began = time.monotonic()
        self.note("error", self.talk(sock))
        self.note("took", how_long(began, self.after_s))
        self.note("state", tcp_state(sock))
        self.meet()
        self.meet()

    def talk(self, sock):
        """A few bytes now and then, until there is an error; its name."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            sent = attempt(sock.send, b"anybody there?", socket.MSG_NOSIGNAL)
            if isinstance(sent, str):
                return sent
            if events(sock, select.POLLERR, TICK_S) != "none":
                return attempt(sock.recv, 1)
        return "none"


class OfServer(_Silent):
    """The server's host falls silent, and the client talks."""

    client_with, server_with = _Silent.waits, _Silent.silences


class OfClient(_Silent):
    """The client's host does, and the server talks."""

    client_with, server_with = _Silent.silences, _Silent.waits


class _Passing(_Walled):
    """The silence ends before the talking side's time is over: all bytes are there."""

    def silences(self, sock):
        wall = self.wall(sock)
        self.meet()
        self.note("unread", eventually(lambda: len(sock.recv(1 << 16, socket.MSG_PEEK)) > 0))
        select.select([], [], [], 2)
        wall.remove()
        self.note("came", read_all(sock))

    def talks(self, sock):
        self.meet()
        sock.sendall(noise(300_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))


class PassingOfServer(_Passing):
    """Of the server's host."""

    client_with, server_with = _Passing.talks, _Passing.silences


class PassingOfClient(_Passing):
    """Of the client's host."""

    client_with, server_with = _Passing.silences, _Passing.talks
