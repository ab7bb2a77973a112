# SPDX-License-Identifier: Apache-2.0
"""Resets and closes in each state of either end, and what an end that is nobody's any more does."""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import time

from sockets.script import (
    Pair,
    attempt,
    digest,
    events,
    eventually,
    linger,
    noise,
    read_all,
    read_exactly,
    so_error,
    tcp_state,
)

ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLPRI
TCP_LINGER2 = 8
LIBC = ctypes.CDLL(None, use_errno=True)


def abort(sock: socket.socket) -> None:
    """A close that resets."""
    linger(sock, 0)
    sock.close()


class _Told(Pair):
    """What the server sees of a reset in a state of its own."""

    def all_calls(self, sock):
        self.note("events", events(sock, select.POLLPRI, 5))
        eventually(lambda: tcp_state(sock) == "CLOSE")
        self.note("all events", events(sock, ALL))
        self.note("error", so_error(sock))
        self.note("recv", attempt(sock.recv, 10))
        self.note("recv again", attempt(sock.recv, 10))
        self.note("send", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))
        self.note("shutdown", attempt(sock.shutdown, socket.SHUT_RDWR))
        self.note("state", tcp_state(sock))


class ResetAfterOwnEnd(_Told):
    """The client has ended its side, then resets: the server is in CLOSE_WAIT."""

    def client_with(self, sock):
        sock.sendall(b"all")
        sock.shutdown(socket.SHUT_WR)
        self.meet()
        abort(sock)
        self.meet()

    def server_with(self, sock):
        self.note("came", read_all(sock))
        self.meet()
        self.meet()
        self.all_calls(sock)


class ResetAfterOwnEndUnread(ResetAfterOwnEnd):
    """The same while the server has not read."""

    def server_with(self, sock):
        eventually(lambda: tcp_state(sock) == "CLOSE_WAIT")
        self.meet()
        self.meet()
        self.all_calls(sock)


class ResetAfterPeersEnd(_Told):
    """The server has ended its side and is in FIN_WAIT2, the client resets."""

    def client_with(self, sock):
        self.meet()
        self.note("end", read_all(sock))
        self.meet()
        abort(sock)
        self.meet()

    def server_with(self, sock):
        self.meet()
        sock.shutdown(socket.SHUT_WR)
        self.note("state before", eventually(lambda: tcp_state(sock) == "FIN_WAIT2"))
        self.meet()
        self.meet()
        self.all_calls(sock)


class ResetAfterBothEnds(_Told):
    """The client resets after both have ended: there is nothing left to reset."""

    def client_with(self, sock):
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))
        abort(sock)
        self.meet()

    def server_with(self, sock):
        self.note("end", read_all(sock))
        sock.shutdown(socket.SHUT_WR)
        self.meet()
        eventually(lambda: tcp_state(sock) == "CLOSE")
        self.note("state", tcp_state(sock))
        self.note("error", so_error(sock))
        self.note("recv", attempt(sock.recv, 10))


class ResetUnread(_Told):
    """Bytes that the server has not read, then a reset: the kernel keeps what it has for recv(),
    behind the error.
    """

    def client_with(self, sock):
        sock.sendall(noise(3000))
        self.meet()
        abort(sock)
        self.meet()

    def server_with(self, sock):
        eventually(lambda: events(sock, select.POLLIN) != "none")
        self.meet()
        self.meet()
        eventually(lambda: tcp_state(sock) == "CLOSE")
        self.note("error", so_error(sock))
        self.note("came", read_all(sock))


class ResetMidTransfer(Pair):
    """The sender resets in the middle of what it sends."""

    def client_with(self, sock):
        sock.setblocking(False)
        eventually(lambda: attempt(sock.send, b"a" * (1 << 20)) == "EAGAIN")
        self.meet()
        abort(sock)

    def server_with(self, sock):
        self.note("first", digest(read_exactly(sock, 100_000)))
        self.meet()
        why = "nothing"
        while True:
            try:
                if not sock.recv(1 << 16):
                    why = "end"
                    break
            except OSError as error:
                why = type(error).__name__
                break
        self.note("end", why)


class ReaderResetsMidTransfer(Pair):
    """The reader resets while the sender sends: ECONNRESET or EPIPE, and no hang."""

    def client_with(self, sock):
        self.note("send", attempt(sock.sendall, noise(50 << 20)))
        self.note("again", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))
        self.note("state", tcp_state(sock))

    def server_with(self, sock):
        read_exactly(sock, 1_000_000)
        abort(sock)


