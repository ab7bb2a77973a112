# SPDX-License-Identifier: Apache-2.0
"""Flags of send() and recv(), and other ways to move bytes: sendfile, splice,
tee, zero-copy, vectors.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import tempfile

from sockets.script import (
    Pair,
    attempt,
    digest,
    events,
    eventually,
    noise,
    read_all,
    read_exactly,
)

SO_ZEROCOPY, MSG_ZEROCOPY, SO_PEEK_OFF, MSG_FASTOPEN = 60, 0x4000000, 42, 0x20000000
SIZE = 300_000
LIBC = ctypes.CDLL(None, use_errno=True)


def seven(sock: socket.socket) -> None:
    """Waits until seven bytes can be read."""
    eventually(lambda: len(sock.recv(7, socket.MSG_PEEK)) == 7)


class _SevenBytes(Pair):
    """The client sends seven bytes, the server looks at them, the client ends."""

    def client_with(self, sock):
        sock.sendall(b"abcdefg")
        self.meet()
        self.meet()


class Peek(_SevenBytes):
    """MSG_PEEK leaves bytes where they are."""

    def server_with(self, sock):
        self.meet()
        seven(sock)
        self.note("peek", [sock.recv(3, socket.MSG_PEEK), sock.recv(100, socket.MSG_PEEK)])
        self.note("read", sock.recv(2))
        self.note("peek then", sock.recv(3, socket.MSG_PEEK))
        self.meet()
        self.note("rest", read_all(sock))
        self.note("peek at the end", sock.recv(3, socket.MSG_PEEK))


class PeekOffset(_SevenBytes):
    """SO_PEEK_OFF moves where a peek begins, where the kernel has it for TCP."""

    def server_with(self, sock):
        self.meet()
        seven(sock)
        self.note("set", attempt(sock.setsockopt, socket.SOL_SOCKET, SO_PEEK_OFF, 2))
        self.note("peek", [sock.recv(2, socket.MSG_PEEK) for _ in range(2)])
        self.meet()
        self.note("rest", read_all(sock))


class WaitAll(Pair):
    """MSG_WAITALL waits for all that was asked, or for the end."""

    def client_with(self, sock):
        for start in range(0, 100_000, 1000):
            sock.sendall(noise(100_000)[start : start + 1000])
        self.meet()
        sock.sendall(b"tail")
        sock.close()

    def server_with(self, sock):
        self.note("all", sock.recv(100_000, socket.MSG_WAITALL))
        self.meet()
        self.note("less", sock.recv(100, socket.MSG_WAITALL))
        self.note("nothing", sock.recv(100, socket.MSG_WAITALL))


class Truncated(_SevenBytes):
    """MSG_TRUNC takes bytes without giving them."""

    def server_with(self, sock):
        self.meet()
        seven(sock)
        buffer = bytearray(b"....")
        self.note("taken", sock.recv_into(buffer, 4, socket.MSG_TRUNC))
        self.note("given", bytes(buffer))
        self.meet()
        self.note("rest", read_all(sock))


class NotWaiting(_SevenBytes):
    """MSG_DONTWAIT on a socket that blocks."""

    def server_with(self, sock):
        self.meet()
        seven(sock)
        self.note("read", sock.recv(100, socket.MSG_DONTWAIT))
        self.note("nothing", attempt(sock.recv, 100, socket.MSG_DONTWAIT))
        self.note("of no size", attempt(sock.recv, 0, socket.MSG_DONTWAIT))
        self.meet()
        self.note("end", sock.recv(1))


class NothingSent(Pair):
    """Writing nothing sends nothing."""

    def client_with(self, sock):
        self.note("sent", [sock.send(b""), sock.sendmsg([]), sock.sendmsg([b"", b"x", b""])])
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))

    def server_with(self, sock):
        self.note("came", read_all(sock))


class More(Pair):
    """MSG_MORE holds bytes back until there are enough, or the last come."""

    def client_with(self, sock):
        sock.send(b"held ", socket.MSG_MORE)
        self.meet()
        sock.send(b"back")
        self.meet()
        for byte in range(100):
            sock.send(bytes([byte]) * 100, socket.MSG_MORE)
        sock.close()

    def server_with(self, sock):
        self.meet()
        self.note("came", read_exactly(sock, 9))
        self.meet()
        self.note("rest", read_all(sock))


class Corked(Pair):
    """TCP_CORK holds until it is taken off, and 200 ms at most."""

    def client_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        sock.send(b"one ")
        sock.send(b"two ")
        self.note("corked", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))
        self.meet()
        self.meet()
        sock.send(b"three")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        self.meet()

    def server_with(self, sock):
        self.meet()
        self.note("by itself", read_exactly(sock, 8))
        self.meet()
        self.note("uncorked", read_exactly(sock, 5))
        self.meet()
        self.note("end", read_all(sock))


class WithoutDelay(Pair):
    """TCP_NODELAY and without: a thousand small writes, in order."""

    def client_with(self, sock):
        for turn in range(2):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, turn)
            for number in range(500):
                sock.send(struct.pack("!H", number))
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class Vectors(Pair):
    """sendmsg() and recvmsg() with vectors."""

    def client_with(self, sock):
        parts = [noise(size, size) for size in (1, 10, 100, 1000, 10_000)]
        self.note("sent", sock.sendmsg(parts))
        sock.close()

    def server_with(self, sock):
        eventually(lambda: len(sock.recv(20_000, socket.MSG_PEEK)) == 11_111)
        buffers = [bytearray(size) for size in (10_000, 1000, 100, 10, 1)]
        size, ancillary, flags, _ = sock.recvmsg_into(buffers)
        self.note("came", [size, len(ancillary), flags, digest(b"".join(buffers))])
        self.note("end", read_all(sock))


class SendFile(Pair):
    """sendfile() from a file, with an offset."""

    def client_with(self, sock):
        with tempfile.TemporaryFile() as file:
            file.write(noise(SIZE))
            file.flush()
            sent = 1000
            while sent < SIZE:
                sent += os.sendfile(sock.fileno(), file.fileno(), sent, SIZE - sent)
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class Splice(Pair):
    """splice() from a pipe to a socket and from a socket to a pipe."""

    def client_with(self, sock):
        read, write = os.pipe()
        data, sent = noise(SIZE), 0
        while sent < SIZE:
            count = os.write(write, data[sent : sent + 30_000])
            sent += count
            while count:
                count -= os.splice(read, sock.fileno(), count)
        sock.close()

    def server_with(self, sock):
        read, write = os.pipe()
        data = bytearray()
        while count := os.splice(sock.fileno(), write, 30_000):
            data += os.read(read, count)
        self.note("came", bytes(data))


class SpliceThrough(Pair):
    """A relay of splice() alone: from a socket through a pipe back to it."""

    def client_with(self, sock):
        pid = self.child(lambda: (sock.sendall(noise(SIZE)), sock.shutdown(socket.SHUT_WR)))
        self.note("came back", read_all(sock))
        self.note("sender", self.ended(pid))

    def server_with(self, sock):
        read, write = os.pipe()
        while count := os.splice(sock.fileno(), write, 60_000):
            while count:
                count -= os.splice(read, sock.fileno(), count)
        sock.close()


class Tee(Pair):
    """tee() of what came out of a socket."""

    def client_with(self, sock):
        sock.sendall(b"twice, please")
        sock.close()

    def server_with(self, sock):
        read, write = os.pipe()
        read2, write2 = os.pipe()
        size = os.splice(sock.fileno(), write, 100)
        self.note("copied", LIBC.tee(read, write2, size, 0) == size)
        self.note("came", [os.read(read, size), os.read(read2, size)])


class ZeroCopy(Pair):
    """MSG_ZEROCOPY: the bytes, and that each send is reported as done."""

    def client_with(self, sock):
        self.note("set", attempt(sock.setsockopt, socket.SOL_SOCKET, SO_ZEROCOPY, 1))
        pages = [self.keep(noise(50_000, turn)) for turn in range(6)]
        done = set()
        for page in pages:
            sent = 0
            while sent < len(page):
                sent += sock.send(page[sent:], MSG_ZEROCOPY)
                if sent < len(page):
                    self.note("a part")
        deadline = eventually(lambda: self.reap(sock, done) >= {0, 1, 2, 3, 4, 5})
        self.note("all reported", deadline)
        sock.close()

    @staticmethod
    def reap(sock, done):
        while events(sock, 0) != "none":
            _, messages, _, _ = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            for _, _, data in messages:
                _, _, _, _, _, low, high = struct.unpack_from("IBBBBII", data)
                done |= set(range(low, high + 1))
        return done

    def server_with(self, sock):
        self.note("came", read_all(sock))


class ErrorQueueIsEmpty(Pair):
    """MSG_ERRQUEUE when there is nothing."""

    def client_with(self, sock):
        self.note("queue", attempt(sock.recv, 10, socket.MSG_ERRQUEUE))
        self.note("events", events(sock, select.POLLIN | select.POLLOUT))
        sock.close()

    def server_with(self, sock):
        self.note("end", read_all(sock))


class WrongFlags(Pair):
    """Calls that are wrong."""

    def client_with(self, sock):
        self.note("recv OOB", attempt(sock.recv, 1, socket.MSG_OOB))
        self.note("sendto", attempt(sock.sendto, b"x", self.at(1)))
        self.note("listen", attempt(sock.listen, 1))
        self.note("bind", attempt(sock.bind, (self.here, self.port + 1)))
        self.note("accept", attempt(sock.accept))
        self.note("shutdown", attempt(sock.shutdown, 7))
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class FastOpen(Pair):
    """MSG_FASTOPEN: connect() and data in one call."""

    carried = None

    def client(self):
        self.meet()
        sock = self.socket()
        self.note("sent", attempt(sock.sendto, b"first words", MSG_FASTOPEN, self.at()))
        self.note("answer", read_all(sock))

    def before_listen(self, listener):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)

    def server_with(self, sock):
        self.note("came", sock.recv(100))
        sock.sendall(b"answer")
        sock.close()


class FastOpenConnect(Pair):
    """TCP_FASTOPEN_CONNECT: connect() returns at once, data goes with the SYN."""

    carried = None

    def before_connect(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, 30, 1)

    def before_listen(self, listener):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)

    def client_with(self, sock):
        self.note("sent", attempt(sock.send, b"first words"))
        self.note("answer", read_all(sock))

    def server_with(self, sock):
        self.note("came", sock.recv(100))
        sock.sendall(b"answer")
        sock.close()
