# SPDX-License-Identifier: Apache-2.0
"""The Resource Director's wire format: the messages of dmm_ebpf/frames.py, and two more.

    stream    {"id": n, "event": {...}}, again and again until the client closes its socket
    pages     {"id": n, "page": [...]}, again and again, then the answer, whose result is empty:
              rows of a long listing; whoever asks with the parameter "columns": true may get
              {"id": n, "columns": [...], "page": [[...], ...]}, names of values, and rows of these
    refusal   an answer with id CONNECTION: the connection is refused, whatever it would ask

Results and events are records (dmm_ebpf/records), as maps.
An answer is no longer than MAX_MESSAGE_BYTES: long listings come in pages. A request is small but
for one text, a policy, and nearly flat.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from dmm_ebpf import frames
from dmm_ebpf.errors import DmmError
from dmm_ebpf.frames import Decoder, FrameError, Frames, Limits, Message
from dmm_ebpf.peercred import peer
from dmm_ebpf.records.record import Record, columns_of, to_map

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["FrameError", "Message"]

CONNECTION = 0  # requests are numbered from 1
MAX_MESSAGE_BYTES = 16 << 20
MAX_REQUEST_BYTES = 5 << 20  # a policy's text of policy.MAX_POLICY_BYTES, and the map around it
SMALL_REQUEST_BYTES = 64 << 10
_READ_BYTES = 256 * 1024
_WHAT = "talk over the Resource Director's socket"
_HINT = "is dmm-ebpf the same version at both ends?"

ANSWERS = Frames(_WHAT, Limits(MAX_MESSAGE_BYTES), hint=_HINT)
REQUESTS = Frames(
    _WHAT,
    Limits(MAX_REQUEST_BYTES, containers=16, entries_of_list=32, entries_of_map=32, blob_bytes=0),
    hint=_HINT,
)


def request(number: int, method: str, params: Message) -> bytes:
    """The frame that asks for method. Raises FrameError above MAX_REQUEST_BYTES."""
    return REQUESTS.encode(frames.request(number, method, params))


def reply(number: int, result: Any) -> bytes:
    """The frame that answers request number. Raises FrameError above MAX_MESSAGE_BYTES."""
    return ANSWERS.encode(frames.reply(number, result), to_map)


def failure(number: int, error: DmmError) -> bytes:
    """The frame that refuses request number."""
    return ANSWERS.encode(frames.failure(number, error))


def pages(number: int, rows: Sequence[Record], *, by_columns: bool) -> Iterator[bytes]:
    """A part of the long listing that request number asked for; the reply ends it."""
    if not by_columns:
        yield ANSWERS.encode({"id": number, "page": rows}, to_map)
        return
    for columns, values in columns_of(rows):
        yield ANSWERS.encode({"id": number, "columns": columns, "page": values})


def event(number: int, told: Record) -> bytes:
    """One event of the stream that request number opened."""
    return ANSWERS.encode({"id": number, "event": told}, to_map)


async def read_request(
    reader: asyncio.StreamReader,
    first: bytes,
    *,
    within_s: float,
    hold: Callable[[int], None],
    kind: Frames = REQUESTS,
) -> Message:
    """The request that begins with the byte first, whole within_s seconds from
    now. Raises FrameError, ConnectionError, and what hold does.

    hold: told of bytes of one that is longer than SMALL_REQUEST_BYTES, as they come.
    """
    import asyncio

    try:
        async with asyncio.timeout(within_s):
            length = await kind.read_length(reader, first)
            if length <= SMALL_REQUEST_BYTES:
                return await kind.read_body(reader, length)
            body = bytearray()
            while len(body) < length:
                part = await reader.read(min(length - len(body), SMALL_REQUEST_BYTES))
                if not part:
                    raise kind.ended()
                hold(len(part))
                body += part
    except TimeoutError as error:
        raise kind.trouble(f"a request was not whole after {within_s:g} s") from error
    return kind.decode(body)


async def write_frame(
    writer: asyncio.StreamWriter, frame: bytes, *, within_s: float | None = None
) -> None:
    """Send one frame, and wait while the peer is slow, but no longer than
    within_s: then FrameError.
    """
    import asyncio

    writer.write(frame)
    try:
        async with asyncio.timeout(within_s):
            await writer.drain()
    except TimeoutError as error:
        raise ANSWERS.trouble(f"an answer was not read for {within_s:g} s") from error


class Connection:
    """Messages over a connected blocking socket, which it owns. Not for more than one thread
    at a time.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder(ANSWERS)
        self._ready: list[Message] = []

    def fileno(self) -> int:
        """For selectors. After readability call read_ready()."""
        return self._sock.fileno()

    def peer_pid(self) -> int:
        """Of the process that listens there; 0: one of another PID namespace. Raises OSError."""
        return peer(self._sock)[0]

    def set_timeout(self, seconds: float | None) -> None:
        """How long one send_some() or receive() may take; None: for ever."""
        self._sock.settimeout(seconds)

    def send_some(self, data: memoryview) -> int:
        """Send what there is room for; how many bytes that was. Raises OSError."""
        return self._sock.send(data)

    def receive(self) -> Message | None:
        """The next message; None when the peer closed between messages.
        Raises FrameError, OSError.
        """
        while not self._ready:
            messages = self.read_ready()
            if messages is None:
                return None
            self._ready = messages
        return self._ready.pop(0)

    def read_ready(self) -> list[Message] | None:
        """One recv() and the messages it completed, if any; None at the end.
        Raises FrameError, OSError.
        """
        data = self._sock.recv(_READ_BYTES)
        if data:
            return self._decoder.feed(data)
        if not self._decoder.at_boundary():
            raise ANSWERS.ended()
        return None

    def shutdown(self) -> None:
        """End both directions: a receive() in another thread returns. Harmless on
        a closed socket.
        """
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; again is harmless."""
        self._sock.close()
