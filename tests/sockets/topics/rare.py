# SPDX-License-Identifier: Apache-2.0
"""What is allowed and seldom done: connect() again, a queue of none, filters on a socket, the SYN
that a server asks for, many descriptors of one connection.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import socket
import struct

from sockets.script import (
    IP4,
    Pair,
    Script,
    attempt,
    digest,
    events,
    eventually,
    noise,
    read_all,
    read_exactly,
    so_error,
)

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
TCP_SAVE_SYN, TCP_SAVED_SYN, TCP_TIMESTAMP = 27, 28, 24
IP_PKTOPTIONS, IP_RECVTOS, IP_RECVTTL = 9, 13, 12
RET_K = 6  # of classic BPF


def attach_filter(sock: socket.socket, length: int) -> None:
    """A classic BPF program that leaves so many bytes of each packet, 0: it is dropped."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", RET_K, 0, 0, length), 8)
    program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class ConnectedTwice(Pair):
    """connect() of what is connected, to the same and to another; and once more after the end."""

    def client_with(self, sock):
        self.note("same", attempt(sock.connect, self.at()))
        self.note("other", attempt(sock.connect, self.at(3)))
        sock.sendall(b"still")
        self.note("came", read_all(sock))
        self.note("after its end", attempt(sock.connect, self.at()))
        sock.shutdown(socket.SHUT_RDWR)
        self.note("after both ends", attempt(sock.connect, self.at(3)))

    def server_with(self, sock):
        self.note("came", read_exactly(sock, 5))
        sock.sendall(b"answer")
        sock.close()


class ConnectedTwiceWithoutWaiting(Script):
    """connect() again while the first is under way, after it has failed, and to who listens."""

    def client(self):
        self.meet()
        sock = self.socket()
        sock.setblocking(False)
        self.note("refused", attempt(sock.connect, self.at(3)) in ("EINPROGRESS", "ECONNREFUSED"))
        events(sock, select.POLLOUT, 5)
        self.note("error", so_error(sock) in ("ECONNREFUSED", ""))
        first = attempt(sock.connect, self.at())
        if first == "ECONNABORTED":  # the end of the first try, told once
            first = attempt(sock.connect, self.at())
        self.note("connect", first)
        self.note("again", attempt(sock.connect, self.at()) in ("EALREADY", None, "EISCONN"))
        self.note("events", events(sock, select.POLLOUT, 5))
        self.note("then", attempt(sock.connect, self.at()) in (None, "EISCONN"))
        sock.setblocking(True)
        self.note("came", read_all(sock))

    def server(self):
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        sock.sendall(b"served")
        sock.close()


class QueueOfNone(Script):
    """listen() with a backlog of 0: one waits to be accepted, and is served."""

    def client(self):
        self.meet()
        for _ in range(3):
            sock = self.connect()
            sock.sendall(b"first")
            self.meet()
            self.note("came", read_all(sock))
            sock.close()

    def server(self):
        listener = self.listen(backlog=0)
        self.meet()
        for _ in range(3):
            self.meet()
            sock, _ = listener.accept()
            self.note("came", read_exactly(sock, 5))
            sock.sendall(b"served")
            sock.close()


class FilterDropsAndLets(Pair):
    """A filter of the reader's that drops everything, until it is taken off: all comes."""

    def client_with(self, sock):
        self.meet()
        sock.sendall(noise(20_000))
        self.meet()
        self.note("answer", read_all(sock))

    def server_with(self, sock):
        attach_filter(sock, 0)
        self.meet()
        self.note("while it drops", events(sock, select.POLLIN, 0.7))
        self.meet()
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        self.note("came", digest(read_exactly(sock, 20_000)))
        sock.sendall(b"done")
        sock.close()


