# SPDX-License-Identifier: Apache-2.0
"""The Resource Director's wire format: a 4-byte big-endian length, then that many bytes of one msgpack map.

    request   {"id": n, "method": m, "params": {...}}
    reply     {"id": n, "ok": true, "result": ...}  |  {"id": n, "ok": false, "error": DmmError.to_wire()}
    stream    {"id": n, "event": {...}}, again and again until the client closes its socket

Invariants: a message is a map with text keys all the way down, and no longer than MAX_MESSAGE_BYTES.
Whatever else arrives is refused with one WireError, before memory is taken for bytes that nobody sent;
after a WireError the stream has lost its framing and must be closed. Decoding is sans-I/O (Decoder); the
helpers for asyncio streams and for blocking sockets only carry bytes to it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import msgpack

from dmm_ebpf.errors import DmmError

if TYPE_CHECKING:
    import asyncio

Message = dict[str, Any]

MAX_MESSAGE_BYTES = (
    128 * 1024 * 1024
)  # a listing of all flows that there may be records of, at half a KiB each
_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 * 1024


class WireError(DmmError):
    """Bytes that are no message, or a message that does not fit in a frame."""

    def __init__(self, why: str, *, hint: str = "is dmm-ebpf the same version at both ends?") -> None:
        super().__init__("talk over the Resource Director's socket", why=why, hint=hint)


def encode(message: Message) -> bytes:
    """One frame. Raises WireError above MAX_MESSAGE_BYTES, TypeError for what msgpack cannot say."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(body)} bytes is above the limit of {MAX_MESSAGE_BYTES}", hint="")
    return _LENGTH.pack(len(body)) + body


def request(number: int, method: str, params: Message) -> bytes:
    """The frame that asks for method."""
    return encode({"id": number, "method": method, "params": params})


def reply(number: int, result: Any) -> bytes:
    """The frame that answers request number."""
    return encode({"id": number, "ok": True, "result": result})


def failure(number: int, error: DmmError) -> bytes:
    """The frame that refuses request number."""
    return encode({"id": number, "ok": False, "error": error.to_wire()})


def event(number: int, fields: Message) -> bytes:
    """One event of the stream that request number opened."""
    return encode({"id": number, "event": fields})


def decode_body(body: bytes | bytearray | memoryview) -> Message:
    """The map that a frame's body holds. Raises WireError for anything else."""
    try:
        # raw=False checks UTF-8, strict_map_key refuses keys that Python could not hash.
        message = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as exc:
        reason = str(exc) or type(exc).__name__
        raise WireError(f"{len(body)} bytes arrived that are not one msgpack map ({reason})") from exc
    if not isinstance(message, dict):
        raise WireError(f"a msgpack {type(message).__name__} arrived where a map was expected")
    return message


def parse_request(message: Message) -> tuple[int, str, Message]:
    """(id, method, params) of a request. Raises WireError when a field is missing or of another type."""
    number, method, params = message.get("id"), message.get("method"), message.get("params", {})
    if not isinstance(number, int) or isinstance(number, bool):
        raise WireError("a request arrived whose id is not a number")
    if not isinstance(method, str) or not isinstance(params, dict):
        raise WireError(f"request {number} arrived without a method and a map of parameters")
    return number, method, params


class Decoder:
    """Frames in, messages out; no I/O. One per connection and direction."""

    def __init__(self, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take data; the messages that are now whole. Raises WireError, and the decoder is then useless."""
        self._buffer += data
        messages = []
        start = 0
        while (end := self._frame_end(start)) is not None:
            messages.append(decode_body(bytes(self._buffer[start + _LENGTH.size : end])))
            start = end
        del self._buffer[:start]
        return messages

    def _frame_end(self, start: int) -> int | None:
        have = len(self._buffer) - start
        if have < _LENGTH.size:
            return None
        length = check_length(bytes(self._buffer[start : start + _LENGTH.size]), self._limit_bytes)
        return start + _LENGTH.size + length if have >= _LENGTH.size + length else None

    def at_boundary(self) -> bool:
        """True when no half message is held: the peer may close here."""
        return not self._buffer


def check_length(head: bytes, limit_bytes: int = MAX_MESSAGE_BYTES) -> int:
    """The body length that a frame's 4 bytes announce. Raises WireError above limit_bytes."""
    length = int(_LENGTH.unpack(head)[0])
    if length > limit_bytes:
        raise WireError(f"a message of {length} bytes is announced, above the limit of {limit_bytes}")
    return length


async def read_message(reader: asyncio.StreamReader, limit_bytes: int = MAX_MESSAGE_BYTES) -> Message | None:
    """The next message of an asyncio stream; None when the peer closed between messages. Raises WireError."""
    import asyncio

    try:
        head = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as exc:
        if not exc.partial:
            return None
        raise WireError("the connection ended inside a message's length") from exc
    length = check_length(head, limit_bytes)
    try:
        return decode_body(await reader.readexactly(length))
    except asyncio.IncompleteReadError as exc:
        missing = length - len(exc.partial)
        raise WireError(f"the connection ended {missing} bytes before a message did") from exc


async def write_frame(writer: asyncio.StreamWriter, frame: bytes) -> None:
    """Send one frame made by request(), reply(), failure() or event(), and wait while the peer is slow."""
    writer.write(frame)
    await writer.drain()


class Connection:
    """Messages over a connected blocking socket, which it owns. Not for more than one thread at a time."""

    def __init__(self, sock: socket.socket, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._sock = sock
        self._decoder = Decoder(limit_bytes)
        self._ready: list[Message] = []

    def fileno(self) -> int:
        """For selectors. After readability call read_ready()."""
        return self._sock.fileno()

    def set_timeout(self, seconds: float | None) -> None:
        """How long one send or receive may take; None: for ever."""
        self._sock.settimeout(seconds)

    def send(self, frame: bytes) -> None:
        """Send one frame. Raises OSError."""
        self._sock.sendall(frame)

    def receive(self) -> Message | None:
        """The next message; None when the peer closed between messages. Raises WireError, OSError."""
        while not self._ready:
            messages = self.read_ready()
            if messages is None:
                return None
            self._ready = messages
        return self._ready.pop(0)

    def read_ready(self) -> list[Message] | None:
        """One recv() and the messages it completed, if any; None at the end. Raises WireError, OSError."""
        data = self._sock.recv(_READ_BYTES)
        if data:
            return self._decoder.feed(data)
        if not self._decoder.at_boundary():
            raise WireError("the connection ended inside a message")
        return None

    def shutdown(self) -> None:
        """End both directions: a receive() in another thread returns. Harmless on a closed socket."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; again is harmless."""
        self._sock.close()