class ResetBothAtOnce(Pair):
    """Both ends reset."""

    def client_with(self, sock):
        self.meet()
        abort(sock)
        self.meet()
        self.note("again", attempt(self.socket().connect, self.at()))
        self.meet()

    def server_with(self, sock):
        self.meet()
        abort(sock)
        self.meet()
        self.meet()


class OrphanInFinWait2(Pair):
    """TCP_LINGER2 of 1 s: an end that is closed and whose peer does not close is forgotten, and
    the peer's next bytes are answered by a reset.
    """

    def client_with(self, sock):
        self.note("end", read_all(sock))
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 2.5)
        self.note("send", attempt(sock.send, b"late", socket.MSG_NOSIGNAL))
        self.note("events", events(sock, select.POLLPRI, 3))
        self.note("error", so_error(sock))
        self.note("send then", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))

    def server_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, 1)
        sock.close()


class OrphanAtOnce(Pair):
    """TCP_LINGER2 below 0: FIN_WAIT2 of an orphan is a reset."""

    def client_with(self, sock):
        self.meet()
        self.note("came", read_all(sock))
        self.note("events", events(sock, select.POLLPRI, 3))
        self.note("error", so_error(sock))

    def server_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_LINGER2, -1)
        self.meet()
        sock.sendall(b"last")
        sock.close()


class LateDataToOrphan(Pair):
    """The client half closes late: what it sends to who has closed without reading is reset,
    and what came before is read.
    """

    def client_with(self, sock):
        self.meet()
        self.note("came", read_exactly(sock, 5))
        sent = attempt(sock.sendall, noise(300_000))
        self.note("sent", sent in (None, "EPIPE", "ECONNRESET"))
        self.note("ended", eventually(lambda: tcp_state(sock) == "CLOSE"))
        so_error(sock)
        self.note("then", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))

    def server_with(self, sock):
        sock.sendall(b"hello")
        self.meet()
        sock.close()


class DissolvedThenListens(Pair):
    """connect() to no family, then the socket listens at a port of its own. Linux 6.18.44 refuses
    that with EINVAL; where a kernel does, both sides end there.
    """

    def client_with(self, sock):
        nobody = struct.pack("H14x", socket.AF_UNSPEC)
        self.note("dissolved", LIBC.connect(sock.fileno(), nobody, len(nobody)))
        self.note("state", tcp_state(sock))
        self.note("bind", attempt(sock.bind, (self.here, self.port + 1)))
        refused = attempt(sock.listen, 4)
        self.note("listen", refused)
        self.tell(refused)
        if not refused:
            near, _ = sock.accept()
            self.note("came", read_all(near))

    def server_with(self, sock):
        refused = self.hear()
        self.note("first", attempt(sock.recv, 10))
        if refused:
            return
        back = self.socket()
        back.connect((self.there, self.port + 1))
        back.sendall(b"back")
        back.close()


class ShutAndShutAgain(Pair):
    """shutdown() in each way, twice, and close()."""

    def client_with(self, sock):
        for how in (socket.SHUT_WR, socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR):
            self.note(f"shutdown {how}", attempt(sock.shutdown, how))
        self.note("recv", attempt(sock.recv, 10))
        self.note("send", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))
        self.meet()
        self.note("closed", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.note("later", attempt(sock.recv, 10))
        self.meet()
        self.note("state", eventually(lambda: tcp_state(sock) == "CLOSE") and tcp_state(sock))

    def server_with(self, sock):
        self.note("end", read_all(sock))
        self.meet()
        self.note("send", attempt(sock.sendall, b"to deaf ears"))
        self.meet()
        self.note("shutdown", attempt(sock.shutdown, socket.SHUT_WR))
        self.note("error", so_error(sock))


class HalfCloseBothWaysLong(Pair):
    """Each side in turn sends a megabyte after the other has ended or not: 3 MB in all."""

    def client_with(self, sock):
        sock.sendall(noise(1 << 20))
        self.note("first", digest(read_exactly(sock, 1 << 20)))
        sock.sendall(noise(1 << 20, 2))
        sock.shutdown(socket.SHUT_WR)
        self.meet()
        self.note("rest", read_all(sock))

    def server_with(self, sock):
        self.note("first", digest(read_exactly(sock, 1 << 20)))
        sock.sendall(noise(1 << 20, 3))
        self.note("rest", read_all(sock))
        self.meet()
        sock.sendall(noise(1 << 20, 4))
        sock.close()
