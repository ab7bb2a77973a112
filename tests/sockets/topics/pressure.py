# SPDX-License-Identifier: Apache-2.0
"""Readers that are slow, stopped or gone, buffers that are small, windows that close and open."""

from __future__ import annotations

import os
import select
import signal
import socket

from sockets.script import Pair, attempt, digest, events, eventually, noise, read_all, read_exactly
from sockets.topics.waiting import fill, unread


class SmallReceiveBuffer(Pair):
    """A receive buffer of 4 KB: 500 KB come through it whole."""

    def before_listen(self, listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def client_with(self, sock):
        sock.sendall(noise(500_000))
        sock.close()

    def server_with(self, sock):
        self.note("size", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        self.note("came", read_all(sock))


class SmallSendBuffer(Pair):
    """A send buffer of 4 KB."""

    def before_connect(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def client_with(self, sock):
        self.note("size", sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
        sock.sendall(noise(300_000))
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class SmallBoth(Pair):
    """Small buffers at both ends, both ways, a kilobyte at a time."""

    def before_listen(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    before_connect = before_listen

    def client_with(self, sock):
        pid = self.child(lambda: sock.sendall(noise(100_000)))
        self.note("came back", digest(read_exactly(sock, 100_000)))
        self.note("sender", self.ended(pid))

    def server_with(self, sock):
        left = 100_000
        while left:
            data = read_exactly(sock, min(1000, left))
            sock.sendall(data)
            left -= len(data)


class WindowClosesAndOpens(Pair):
    """The reader stops until nothing more is taken, then reads, three times."""

    def client_with(self, sock):
        sent = 0
        for _ in range(3):
            sent += fill(sock)
            self.tell(sent)
            self.meet()
        sock.close()

    def server_with(self, sock):
        came = 0
        for turn in range(3):
            sent = self.hear()
            while came < sent:
                came += len(sock.recv(1 << 20))
            self.note(f"turn {turn}", came == sent)
            self.meet()
        self.note("end", read_all(sock))


class WhatStopsTheSender(Pair):
    """A reader that never reads stops the sender, and not only after tens of megabytes."""

    def client_with(self, sock):
        self.note("less than 16 MB", fill(sock) < 16 << 20)
        self.meet()

    def server_with(self, sock):
        self.meet()


class StoppedProcess(Pair):
    """SIGSTOP of the reader, then SIGCONT: the bytes are whole."""

    def client_with(self, sock):
        sock.setblocking(False)
        data, sent = noise(2_000_000) * 20, 0
        while events(sock, select.POLLOUT, 1) != "none" and sent < len(data):
            took = attempt(sock.send, data[sent : sent + 65536])
            sent += took if isinstance(took, int) else 0
        self.note("stopped before the end", sent < len(data))
        self.meet()
        sock.setblocking(True)
        sock.sendall(data[sent:])
        sock.close()

    def server_with(self, sock):
        read, write = os.pipe()

        def reader():
            os.kill(os.getpid(), signal.SIGSTOP)
            os.write(write, repr(read_all(sock)).encode())

        child = self.child(reader)
        sock.close()
        os.waitpid(child, os.WUNTRACED)
        self.meet()
        os.kill(child, signal.SIGCONT)
        self.note("came", os.read(read, 1000).decode())
        self.note("reader", self.ended(child))


class SlowReader(Pair):
    """A byte now and then, at first; then all."""

    def client_with(self, sock):
        sock.sendall(noise(1_000_000))
        sock.close()

    def server_with(self, sock):
        first = b"".join(sock.recv(1) for _ in range(3000))
        self.note("first", first)
        self.note("rest", read_all(sock))


class GoneWhileFull(Pair):
    """The reader ends while the sender waits for room."""

    def client_with(self, sock):
        fill(sock)
        sock.setblocking(True)
        self.meet()
        self.note("send", attempt(sock.sendall, bytes(100_000_000), socket.MSG_NOSIGNAL))
        self.note("recv", attempt(sock.recv, 1))

    def server_with(self, sock):
        eventually(lambda: unread(sock) > 0)
        self.meet()
        sock.close()


class EndBehindFullWindow(Pair):
    """The sender ends while the window is closed: the end comes after the bytes."""

    def client_with(self, sock):
        sent = fill(sock)
        sock.setblocking(True)
        sock.shutdown(socket.SHUT_WR)
        self.tell(sent)
        self.note("after", read_all(sock))

    def server_with(self, sock):
        sent = self.hear()
        came = 0
        while part := sock.recv(1 << 20):
            came += len(part)
        self.note("all", came == sent)
        sock.sendall(b"thanks")
        sock.close()


class ResetWhileFull(Pair):
    """The sender resets while the window is closed: the reader does not see an end."""

    def client_with(self, sock):
        fill(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        self.meet()

    def server_with(self, sock):
        self.meet()
        self.note("how", read_all(sock)[1])
