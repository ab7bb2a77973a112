# SPDX-License-Identifier: Apache-2.0
"""listen() and accept(): queues, what is inherited, several listeners, peers that are gone."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
from pathlib import Path

from sockets.script import (
    IP4,
    IP6,
    Greeted,
    Pair,
    Script,
    attempt,
    events,
    eventually,
    linger,
    read_all,
    tcp_state,
)

ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP
INFO_UNACKED = 24  # offset in struct tcp_info; of a listener: how many wait to be accepted


class WithoutWaiting(Script):
    """EAGAIN, then an event, then the connection, then EAGAIN."""

    def client(self):
        self.meet()
        sock = self.connect()
        self.meet()
        self.note("came", read_all(sock))

    def server(self):
        listener = self.listen()
        listener.setblocking(False)
        self.note("accept", attempt(listener.accept))
        self.note("events", events(listener, ALL))
        self.meet()
        self.note("events then", events(listener, ALL, 10))
        sock, peer = listener.accept()
        self.note("peer", peer[0] == self.there)
        self.note("events after", events(listener, ALL))
        self.note("accept again", attempt(listener.accept))
        self.note("blocks", os.get_blocking(sock.fileno()))
        self.meet()


class Queue(Script):
    """Who waits to be accepted is counted, and served in order."""

    def client(self):
        self.meet()
        for number in range(5):
            sock = self.connect()
            sock.sendall(str(number).encode())
            sock.shutdown(socket.SHUT_WR)
            self.meet()
        self.meet()

    def server(self):
        listener = self.listen()
        self.meet()

        def waiting():
            info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return struct.unpack_from("I", info, INFO_UNACKED)[0]

        for number in range(1, 6):
            self.note("waiting", eventually(lambda number=number: waiting() == number))
            self.meet()
        self.note("state", tcp_state(listener))
        self.note("came", [read_all(listener.accept()[0]) for _ in range(5)])
        self.note("left", waiting())
        self.meet()


class FullQueue(Script):
    """A backlog of 1: two wait, and whoever comes later is served when there is room."""

    def client(self):
        self.meet()
        first = [self.connect() for _ in range(2)]
        self.meet()
        for number, sock in enumerate(first):
            sock.sendall(f"first {number}".encode())
            sock.shutdown(socket.SHUT_WR)
        third = self.connect()
        third.sendall(b"third")
        third.shutdown(socket.SHUT_WR)
        self.note("answers", [read_all(sock) for sock in (*first, third)])

    def server(self):
        listener = self.listen(backlog=1)
        self.meet()
        self.meet()
        for _ in range(3):
            sock, _ = listener.accept()
            self.note("came", read_all(sock))
            sock.sendall(b"served")
            sock.close()


class ReusePort(Script):
    """Two listeners of one port get all of thirty connections between them."""

    def client(self):
        self.meet()
        answers = set()
        for _ in range(30):
            sock = self.connect()
            answers.add(read_all(sock)[0])
            sock.close()
        self.note("answers", answers)
        self.tell("end")

    def server(self):
        served = [0, 0]

        def serve(number, listener):
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                sock.sendall(f"listener {number}".encode())
                sock.close()
                served[number] += 1

        listeners = []
        for _ in range(2):
            made = self.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(self.at())
            made.listen(16)
            listeners.append(made)
        threads = [threading.Thread(target=serve, args=pair) for pair in enumerate(listeners)]
        for thread in threads:
            thread.start()
        self.meet()
        self.hear()
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        self.note("all", sum(served))
        self.note("both", min(served) > 0)


class Deferred(Script):
    """TCP_DEFER_ACCEPT: the connection comes with its first bytes."""

    def client(self):
        self.meet()
        sock = self.connect()
        self.meet()
        self.meet()
        sock.sendall(b"first")
        self.note("came", read_all(sock))

    def server(self):
        listener = self.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        listener.bind(self.at())
        listener.listen(4)
        self.note("seconds", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) >= 10)
        self.meet()
        self.meet()
        self.note("before", events(listener, select.POLLIN, 0.3))
        self.meet()
        sock, _ = listener.accept()
        self.note("at once", attempt(sock.recv, 10, socket.MSG_DONTWAIT))
        sock.close()


class Inherited(Pair):
    """What an accepted socket has of its listener."""

    OPTIONS = (
        ("SOL_SOCKET", "SO_KEEPALIVE", 1),
        ("SOL_SOCKET", "SO_RCVBUF", 50_000),
        ("SOL_SOCKET", "SO_SNDBUF", 60_000),
        ("SOL_SOCKET", "SO_RCVLOWAT", 3),
        ("SOL_SOCKET", "SO_PRIORITY", 4),
        ("SOL_SOCKET", "SO_MARK", 77),
        ("SOL_SOCKET", "SO_OOBINLINE", 1),
        ("IPPROTO_TCP", "TCP_NODELAY", 1),
        ("IPPROTO_TCP", "TCP_KEEPIDLE", 33),
        ("IPPROTO_TCP", "TCP_KEEPINTVL", 11),
        ("IPPROTO_TCP", "TCP_KEEPCNT", 5),
        ("IPPROTO_TCP", "TCP_USER_TIMEOUT", 7000),
        ("IPPROTO_TCP", "TCP_LINGER2", 9),
        ("IPPROTO_TCP", "TCP_NOTSENT_LOWAT", 4096),
        ("IPPROTO_TCP", "TCP_WINDOW_CLAMP", 40_000),
    )

    def before_listen(self, listener):
        for level, option, value in self.OPTIONS:
            listener.setsockopt(getattr(socket, level), getattr(socket, option), value)
        linger(listener, 3)

    def client_with(self, sock):
        sock.sendall(b"question")
        self.note("came", read_all(sock))

    def server_with(self, sock):
        for level, option, _ in self.OPTIONS:
            self.note(option, sock.getsockopt(getattr(socket, level), getattr(socket, option)))
        self.note("SO_LINGER", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        self.note("came", sock.recv(100))
        sock.sendall(b"answer")
        sock.close()


class ClosedWithQueue(Script):
    """A listener is closed over a connection that nobody accepted."""

    def client(self):
        self.meet()
        sock = self.connect()
        self.meet()
        self.note("came", read_all(sock))
        self.note("then", attempt(self.socket().connect, self.at()))

    def server(self):
        listener = self.listen()
        self.meet()
        events(listener, select.POLLIN, 10)
        self.meet()
        listener.close()


class ResetBefore(Script):
    """A peer that has reset before it is accepted."""

    def client(self):
        self.meet()
        sock = self.connect()
        sock.sendall(b"gone")
        self.meet()
        linger(sock, 0)
        sock.close()
        self.meet()

    def server(self):
        listener = self.listen()
        self.meet()
        events(listener, select.POLLIN, 10)
        self.meet()
        self.meet()
        sock, peer = listener.accept()
        self.note("peer", peer[0] == self.there)
        self.note("closed", eventually(lambda: tcp_state(sock) == "CLOSE"))
        self.note("came", read_all(sock))


class EndedBefore(Script):
    """A peer that has sent and ended before it is accepted."""

    def client(self):
        self.meet()
        sock = self.connect()
        sock.sendall(b"short visit")
        sock.close()
        self.meet()

    def server(self):
        listener = self.listen()
        self.meet()
        self.meet()
        sock, _ = listener.accept()
        self.note("came", read_all(sock))
        self.note("state", tcp_state(sock))


class ListenerShutDown(Script):
    """shutdown() of a listener wakes who waits in accept(), and refuses whoever comes."""

    def client(self):
        self.meet()
        self.meet()
        self.note("connect", attempt(self.socket().connect, self.at()))

    carried = None

    def server(self):
        listener = self.listen()
        self.meet()
        seen = []
        waiter = threading.Thread(target=lambda: seen.append(attempt(listener.accept)))
        waiter.start()
        attempt(listener.shutdown, socket.SHUT_RDWR)
        waiter.join()
        self.note("accept", seen)
        self.note("state", tcp_state(listener))
        self.note("events", events(listener, ALL))
        self.meet()


class ListenAgain(Script):
    """A socket whose listening was ended listens again."""

    def client(self):
        self.meet()
        self.note("came", read_all(self.connect()))

    def server(self):
        listener = self.listen()
        listener.shutdown(socket.SHUT_RDWR)
        self.note("listen", attempt(listener.listen, 4))
        self.meet()
        sock, _ = listener.accept()
        sock.sendall(b"again")
        sock.close()


class ListenerOptions(Script):
    """What a listener says of itself."""

    carried = ()

    def server(self):
        listener = self.listen()
        self.note("accepts", listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self.note("state", tcp_state(listener))
        self.note("connect", attempt(listener.connect, self.at()))
        self.note("send", attempt(listener.send, b"x", socket.MSG_NOSIGNAL))
        self.note("recv", attempt(listener.recv, 1))
        self.note("bytes", attempt(fcntl.ioctl, listener, 0x541B, b"\0" * 4))
        self.note("own", listener.getsockname()[:2] == self.at())
        other = self.socket()
        self.note("taken", attempt(other.bind, self.at()))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.note("taken though", attempt(other.bind, self.at()))


class ByChildren(Script):
    """Children that were forked accept from one listener."""

    def client(self):
        self.meet()
        self.note("answers", {read_all(self.connect())[0] for _ in range(6)})
        self.tell("end")

    def server(self):
        listener = self.listen()

        def serve():
            for _ in range(3):
                sock, _ = listener.accept()
                sock.sendall(b"by a child")
                sock.close()

        children = [self.child(serve) for _ in range(2)]
        self.meet()
        self.hear()
        self.note("ended", [self.ended(child) for child in children])


class ManyAtOnce(Script):
    """Sixty connections by twenty threads."""

    def client(self):
        self.meet()
        answers = []

        def ask():
            for number in range(3):
                sock = socket.socket(self.af)
                sock.connect(self.at())
                sock.sendall(str(number).encode())
                sock.shutdown(socket.SHUT_WR)
                answers.append(read_all(sock)[0])
                sock.close()

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.note("answers", sorted(answers))
        self.tell("end")

    def server(self):
        listener = self.listen(backlog=100)
        self.meet()
        for _ in range(60):
            sock, _ = listener.accept()
            sock.sendall(b"to " + sock.recv(10))
            sock.close()
        self.hear()


class ServerSpeaksFirst(Script):
    """A greeting before any question, and a peer that ends without one."""

    def client(self):
        self.meet()
        sock = self.connect()
        self.note("greeting", sock.recv(100))
        sock.close()

    def server(self):
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        sock.sendall(b"220 ready")
        self.note("end", read_all(sock))


class BothFamilies(Script):
    """An IPv6 listener of all addresses takes IPv4 peers too."""

    families = (IP4,)

    def client(self):
        self.meet()
        self.note("came", read_all(self.connect()))

    def server(self):
        listener = self.keep(socket.socket(socket.AF_INET6))
        listener.bind(("::", self.port))
        listener.listen(4)
        self.meet()
        sock, peer = listener.accept()
        self.note("peer", peer[0] == f"::ffff:{self.there}")
        self.note("own", sock.getsockname()[0] == f"::ffff:{self.here}")
        sock.sendall(b"mapped")
        sock.close()


class OnlySix(Script):
    """With IPV6_V6ONLY it does not, and the other family's port is free."""

    families = (IP4,)

    def client(self):
        self.meet()
        self.note("refused", attempt(self.socket().connect, self.at()))
        self.meet()
        self.meet()
        self.note("came", read_all(self.connect()))

    def server(self):
        six = self.keep(socket.socket(socket.AF_INET6))
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        six.bind(("::", self.port))
        six.listen(4)
        self.meet()
        self.meet()
        four = self.listen()
        self.meet()
        sock, _ = four.accept()
        sock.sendall(b"four")
        sock.close()
        self.note("six", events(six, select.POLLIN))


