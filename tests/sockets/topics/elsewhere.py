# SPDX-License-Identifier: Apache-2.0
"""Sockets that come to be elsewhere than they were made: with a process of another cgroup, of
another network namespace, of another program, while who made them goes on or is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

from sockets.script import Pair, Script, attempt, digest, noise, read_all, read_exactly

CLONE_NEWNET = 0x40000000
PIDFD_GETFD = 438
LIBC = ctypes.CDLL(None, use_errno=True)


def leave_cgroup() -> None:
    """Into the root of cgroup v2, which nothing routes."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    mount = next(line.split()[4] for line in lines if " - cgroup2 " in line)
    Path(f"{mount}/cgroup.procs").write_text("0")


def leave_network() -> None:
    """Into a network namespace of its own."""
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


class _Passed(Pair):
    """SCM_RIGHTS of an open socket to a process that is elsewhere; the one that made it has ended
    before the other one speaks.
    """

    def leave(self):
        """Where the other process goes."""

    def client_with(self, sock):
        ours, theirs = socket.socketpair()

        def talk():
            ours.close()
            self.leave()
            theirs.send(b"there")
            (number,) = socket.recv_fds(theirs, 10, 1)[1]
            got = socket.socket(fileno=number)
            self.note("alone", theirs.recv(1))
            got.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            got.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 5)
            self.note("mark", got.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
            got.sendall(noise(300_000))
            got.shutdown(socket.SHUT_WR)
            self.note("came", read_all(got))
            self.tell([self.notes])

        def maker():
            theirs.close()
            ours.recv(5)
            sock.sendall(b"before ")
            socket.send_fds(ours, [b"x"], [sock.fileno()])

        other = self.child(talk)
        made = self.child(maker)
        theirs.close()
        sock.close()
        self.note("maker", self.ended(made))
        ours.close()
        self.note("other", self.ended(other))

    def server_with(self, sock):
        self.note("first", read_exactly(sock, 7))
        self.note("rest", digest(read_exactly(sock, 300_000)))
        self.note("end", sock.recv(1))
        sock.sendall(noise(200_000, 2))
        sock.close()
        self.note("there", self.hear())


class PassedToCgroup(_Passed):
    """Of another cgroup."""

    def leave(self):
        leave_cgroup()


class PassedToNetwork(_Passed):
    """Of another network namespace."""

    def leave(self):
        leave_network()


class ListenerPassedToCgroup(Script):
    """A listener that another cgroup's process accepts from, and its maker's end."""

    def client(self):
        self.meet()
        for turn in range(3):
            sock = self.connect()
            sock.sendall(noise(50_000, turn))
            sock.shutdown(socket.SHUT_WR)
            self.note("came", read_all(sock))

    def server(self):
        ours, theirs = socket.socketpair()

        def serve():
            leave_cgroup()
            theirs.send(b"there")
            (number,) = socket.recv_fds(theirs, 10, 1)[1]
            listener = socket.socket(fileno=number)
            theirs.send(b"x")
            for _ in range(3):
                sock, _ = listener.accept()
                sock.sendall(digest(read_exactly(sock, 50_000)).encode())
                sock.close()

        def maker():
            ours.recv(5)
            socket.send_fds(ours, [b"x"], [self.listen().fileno()])
            ours.recv(1)

        child = self.child(serve)
        self.note("maker", self.ended(self.child(maker)))
        self.meet()
        self.note("child", self.ended(child))


class MovedWithIt(Pair):
    """A process that is moved to another cgroup goes on with what it has open, and its options."""

    def client_with(self, sock):
        sock.sendall(b"before ")
        leave_cgroup()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 9)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.sendall(noise(300_000))
        self.note("mark", sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
        sock.shutdown(socket.SHUT_WR)
        self.note("came", read_all(sock))

    def server_with(self, sock):
        leave_cgroup()
        self.note("first", read_exactly(sock, 7))
        self.note("rest", digest(read_exactly(sock, 300_000)))
        sock.sendall(noise(200_000, 2))
        sock.close()


class ExecutedElsewhere(Pair):
    """A child inherits the socket, leaves the cgroup and becomes another program, while its
    parent ends at once.
    """

    def client_with(self, sock):
        sock.sendall(noise(100_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("came back", read_all(sock))
        self.meet()

    def server_with(self, sock):
        def become():
            if os.fork():
                return
            leave_cgroup()
            os.setsid()
            for number in (0, 1):
                os.dup2(sock.fileno(), number)
            code = "import os\nwhile p := os.read(0, 999):\n os.write(1, p)"
            os.execv(sys.executable, [sys.executable, "-c", code])

        self.note("parent", self.ended(self.child(become)))
        sock.close()
        self.meet()


class TakenAway(Pair):
    """pidfd_getfd(2): another process takes the socket of one that is killed then."""

    def client_with(self, sock):
        sock.sendall(b"before ")
        owner = self.child(signal.pause)
        pidfd = os.pidfd_open(owner)
        number = LIBC.syscall(PIDFD_GETFD, pidfd, sock.fileno(), 0)
        sock.close()
        os.kill(owner, signal.SIGKILL)
        self.note("owner", self.ended(owner))
        got = self.keep(socket.socket(fileno=number))
        got.sendall(b"after")
        self.note("shutdown", attempt(got.shutdown, socket.SHUT_WR))
        self.note("came", read_all(got))

    def server_with(self, sock):
        self.note("came", read_all(sock))
        sock.sendall(b"answer")
        sock.close()
