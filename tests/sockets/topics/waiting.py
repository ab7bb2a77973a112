# SPDX-License-Identifier: Apache-2.0
"""poll(), epoll, time-outs and low-water marks: who is woken, when, by what."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time

from sockets.script import (
    Pair,
    attempt,
    events,
    eventually,
    how_long,
    noise,
    poll_names,
    read_all,
    read_exactly,
    tcp_state,
)

ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLPRI
EVERY = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP


def unread(sock: socket.socket) -> int:
    """FIONREAD."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]


def waiting_out(sock: socket.socket) -> int:
    """SIOCOUTQ."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]


def fill(sock: socket.socket) -> int:
    """Writes until nothing more is taken for a second; how much was."""
    sock.setblocking(False)
    sent = 0
    while True:
        took = attempt(sock.send, bytes(65536))
        if took == "EAGAIN":
            if events(sock, select.POLLOUT, 1) == "none":
                return sent
        else:
            sent += took


class EdgeTriggered(Pair):
    """EPOLLET tells once of each arrival."""

    def client_with(self, sock):
        for turn in range(3):
            sock.sendall(str(turn).encode())
            self.meet()
            self.meet()
        sock.close()
        self.meet()

    def server_with(self, sock):
        with select.epoll() as epoll:
            epoll.register(sock, EVERY | select.EPOLLET)
            for turn in range(3):
                self.meet()
                eventually(lambda turn=turn: unread(sock) == turn + 1)
                self.note(f"turn {turn}", [poll_names(mask) for _, mask in epoll.poll(10)])
                self.note("again", [poll_names(mask) for _, mask in epoll.poll(0)])
                self.meet()
            self.meet()
            eventually(lambda: tcp_state(sock) == "CLOSE_WAIT")
            self.note("end", [poll_names(mask) for _, mask in epoll.poll(10)])
            self.note("came", read_all(sock))
            self.note("after", [poll_names(mask) for _, mask in epoll.poll(0)])


class OneShot(Pair):
    """EPOLLONESHOT tells once, until it is armed again."""

    def client_with(self, sock):
        sock.sendall(b"x")
        self.meet()

    def server_with(self, sock):
        with select.epoll() as epoll:
            epoll.register(sock, select.EPOLLIN | select.EPOLLONESHOT)
            self.note("first", [poll_names(mask) for _, mask in epoll.poll(10)])
            self.note("second", [poll_names(mask) for _, mask in epoll.poll(0)])
            epoll.modify(sock, select.EPOLLIN | select.EPOLLONESHOT)
            self.note("armed", [poll_names(mask) for _, mask in epoll.poll(0)])
        self.meet()


class HalfClosed(Pair):
    """RDHUP at a half close, HUP when both sides have ended."""

    def client_with(self, sock):
        sock.shutdown(socket.SHUT_WR)
        self.note("own", events(sock, ALL))
        self.meet()
        self.note("end", read_all(sock))
        self.note("own then", eventually(lambda: "HUP" in events(sock, ALL).split("|")))

    def server_with(self, sock):
        self.note("events", events(sock, select.POLLRDHUP, 10))
        self.note("all", events(sock, ALL))
        self.meet()
        sock.shutdown(socket.SHUT_WR)
        self.note("hung up", eventually(lambda: "HUP" in events(sock, ALL).split("|")))
        self.note("all then", events(sock, ALL))


class WritableAgain(Pair):
    """OUT goes when the peer does not read, and comes back when it does."""

    def client_with(self, sock):
        fill(sock)
        self.note("full", events(sock, select.POLLOUT))
        self.meet()
        self.note("again", events(sock, select.POLLOUT, 10))
        sock.close()

    def server_with(self, sock):
        self.meet()
        self.note("end", read_all(sock)[1])


class LowWater(Pair):
    """SO_RCVLOWAT: no event, and no return, before so many bytes are there."""

    def client_with(self, sock):
        sock.sendall(b"x" * 50)
        self.meet()
        self.meet()
        sock.sendall(b"y" * 50)
        self.meet()
        sock.sendall(b"z" * 10)
        sock.close()

    def server_with(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        self.note("set", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))
        self.meet()
        eventually(lambda: unread(sock) == 50)
        self.note("half", events(sock, select.POLLIN))
        self.note("not waiting", attempt(sock.recv, 10, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        self.meet()
        self.note("all", events(sock, select.POLLIN, 10))
        self.note("came", sock.recv(200))
        self.meet()
        self.note("rest", read_all(sock))


class ReceiveTimeout(Pair):
    """SO_RCVTIMEO ends recv(), with MSG_WAITALL gives what came."""

    def client_with(self, sock):
        self.meet()
        sock.sendall(b"part")
        self.meet()

    def server_with(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 400_000))
        began = time.monotonic()
        self.note("recv", attempt(sock.recv, 10))
        self.note("took", how_long(began, 0.4))
        self.meet()
        events(sock, select.POLLIN, 10)
        self.note("all", attempt(sock.recv, 10, socket.MSG_WAITALL))
        self.meet()


class SendTimeout(Pair):
    """SO_SNDTIMEO ends send() to a peer that does not read."""

    def client_with(self, sock):
        fill(sock)
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 500_000))
        while isinstance(how := attempt(sock.send, bytes(100)), int):
            pass  # the last buffer had room
        self.note("send", how)
        began = time.monotonic()
        while isinstance(how := attempt(sock.send, bytes(65536)), int):
            began = time.monotonic()  # what the peer's host took late had made room
        self.note("again", how)
        self.note("took", how_long(began, 0.5))
        self.meet()

    def server_with(self, sock):
        self.meet()


class NotSent(Pair):
    """TCP_NOTSENT_LOWAT: writable only while little is unsent; all of it arrives."""

    def client_with(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16384)
        self.note("set", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))
        sock.setblocking(False)
        data, sent = noise(1_000_000), 0
        while sent < len(data):
            self.note("stalls", 0) if events(sock, select.POLLOUT, 10) == "none" else None
            took = attempt(sock.send, data[sent : sent + 10_000])
            sent += took if isinstance(took, int) else 0
        sock.close()

    def server_with(self, sock):
        self.note("came", read_all(sock))


class Counts(Pair):
    """FIONREAD and SIOCOUTQ."""

    def client_with(self, sock):
        sock.sendall(bytes(5000))
        self.note("unacknowledged", eventually(lambda: waiting_out(sock) == 0))
        self.meet()

    def server_with(self, sock):
        self.note("unread", eventually(lambda: unread(sock) == 5000))
        self.note("read", len(read_exactly(sock, 2000)))
        self.note("left", unread(sock))
        self.meet()


class UnreadByPeer(Pair):
    """What a peer that does not read has not acknowledged is seen by SIOCOUTQ."""

    def client_with(self, sock):
        fill(sock)
        self.note("some", waiting_out(sock) > 0)
        self.meet()
        self.note("none", eventually(lambda: waiting_out(sock) == 0))
        sock.close()

    def server_with(self, sock):
        self.meet()
        self.note("end", read_all(sock)[1])


class SignalIo(Pair):
    """O_ASYNC: SIGIO when something comes."""

    def client_with(self, sock):
        self.meet()
        sock.sendall(b"x")
        self.meet()

    def server_with(self, sock):
        caught = []
        signal.signal(signal.SIGIO, lambda number, _: caught.append(number))
        fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)
        self.meet()
        self.note("caught", eventually(lambda: bool(caught)))
        self.note("came", sock.recv(10))
        self.meet()


class TwoReaders(Pair):
    """Two threads in recv() of one socket: each byte goes to one of them."""

    def client_with(self, sock):
        for _ in range(200):
            sock.sendall(b"12345")
        sock.close()

    def server_with(self, sock):
        counted = [0, 0]

        def read(number):
            while part := sock.recv(3):
                counted[number] += len(part)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.note("all", sum(counted))


class Asyncio(Pair):
    """asyncio's streams: thirty connections at once, and their ends."""

    def client(self):
        async def ask(number):
            reader, writer = await asyncio.open_connection(*self.at())
            writer.write(noise(20_000, number))
            writer.write_eof()
            data = await reader.read()
            writer.close()
            await writer.wait_closed()
            return data == noise(20_000, number)[::-1]

        async def all_of_them():
            return await asyncio.gather(*(ask(number) for number in range(30)))

        self.meet()
        self.note("answers", set(map(str, asyncio.run(all_of_them()))))
        self.tell("end")

    def server(self):
        async def serve(reader, writer):
            writer.write((await reader.read())[::-1])
            await writer.drain()
            writer.close()

        async def until_told():
            async with await asyncio.start_server(serve, self.here, self.port, backlog=64):
                await asyncio.to_thread(self.meet)
                await asyncio.to_thread(self.hear)

        asyncio.run(until_told())
