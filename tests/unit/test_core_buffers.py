# SPDX-License-Identifier: Apache-2.0
"""Packets that were read into a buffer of the core's, parts of which it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from corepackets import (
    ACK,
    INNER,
    LINKS,
    OUTER,
    Core,
    Open,
    open_active,
    timestamps,
    to_core,
)


@dataclass
class Reader:
    """Reads the app's packets as a stack process does: into a buffer of the core's."""

    conn: Open
    buffer: Any

    def read(self, payload: bytes) -> bool:
        """Whether the core kept something of the buffer, and gave another one for it."""
        core, conn = self.conn.core, self.conn
        conn.clock += 1
        options = timestamps(conn.clock, 0)
        packet = to_core(
            INNER, conn.seq[INNER], conn.ack[INNER], ACK, options=options, payload=payload
        ).pack()
        conn.seq[INNER] += len(payload)
        old = self.buffer
        core.ffi.memmove(old, packet, len(packet))
        meta = core.ffi.new("struct dmm_rx_meta *", {"link": LINKS[INNER], "lent": 1})
        core.lib.dmm_core_input(core.ptr, INNER, old, len(packet), meta, core.now)
        self.buffer = core.lib.dmm_core_buffer_next(core.ptr, old)
        return bool(self.buffer != old)

    def sent(self) -> bytes:
        """The payload that goes to the peer now, which acknowledges it."""
        got = b"".join(segment.payload for segment in self.conn.core.get(OUTER))
        self.conn.ack[OUTER] += len(got)
        self.conn.send(OUTER)
        return got


def reader(core: Core) -> Reader:
    return Reader(open_active(core), core.lib.dmm_core_buffer(core.ptr))


def memory(core: Core) -> int:
    """Bytes that are in use."""
    said = core.ffi.new("struct dmm_core_memory *")
    core.lib.dmm_core_memory(core.ptr, said)
    return int(said.used_bytes)


def test_a_long_packet_stays_where_it_was_read_until_the_peer_has_it(
    make_core: Callable[..., Core],
) -> None:
    core = make_core(congestion=b"reno")
    app = reader(core)
    assert not app.read(b"x" * 100)
    assert app.sent() == b"x" * 100
    core.get(INNER)
    before = memory(core)
    payload = bytes(i * 7 & 0xFF for i in range(60_000))
    assert app.read(payload)
    assert not app.read(b"a short one")
    got = b""
    while piece := app.sent():
        got += piece
    assert got == payload + b"a short one"
    core.get(INNER)
    assert memory(core) <= before + 65_728  # a buffer in hand for the next time


def test_what_is_left_of_long_packets_is_bounded(make_core: Callable[..., Core]) -> None:
    """So that a peer that takes all but a little of each holds no more than a quarter of the
    limit beyond what is counted.
    """
    core = make_core(memory_bytes=4 << 20, congestion=b"reno")
    kept = 0
    app = reader(core)
    while app.read(b"y" * 60_000):
        kept += 1
    assert 1 <= kept <= (1 << 20) // 65_664 + 1
