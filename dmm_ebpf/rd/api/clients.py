# SPDX-License-Identifier: Apache-2.0
"""Who is connected to the Resource Director's socket, and what makes room for one more.

Invariant: a client that has its answer coming is never hung up on for another one's sake. Whoever
has sent no whole request is, the longest connected first; then whoever has asked before and asks
nothing now. So a crowd of clients that say nothing, or halves of messages, costs others nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmm_ebpf.errors import DmmError

if TYPE_CHECKING:
    import asyncio

MAX_CLIENTS = 256
MAX_READERS = 128  # of them that are not root, which so always finds room
# Of all clients' requests that are long, as far as they have come; a policy may have 5 MiB
MAX_HELD_BYTES = 24 << 20


class Clients:
    """Each client is the task that serves it. Lives in one event loop."""

    def __init__(self) -> None:
        self._all: set[asyncio.Task[None]] = set()
        # Clients that wait to be asked something by, the longest waiting one first: those that
        # have never sent a whole request, and those that have
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._known: dict[asyncio.Task[None], None] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._held: dict[asyncio.Task[None], int] = {}  # bytes of requests that are long

    def __len__(self) -> int:
        return len(self._all)

    def pending(self) -> list[asyncio.Task[None]]:
        """Those that are being served."""
        return [task for task in self._all if not task.done()]

    def admit(self, task: asyncio.Task[None], *, is_root: bool = True) -> DmmError | None:
        """Take one more; None, or why it cannot be."""
        if (
            not is_root
            and len(self._readers) >= MAX_READERS
            and not self._hang_up_on_one(self._readers)
        ):
            return _full(f"{MAX_READERS} that are not root's are connected")
        if len(self._all) >= MAX_CLIENTS and not self._hang_up_on_one(self._all):
            return _full(f"{MAX_CLIENTS} are connected")
        self._all.add(task)
        if not is_root:
            self._readers.add(task)
        self._strangers[task] = None
        task.add_done_callback(self._forget)
        return None

    def waits(self, task: asyncio.Task[None]) -> None:
        """It has its answer; the next request is waited for."""
        self._held.pop(task, None)
        self._known[task] = None

    def asked(self, task: asyncio.Task[None]) -> None:
        """Its request is whole."""
        self._strangers.pop(task, None)
        self._known.pop(task, None)

    def hold(self, task: asyncio.Task[None], count: int) -> None:
        """count bytes more of its long request are here. Whose request is not whole makes room, the
        one that is at it for the longest time first. Raises DmmError if none can.
        """
        self._held[task] = self._held.get(task, 0) + count
        while sum(self._held.values()) > MAX_HELD_BYTES:
            half = (one for one in (*self._strangers, *self._known) if one in self._held)
            oldest = next((one for one in half if one is not task), None)
            if oldest is None:
                del self._held[task]
                why = f"requests of {MAX_HELD_BYTES >> 20} MiB are being answered"
                raise DmmError("take in a request", why=why, hint="ask again in a moment")
            self._hang_up_on(oldest)

    def _hang_up_on_one(self, among: set[asyncio.Task[None]]) -> bool:
        waiting = (one for one in (*self._strangers, *self._known) if one in among)
        longest = next(waiting, None)
        if longest is None:
            return False
        self._hang_up_on(longest)
        return True

    def _hang_up_on(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        task.cancel("it has asked nothing, and others need its place")

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._all.discard(task)
        self._readers.discard(task)
        self._strangers.pop(task, None)
        self._known.pop(task, None)
        self._held.pop(task, None)


def _full(why: str) -> DmmError:
    return DmmError("answer one more client", why=why, hint="end programs that follow flows")
