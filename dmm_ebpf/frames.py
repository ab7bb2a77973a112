# SPDX-License-Identifier: Apache-2.0
"""Messages on a stream between two of our programs: a 4-byte big-endian length, then that many
bytes of one msgpack map.

    request   {"id": n, "method": m, "params": {...}}
    answer    {"id": n, "ok": true, "result": ...}
              {"id": n, "ok": false, "error": DmmError.to_wire()}

The director's socket (rd/api/wire.py) and that of a stack process (userstack/control.py) speak it,
each with limits and a sentence of its own: a Frames for each kind of message.

Invariants: a message is a map with text keys all the way down, within the limits of its kind.
Whatever else arrives is refused with one FrameError, before memory is taken for bytes that nobody
sent; after it the stream has lost its framing and must be closed.
Decoding is sans-I/O; what is here for asyncio streams only carries bytes to it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack

from dmm_ebpf.errors import DmmError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

Message = dict[str, Any]

LENGTH = struct.Struct(">I")


class FrameError(DmmError):
    """Bytes that are no message, or a message that does not fit in a frame."""


class EndedError(FrameError):
    """The stream has ended inside a message."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one kind of message; -1: as many as its bytes can hold.

    message_bytes: of the map. containers: lists and maps in all, since a byte of msgpack may ask
    for an object of sixty. entries_of_list, entries_of_map: of each. text_bytes, blob_bytes: of
    each text, of each byte string.
    """

    message_bytes: int
    containers: int = -1
    entries_of_list: int = -1
    entries_of_map: int = -1
    text_bytes: int = -1
    blob_bytes: int = -1

    def of_msgpack(self) -> dict[str, int]:
        """As options of its unpackb(). Extension types are nobody's."""
        return {
            "max_array_len": self.entries_of_list,
            "max_map_len": self.entries_of_map,
            "max_str_len": self.text_bytes,
            "max_bin_len": self.blob_bytes,
            "max_ext_len": 0,
        }


class Frames:
    """Messages of one kind."""

    def __init__(self, what: str, limits: Limits, *, hint: str = "") -> None:
        """what and hint: of the errors, as in DmmError; hint for what nobody of ours has sent."""
        self.limits = limits
        self._what = what
        self._hint = hint
        self._options = limits.of_msgpack()

    def error(self, why: str) -> FrameError:
        """For what arrived and is no message."""
        return FrameError(self._what, why=why, hint=self._hint)

    def trouble(self, why: str) -> FrameError:
        """For what the other end's version is not to blame for."""
        return FrameError(self._what, why=why)

    def ended(self) -> EndedError:
        """For a stream that ends inside a message."""
        return EndedError(self._what, why="the connection ended inside a message", hint=self._hint)

    # -- out --

    def encode(self, message: Message, default: Callable[[Any], Any] | None = None) -> bytes:
        """One frame. default: gives the map for what msgpack does not know. Raises FrameError above
        the limit, TypeError for what msgpack cannot say.
        """
        frame = encode(message, default)
        length, most = len(frame) - LENGTH.size, self.limits.message_bytes
        if length > most:
            raise self.trouble(f"a message of {length} bytes is above the limit of {most}")
        return frame

    # -- in --

    def decode(self, body: bytes | bytearray | memoryview) -> Message:
        """The map that a frame's body holds. Raises FrameError for anything else."""
        hooks: dict[str, Any] = {}
        if self.limits.containers >= 0:
            count = _counter(self.limits.containers)
            hooks = {"object_hook": count, "list_hook": count}
        try:
            # strict_map_key refuses keys that Python could not hash. Names of files, cgroups and
            # devices may be any bytes.
            message = msgpack.unpackb(
                body,
                raw=False,
                unicode_errors="surrogateescape",
                strict_map_key=True,
                **self._options,
                **hooks,
            )
        except (
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,
            msgpack.UnpackException,
        ) as error:
            reason = str(error) or type(error).__name__
            raise self.error(
                f"{len(body)} bytes arrived that are not one msgpack map ({reason})"
            ) from error
        if not isinstance(message, dict):
            raise self.error(f"a msgpack {type(message).__name__} arrived where a map was expected")
        return message

    def length(self, head: bytes) -> int:
        """The body length that a frame's 4 bytes announce. Raises FrameError above the limit."""
        length, most = int(LENGTH.unpack(head)[0]), self.limits.message_bytes
        if length > most:
            raise self.error(f"a message of {length} bytes is announced, above the limit of {most}")
        return length

    def request_of(self, message: Message) -> tuple[int, str, Message]:
        """(id, method, params) of a request. Raises FrameError when a field is missing or
        of another type.
        """
        number, method, params = message.get("id"), message.get("method"), message.get("params", {})
        if not isinstance(number, int) or isinstance(number, bool):
            raise self.error("a request arrived whose id is not a number")
        if not isinstance(method, str) or not isinstance(params, dict):
            raise self.error(f"request {number} arrived without a method and a map of parameters")
        return number, method, params

    # -- asyncio --

    async def read(self, reader: asyncio.StreamReader) -> Message | None:
        """The next message; None at the end of the stream. Raises FrameError, ConnectionError."""
        first = await reader.read(1)
        return (
            await self.read_body(reader, await self.read_length(reader, first)) if first else None
        )

    async def read_length(self, reader: asyncio.StreamReader, first: bytes) -> int:
        """Of the body of a frame that begins with the byte first. Raises as read()."""
        return self.length(first + await self._exactly(reader, LENGTH.size - 1))

    async def read_body(self, reader: asyncio.StreamReader, length: int) -> Message:
        """What follows it. Raises as read()."""
        return self.decode(await self._exactly(reader, length))

    async def _exactly(self, reader: asyncio.StreamReader, count: int) -> bytes:
        from asyncio import IncompleteReadError

        try:
            return await reader.readexactly(count)
        except IncompleteReadError as error:
            raise self.ended() from error


class Decoder:
    """Frames in, messages out; no I/O. One for each connection and direction."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take data; the messages that are now whole. Raises FrameError, and the decoder
        is then useless.
        """
        self._buffer += data
        messages = []
        start = 0
        while (end := self._frame_end(start)) is not None:
            messages.append(self._frames.decode(bytes(self._buffer[start + LENGTH.size : end])))
            start = end
        del self._buffer[:start]
        return messages

    def _frame_end(self, start: int) -> int | None:
        have = len(self._buffer) - start
        if have < LENGTH.size:
            return None
        length = self._frames.length(bytes(self._buffer[start : start + LENGTH.size]))
        return start + LENGTH.size + length if have >= LENGTH.size + length else None

    def at_boundary(self) -> bool:
        """True when no half message is held: the peer may close here."""
        return not self._buffer


def encode(message: Message, default: Callable[[Any], Any] | None = None) -> bytes:
    """One frame, however long: its reader has the limit. default: see Frames.encode()."""
    body: bytes = msgpack.packb(
        message, use_bin_type=True, unicode_errors="surrogateescape", default=default
    )
    return LENGTH.pack(len(body)) + body


def request(number: int, method: str, params: Message) -> Message:
    """The message that asks for method; requests are numbered from 1."""
    return {"id": number, "method": method, "params": params}


def reply(number: int, result: Any) -> Message:
    """The message that answers request number."""
    return {"id": number, "ok": True, "result": result}


def failure(number: int, error: DmmError) -> Message:
    """The message that refuses request number."""
    return {"id": number, "ok": False, "error": error.to_wire()}


def _counter(most: int) -> Callable[[Any], Any]:
    count = 0

    def counted(container: Any) -> Any:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(f"it holds more than {most} lists and maps")
        return container

    return counted
