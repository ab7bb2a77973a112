# SPDX-License-Identifier: Apache-2.0
"""Messages between a Resource Director and a stack process: those of dmm_ebpf/frames.py, with
limits for each direction.

Neither end trusts the other one: containers and strings longer than any message has are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmm_ebpf import frames
from dmm_ebpf.frames import Frames, Limits

if TYPE_CHECKING:
    import asyncio

_WHAT = "read a control message"


def _limits(message_bytes: int) -> Limits:
    return Limits(
        message_bytes, entries_of_list=4096, entries_of_map=512, text_bytes=4096, blob_bytes=0
    )


REQUESTS = Frames(_WHAT, _limits(4096))
ANSWERS = Frames(_WHAT, _limits(1 << 20))


async def write(writer: asyncio.StreamWriter, message: frames.Message) -> None:
    """Sends one message and waits for room."""
    writer.write(frames.encode(message))
    await writer.drain()
