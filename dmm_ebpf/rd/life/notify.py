# SPDX-License-Identifier: Apache-2.0
"""What the service manager is told that has started a Resource Director: sd_notify(3), datagrams
to $NOTIFY_SOCKET.

A unit with Type=notify counts as started when hooks and policy are in force, so that what is
ordered after it is routed from its first connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

from dmm_ebpf.digits import whole

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.source import Source

_LOOK_S = 1.0
_BEFORE = 3  # signs of life within the time in which one is wanted


def tell(*lines: str) -> None:
    """Send assignments such as "READY=1"; nothing happens where nobody asked for them, or
    nobody listens any more.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in {"/", "@"}:
        return
    address = os.fsencode(path)
    if path[0] == "@":
        address = b"\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), address)


def watchdog_s() -> float | None:
    """Within how many seconds this process has to show that it lives (sd_watchdog_enabled(3));
    None: it need not.
    """
    microseconds = whole(os.environ.get("WATCHDOG_USEC", ""), 2**63)
    mine = os.environ.get("WATCHDOG_PID") in {None, str(os.getpid())}
    return microseconds / 1e6 if microseconds and mine else None


class Manager:
    """The service manager, as long as an instance is attached, which it is told of in a line."""

    def __init__(self, attached: str, source: Source) -> None:
        """attached: the line; source: what may be refused is added from it."""
        self._attached = attached
        self._source = source
        self._told = attached  # with READY=1
        self._reloading: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Tell what changes, and by the event loop itself that it turns, until cancelled."""
        within = watchdog_s()
        pause = _LOOK_S if within is None else min(_LOOK_S, within / _BEFORE)
        while True:
            if within is not None:
                tell("WATCHDOG=1")
            self._tell_status()
            await asyncio.sleep(pause)

    def reload(self) -> None:
        """Read the policy again, as SIGHUP asks for, and tell when that begins and ends, which a
        unit with Type=notify-reload waits for (systemd.service(5)).
        """
        tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        task = asyncio.get_running_loop().create_task(self._source.reload())
        self._reloading.add(task)
        task.add_done_callback(self._reloaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        self._reloading.discard(task)
        self._tell_status()
        if not self._reloading:
            tell("READY=1")

    def _tell_status(self) -> None:
        trouble = self._source.trouble
        refused = "" if trouble is None else f"; policy refused: {trouble.reason}"
        status = " ".join(f"{self._attached}{refused}".split("\n"))
        if status != self._told:
            tell(f"STATUS={status}")
            self._told = status
