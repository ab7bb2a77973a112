# SPDX-License-Identifier: Apache-2.0
"""The application of the table: it serves and connects, by plain sockets, what it is told
on standard input.

Run by /usr/bin/python3 as it is, so it knows nothing of dmm-ebpf. One JSON object a line comes in,
one goes out:

    {"do": "listen", "address": "::", "port": 80}            -> {"listener": 1}
    {"do": "connect", "address": "…", "port": 80, "up": …}   -> {"socket": 1, "local": […], …}, or
                                                                {"error": "ECONNREFUSED", "at":
                                                                "connect"}
    {"do": "close", "socket": 1}                             -> {"end": "clean"}

A connection carries `up` bytes of noise to the server and `down` bytes back, both hashed, and then
stays open until it is closed. Sizes are bytes, times seconds. A socket option is [level, option,
value], by the names of module socket.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from typing import Any

CHUNK = 1 << 16
Told = dict[str, Any]


@functools.cache  # a case's payloads are few, and making one takes longer than sending it
def noise(size: int, seed: int) -> bytes:
    """size bytes that the seed decides."""
    return random.Random(seed).randbytes(size)


@functools.cache
def digest_of(size: int, seed: int) -> str:
    """SHA-256 of that noise."""
    return hashlib.sha256(noise(size, seed)).hexdigest()


def name_of(error: OSError) -> str:
    """An errno by its name; a time-out of the socket's own is "stalled"."""
    if error.errno in (errno.EAGAIN, errno.EINPROGRESS):
        return "stalled"
    return errno.errorcode.get(error.errno or 0, str(error))


def new_socket(told: Told) -> socket.socket:
    """A TCP socket with the options, the device and the user that were asked for."""
    uid = told.get("uid")
    if uid is not None:
        os.seteuid(uid)
    try:
        made = socket.socket(socket.AF_INET6 if ":" in told["address"] else socket.AF_INET)
    finally:
        if uid is not None:
            os.seteuid(0)
    limit = struct.pack("@ll", int(told.get("patience", 5)), 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    if told.get("device"):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, told["device"].encode())
    set_options(made, told.get("options", []))
    return made


def set_options(sock: socket.socket, options: list[list[Any]]) -> None:
    """Sets options, each [level, option, value]."""
    for level, option, value in options:
        sock.setsockopt(getattr(socket, level), getattr(socket, option), value)


def read_line(sock: socket.socket) -> bytes:
    """One line; short when the peer ends first."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return bytes(line)


def read_hashed(sock: socket.socket, size: int) -> tuple[int, str, str]:
    """Reads size bytes: how many came, their SHA-256, and the name of the error that ended
    it, or nothing.
    """
    digest, came = hashlib.sha256(), 0
    try:
        while came < size and (data := sock.recv(min(CHUNK, size - came))):
            came += len(data)
            digest.update(data)
    except OSError as error:
        return came, digest.hexdigest(), name_of(error)
    return came, digest.hexdigest(), ""


def mark_of(sock: socket.socket) -> int:
    """SO_MARK as a program reads it."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)


class Agent:
    """What is open, and what the server's side has seen."""

    def __init__(self) -> None:
        self.numbers = iter(range(1, 1 << 30))
        self.listeners: dict[int, socket.socket] = {}
        self.sockets: dict[int, socket.socket] = {}
        self.served: list[Told] = []

    def do_listen(self, told: Told) -> Told:
        """A listener, whose connections are served by threads until it is closed."""
        listener = new_socket(told)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 0))
        if told.get("transparent"):
            level, option = (
                (socket.IPPROTO_IPV6, 75) if ":" in told["address"] else (socket.IPPROTO_IP, 19)
            )
            listener.setsockopt(level, option, 1)
        listener.bind((told["address"], told["port"]))
        listener.listen(told.get("backlog", 64))
        number = next(self.numbers)
        self.listeners[number] = listener
        threading.Thread(
            target=self._accept, args=(listener, told.get("patience", 5)), daemon=True
        ).start()
        return {"listener": number, "port": listener.getsockname()[1]}

    def _accept(self, listener: socket.socket, patience: float) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                threading.Thread(target=self._serve, args=(accepted, patience), daemon=True).start()

    def _serve(self, sock: socket.socket, patience: float) -> None:
        saw: Told = {
            "local": sock.getsockname()[:2],
            "peer": sock.getpeername()[:2],
            "mark": mark_of(sock),
        }
        self.served.append(saw)
        with contextlib.suppress(OSError, ValueError), sock:
            limit = struct.pack("@ll", int(patience) + 10, 0)  # who connects gives up first
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            asked = json.loads(read_line(sock))
            saw["came"], saw["sha256"], saw["error"] = read_hashed(sock, asked["up"])
            if saw["error"]:
                return
            sock.sendall(json.dumps(saw).encode() + b"\n")
            sock.sendall(noise(asked["down"], asked["seed"] + 1))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 0))
            sock.recv(1)

    def do_connect(self, told: Told) -> Told:
        """A connection that carries the payload both ways; it stays open unless an
        error ended it.
        """
        sock = new_socket(told)
        phase, began = "connect", time.monotonic()
        answer: Told = {}
        try:
            if told.get("bind"):
                sock.bind((told["bind"], 0))
            sock.connect((told["address"], told["port"]))
            answer |= {"local": sock.getsockname()[:2], "peer": sock.getpeername()[:2]}
            set_options(sock, told.get("options_after", []))
            answer["mark"] = mark_of(sock)
            phase, ready = "send", time.monotonic()
            sent = noise(told["up"], told["seed"])
            asked = {"up": told["up"], "down": told["down"], "seed": told["seed"]}
            sock.sendall(json.dumps(asked).encode() + b"\n" + sent)
            phase = "answer"
            line = read_line(sock)
            if not line:
                raise ConnectionResetError(errno.EPIPE, "the server hung up")
            saw = json.loads(line)
            turned = time.monotonic()
            phase = "receive"
            came, sha256, error = read_hashed(sock, told["down"])
            done = time.monotonic()
        except OSError as failed:
            return answer | self._failed(sock, name_of(failed), phase, began)
        answer["server"] = saw
        if error:
            return answer | self._failed(sock, error, phase, began)
        answer["up"] = saw["sha256"] == digest_of(told["up"], told["seed"])
        answer["down"] = sha256 == digest_of(told["down"], told["seed"] + 1)
        answer |= {
            "came": came,
            "connect_s": ready - began,
            "up_s": turned - ready,
            "down_s": done - turned,
        }
        number = next(self.numbers)
        self.sockets[number] = sock
        return answer | {"socket": number}

    @staticmethod
    def _failed(sock: socket.socket, error: str, phase: str, began: float) -> Told:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        sock.close()
        return {"error": error, "at": phase, "after_s": time.monotonic() - began}

    def do_close(self, told: Told) -> Told:
        """Closes a connection after the other side has: "clean", or how it ended."""
        with self.sockets.pop(told["socket"]) as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
                return {"end": "data" if sock.recv(1) else "clean"}
            except OSError as error:
                return {"end": name_of(error)}

    def do_unlisten(self, told: Told) -> Told:
        """Closes a listener; what it has accepted goes on."""
        listener = self.listeners.pop(told["listener"])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        return {}

    def do_served(self, told: Told) -> Told:
        """What the server's side has seen since the last time."""
        seen, self.served = self.served, []
        return {"served": seen}


def main() -> None:
    """Does what it is told until standard input ends."""
    agent = Agent()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        try:
            answer = getattr(agent, f"do_{told['do']}")(told)
        except OSError as error:
            answer = {"error": name_of(error), "at": told["do"]}
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
