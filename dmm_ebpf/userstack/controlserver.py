# SPDX-License-Identifier: Apache-2.0
"""The control socket of a stack process: who may ask, how much, and for how long.

Only root is heard: whoever else gets hold of the socket is hung up on before a byte of it is read
(SO_PEERCRED, unix(7)). What is not a request ends its connection; a connection that says nothing,
or does not take its answer, is ended after IDLE_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dmm_ebpf.errors import DmmError
from dmm_ebpf.frames import Message
from dmm_ebpf.peercred import peer
from dmm_ebpf.userstack import control

MAX_CLIENTS = 16
IDLE_S = 30.0
DRAIN_S = 5.0  # for the end of a stream

log = logging.getLogger("dmm-ebpf.stack")


def listen(path: Path) -> socket.socket:
    """A socket for ControlServer at path, root's alone; what stands there is
    replaced. Raises DmmError.
    """
    try:
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(MAX_CLIENTS)
        sock.setblocking(False)
    except OSError as error:
        raise DmmError(f"listen on {path}", why=os.strerror(error.errno or 0)) from error
    return sock


class Stream(Protocol):
    """What is written to a client's connection after an answer, instead of more answers."""

    def drain(self) -> int:
        """Begins nothing more; how many bytes are still to be written."""

    def end(self) -> None:
        """The connection is not used any more."""


# The answer to a request: its number, its method, its parameters.
Answer = Callable[[int, str, Message], Message]
# Of a request that was granted its method, its parameters and its connection's descriptor; None:
# more requests may come.
Begin = Callable[[str, Message, int], Stream | None]


class ControlServer:
    """Hands requests to answer, and what it returns back. Lives in the event loop."""

    def __init__(self, listener: socket.socket, answer: Answer, begin: Begin) -> None:
        self._listener = listener
        self._answer = answer
        self._begin = begin
        self._clients: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Hangs up on everybody."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for client in self._clients:
            client.cancel()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it has gone again, or there are no descriptors left
            return
        _pid, uid = peer(sock)
        if uid != 0 or len(self._clients) == MAX_CLIENTS:
            log.warning("control: a process of user %d was not heard", uid)
            sock.close()
            return
        client = self._loop.create_task(self._serve(sock))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    message = await control.REQUESTS.read(reader)
                    if message is None:
                        return
                    number, method, params = control.REQUESTS.request_of(message)
                    answer = self._answer(number, method, params)
                    await control.write(writer, answer)
                if answer["ok"] and (stream := self._begin(method, params, sock.fileno())):
                    await _until_hung_up(reader, stream)
                    return
        except TimeoutError:
            return
        except (DmmError, ConnectionError) as error:
            log.warning("control: %s", error)
        finally:
            writer.close()


async def _until_hung_up(reader: asyncio.StreamReader, stream: Stream) -> None:
    """Whatever the client says now, it has had enough, but for what is on its way."""
    try:
        await reader.read(1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while stream.drain():
                    await asyncio.sleep(DRAIN_S / 1000)
    finally:
        stream.end()
