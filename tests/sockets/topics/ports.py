# SPDX-License-Identifier: Apache-2.0
"""The connecting end's own address and port: chosen, given, taken, used again for the same peer."""

from __future__ import annotations

import socket

from sockets.script import IP4, Greeted, Script, attempt, linger, read_all

IP_BIND_ADDRESS_NO_PORT = 24


class FixedPort(Greeted):
    """From a port that the program chose."""

    def before_connect(self, sock):
        sock.bind((self.here, self.port + 3))

    def client_looks(self, sock):
        self.note("own", sock.getsockname()[1] - self.port)

    def server_looks(self, sock):
        self.note("peer", sock.getpeername()[1] - self.port)


class PortOfTheKernels(Greeted):
    """bind() to port 0 gives a port, which connect() keeps."""

    def before_connect(self, sock):
        sock.bind((self.here, 0))
        self.bound = sock.getsockname()[1]
        self.note("a port", self.bound > 0)

    def client_looks(self, sock):
        self.note("kept", sock.getsockname()[1] == self.bound)
        self.tell(self.bound)

    def server_looks(self, sock):
        self.note("the peer's", sock.getpeername()[1] == self.hear())


class AddressWithoutPort(Greeted):
    """IP_BIND_ADDRESS_NO_PORT: the port comes with connect()."""

    def before_connect(self, sock):
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((self.here, 0))
        self.note("before", sock.getsockname()[1])

    def client_looks(self, sock):
        self.note("after", sock.getsockname()[1] > 0)


class BoundToDevice(Greeted):
    """SO_BINDTODEVICE before connect()."""

    greeting = b"x" * 50_000

    def before_connect(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")

    def client_looks(self, sock):
        self.note(
            "device", sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")
        )


class BoundToLoopback(Script):
    """A source that cannot leave the host."""

    carried = None
    families = (IP4,)

    def client(self):
        sock = self.socket()
        sock.bind(("127.0.0.1", 0))
        self.note("connect", attempt(sock.connect, self.at()))


class PortTaken(Script):
    """Two connections of one port: to two peers, and twice to one."""

    def client(self):
        self.meet()
        for number, wanted in enumerate((0, 1, 0)):
            sock = self.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.note(f"bind {number}", attempt(sock.bind, (self.here, self.port + 4)))
            self.note(f"connect {number}", attempt(sock.connect, self.at(wanted)))
        self.meet()

    def server(self):
        listeners = [self.listen(0), self.listen(1)]
        self.meet()
        socks = [listener.accept()[0] for listener in listeners]
        self.meet()
        self.note("came", [read_all(sock) for sock in socks])


class ClientsTimeWait(Script):
    """A port whose connection this side closed first is used again for the same peer."""

    def client(self):
        self.meet()
        for turn in range(3):
            sock = self.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.note(f"bind {turn}", attempt(sock.bind, (self.here, self.port + 4)))
            outcome = attempt(sock.connect, self.at())
            self.note(f"connect {turn}", outcome)
            if outcome is None:
                sock.shutdown(socket.SHUT_WR)
                self.note(f"end {turn}", read_all(sock))
            sock.close()
        self.tell("end")

    def server(self):
        listener = self.listen()
        self.meet()
        listener.settimeout(0.5)
        done = False
        while not done:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                done = True
                continue
            sock.settimeout(None)
            read_all(sock)
            sock.close()
        self.hear()


class ServersTimeWait(Script):
    """A port is used again for the same peer, who closed the connection before it first."""

    def client(self):
        self.meet()
        for turn in range(5):
            sock = self.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.note(f"bind {turn}", attempt(sock.bind, (self.here, self.port + 4)))
            self.note(f"connect {turn}", attempt(sock.connect, self.at()))
            self.note(f"came {turn}", read_all(sock))
            linger(sock, 5)  # close() returns when the peer has acknowledged this side's end
            sock.close()
            self.meet()

    def server(self):
        listener = self.listen()
        self.meet()
        for turn in range(5):
            sock, _ = listener.accept()
            sock.sendall(f"turn {turn}".encode())
            sock.shutdown(socket.SHUT_WR)
            self.note(f"end {turn}", read_all(sock))
            sock.close()
            self.meet()
