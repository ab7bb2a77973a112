# SPDX-License-Identifier: Apache-2.0
"""AF_XDP sockets that have gone with their device: they belong to it for good, and a stack process,
which has given up every right, opens no others.

Its flows go on by tap (ports.py). Once it has none, another process takes its place, which opens
sockets on the device that is there now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.nics import Nics, there
from dmm_ebpf.rd.director.onestack import Stack
from dmm_ebpf.rd.director.processes import Process

# Why a process that starts opens none
NOT_OWN = "it has the place of a device that belongs to it"


async def look(s: Stack, nics: Nics, publish: Callable[[Stack], None]) -> None:
    """Which of them are of use, and whether the process may go. publish: see StackManager."""
    first = s.first
    if first is None or first.hung or not first.began_with:
        return
    with contextlib.suppress(DmmError, OSError):
        await first.look_at_sockets()
        s.note_sockets(first)
        lost = [n for n in there(s.nics) if n.slot in first.lost_sockets() and nics.is_own(n)]
        if lost and not first.retiring and await first.is_idle():
            names = ", ".join(n.name for n in lost)
            await _renew_idle(s, first, publish, f"its AF_XDP sockets went with device {names}")


async def _renew_idle(s: Stack, p: Process, publish: Callable[[Stack], None], reason: str) -> None:
    """Another process in its place, unless it gets a flow before it gets no more."""
    idle, p.retiring = False, True
    try:
        publish(s)
        idle = await p.is_idle()
    finally:
        p.retiring = False
        if idle:
            p.supervisor.fail(reason)  # that it is down is published when it has ended
        else:
            publish(s)