class FilterOfListener(Pair):
    """A filter of the listener's that lets all by is inherited, and harms nobody."""

    def before_listen(self, listener):
        attach_filter(listener, 0xFFFFFFFF)

    def client_with(self, sock):
        sock.sendall(noise(100_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("answer", read_all(sock))

    def server_with(self, sock):
        self.note("came", read_all(sock))
        sock.sendall(b"done")
        sock.close()


class SavedSyn(Pair):
    """TCP_SAVE_SYN: the SYN's addresses, ports, flags and kinds of options."""

    def before_listen(self, listener):
        listener.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)

    def client_with(self, sock):
        self.tell(sock.getsockname()[1])
        self.note("came", read_all(sock))

    def server_with(self, sock):
        port = self.hear()
        syn = sock.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, 200)
        ends, tcp = (syn[12:20], syn[20:]) if self.family == IP4 else (syn[8:40], syn[40:])
        half = len(ends) // 2
        shown = [socket.inet_ntop(self.af, one) for one in (ends[:half], ends[half:])]
        self.note("addresses", shown == [self.there, self.here])
        self.note("ports", struct.unpack_from("!HH", tcp) == (port, self.port))
        self.note("flags", tcp[13] & 0x3F)
        self.note("again", attempt(sock.getsockopt, socket.IPPROTO_TCP, TCP_SAVED_SYN, 200))
        sock.sendall(b"done")
        sock.close()


class HopsOfOpen(Pair):
    """IP_PKTOPTIONS of a connection: the TTL and the class of what came last."""

    families = (IP4,)

    def client_with(self, sock):
        self.note("came", read_exactly(sock, 5))
        for option in (IP_RECVTTL, IP_RECVTOS):
            sock.setsockopt(socket.IPPROTO_IP, option, 1)
        sock.sendall(b"go on")
        self.note("rest", read_all(sock))
        told = sock.getsockopt(socket.IPPROTO_IP, IP_PKTOPTIONS, 200)
        self.note("length", len(told))
        self.note("told", told)

    def server_with(self, sock):
        sock.sendall(b"hello")
        read_exactly(sock, 5)
        sock.sendall(b"rest")
        sock.close()


class BuffersChanged(Pair):
    """SO_RCVBUF and SO_SNDBUF, larger and smaller while bytes are on their way."""

    def client_with(self, sock):
        data = noise(3_000_000)
        for turn, size in enumerate((5_000, 500_000, 20_000, 2_000_000, 3_000, 0)):
            if size:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            sock.sendall(data[turn * 500_000 : (turn + 1) * 500_000])
        sock.shutdown(socket.SHUT_WR)
        self.note("answer", read_all(sock))

    def server_with(self, sock):
        data = b""
        for size in (3_000, 800_000, 10_000, 300_000, 2_500, 1_000_000):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            data += read_exactly(sock, 500_000)
        self.note("came", digest(data))
        self.note("end", sock.recv(1))
        sock.sendall(b"done")
        sock.close()


class ManyDescriptors(Pair):
    """Five thousand descriptors of one connection, and then none left: the last close() ends it,
    and connect() and accept() go on once there is room.
    """

    def client_with(self, sock):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 5000), hard))
        copies = []
        try:
            while True:
                copies.append(os.dup(sock.fileno()))
        except OSError as error:
            self.note("none left", errno.errorcode[error.errno])
        sock.close()
        os.write(copies[-1], b"by the last")
        for copy in copies[:-1]:
            os.close(copy)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.note("came", os.read(copies[-1], 100))
        os.close(copies[-1])
        self.tell("closed")

    def server_with(self, sock):
        self.note("came", read_exactly(sock, 11))
        sock.sendall(b"answer")
        self.hear()
        self.note("end", eventually(lambda: attempt(sock.recv, 1) == b""))


class AcceptWithoutRoom(Script):
    """accept() without a descriptor left: the connection waits, and is accepted later."""

    def client(self):
        self.meet()
        sock = self.connect()
        sock.sendall(b"waiting")
        self.meet()
        self.note("came", read_all(sock))

    def server(self):
        listener = self.listen()
        self.meet()
        self.meet()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (listener.fileno() + 1, hard))
        held = []
        while isinstance(one := attempt(os.dup, 0), int):
            held.append(one)
        self.note("accept", attempt(listener.accept))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            os.close(one)
        sock, _ = listener.accept()
        self.note("came", read_exactly(sock, 7))
        sock.sendall(b"served")
        sock.close()
