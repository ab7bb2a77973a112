# SPDX-License-Identifier: Apache-2.0
"""Messages between a Resource Director and a stack process: msgpack maps, each after its length (4
bytes, big endian).

A request is {"id", "method", "params"}; its answer {"id", "ok": true, "result"} or {"id", "ok":
false, "error"}, where error is DmmError.to_wire(). Refused: messages longer than the reader asked
for, and containers and strings longer than any message has.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgpack

from dmm_ebpf.errors import DmmError

REQUEST_BYTES = 4096
ANSWER_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")
_LIMITS = {
    "max_str_len": 4096,
    "max_bin_len": 0,
    "max_ext_len": 0,
    "max_array_len": 4096,
    "max_map_len": 512,
}


class MessageError(DmmError):
    """What came is no message of this protocol."""


def _refuse(why: str) -> MessageError:
    return MessageError("read a control message", why=why)


async def read(reader: asyncio.StreamReader, most_bytes: int = ANSWER_BYTES) -> Any | None:
    """The next message, or None at the end of the stream. Raises MessageError for what
    is no message.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > most_bytes:
            raise _refuse(f"{length} bytes are more than {most_bytes}")
        data = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return msgpack.unpackb(data, unicode_errors="surrogateescape", **_LIMITS)
    except (ValueError, RecursionError, TypeError, msgpack.UnpackException) as exc:
        raise _refuse(str(exc) or "it is not msgpack") from exc


async def write(writer: asyncio.StreamWriter, message: Any) -> None:
    """Sends one message and waits for room."""
    data = msgpack.packb(message, unicode_errors="surrogateescape")
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()
