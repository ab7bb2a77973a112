# SPDX-License-Identifier: Apache-2.0
"""Urgent data: where the mark is, what is read out of band and in line, events and signals."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct

from sockets.script import Pair, attempt, events, eventually, poll_names, read_all, read_exactly

SIOCATMARK = 0x8905
ALL = select.POLLIN | select.POLLPRI


def at_mark(sock: socket.socket) -> bool:
    """Whether the next byte is the one behind the mark."""
    return bool(struct.unpack("i", fcntl.ioctl(sock, SIOCATMARK, b"\0" * 4))[0])


class _Sender(Pair):
    """abc, X out of band, def; then what the server asks for."""

    def client_with(self, sock):
        sock.sendall(b"abc")
        sock.send(b"X", socket.MSG_OOB)
        self.meet()
        sock.sendall(b"def")
        self.meet()
        sock.close()


class OutOfBand(_Sender):
    """The byte by MSG_OOB, and the mark between what is around it."""

    def server_with(self, sock):
        self.meet()
        self.note("events", events(sock, select.POLLPRI, 10))
        self.note("byte", attempt(sock.recv, 10, socket.MSG_OOB))
        self.note("again", attempt(sock.recv, 1, socket.MSG_OOB))
        self.note("at the mark", at_mark(sock))
        self.meet()
        self.note("before", sock.recv(100))
        self.note("at the mark then", at_mark(sock))
        self.note("after", read_all(sock))


class PeekOutOfBand(_Sender):
    """The byte is peeked at, then taken."""

    def server_with(self, sock):
        self.meet()
        events(sock, select.POLLPRI, 10)
        self.note("peek", attempt(sock.recv, 1, socket.MSG_OOB | socket.MSG_PEEK))
        self.note("byte", attempt(sock.recv, 1, socket.MSG_OOB))
        self.meet()
        self.note("rest", read_all(sock))


class InLine(_Sender):
    """SO_OOBINLINE: the byte comes in its place, and a read stops before it."""

    def server_with(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self.meet()
        self.note("events", events(sock, select.POLLPRI, 10))
        self.note("by MSG_OOB", attempt(sock.recv, 1, socket.MSG_OOB))
        self.meet()
        self.note("before", sock.recv(100))
        self.note("at the mark", at_mark(sock))
        self.note("rest", read_all(sock))


class NeverTaken(_Sender):
    """Who does not ask for it does not get it."""

    def server_with(self, sock):
        self.meet()
        events(sock, select.POLLPRI, 10)
        self.meet()
        self.note("came", read_all(sock))
        self.note("late", attempt(sock.recv, 1, socket.MSG_OOB))


class Two(Pair):
    """A second one takes the first one's place, which becomes data."""

    def client_with(self, sock):
        sock.send(b"1", socket.MSG_OOB)
        self.meet()
        self.meet()
        sock.send(b"ab2", socket.MSG_OOB)
        sock.sendall(b"c")
        self.meet()
        sock.close()

    def server_with(self, sock):
        self.meet()
        self.note(
            "first", [events(sock, select.POLLPRI, 10), attempt(sock.recv, 1, socket.MSG_OOB)]
        )
        self.meet()
        self.note(
            "second", [events(sock, select.POLLPRI, 10), attempt(sock.recv, 1, socket.MSG_OOB)]
        )
        self.meet()
        self.note("came", read_all(sock))


class NotYet(Pair):
    """MSG_OOB without any: EINVAL."""

    def client_with(self, sock):
        sock.sendall(b"x")
        self.meet()

    def server_with(self, sock):
        self.note("byte", attempt(sock.recv, 1, socket.MSG_OOB))
        self.note("at the mark", at_mark(sock))
        self.meet()
        self.note("rest", read_all(sock))


class Signal(Pair):
    """SIGURG for the owner of the socket."""

    def client_with(self, sock):
        self.meet()
        sock.send(b"!", socket.MSG_OOB)
        self.meet()

    def server_with(self, sock):
        caught = []
        signal.signal(signal.SIGURG, lambda number, _: caught.append(number))
        fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
        self.meet()
        self.note("caught", eventually(lambda: len(caught) == 1))
        self.note("byte", sock.recv(1, socket.MSG_OOB))
        self.meet()


class BySelect(_Sender):
    """The third set of select(), and epoll's EPOLLPRI; the data behind it comes later, since
    an edge tells of all that comes.
    """

    def server_with(self, sock):
        self.note("select", [bool(found) for found in select.select([], [], [sock], 10)])
        with select.epoll() as epoll:
            epoll.register(sock, select.EPOLLPRI | select.EPOLLET)
            self.note("epoll", [poll_names(mask) for _, mask in epoll.poll(10)])
            self.note("epoll again", [poll_names(mask) for _, mask in epoll.poll(0)])
        self.meet()
        self.note("byte", sock.recv(1, socket.MSG_OOB))
        self.note("select after", [bool(found) for found in select.select([], [], [sock], 0)])
        self.meet()


class Back(Pair):
    """From the server to the client, among data both ways."""

    def client_with(self, sock):
        sock.sendall(b"question")
        self.note("events", events(sock, select.POLLPRI, 10))
        self.note("byte", sock.recv(1, socket.MSG_OOB))
        self.note("rest", read_all(sock))

    def server_with(self, sock):
        self.note("came", read_exactly(sock, 8))
        sock.sendall(b"an")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"swer")
        sock.close()
