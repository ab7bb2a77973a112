# SPDX-License-Identifier: Apache-2.0
"""Ends of a connection: half closes, resets, closes with data on the way, and what is left
to ask afterwards.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import threading
import time

from sockets.script import (
    Pair,
    attempt,
    digest,
    events,
    eventually,
    how_long,
    linger,
    noise,
    read_all,
    read_exactly,
    so_error,
    tcp_state,
)

ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLPRI
SIOCOUTQ, SIOCINQ = 0x5411, 0x541B


def waiting_out(sock: socket.socket) -> int:
    """Bytes that the peer has not acknowledged (SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, b"\0" * 4))[0]


def fill(sock: socket.socket) -> None:
    """Sends to a peer that does not read until nothing more is taken."""
    sock.setblocking(False)
    for _ in range(10_000):
        if (
            attempt(sock.send, b"x" * 65536) == "EAGAIN"
            and events(sock, select.POLLOUT, 1) == "none"
        ):
            break
    sock.setblocking(True)


class HalfByClient(Pair):
    """The client ends its side, then gets a megabyte."""

    def client_with(self, sock):
        sock.sendall(b"that is all")
        sock.shutdown(socket.SHUT_WR)
        self.note("came", read_all(sock))
        self.note("send", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))

    def server_with(self, sock):
        self.note("came", read_all(sock))
        self.note("events", events(sock, ALL))
        sock.sendall(noise(1_000_000))
        sock.close()


class HalfByServer(Pair):
    """The server ends its side, then gets a megabyte."""

    def client_with(self, sock):
        self.note("came", read_all(sock))
        self.note("state", tcp_state(sock))
        sock.sendall(noise(1_000_000))
        sock.close()

    def server_with(self, sock):
        sock.sendall(b"tell me")
        sock.shutdown(socket.SHUT_WR)
        self.note("came", read_all(sock))


class ShutForReading(Pair):
    """SHUT_RD: recv() ends at once, what comes is still taken, and writing goes on."""

    def client_with(self, sock):
        sock.shutdown(socket.SHUT_RD)
        self.note("recv", sock.recv(10))
        self.note("events", events(sock, ALL))
        self.meet()
        self.meet()
        self.note("recv then", eventually(lambda: attempt(sock.recv, 10, socket.MSG_DONTWAIT)))
        sock.sendall(b"still")
        sock.close()

    def server_with(self, sock):
        self.meet()
        sock.sendall(b"to whom")
        eventually(lambda: waiting_out(sock) == 0)
        self.note("unacknowledged", waiting_out(sock))
        self.meet()
        self.note("came", attempt(sock.recv, 5))


class ShutBoth(Pair):
    """SHUT_RDWR, then every call, before the peer has closed and after."""

    def client_with(self, sock):
        sock.shutdown(socket.SHUT_RDWR)
        self.note("recv", attempt(sock.recv, 10))
        self.note("send", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))
        self.note("again", attempt(sock.shutdown, socket.SHUT_RDWR))
        self.note("peer", attempt(lambda: sock.getpeername()[1] == self.port))
        self.note("events", events(sock, ALL))
        self.meet()
        self.note("state", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.note("peer after", attempt(sock.getpeername))
        self.note("shutdown after", attempt(sock.shutdown, socket.SHUT_WR))

    def server_with(self, sock):
        self.note("came", read_all(sock))
        self.meet()
        sock.close()


class SendAfterEnd(Pair):
    """Writing to a peer that has closed: once for nothing, then EPIPE and SIGPIPE."""

    def client_with(self, sock):
        caught = []
        signal.signal(signal.SIGPIPE, lambda number, _: caught.append(number))
        self.meet()
        self.note("came", read_all(sock))
        self.note("events", events(sock, ALL))
        self.note("first", attempt(sock.send, b"x"))
        self.note("events then", eventually(lambda: "HUP" in events(sock, ALL).split("|")))
        self.note("second", attempt(sock.send, b"x"))
        self.note("third", attempt(sock.send, b"x"))
        self.note("quietly", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))
        self.note("signals", caught)
        self.note("recv", attempt(sock.recv, 1))

    def server_with(self, sock):
        sock.close()
        self.meet()


