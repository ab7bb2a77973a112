# SPDX-License-Identifier: Apache-2.0
"""EventReader: the consumer of the events ring.

Promise that goes with bpf/flow.h: the programs wake a reader at most once in DMM_WAKE_NS, and an
event that comes without a wake-up is read all the same, because each read that found something arms
a timer a little longer than that. So a reader that calls read() whenever fileno() is readable
misses nothing, and sleeps when nothing happens.
A ring has one read position: there can be one reader at a time.
"""

from __future__ import annotations

from dmm_ebpf.abi import C, Struct, StructForm
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf

BUFFER_RECORDS = 1024
_LATE_NS = C.DMM_WAKE_NS + 5_000_000
_EVENT = StructForm("dmm_event")


class EventReader(Closing):
    """Reads struct dmm_event records; map_fd is not taken over."""

    def __init__(self, map_fd: int) -> None:
        try:
            self._ring = bpf.Ring(map_fd, _EVENT.size, BUFFER_RECORDS, _LATE_NS)
        except OSError as error:
            raise DmmError("read the event ring", why=str(error.strerror)) from error

    def fileno(self) -> int:
        """For select, poll, epoll and asyncio's add_reader: readable when read()
        should be called.
        """
        return self._ring.fileno()

    def read(self) -> list[Struct]:
        """All records that are there, oldest first; does not wait. Each is one struct dmm_event."""
        try:
            return _EVENT.unpack_all(self._ring.read())
        except OSError as error:
            raise DmmError("read the event ring", why=str(error.strerror)) from error

    def close(self) -> None:
        """Ends reading; records not yet read stay in the ring for the next reader."""
        self._ring.close()
