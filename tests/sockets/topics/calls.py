# SPDX-License-Identifier: Apache-2.0
"""Calls and options that few programs use: many messages by one call, pages given to a pipe, eBPF
that chooses a listener, kTLS, addresses that are not the host's, times of what came.
"""

from __future__ import annotations

import ctypes
import os
import platform
import select
import socket
import struct
import subprocess
import time

from sockets.script import (
    IP4,
    Pair,
    Script,
    attempt,
    digest,
    events,
    eventually,
    how_long,
    noise,
    poll_names,
    read_all,
    read_exactly,
    tcp_state,
)
from sockets.topics.waiting import fill

LIBC = ctypes.CDLL(None, use_errno=True)
NR_BPF = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD, SOCKET_FILTER = 5, 1
SO_ATTACH_REUSEPORT_EBPF = 52
SO_TIMESTAMPING, SCM_TIMESTAMPING = 37, 37
RX_SOFTWARE, SOFTWARE = 1 << 3, 1 << 4
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
TCP_ULP = 31
SOL_TLS, TLS_TX, TLS_RX = 282, 1, 2
MSG_WAITFORONE = 0x10000


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Header(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("message", Message), ("length", ctypes.c_uint))


def headers(buffers):
    """An array of struct mmsghdr, one for each buffer, which must be kept."""
    made = (Header * len(buffers))()
    for header, buffer in zip(made, buffers, strict=True):
        vector = Iovec(ctypes.addressof(buffer), len(buffer))
        header.message.iov, header.message.iovlen = ctypes.pointer(vector), 1
    return made


def always(number: int) -> int:
    """A descriptor of an eBPF program that says this number of whatever it is asked."""
    code = struct.pack("<BBhiBBhi", 0xB7, 0, 0, number, 0x95, 0, 0, 0)
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    words = struct.pack(
        "<IIQQ", SOCKET_FILTER, 2, ctypes.addressof(text), ctypes.addressof(licence)
    )
    attr = ctypes.create_string_buffer(words.ljust(128, b"\0"), 128)
    return LIBC.syscall(NR_BPF[platform.machine()], BPF_PROG_LOAD, attr, len(attr))


class ManyMessages(Pair):
    """sendmmsg() of four messages, and recvmmsg() of what came, which does not wait for more."""

    def client_with(self, sock):
        buffers = [ctypes.create_string_buffer(noise(700, n), 700) for n in range(4)]
        sent = headers(buffers)
        self.note("sent", LIBC.sendmmsg(sock.fileno(), sent, 4, 0))
        self.note("lengths", [header.length for header in sent])
        self.note("end", read_all(sock))

    def server_with(self, sock):
        self.note("peeked", len(read_peeked(sock, 2800)))
        buffers = [ctypes.create_string_buffer(1000) for _ in range(4)]
        got = headers(buffers)
        self.note("got", LIBC.recvmmsg(sock.fileno(), got, 4, MSG_WAITFORONE, None))
        self.note("lengths", [header.length for header in got])
        self.note("came", b"".join(b.raw[: h.length] for b, h in zip(buffers, got, strict=True)))


def read_peeked(sock, size):
    """What recv() would give, once there is so much."""
    eventually(lambda: len(sock.recv(size, socket.MSG_PEEK)) == size)
    return sock.recv(size, socket.MSG_PEEK)


class Gifted(Pair):
    """vmsplice() of own memory into a pipe, and splice() from there."""

    def client_with(self, sock):
        data, sent = ctypes.create_string_buffer(noise(300_000), 300_000), 0
        read, write = os.pipe()
        while sent < len(data):
            vector = Iovec(ctypes.addressof(data) + sent, min(40_000, len(data) - sent))
            count = LIBC.vmsplice(write, ctypes.byref(vector), 1, 0)
            sent += count
            while count:
                count -= os.splice(read, sock.fileno(), count)
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))

    def server_with(self, sock):
        self.note("came", read_all(sock))


class ChosenByBpf(Script):
    """An eBPF program chooses among three listeners of a port: always the third."""

    def client(self):
        self.meet()
        self.note("answers", [read_all(self.connect()) for _ in range(8)])
        self.meet()

    def server(self):
        listeners = []
        for _ in range(3):
            made = self.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(self.at())
            made.listen(16)
            listeners.append(made)
        program = always(2)
        self.note("program", program > 0)
        self.note(
            "attached",
            attempt(listeners[0].setsockopt, socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, program),
        )
        self.meet()
        for _ in range(8):
            ready, _, _ = select.select(listeners, [], [], 10)
            sock, _ = ready[0].accept()
            sock.sendall(f"by {listeners.index(ready[0])}".encode())
            sock.close()
        self.meet()


class OfProcessor(Script):
    """SO_INCOMING_CPU of three listeners of a port: each connection has an answer, and an accepted
    socket says a processor that there is.
    """

    def client(self):
        self.meet()
        self.note("answers", {read_all(self.connect()) for _ in range(8)})
        self.meet()

    def server(self):
        listeners = []
        for number in range(2):
            made = self.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_INCOMING_CPU, number)
            made.bind(self.at())
            made.listen(16)
            listeners.append(made)
        self.meet()
        there = set()
        for _ in range(8):
            ready, _, _ = select.select(listeners, [], [], 10)
            sock, _ = ready[0].accept()
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_INCOMING_CPU)
            there.add(0 <= number < os.cpu_count())
            sock.sendall(b"here")
            sock.close()
        self.note("processors", there)
        self.meet()


