# SPDX-License-Identifier: Apache-2.0
"""What few programs ask of the kernel's TCP: times of what was sent, pages instead of copies,
repair, ports of a range, programs that choose among listeners.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import threading

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
)
from sockets.topics.waiting import unread

LIBC = ctypes.CDLL(None, use_errno=True)
SO_TIMESTAMPING = 37
TX_HARDWARE, TX_SOFTWARE, SOFTWARE, OPT_ID, TX_SCHED, TX_ACK, OPT_TSONLY = (
    1,
    2,
    16,
    128,
    256,
    512,
    2048,
)
SCM_TSTAMP = {0: "sent", 1: "queued", 2: "acknowledged"}
TCP_REPAIR, TCP_ZEROCOPY_RECEIVE, TCP_ULP = 19, 35, 31
IP_LOCAL_PORT_RANGE, IP_FREEBIND, IP_TRANSPARENT = 51, 15, 19
SO_ATTACH_REUSEPORT_CBPF = 51
TCP_WINDOW_CLAMP, TCP_MAXSEG, TCP_INQ = 10, 2, 36


def read_all_bytes(sock: socket.socket) -> bytes:
    """What is left of a stream."""
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
    return bytes(data)


class TimesOfSending(Pair):
    """SO_TIMESTAMPING: when bytes were queued, sent and acknowledged; each device that a packet
    passes may tell of it anew.
    """

    def client_with(self, sock):
        sock.setsockopt(
            socket.SOL_SOCKET,
            SO_TIMESTAMPING,
            SOFTWARE | TX_SOFTWARE | TX_SCHED | TX_ACK | OPT_ID | OPT_TSONLY,
        )
        self.meet()
        sock.sendall(b"stamped")
        seen = set()

        def look():
            told = attempt(sock.recvmsg, 0, 512, socket.MSG_ERRQUEUE)
            if isinstance(told, tuple):
                for level, kind, data in told[1]:
                    if (level, kind) in ((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)):
                        info, value = struct.unpack_from("II", data, 8)
                        seen.add((SCM_TSTAMP.get(info, "?"), value))
            return len(seen) >= 3

        self.note("all", eventually(look, 5))
        self.note("seen", seen)
        self.meet()

    def server_with(self, sock):
        self.meet()
        self.note("came", read_exactly(sock, 7))
        self.meet()


class ZeroCopyReceive(Pair):
    """TCP_ZEROCOPY_RECEIVE: the bytes are whole, whatever came as pages."""

    def client_with(self, sock):
        sock.sendall(noise(1 << 20))
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))

    def server_with(self, sock):
        size = 64 * 4096
        address = LIBC.mmap
        address.restype = ctypes.c_void_p
        address.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        ]
        at = address(None, size, 1, 1, sock.fileno(), 0)
        self.note("mapped", at not in (None, ctypes.c_void_p(-1).value))
        data = bytearray()
        while True:
            asked = bytearray(struct.pack("QIIIi", at, size, 0, 0, 0))
            room = ctypes.c_uint32(len(asked))
            where = (ctypes.c_char * len(asked)).from_buffer(asked)
            if LIBC.getsockopt(
                sock.fileno(), socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, where, ctypes.byref(room)
            ):
                data += read_all_bytes(sock)  # EIO: it has ended
                break
            _, length, hint, _, _ = struct.unpack("QIIIi", bytes(where))
            if length:
                data += ctypes.string_at(at, length)
            part = sock.recv(hint or 4096)
            if not part and not length:
                break
            data += part
        self.note("came", digest(bytes(data)))
        sock.close()


class Repaired(Pair):
    """TCP_REPAIR on an open connection, read and taken off again without a probe: it goes on."""

    def client_with(self, sock):
        self.meet()
        self.note("repair", attempt(sock.setsockopt, socket.IPPROTO_TCP, TCP_REPAIR, 1))
        self.note("off", attempt(sock.setsockopt, socket.IPPROTO_TCP, TCP_REPAIR, 0))
        sock.sendall(b"repaired")
        self.note("came", read_all(sock))

    def server_with(self, sock):
        self.meet()
        self.note("came", read_exactly(sock, 8))
        sock.sendall(b"well")
        sock.close()


class RepairedAndClosed(Pair):
    """A socket that is closed while it is in repair says nothing to its peer."""

    def client_with(self, sock):
        self.meet()
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        sock.close()
        self.meet()

    def server_with(self, sock):
        self.meet()
        self.meet()
        self.note("events", events(sock, select.POLLIN, 0.5))
        self.note("send", attempt(sock.send, b"anybody"))
        self.note("then", events(sock, select.POLLIN, 5))
        self.note("recv", attempt(sock.recv, 1))


class RepairedMoves(Pair):
    """CRIU's way: numbers are read from a socket in repair, it is closed, and another one goes on
    with them.
    """

    def client_with(self, sock):
        self.meet()
        own, peer = sock.getsockname()[:2], sock.getpeername()[:2]
        level = socket.IPPROTO_TCP
        sock.setsockopt(level, TCP_REPAIR, 1)
        numbers = {}
        for queue in (1, 2):  # received, sent
            sock.setsockopt(level, 20, queue)
            numbers[queue] = sock.getsockopt(level, 21)
        info = sock.getsockopt(level, socket.TCP_INFO, 104)
        stamp = sock.getsockopt(level, 24)
        window = sock.getsockopt(level, 29, 20)
        sock.close()
        again = self.socket()
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.setsockopt(level, TCP_REPAIR, 1)
        again.bind(own)
        for queue in (1, 2):
            again.setsockopt(level, 20, queue)
            again.setsockopt(level, 21, struct.pack("I", numbers[queue] & 0xFFFFFFFF))
        again.connect(peer)
        options = [
            (2, struct.unpack_from("I", info, 16)[0]),
            (4, 0),
            (8, 0),
            (3, (info[6] & 15) | (info[6] >> 4) << 16),
        ]
        again.setsockopt(level, 22, b"".join(struct.pack("II", *o) for o in options))
        again.setsockopt(level, 24, struct.pack("i", stamp))
        again.setsockopt(level, 29, window)
        again.setsockopt(level, TCP_REPAIR, 0)
        again.sendall(b"moved")
        self.note("came", read_all(again))

    def server_with(self, sock):
        self.meet()
        self.note("came", attempt(read_exactly, sock, 5))
        sock.sendall(b"well")
        sock.close()


class PortsOfARange(Script):
    """IP_LOCAL_PORT_RANGE: five ports for five connections, and none for a sixth."""

    carried = None

    def client(self):
        self.meet()
        ports, last = set(), None
        for _ in range(6):
            sock = self.socket()
            low = 33_000 + self.port - 4_000  # of the kernel's own
            high = low + 4
            sock.setsockopt(
                socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", high << 16 | low)
            )
            last = attempt(sock.connect, self.at())
            if last is None:
                ports.add(sock.getsockname()[1] - low)
        self.note("ports", ports)
        self.note("the sixth", last)
        self.meet()

    def server(self):
        listener = self.listen()
        self.meet()
        self.meet()
        self.note("queue", events(listener, select.POLLIN))


class _Elsewhere(Script):
    """An address that is not on a device: the server's host has a local route for it."""

    def address(self) -> str:
        number = self.port // 8
        if self.family == IP4:
            return f"198.51.{100 + number // 200}.{1 + number % 200}"
        return f"2001:db8:a::{number:x}"


