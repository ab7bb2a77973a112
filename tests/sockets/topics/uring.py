# SPDX-License-Identifier: Apache-2.0
"""io_uring(7): by the thread that asks, by its workers and by its polling thread."""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct

from sockets.script import IP4, Script, digest, noise, read_all, read_exactly

LIBC = ctypes.CDLL(None, use_errno=True)
SETUP, ENTER = 425, 426  # io_uring(7)
OP_CONNECT, OP_ACCEPT, OP_SEND, OP_RECV, OP_SHUTDOWN = 16, 13, 26, 27, 34
OP_PROVIDE_BUFFERS = 31
IOSQE_ASYNC, IOSQE_BUFFER_SELECT = 1 << 4, 1 << 5
RECV_MULTISHOT, ACCEPT_MULTISHOT = 1 << 1, 1 << 0  # ioprio of IORING_OP_RECV, of IORING_OP_ACCEPT
CQE_F_MORE = 1 << 1
SETUP_SQPOLL = 1 << 1


class Ring:
    """io_uring of 8 entries."""

    def __init__(self, flags: int = 0) -> None:
        self.params = (ctypes.c_uint32 * 30)()
        self.params[2] = flags
        self.params[4] = 50
        self.fd = LIBC.syscall(SETUP, 8, ctypes.byref(self.params))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        p = self.params
        self.sq, self.cq = list(p[10:20]), list(p[20:30])
        self.rings = mmap.mmap(
            self.fd, max(self.sq[6] + p[0] * 4, self.cq[5] + p[1] * 16), offset=0
        )
        self.entries = mmap.mmap(self.fd, p[0] * 64, offset=0x10000000)
        self.flags = flags

    def _get(self, at: int) -> int:
        return struct.unpack_from("I", self.rings, at)[0]

    def call(
        self,
        op: int,
        fd: int,
        addr: int,
        length: int,
        off: int = 0,
        flags: int = 0,
        op_flags: int = 0,
    ) -> int:
        self.ask(op, fd, addr, length, off, flags, op_flags)
        return self.next()[0]

    def ask(
        self,
        op: int,
        fd: int,
        addr: int,
        length: int,
        off: int = 0,
        flags: int = 0,
        op_flags: int = 0,
        *,
        prio: int = 0,
        group: int = 0,
    ) -> None:
        """Asks for one thing; its answers are next()'s."""
        tail = self._get(self.sq[1])
        index = tail & self._get(self.sq[2])
        entry = struct.pack(
            "BBHiQQIIQH", op, flags, prio, fd, off, addr, length, op_flags, tail, group
        )
        self.entries[index * 64 : index * 64 + 64] = entry.ljust(64, b"\0")
        struct.pack_into("I", self.rings, self.sq[6] + index * 4, index)
        struct.pack_into("I", self.rings, self.sq[1], tail + 1)
        self._enter(0 if self.flags & SETUP_SQPOLL else 1, 0)

    def _enter(self, count: int, least: int) -> None:
        wake = 1 | (2 if self.flags & SETUP_SQPOLL and self._get(self.sq[4]) & 1 else 0)
        if LIBC.syscall(ENTER, self.fd, count, least, wake, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")

    def next(self) -> tuple[int, int]:
        """The next answer, waited for: result and flags."""
        if self._get(self.cq[0]) == self._get(self.cq[1]):
            self._enter(0, 1)
        head = self._get(self.cq[0])
        at = self.cq[5] + (head & self._get(self.cq[2])) * 16
        _, result, flags = struct.unpack_from("QiI", self.rings, at)
        struct.pack_into("I", self.rings, self.cq[0], head + 1)
        return result, flags


def name_of_address(script: Script, number: int = 0) -> ctypes.Array[ctypes.c_char]:
    host, port = script.at(number)
    if script.family == IP4:
        packed = struct.pack("=H", script.af) + struct.pack("!H4s8x", port, socket.inet_aton(host))
    else:
        packed = struct.pack("=H", script.af) + struct.pack(
            "!HI16sI", port, 0, socket.inet_pton(socket.AF_INET6, host), 0
        )
    return ctypes.create_string_buffer(packed, len(packed))


class _Uring(Script):
    """connect, send and recv by io_uring; the server accepts by it."""

    entry_flags = 0
    setup_flags = 0

    def client(self):
        self.meet()
        ring = Ring(self.setup_flags)
        sock = self.socket()
        where = name_of_address(self)
        self.note(
            "connect",
            ring.call(
                OP_CONNECT, sock.fileno(), ctypes.addressof(where), 0, len(where), self.entry_flags
            ),
        )
        self.note("peer", sock.getpeername()[1] == self.port)
        text = ctypes.create_string_buffer(b"question", 8)
        self.note(
            "send",
            ring.call(OP_SEND, sock.fileno(), ctypes.addressof(text), 8, flags=self.entry_flags),
        )
        got = ctypes.create_string_buffer(64)
        count = ring.call(OP_RECV, sock.fileno(), ctypes.addressof(got), 64, flags=self.entry_flags)
        self.note("answer", got.raw[:count])
        self.note("shutdown", ring.call(OP_SHUTDOWN, sock.fileno(), 0, socket.SHUT_WR))
        self.note("end", ring.call(OP_RECV, sock.fileno(), ctypes.addressof(got), 64))
        refused = self.socket()
        where = name_of_address(self, 3)
        self.note(
            "refused",
            ring.call(
                OP_CONNECT,
                refused.fileno(),
                ctypes.addressof(where),
                0,
                len(where),
                self.entry_flags,
            ),
        )

    def server(self):
        listener = self.listen()
        ring = Ring(self.setup_flags)
        self.meet()
        fd = ring.call(OP_ACCEPT, listener.fileno(), 0, 0, flags=self.entry_flags)
        self.note("accepted", fd > 0)
        sock = self.keep(socket.socket(fileno=fd))
        self.note("question", read_exactly(sock, 8))
        sock.sendall(b"answer")
        self.note("end", read_all(sock))
        sock.close()


class Uring(_Uring):
    """By the thread that asks."""


class UringByWorker(_Uring):
    """By a worker of io_uring's."""

    entry_flags = IOSQE_ASYNC


class UringByPoller(_Uring):
    """By its polling thread."""

    setup_flags = SETUP_SQPOLL


class Multishot(Script):
    """One request to accept, for three connections, and one to receive for each, into buffers
    that the kernel chooses.
    """

    def client(self):
        self.meet()
        socks = [self.connect() for _ in range(3)]
        for number, sock in enumerate(socks):
            for turn in range(3):
                sock.sendall(noise(5_000, number * 3 + turn))
                self.meet()
            sock.shutdown(socket.SHUT_WR)
        self.note("answers", [read_all(sock) for sock in socks])

    def server(self):
        listener = self.listen()
        ring = Ring()
        self.meet()
        ring.ask(OP_ACCEPT, listener.fileno(), 0, 0, prio=ACCEPT_MULTISHOT)
        accepted = [ring.next() for _ in range(3)]
        self.note("more", [bool(flags & CQE_F_MORE) for _, flags in accepted])
        size, count = 1000, 64
        room = ctypes.create_string_buffer(size * count)
        for fd, _ in accepted:
            ring.ask(OP_PROVIDE_BUFFERS, count, ctypes.addressof(room), size, group=7)
            self.note("provided", ring.next()[0])
            ring.ask(OP_RECV, fd, 0, 0, flags=IOSQE_BUFFER_SELECT, prio=RECV_MULTISHOT, group=7)
            data = b""
            met = 0
            while (told := ring.next())[0] > 0:
                result, flags = told
                at = (flags >> 16) * size
                data += room.raw[at : at + result]
                if len(data) == (met + 1) * 5_000:
                    met += 1
                    self.meet()
            self.note("end", [told[0], bool(told[1] & CQE_F_MORE)])
            sock = socket.socket(fileno=fd)
            sock.sendall(digest(data).encode())
            sock.close()
