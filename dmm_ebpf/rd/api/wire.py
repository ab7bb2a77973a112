# SPDX-License-Identifier: Apache-2.0
"""The Resource Director's wire format: a 4-byte big-endian length, then that many bytes of
one msgpack map.

    request   {"id": n, "method": m, "params": {...}}
    reply {"id": n, "ok": true, "result": ...} | {"id": n, "ok": false, "error": DmmError.to_wire()}
    stream {"id": n, "event": {...}}, again and again until the client closes its socket
    pages {"id": n, "page": [...]}, again and again, then the reply, whose result is the last
    page, perhaps empty refusal the reply with id CONNECTION: the connection is refused, whatever
    it would ask

Invariants: a message is a map with text keys all the way down, and no longer than
MAX_MESSAGE_BYTES; a request is small but for one text, a policy, and nearly flat. Whatever else
arrives is refused with one WireError, before memory is taken for bytes that nobody sent or for more
objects than a request has; after a WireError the stream has lost its framing and must be closed.
Decoding is sans-I/O (Decoder); the helpers for asyncio streams and for blocking sockets only carry
bytes to it.
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

CONNECTION = 0  # requests are numbered from 1
MAX_MESSAGE_BYTES = 16 << 20  # an answer: long listings come in pages
MAX_REQUEST_BYTES = 5 << 20  # a policy's text of policy.MAX_POLICY_BYTES, and the map around it
SMALL_REQUEST_BYTES = 64 << 10
_REQUEST_CONTAINERS = 16
_REQUEST_LIMITS = {"max_map_len": 32, "max_array_len": 32, "max_bin_len": 0, "max_ext_len": 0}
_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 * 1024


class WireError(DmmError):
    """Bytes that are no message, or a message that does not fit in a frame."""

    def __init__(
        self, why: str, *, hint: str = "is dmm-ebpf the same version at both ends?"
    ) -> None:
        super().__init__("talk over the Resource Director's socket", why=why, hint=hint)


def encode(message: Message) -> bytes:
    """One frame. Raises WireError above MAX_MESSAGE_BYTES, TypeError for what
    msgpack cannot say.
    """
    body: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="surrogateescape")
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(
            f"a message of {len(body)} bytes is above the limit of {MAX_MESSAGE_BYTES}", hint=""
        )
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


def page(number: int, rows: list[Any]) -> bytes:
    """A part of the long listing that request number asked for; the reply ends it."""
    return encode({"id": number, "page": rows})


def event(number: int, fields: Message) -> bytes:
    """One event of the stream that request number opened."""
    return encode({"id": number, "event": fields})


def decode_body(body: bytes | bytearray | memoryview) -> Message:
    """The map that a frame's body holds. Raises WireError for anything else."""
    return _unpack(body)


def decode_request(body: bytes) -> Message:
    """As decode_body(), for what a stranger sent: a byte of msgpack may ask for an object of sixty,
    so containers are counted, and what is in each.
    """
    containers = 0

    def counted(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > _REQUEST_CONTAINERS:
            raise ValueError(f"it holds more than {_REQUEST_CONTAINERS} lists and maps")
        return container

    return _unpack(body, object_hook=counted, list_hook=counted, **_REQUEST_LIMITS)


def _unpack(body: bytes | bytearray | memoryview, **limits: Any) -> Message:
    try:
        # strict_map_key refuses keys that Python could not hash. Names of files, cgroups and
        # devices may be any bytes.
        message = msgpack.unpackb(
            body, raw=False, unicode_errors="surrogateescape", strict_map_key=True, **limits
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as exc:
        reason = str(exc) or type(exc).__name__
        raise WireError(
            f"{len(body)} bytes arrived that are not one msgpack map ({reason})"
        ) from exc
    if not isinstance(message, dict):
        raise WireError(f"a msgpack {type(message).__name__} arrived where a map was expected")
    return message


def parse_request(message: Message) -> tuple[int, str, Message]:
    """(id, method, params) of a request. Raises WireError when a field is missing or
    of another type.
    """
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
        """Take data; the messages that are now whole. Raises WireError, and the decoder
        is then useless.
        """
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
        raise WireError(
            f"a message of {length} bytes is announced, above the limit of {limit_bytes}"
        )
    return length


async def read_request(
    reader: asyncio.StreamReader,
    first: bytes,
    *,
    within_s: float,
    large: asyncio.Semaphore,
    limit_bytes: int = MAX_REQUEST_BYTES,
) -> Message:
    """The request that begins with the byte first, whole within_s seconds from
    now. Raises WireError.

    large: held while one that is longer than SMALL_REQUEST_BYTES is taken in.
    """
    import asyncio

    try:
        async with asyncio.timeout(within_s):
            head = first + await reader.readexactly(_LENGTH.size - 1)
            length = check_length(head, limit_bytes)
            if length <= SMALL_REQUEST_BYTES:
                return decode_request(await reader.readexactly(length))
            async with large:
                return decode_request(await reader.readexactly(length))
    except TimeoutError as exc:
        raise WireError(f"a request was not whole after {within_s:g} s", hint="") from exc
    except asyncio.IncompleteReadError as exc:
        raise WireError("the connection ended inside a message", hint="") from exc


async def write_frame(
    writer: asyncio.StreamWriter, frame: bytes, *, within_s: float | None = None
) -> None:
    """Send one frame, and wait while the peer is slow, but no longer than
    within_s: then WireError.
    """
    import asyncio

    writer.write(frame)
    try:
        async with asyncio.timeout(within_s):
            await writer.drain()
    except TimeoutError as exc:
        raise WireError(f"an answer was not read for {within_s:g} s", hint="") from exc


class Connection:
    """Messages over a connected blocking socket, which it owns. Not for more than one thread
    at a time.
    """

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
        """The next message; None when the peer closed between messages.
        Raises WireError, OSError.
        """
        while not self._ready:
            messages = self.read_ready()
            if messages is None:
                return None
            self._ready = messages
        return self._ready.pop(0)

    def read_ready(self) -> list[Message] | None:
        """One recv() and the messages it completed, if any; None at the end.
        Raises WireError, OSError.
        """
        data = self._sock.recv(_READ_BYTES)
        if data:
            return self._decoder.feed(data)
        if not self._decoder.at_boundary():
            raise WireError("the connection ended inside a message")
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