class _Resets(Pair):
    """The client resets when the server has come as far."""

    def client_with(self, sock):
        self.meet()
        linger(sock, 0)
        sock.close()


class ResetByLinger(_Resets):
    """SO_LINGER of 0 s: the reader gets ECONNRESET once, then the end."""

    def server_with(self, sock):
        self.meet()
        self.note("events", events(sock, select.POLLPRI, 10))
        self.note("all events", events(sock, ALL))
        self.note("recv", attempt(sock.recv, 1))
        self.note("recv again", attempt(sock.recv, 1))
        self.note("send", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))
        self.note("peer", attempt(sock.getpeername))
        self.note("own", attempt(lambda: sock.getsockname()[1] == self.port))
        self.note("state", tcp_state(sock))


class ResetIntoRecv(_Resets):
    """A reset wakes who waits in recv()."""

    def server_with(self, sock):
        self.meet()
        self.note("recv", attempt(sock.recv, 1))
        self.note("SO_ERROR", so_error(sock))


class ResetIntoSend(_Resets):
    """A reset wakes who waits in send()."""

    def server_with(self, sock):
        fill(sock)
        self.meet()
        self.note("send", attempt(sock.sendall, b"x" * 100_000_000, socket.MSG_NOSIGNAL))
        self.note("then", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))


class ResetBySoError(_Resets):
    """SO_ERROR takes the error away."""

    def server_with(self, sock):
        self.meet()
        self.note("events", events(sock, select.POLLPRI, 10))
        eventually(lambda: tcp_state(sock) == "CLOSE")
        self.note("SO_ERROR", so_error(sock))
        self.note("again", so_error(sock))
        self.note("recv", attempt(sock.recv, 1))
        self.note("events then", events(sock, ALL))


class UnreadData(Pair):
    """close() over bytes that were not read is a reset."""

    def client_with(self, sock):
        sock.sendall(b"never read")
        self.meet()
        self.note("closed", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.note("recv", attempt(sock.recv, 10))
        self.note("send", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))

    def server_with(self, sock):
        events(sock, select.POLLIN, 10)
        sock.close()
        self.meet()


