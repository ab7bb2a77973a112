# SPDX-License-Identifier: Apache-2.0
"""What is sent to a peer only to ask for it: keep-alive probes as options change in
mid-connection, probes of a connection that one host has forgotten, and SYNs.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
from collections.abc import Iterator

from sockets.script import IP4, IP6, Pair, Script, attempt, events, tcp_state
from sockets.sniffing import Sniffer

TCP_REPAIR = 19
ALIVE = ((1, 1), (0, 1), (1, 1), (1, 30), (1, 1))  # SO_KEEPALIVE, TCP_KEEPIDLE in seconds
LOOK_S = 3.4  # long enough for two probes a second apart


class _KeepAlive(Pair):
    """One side's probes begin, end, and come later, as it says; the other side sees whether
    there are some.
    """

    seconds = 60

    def probes(self, sock):
        for on, idle in ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, on)
            self.meet()
            self.meet()
            select.select([], [], [], LOOK_S)
            self.meet()
        self.note("state", tcp_state(sock))

    def counts(self, sock):
        sniffer = Sniffer(sock.getsockname()[1])
        for on, idle in ALIVE:
            self.meet()
            sniffer.packets()  # from before
            self.meet()
            self.meet()
            self.note(f"on {on}, after {idle} s", sniffer.packets() > 1)


class OfClient(_KeepAlive):
    """Of the socket that connected."""

    client_with, server_with = _KeepAlive.probes, _KeepAlive.counts


class OfServer(_KeepAlive):
    """Of the accepted socket."""

    client_with, server_with = _KeepAlive.counts, _KeepAlive.probes


class _Forgotten(Pair):
    """One host knows of no connection any more; the other side's probe finds that."""

    def forgets(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        sock.close()
        self.meet()

    def probes(self, sock):
        self.meet()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.note("recv", attempt(sock.recv, 1))


class ForgottenByServer(_Forgotten):
    """The server's host."""

    client_with, server_with = _Forgotten.probes, _Forgotten.forgets


class ForgottenByClient(_Forgotten):
    """The client's host."""

    client_with, server_with = _Forgotten.forgets, _Forgotten.probes


class _Unanswered(Script):
    """The server's host drops SYNs, and counts them."""

    carried = None

    def server(self):
        with self.silent():
            sniffer = Sniffer(self.port)
            self.meet()
            self.meet()
            self.note("SYNs", self.told(sniffer.packets()))

    def told(self, count):
        return count

    @contextlib.contextmanager
    def silent(self, port: int = 0) -> Iterator[None]:
        """What comes to a port of this host's, the run's first one, is dropped."""
        port = port or self.port
        table = f"{'ip' if self.family == IP4 else 'ip6'} silent{port}"
        chain = "type filter hook prerouting priority -300;"
        rules = f"add table {table}\nadd chain {table} c {{ {chain} }}\n"
        rules += f"add rule {table} c tcp dport {port} drop\n"
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        try:
            yield
        finally:
            subprocess.run(["nft", "delete", "table", *table.split()], check=True)


class SynsOfCount(_Unanswered):
    """TCP_SYNCNT of 2: three SYNs."""

    def client(self):
        self.meet()
        sock = self.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 2)
        self.note("connect", attempt(sock.connect, self.at()))
        self.meet()


class SynsOfClosed(_Unanswered):
    """An app that closes before it is answered: no more than one SYN again comes after it."""

    def client(self):
        self.meet()
        sock = self.socket()
        sock.setblocking(False)
        self.note("connect", attempt(sock.connect, self.at()))
        select.select([], [], [], 0.3)
        sock.close()
        select.select([], [], [], 8)
        self.meet()

    def told(self, count):
        return count <= 2


class SynAcksOfCount(_Unanswered):
    """TCP_SYNCNT of 1, of a listener: a SYN that nobody confirms is answered twice."""

    def client(self):
        source = self.port + 1
        with self.silent(source):
            sniffer = Sniffer(source)
            self.meet()
            self.lone_syn(source)
            select.select([], [], [], 8)
            self.note("answers", sniffer.packets())
            self.meet()

    def server(self):
        listener = self.socket()
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        listener.bind(self.at())
        listener.listen(4)
        self.meet()
        self.meet()
        self.note("events", events(listener, select.POLLIN))

    def lone_syn(self, source):
        """A SYN of no socket's."""
        head = struct.pack("!HHIIBBHHH", source, self.port, 7, 0, 5 << 4, 2, 64240, 0, 0)
        with socket.socket(self.af, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            if self.family == IP6:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, 16)
            else:
                ends = socket.inet_aton(self.here) + socket.inet_aton(self.there)
                pseudo = ends + struct.pack("!HH", socket.IPPROTO_TCP, len(head)) + head
                total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
                total = (total & 0xFFFF) + (total >> 16)
                head = head[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[18:]
            raw.sendto(head, (self.there, 0))
