# SPDX-License-Identifier: Apache-2.0
"""connect(): blocking or not, refused, silent, unreachable, again, to oneself."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time

from sockets.script import (
    CLIENT,
    IP4,
    IP6,
    Script,
    attempt,
    events,
    eventually,
    how_long,
    linger,
    poll_names,
    read_all,
    so_error,
    tcp_state,
)

ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLPRI
LIBC = ctypes.CDLL(None, use_errno=True)


class _Alone(Script):
    """The client connects to where no program is."""

    carried = (CLIENT,)
    number = 0

    def target(self):
        if not self.number:
            return self.at()
        return (
            f"203.0.113.{self.number}" if self.family == IP4 else f"2001:db8:beef::{self.number}"
        ), self.port

    def begin(self):
        """A socket that does not block, which is being connected."""
        sock = self.socket()
        sock.setblocking(False)
        self.note("connect", sock.connect_ex(self.target()))
        return sock


class Refused(_Alone):
    """Nobody listens: ECONNREFUSED, twice from one socket."""

    def client(self):
        sock = self.socket()
        self.note("connect", attempt(sock.connect, self.target()))
        self.note("SO_ERROR", so_error(sock))
        self.note("again", attempt(sock.connect, self.target()))
        self.note("peer", attempt(sock.getpeername))
        self.note("events", events(sock, ALL))


class RefusedWithoutWaiting(_Alone):
    """The same of a socket that does not block: events and SO_ERROR."""

    def client(self):
        sock = self.begin()
        self.note("events", events(sock, ALL, 10))
        self.note("SO_ERROR", so_error(sock))
        self.note("SO_ERROR again", so_error(sock))
        self.note("events after", events(sock, ALL))
        self.note("send", attempt(sock.send, b"x"))


class RefusedThenServed(Script):
    """The socket that was refused connects when somebody listens."""

    def client(self):
        sock = self.socket()
        self.note("connect", attempt(sock.connect, self.at()))
        self.meet()
        self.meet()
        self.note("again", attempt(sock.connect, self.at()))
        self.note("came", read_all(sock))

    def server(self):
        self.meet()
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        sock.sendall(b"welcome")
        sock.close()


class OnlyLooked(Script):
    """A check of a load balancer's: reset before it is acknowledged (TCP_QUICKACK off), it makes no
    connection that the server would have to accept.
    """

    def client(self):
        self.meet()
        sock = self.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        linger(sock, 0)
        self.note("connect", attempt(sock.connect, self.at()))
        sock.close()
        later = self.connect()
        later.sendall(b"later")
        later.close()

    def server(self):
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        self.note("came", read_all(sock))


class RefusedReadsTheError(_Alone):
    """recv() of a socket that is being connected gives the error."""

    def client(self):
        sock = self.begin()
        events(sock, select.POLLOUT, 10)
        self.note("recv", attempt(sock.recv, 1))
        self.note("recv again", attempt(sock.recv, 1))


class Silent(_Alone):
    """A peer that never answers: ETIMEDOUT when the SYNs are used up."""

    number = 1

    def client(self):
        sock = self.socket()
        began = time.monotonic()
        self.note("connect", attempt(sock.connect, self.target()))
        self.note("took", how_long(began, 3))
        self.note("SO_ERROR", so_error(sock))


class SilentWithTimeout(_Alone):
    """SO_SNDTIMEO ends connect() before that, and the socket goes on."""

    number = 1

    def client(self):
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 500_000))
        began = time.monotonic()
        self.note("connect", attempt(sock.connect, self.target()))
        self.note("took", how_long(began, 0.5))
        self.note("state", tcp_state(sock))
        self.note("again", attempt(sock.connect, self.target()))


class SilentUserTimeout(_Alone):
    """TCP_USER_TIMEOUT ends it too."""

    number = 1

    def client(self):
        sock = self.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500)
        began = time.monotonic()
        self.note("connect", attempt(sock.connect, self.target()))
        self.note("took", how_long(began, 1.0))


class SilentAbandoned(_Alone):
    """A socket that is being connected is closed, and its port can be had again."""

    number = 1

    def client(self):
        for turn in range(3):
            sock = self.socket()
            sock.bind((self.here, self.port + 5))
            sock.setblocking(False)
            self.note(f"connect {turn}", sock.connect_ex(self.target()))
            self.note(f"state {turn}", tcp_state(sock))
            self.note(f"connect again {turn}", sock.connect_ex(self.target()))
            self.note(f"events {turn}", events(sock, ALL))
            sock.close()


class SilentShutDown(_Alone):
    """shutdown() of a socket that is being connected."""

    number = 1

    def client(self):
        sock = self.begin()
        self.note("shutdown", attempt(sock.shutdown, socket.SHUT_RDWR))
        self.note("state", tcp_state(sock))
        self.note("events", events(sock, ALL))
        self.note("connect after", sock.connect_ex(self.target()))


class Unreachable(_Alone):
    """A router says that there is no way."""

    number = 2

    def client(self):
        sock = self.socket()
        self.note("connect", attempt(sock.connect, self.target()))
        self.note("again", attempt(sock.connect, self.target()))


class UnreachableWithoutWaiting(_Alone):
    """The same by events."""

    number = 2

    def client(self):
        sock = self.begin()
        self.note("events", events(sock, ALL, 10))
        self.note("SO_ERROR", so_error(sock))
        self.note("state", tcp_state(sock))


class Prohibited(_Alone):
    """A router says that it may not."""

    number = 3

    def client(self):
        self.note("connect", attempt(self.socket().connect, self.target()))


class NoNeighbour(_Alone):
    """An address of the wire that nobody has."""

    carried = None

    def client(self):
        beside = self.there.rpartition(":" if self.family == IP6 else ".")
        address = f"{beside[0]}{beside[1]}77"
        self.note("connect", attempt(self.socket().connect, (address, self.port)))


class WithoutWaiting(Script):
    """A socket that does not block: EINPROGRESS, then OUT, then EISCONN."""

    def client(self):
        self.meet()
        sock = self.socket()
        self.note("events before", events(sock, ALL))
        sock.setblocking(False)
        self.note("connect", sock.connect_ex(self.at()))
        self.note("events", events(sock, ALL, 10))
        self.note("SO_ERROR", so_error(sock))
        self.note("connect again", sock.connect_ex(self.at()))
        self.note("connect a third time", sock.connect_ex(self.at()))
        self.note("recv", attempt(sock.recv, 1))
        self.meet()

    def server(self):
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        self.meet()
        self.note("came", read_all(sock))


class ByEpoll(Script):
    """Edge-triggered: what one epoll sees of a connection from before connect() on."""

    def client(self):
        self.meet()
        sock = self.socket()
        sock.setblocking(False)
        seen = []
        with select.epoll() as epoll:
            epoll.register(
                sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
            )
            seen += [poll_names(mask) for _, mask in epoll.poll(0)]
            sock.connect_ex(self.at())
            seen += [poll_names(mask) for _, mask in epoll.poll(10)]
            self.meet()
            seen += [poll_names(mask) for _, mask in epoll.poll(10)]
            self.note("seen", seen)
            self.note("came", sock.recv(10))
            seen = [poll_names(mask) for _, mask in epoll.poll(0)]
            self.meet()
            eventually(lambda: tcp_state(sock) == "CLOSE_WAIT")
            seen += [poll_names(mask) for _, mask in epoll.poll(10)]
            self.note("seen then", seen)

    def server(self):
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        self.meet()
        sock.sendall(b"hello")
        self.meet()
        sock.close()


class SendBeforeConnected(_Alone):
    """Calls that need a connection."""

    carried = ()

    def client(self):
        sock = self.socket()
        self.note("send", attempt(sock.send, b"x", socket.MSG_NOSIGNAL))
        self.note("recv", attempt(sock.recv, 1))
        self.note("peer", attempt(sock.getpeername))
        self.note("shutdown", attempt(sock.shutdown, socket.SHUT_WR))
        self.note("accept", attempt(sock.accept))


class PortZero(_Alone):
    """A port that cannot be."""

    carried = None

    def client(self):
        self.note("connect", attempt(self.socket().connect, (self.there, 0)))


class AnyAddress(Script):
    """The unspecified address is this host."""

    carried = ()

    def client(self):
        listener = self.listen(address="")
        sock = self.socket()
        self.note("connect", attempt(sock.connect, ("", self.port)))
        near, _ = listener.accept()
        near.sendall(b"own")
        near.close()
        self.note("came", read_all(sock))


class OwnAddress(Script):
    """Both ends on one host, by the address of its device."""

    carried = None

    def client(self):
        listener = self.listen()
        sock = self.socket()
        sock.connect((self.here, self.port))
        near, _ = listener.accept()
        near.sendall(b"own")
        near.close()
        self.note("came", read_all(sock))

    def listen(self, number=0, backlog=16, *, address=None):
        return super().listen(number, backlog, address=self.here)


class ToOneself(Script):
    """A socket connected to itself."""

    carried = None

    def client(self):
        sock = self.socket()
        sock.bind((self.here, self.port))
        self.note("connect", attempt(sock.connect, (self.here, self.port)))
        sock.sendall(b"me")
        self.note("came", sock.recv(10))
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))


class SimultaneousOpen(Script):
    """Both connect from and to fixed ports, and nobody listens: SYNs cross, since the first one
    was not heard.
    """

    carried = None

    def a_socket(self):
        sock = self.socket()
        sock.bind((self.here, self.port))
        sock.setblocking(False)
        self.note("connect", sock.connect_ex((self.there, self.port)))
        return sock

    def exchange(self, sock):
        self.note("events", events(sock, select.POLLOUT, 15))
        self.note("SO_ERROR", so_error(sock))
        sock.setblocking(True)
        sock.sendall(b"mine")
        sock.shutdown(socket.SHUT_WR)
        self.note("came", read_all(sock))

    def client(self):
        self.meet()
        sock = self.a_socket()
        self.meet()
        self.exchange(sock)

    def server(self):
        table = f"inet deaf{self.port}{self.family}"
        nft = (
            f"add table {table}",
            f"add chain {table} c {{ type filter hook input priority 0; }}",
            f"add rule {table} c tcp dport {self.port} drop",
        )
        subprocess.run(["nft", ";".join(nft)], check=True)
        self.meet()
        self.meet()
        subprocess.run(["nft", f"delete table {table}"], check=True)
        self.exchange(self.a_socket())


class Dissolved(Script):
    """connect() to no family ends the connection; then the socket is connected elsewhere."""

    seconds = 8.0

    def client(self):
        self.meet()
        sock = self.connect()
        nobody = struct.pack("H14x", socket.AF_UNSPEC)
        self.note("dissolved", LIBC.connect(sock.fileno(), nobody, len(nobody)))
        self.note("peer", attempt(sock.getpeername))
        self.note("state", tcp_state(sock))
        self.note("elsewhere", attempt(sock.connect, self.at(1)))
        self.note("came", read_all(sock))

    def server(self):
        listeners = [self.listen(0), self.listen(1)]
        self.meet()
        first, _ = listeners[0].accept()
        self.note("first", read_all(first))
        second, _ = listeners[1].accept()
        second.sendall(b"second")
        second.close()


class TwoFamilies(Script):
    """An IPv6 socket connects to an IPv4 address."""

    families = (IP4,)

    def client(self):
        self.meet()
        sock = self.keep(socket.socket(socket.AF_INET6))
        sock.connect((f"::ffff:{self.there}", self.port))
        self.note("peer", sock.getpeername()[0] == f"::ffff:{self.there}")
        self.note("own", sock.getsockname()[0] == f"::ffff:{self.here}")
        sock.sendall(b"mapped")
        self.note("came", read_all(sock))

    def server(self):
        listener = self.listen()
        self.meet()
        sock, peer = listener.accept()
        self.note("peer", peer[0] == self.there)
        self.note("came", sock.recv(10))
        sock.close()


class MappedButOnlySix(Script):
    """An IPv6 socket with IPV6_V6ONLY does not."""

    families = (IP4,)
    carried = None

    def client(self):
        sock = self.keep(socket.socket(socket.AF_INET6))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.note("connect", attempt(sock.connect, (f"::ffff:{self.there}", self.port)))


class Interrupted(_Alone):
    """A signal ends a connect() that waits; asked again it says how far it is."""

    number = 1

    def client(self):
        sock = self.socket()
        where = self.target()
        if self.family == IP4:
            name = struct.pack("!2xH4s8x", where[1], socket.inet_aton(where[0]))
        else:
            name = struct.pack(
                "!2xHI16sI", where[1], 0, socket.inet_pton(socket.AF_INET6, where[0]), 0
            )
        name = struct.pack("H", self.af) + name[2:]
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, True)
        main = threading.main_thread().ident
        timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGUSR1))
        timer.start()
        self.note("connect", LIBC.connect(sock.fileno(), name, len(name)))
        self.note("why", os.strerror(ctypes.get_errno()))
        timer.join()
        sock.setblocking(False)
        self.note("again", sock.connect_ex(where))
        self.note("state", tcp_state(sock))