class UnreadDataWithAnswer(Pair):
    """The same after an answer: the reader gets the answer before the reset."""

    def client_with(self, sock):
        sock.sendall(b"never read")
        self.meet()
        self.meet()
        self.note("closed", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.note("came", read_all(sock))

    def server_with(self, sock):
        events(sock, select.POLLIN, 10)
        sock.sendall(b"answer")
        eventually(lambda: waiting_out(sock) == 0)
        self.meet()
        sock.close()
        self.meet()


class ClosedOnTheWay(Pair):
    """close() right after 2 MB: all of it arrives."""

    def client_with(self, sock):
        sock.sendall(noise(2_000_000))
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class DataThenReset(Pair):
    """What was acknowledged arrives before a reset."""

    def client_with(self, sock):
        sock.sendall(noise(30_000))  # less than the peer's window
        self.note("unacknowledged", eventually(lambda: waiting_out(sock) == 0))
        self.meet()
        linger(sock, 0)
        sock.close()

    def server_with(self, sock):
        self.meet()
        self.note("closed", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.note("came", read_all(sock))


class LingersUntilDone(Pair):
    """close() with SO_LINGER waits for the acknowledgement."""

    def client_with(self, sock):
        linger(sock, 20)
        sock.sendall(noise(3_000_000))
        began = time.monotonic()
        sock.close()
        self.note("took", how_long(began, 0))

    def server_with(self, sock):
        self.note("came", read_all(sock))


class LingersInVain(Pair):
    """It waits no longer than it was told, for a peer that does not read."""

    def client_with(self, sock):
        fill(sock)
        linger(sock, 1)
        began = time.monotonic()
        sock.close()
        self.note("took", how_long(began, 1))
        self.meet()

    def server_with(self, sock):
        self.meet()
        came, how = read_all(sock)
        self.note("came something", came.endswith("bytes") or "bytes" in came)
        self.note("end", how)


class ThreadsRecv(Pair):
    """shutdown() by another thread wakes recv()."""

    def client_with(self, sock):
        seen = []
        reader = threading.Thread(target=lambda: seen.append(attempt(sock.recv, 10)))
        reader.start()
        self.meet()
        sock.shutdown(socket.SHUT_RDWR)
        reader.join()
        self.note("recv", seen)

    def server_with(self, sock):
        self.meet()
        self.note("came", read_all(sock))


class BothAtOnce(Pair):
    """Both ends close their side at the same time."""

    def both(self, sock):
        sock.sendall(b"last words")
        self.meet()
        sock.shutdown(socket.SHUT_WR)
        self.note("came", read_all(sock))
        self.note("events", events(sock, ALL))

    client_with = server_with = both


class States(Pair):
    """The states of both ends, through a close that is told step by step."""

    def client_with(self, sock):
        self.note("open", tcp_state(sock))
        sock.shutdown(socket.SHUT_WR)
        self.note("half", eventually(lambda: tcp_state(sock) == "FIN_WAIT2"))
        self.meet()
        self.meet()
        self.note("closed", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.note("came", read_all(sock))

    def server_with(self, sock):
        self.note("end", read_all(sock))
        self.note("half", tcp_state(sock))
        self.note("events", events(sock, ALL))
        self.meet()
        sock.shutdown(socket.SHUT_WR)
        self.note("closed", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.meet()
        self.note("peer", attempt(sock.getpeername))


class EndWhileUnread(Pair):
    """An end behind bytes: both are there, in order, and RDHUP before they are read."""

    def client_with(self, sock):
        sock.sendall(b"first")
        sock.shutdown(socket.SHUT_WR)
        self.meet()

    def server_with(self, sock):
        self.meet()
        eventually(lambda: tcp_state(sock) == "CLOSE_WAIT")
        self.note("events", events(sock, ALL))
        self.note("peek", sock.recv(3, socket.MSG_PEEK))
        self.note("first", sock.recv(3))
        self.note("events then", events(sock, ALL))
        self.note("rest", read_all(sock))


class OrphanAnswers(Pair):
    """Data to an end that has closed and whose queue is empty is answered by a reset."""

    def client_with(self, sock):
        sock.sendall(b"question")
        self.meet()
        self.note("came", read_all(sock))
        for _ in range(2):
            attempt(sock.send, b"more", socket.MSG_NOSIGNAL)
            eventually(lambda: tcp_state(sock) == "CLOSE", 3)
        self.note("state", tcp_state(sock))
        self.note("SO_ERROR", so_error(sock))

    def server_with(self, sock):
        self.note("came", read_exactly(sock, 8))
        sock.sendall(b"answer")
        sock.close()
        self.meet()


class LateReader(Pair):
    """A reader that comes after the peer's process has ended."""

    def client_with(self, sock):
        def send():
            sock.sendall(noise(200_000))

        child = self.child(send)
        sock.close()
        self.note("ended", self.ended(child))
        self.meet()

    def server_with(self, sock):
        self.meet()
        self.note("came", read_all(sock))


class KilledPeer(Pair):
    """The peer's process is killed: its kernel closes."""

    def client_with(self, sock):
        child = self.child(lambda: (sock.sendall(b"so far"), signal.pause()))
        sock.close()
        self.meet()
        os.kill(child, signal.SIGKILL)
        self.note("ended", self.ended(child))

    def server_with(self, sock):
        self.note("came", digest(read_exactly(sock, 6)))
        self.meet()
        self.note("end", read_all(sock))