class NotSentByEpoll(Pair):
    """TCP_NOTSENT_LOWAT and an edge-triggered epoll: no OUT while much is unsent, one when the peer
    has read.
    """

    def client_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 8192)
        self.note("peak", fill(sock) > 100_000)
        with select.epoll() as epoll:
            epoll.register(sock, select.EPOLLOUT | select.EPOLLET)
            self.note("while full", [poll_names(mask) for _, mask in epoll.poll(0.3)])
            self.meet()
            self.note("when read", [poll_names(mask) for _, mask in epoll.poll(10)])
        sock.setblocking(True)
        sock.shutdown(socket.SHUT_WR)
        self.note("end", read_all(sock))

    def server_with(self, sock):
        self.meet()
        self.note("end", read_all(sock)[1])


class Overflow(Script):
    """A backlog of 0, and four who connect: who is served, and who hears nothing, before and after
    somebody accepts.
    """

    seconds = 60.0

    def client(self):
        self.meet()
        socks = [self.socket() for _ in range(3)]
        self.note("connects", [attempt(sock.connect, self.at()) for sock in socks[:2]])
        self.meet()
        self.meet()
        self.note("then", attempt(socks[2].connect, self.at()))
        self.meet()

    def server(self):
        listener = self.listen(backlog=0)
        self.meet()
        self.meet()
        sock, _ = listener.accept()
        self.keep(sock)
        self.note("more", events(listener, select.POLLIN, 0.3))
        self.meet()
        self.note("third", events(listener, select.POLLIN, 10))
        self.meet()


class DeferredInVain(Script):
    """TCP_DEFER_ACCEPT of 1 s, and a client that says nothing: it is accepted all the same."""

    def client(self):
        self.meet()
        sock = self.connect()
        self.note("came", read_all(sock))

    def server(self):
        listener = self.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        listener.bind(self.at())
        listener.listen(4)
        self.meet()
        began = time.monotonic()
        self.note("events", events(listener, select.POLLIN, 10))
        self.note("took", how_long(began, 1))
        sock, _ = listener.accept()
        sock.sendall(b"at last")
        sock.close()


class TimesOfReceiving(Pair):
    """SO_TIMESTAMPING: when what came was received."""

    def client_with(self, sock):
        self.meet()
        sock.sendall(b"now")
        self.note("end", read_all(sock))

    def server_with(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE)
        self.meet()
        data, told, _, _ = sock.recvmsg(100, 256)
        self.note("came", data)
        for level, kind, value in told:
            if (level, kind) == (socket.SOL_SOCKET, SCM_TIMESTAMPING):
                seconds, nanoseconds = struct.unpack_from("qq", value)
                late = time.time() - seconds - nanoseconds / 1e9
                self.note("time", -1 < late < 20)


class Encrypted(Pair):
    """TCP_ULP "tls" (kTLS) both ways, where the kernel has it."""

    def key(self, sock, way, seed):
        # struct tls12_crypto_info_aes_gcm_128 of TLS 1.2
        secret = struct.pack("HH", 0x0303, 51) + noise(8, seed) + noise(16, seed) + noise(4, seed)
        sock.setsockopt(SOL_TLS, way, secret + bytes(8))

    def begin(self, sock, out, back):
        taken = attempt(sock.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"tls")
        self.note("taken", taken)
        if taken is None:
            self.key(sock, TLS_TX, out)
            self.key(sock, TLS_RX, back)

    def client_with(self, sock):
        self.begin(sock, 1, 2)
        sock.sendall(noise(100_000))
        self.note("back", digest(read_exactly(sock, 100_000)))

    def server_with(self, sock):
        self.begin(sock, 2, 1)
        data = read_exactly(sock, 100_000)
        self.note("came", digest(data))
        sock.sendall(data)


class Foreign(Script):
    """IP_TRANSPARENT: a client whose address is no address of its host."""

    families = (IP4,)

    def address(self):
        return f"198.18.{self.port >> 8}.{self.port & 255}"

    def client(self):
        mark, table = str(self.port), f"inet foreign{self.port}"
        rule = f"ip daddr {self.address()} meta l4proto tcp socket transparent 1 meta mark set"
        chain = "type filter hook prerouting priority mangle;"
        commands = f"add table {table}; add chain {table} c {{ {chain} }};"
        subprocess.run(["nft", f"{commands} add rule {table} c {rule} {mark}"], check=True)
        way = ["fwmark", mark, "lookup", mark]
        subprocess.run(["ip", "rule", "add", *way], check=True)
        subprocess.run(
            ["ip", "route", "add", "local", "default", "dev", "lo", "table", mark], check=True
        )
        self.meet()
        sock = self.socket()
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        sock.bind((self.address(), 0))
        self.note("connect", attempt(sock.connect, self.at()))
        self.note("own", sock.getsockname()[0] == self.address())
        self.note("came", read_all(sock))
        self.note("state", tcp_state(sock))
        self.meet()
        subprocess.run(["nft", f"delete table {table}"], check=True)
        subprocess.run(["ip", "rule", "del", *way], check=True)

    def server(self):
        listener = self.listen()
        subprocess.run(["ip", "route", "add", self.address(), "via", self.there], check=True)
        self.meet()
        sock, peer = listener.accept()
        self.note("peer", peer[0] == self.address())
        sock.sendall(b"foreign")
        sock.close()
        self.meet()
        subprocess.run(["ip", "route", "del", self.address()], check=True)


class FinishedByTheKernel(Pair):
    """A process ends with much unsent: its kernel sends all, and its end."""

    def client_with(self, sock):
        data = noise(1_500_000)
        self.note("child", self.ended(self.child(lambda: sock.sendall(data))))
        sock.close()
        self.meet()

    def server_with(self, sock):
        self.note("came", read_all(sock))
        self.meet()