class AnyIp(_Elsewhere):
    """A listener at an address of a local route (AnyIP), to which the client's route leads."""

    families = (IP4,)

    def client(self):
        self.meet()
        sock = self.socket()
        sock.connect((self.address(), self.port))
        self.note("peer", sock.getpeername()[0] == self.address())
        self.note("came", read_all(sock))

    def server(self):
        subprocess.run(["ip", "route", "add", "local", self.address(), "dev", "lo"], check=True)
        listener = self.listen(address=self.address())
        self.meet()
        sock, _ = listener.accept()
        self.note("own", sock.getsockname()[0] == self.address())
        sock.sendall(b"any")
        sock.close()


class FreeBind(_Elsewhere):
    """A listener that is bound before its address is there (IP_FREEBIND)."""

    def client(self):
        self.meet()
        sock = self.socket()
        sock.connect((self.address(), self.port))
        self.note("came", read_all(sock))

    def server(self):
        listener = self.socket()
        self.note("bind", attempt(listener.bind, (self.address(), self.port)))
        listener.setsockopt(
            socket.IPPROTO_IP if self.family == IP4 else 41, 15 if self.family == IP4 else 78, 1
        )
        listener.bind((self.address(), self.port))
        listener.listen(4)
        subprocess.run(["ip", "route", "add", "local", self.address(), "dev", "lo"], check=True)
        self.meet()
        sock, _ = listener.accept()
        sock.sendall(b"free")
        sock.close()


class Chosen(Script):
    """A classic BPF program chooses among three listeners of a port: always the second."""

    def client(self):
        self.meet()
        answers = set()
        for _ in range(12):
            answers.add(read_all(self.connect())[0])
        self.note("answers", answers)
        self.tell("end")

    def server(self):
        listeners = []
        for number in range(3):
            made = self.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(self.at())
            made.listen(16)
            listeners.append(made)
            if not number:
                code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 1))
                made.setsockopt(
                    socket.SOL_SOCKET,
                    SO_ATTACH_REUSEPORT_CBPF,
                    struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)),
                )
        self.meet()

        def serve(number, listener):
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                sock.sendall(str(number).encode())
                sock.close()

        threads = [threading.Thread(target=serve, args=pair) for pair in enumerate(listeners)]
        for thread in threads:
            thread.start()
        self.hear()
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


