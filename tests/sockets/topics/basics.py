# SPDX-License-Identifier: Apache-2.0
"""Bytes there and back: names, sizes, order, half closes."""

from __future__ import annotations

import socket
import threading

from sockets.script import Pair, digest, noise, read_all, read_exactly


class EchoOfFewBytes(Pair):
    """A question and an answer, and the names of both ends."""

    def client_with(self, sock):
        self.note("peer", sock.getpeername()[:2] == self.at())
        self.note("own address", sock.getsockname()[0] == self.here)
        sock.sendall(b"question")
        self.note("answer", sock.recv(100))
        sock.close()

    def server_with(self, sock):
        self.note("peer", sock.getpeername()[0] == self.there)
        self.note("own", sock.getsockname()[:2] == self.at())
        self.note("question", sock.recv(100))
        sock.sendall(b"answer")
        self.note("end", read_all(sock))


class BigUp(Pair):
    """4 MB to the server."""

    def client_with(self, sock):
        sock.sendall(noise(4_000_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("after", read_all(sock))

    def server_with(self, sock):
        self.note("came", read_all(sock))


class BigDown(Pair):
    """4 MB from the server."""

    def client_with(self, sock):
        self.note("came", read_all(sock))

    def server_with(self, sock):
        sock.sendall(noise(4_000_000))
        sock.close()


class BothWaysAtOnce(Pair):
    """3 MB each way at once."""

    def both(self, sock, seed):
        sender = threading.Thread(
            target=lambda: (sock.sendall(noise(3_000_000, seed)), sock.shutdown(1))
        )
        sender.start()
        self.note("came", read_all(sock))
        sender.join()

    def client_with(self, sock):
        self.both(sock, 1)

    def server_with(self, sock):
        self.both(sock, 2)


class OneByteWrites(Pair):
    """500 bytes in as many writes."""

    def client_with(self, sock):
        for byte in noise(500):
            sock.send(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        self.note("after", read_all(sock))

    def server_with(self, sock):
        self.note("came", read_all(sock, 7))


class TurnByTurn(Pair):
    """200 questions of growing size and their answers."""

    def client_with(self, sock):
        all_ = bytearray()
        for size in range(1, 4001, 20):
            sock.sendall(noise(size, size))
            all_ += read_exactly(sock, size)
        self.note("came back", digest(bytes(all_)))

    def server_with(self, sock):
        for size in range(1, 4001, 20):
            sock.sendall(read_exactly(sock, size))
        self.note("end", read_all(sock))