class AllAddresses(Script):
    """A listener of all addresses."""

    def client(self):
        self.meet()
        self.note("came", read_all(self.connect()))

    def server(self):
        listener = self.listen(address="" if self.family == IP4 else "::")
        self.meet()
        sock, _ = listener.accept()
        self.note("own", sock.getsockname()[0] == self.here)
        sock.sendall(b"x")
        sock.close()


class ListenerOfDevice(Greeted):
    """A listener that is bound to the device."""

    def before_listen(self, listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")

    def server_looks(self, sock):
        self.note(
            "device", sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")
        )


class PassiveTimeWait(Script):
    """A server that closed first is started again: its port is free with SO_REUSEADDR,
    and not without.
    """

    def client(self):
        self.meet()
        sock = self.connect()
        self.note("came", read_all(sock))
        linger(sock, 5)
        sock.close()
        self.meet()
        self.meet()
        self.note("again", read_all(self.connect()))

    def server(self):
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        sock.sendall(b"x")
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))
        sock.close()
        listener.close()
        self.meet()
        self.note("without", attempt(self.socket().bind, self.at()))
        listener = self.listen()
        self.meet()
        sock, _ = listener.accept()
        sock.sendall(b"again")
        sock.close()


class ScopeOfLinkLocal(Script):
    """An address of the link, with its scope."""

    families = (IP6,)
    carried = None

    def client(self):
        self.meet()
        sock = self.socket()
        where = (self.hear(), self.port, 0, socket.if_nametoindex("eth0"))
        self.note("connect", attempt(sock.connect, where))
        self.note(
            "peer",
            sock.getpeername()[:2] == where[:2] or sock.getpeername()[0].startswith(where[0]),
        )
        self.note("came", read_all(sock))

    def server(self):
        lines = [line.split() for line in Path("/proc/self/net/if_inet6").read_text().splitlines()]
        raw = next(line[0] for line in lines if line[0].startswith("fe80") and line[5] == "eth0")
        listener = self.listen(address="::")
        self.meet()
        self.tell(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw)))
        sock, peer = listener.accept()
        self.note("peer", peer[0].startswith("fe80"))
        sock.sendall(b"by the link")
        sock.close()
