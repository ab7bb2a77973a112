# SPDX-License-Identifier: Apache-2.0
"""Who is connected to the Resource Director's socket, and what makes room for one more.

Invariant: a client that has its answer coming, or has sent its question, is never hung up on for
another one's sake. Whoever has sent no whole request is, before whoever has asked before and asks
nothing now; of either kind first a client of the process that has the most, then of the user who
has the most, then the one that waits for the longest time. So a crowd of clients that say nothing,
or halves of messages, costs others nothing.

What a client has sent may be there and not be read yet, above all when many come at once. So who is
to make room is chosen first, then the event loop reads what is there, and only who has still asked
nothing is hung up on.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import NamedTuple

from dmm_ebpf.errors import DmmError

MAX_CLIENTS = 256
MAX_READERS = 128  # of them that are not root, which so always finds room
# Of all clients' requests that are long, as far as they have come; a policy may have 5 MiB
MAX_HELD_BYTES = 24 << 20
# Rounds of the event loop in which what a client had sent before reaches who reads it: select()
# finds it after what is due already, its reader is told, and goes on.
TURN_ROUNDS = 3
MADE_ROOM = "it has asked nothing, and others need its place"


class Owner(NamedTuple):
    """Whose a client is (SO_PEERCRED). pid: of the process that connected; 0: of another PID
    namespace.
    """

    pid: int
    uid: int


class Clients:
    """Each client is the task that serves it. Lives in one event loop."""

    def __init__(self) -> None:
        self._all: dict[asyncio.Task[None], Owner] = {}
        # Clients that wait to be asked something by, the longest waiting one first, and which wait
        # that is: those that have never sent a whole request, and those that have
        self._strangers: dict[asyncio.Task[None], int] = {}
        self._known: dict[asyncio.Task[None], int] = {}
        self._waits = itertools.count()
        self._held: dict[asyncio.Task[None], int] = {}  # bytes of requests that are long
        self._door = asyncio.Lock()  # one comes in at a time, in the order of coming

    def __len__(self) -> int:
        return len(self._all)

    def pending(self) -> list[asyncio.Task[None]]:
        """Those that are being served."""
        return [task for task in self._all if not task.done()]

    async def admit(self, task: asyncio.Task[None], owner: Owner) -> DmmError | None:
        """Take one more; None, or why it cannot be."""
        async with self._door:
            if owner.uid and not await self._room(MAX_READERS, readers=True):
                return _full(f"{MAX_READERS} that are not root's are connected")
            if not await self._room(MAX_CLIENTS):
                return _full(f"{MAX_CLIENTS} are connected")
            self._all[task] = owner
            self._strangers[task] = next(self._waits)
            task.add_done_callback(self._forget)
        return None

    def waits(self, task: asyncio.Task[None]) -> None:
        """It has its answer; the next request is waited for."""
        self._held.pop(task, None)
        self._known[task] = next(self._waits)

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

    async def _room(self, most: int, *, readers: bool = False) -> bool:
        """Whether there is room, or somebody makes it. readers: among those that are not root's."""
        while True:
            among = [one for one, owner in self._all.items() if owner.uid or not readers]
            if len(among) < most:
                return True
            victim = self._victim(among)
            if victim is None:
                return False
            waits = self._wait_of(victim)
            for _ in range(TURN_ROUNDS):
                await asyncio.sleep(0)
            if waits == self._wait_of(victim) is not None:
                self._hang_up_on(victim)

    def _victim(self, among: list[asyncio.Task[None]]) -> asyncio.Task[None] | None:
        of_pid = Counter(self._all[one].pid for one in among)
        of_uid = Counter(self._all[one].uid for one in among)

        def share(one: asyncio.Task[None]) -> tuple[int, int]:
            return of_pid[self._all[one].pid], of_uid[self._all[one].uid]

        chosen = set(among)
        for waiting in (self._strangers, self._known):
            first = max((one for one in waiting if one in chosen), key=share, default=None)
            if first is not None:
                return first
        return None

    def _wait_of(self, task: asyncio.Task[None]) -> int | None:
        """Which wait for a request it is in; None: it has asked, or has gone."""
        return self._strangers.get(task, self._known.get(task))

    def _hang_up_on(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        task.cancel(MADE_ROOM)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._all.pop(task, None)
        self._strangers.pop(task, None)
        self._known.pop(task, None)
        self._held.pop(task, None)


def _full(why: str) -> DmmError:
    return DmmError("answer one more client", why=why, hint="end programs that follow flows")