class ListenerHandedOver(Script):
    """A new process binds the same port (SO_REUSEPORT), then the old one closes: whoever comes
    afterwards is served by the new one.
    """

    def client(self):
        self.meet()
        self.note("old", read_all(self.connect()))
        self.meet()
        self.meet()
        self.note("new", {read_all(self.connect())[0] for _ in range(8)})
        self.tell("end")

    def server(self):
        def bound():
            made = self.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(self.at())
            made.listen(16)
            return made

        old = bound()
        self.meet()
        sock, _ = old.accept()
        sock.sendall(b"old")
        sock.close()
        self.meet()

        def serve():
            old.close()
            new = bound()
            os.write(ready, b"x")
            while True:
                sock, _ = new.accept()
                sock.sendall(b"new")
                sock.close()

        heard, ready = os.pipe()
        pid = self.child(serve)
        os.read(heard, 1)
        old.close()
        self.meet()
        self.hear()
        os.kill(pid, 9)
        os.waitpid(pid, 0)


class TrafficInfo(Pair):
    """TCP_INFO of who sends to a peer that does not read: there are bytes that were not sent."""

    def client_with(self, sock):
        sock.setblocking(False)
        eventually(
            lambda: (
                attempt(sock.send, bytes(1 << 20)) == "EAGAIN"
                and events(sock, select.POLLOUT, 1) == "none"
            )
        )
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 240)
        self.note("not sent", struct.unpack_from("I", info, 144)[0] > 0)
        self.note("state", info[0])
        self.meet()

    def server_with(self, sock):
        self.meet()
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 240)
        self.note("received", struct.unpack_from("Q", info, 128)[0] > 10000)
        self.note("segments came", struct.unpack_from("I", info, 140)[0] > 3)


class Clamp(Pair):
    """TCP_WINDOW_CLAMP of a listener: 200 KB come through it."""

    def before_listen(self, listener):
        listener.setsockopt(socket.IPPROTO_TCP, TCP_WINDOW_CLAMP, 5000)

    def client_with(self, sock):
        sock.sendall(noise(200_000))
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class SegmentsChanged(Pair):
    """TCP_MAXSEG on an open connection: EINVAL or taken, and it goes on."""

    def client_with(self, sock):
        self.note("set", attempt(sock.setsockopt, socket.IPPROTO_TCP, TCP_MAXSEG, 600))
        sock.sendall(noise(100_000))
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class Inq(Pair):
    """TCP_INQ: how much more there is, with each recvmsg()."""

    def client_with(self, sock):
        sock.sendall(noise(5000))
        self.meet()
        self.meet()

    def server_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
        self.meet()
        eventually(lambda: unread(sock) == 5000)
        _, told, _, _ = sock.recvmsg(1000, 64)
        self.note("left", [struct.unpack("i", d)[0] for _, kind, d in told if kind == TCP_INQ])
        self.meet()


class Upper(Pair):
    """TCP_ULP of a protocol that there is not."""

    def client_with(self, sock):
        self.note("ulp", attempt(sock.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"nosuch"))
        sock.sendall(b"plain")
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class BusyPolled(Pair):
    """SO_BUSY_POLL and SO_PREFER_BUSY_POLL, and SO_INCOMING_CPU: taken, and bytes go on."""

    def client_with(self, sock):
        for name, option, value in (("busy", 46, 50), ("prefer", 69, 1), ("budget", 70, 16)):
            self.note(name, attempt(sock.setsockopt, socket.SOL_SOCKET, option, value))
        sock.sendall(noise(100_000))
        sock.shutdown(socket.SHUT_WR)
        self.note("came", read_all(sock))

    def server_with(self, sock):
        self.note("came", read_all(sock))
        sock.sendall(b"polled")
        sock.close()


class SynCount(Script):
    """TCP_SYNCNT of 1 to a peer whose host drops: ETIMEDOUT."""

    carried = ("client",)

    def client(self):
        self.meet()
        sock = self.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        target = "203.0.113.1" if self.family == IP4 else "2001:db8:beef::1"
        self.note("connect", attempt(sock.connect, (target, self.port)))

    def server(self):
        self.meet()


class PortsUsedUp(Script):
    """Every port of a small range is taken: EADDRNOTAVAIL, and one is there when one is closed."""

    carried = None

    def client(self):
        self.meet()
        socks = []
        for number in range(1, 4):
            sock = self.socket()
            sock.bind((self.here, self.port + number))
            sock.connect(self.at())
            socks.append(sock)
        more = self.socket()
        self.note("bind", attempt(more.bind, (self.here, self.port + 1)))
        self.note("same", attempt(self._again, 1))
        socks[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socks[0].close()
        self.note("then", attempt(self._again, 1))
        self.meet()

    def _again(self, number):
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.here, self.port + number))
        sock.connect(self.at())

    def server(self):
        listener = self.listen()
        self.meet()
        kept = [listener.accept()[0] for _ in range(4)]
        self.meet()
        self.note("accepted", len(kept))
