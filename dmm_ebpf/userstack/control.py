# SPDX-License-Identifier: Apache-2.0
"""Messages between a Resource Director and a stack process: msgpack maps, each after its length (4 bytes,
big endian).

A request is {"id", "method", "params"}; its answer {"id", "ok": true, "result"} or {"id", "ok": false,
"error"}, where error is DmmError.to_wire(). Refused: messages longer than MAX_BYTES.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgpack

from dmm_ebpf.errors import DmmError

MAX_BYTES = 64 << 20
_LENGTH = struct.Struct(">I")


async def read(reader: asyncio.StreamReader) -> Any | None:
    """The next message, or None at the end of the stream. Raises DmmError for what is no message."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_BYTES:
            raise DmmError("read a control message", why=f"{length} bytes are more than {MAX_BYTES}")
        data = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as exc:
        raise DmmError("read a control message", why=str(exc) or "it is not msgpack") from exc


async def write(writer: asyncio.StreamWriter, message: Any) -> None:
    """Sends one message and waits for room."""
    data = msgpack.packb(message)
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()
