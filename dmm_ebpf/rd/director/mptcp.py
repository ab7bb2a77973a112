# SPDX-License-Identifier: Apache-2.0
"""Keeps the program that makes sockets MPTCP's where a policy asks for it, and nowhere else.

Where it cannot be, sockets stay TCP's and the kernel serves them: that is told by `status`, and is
no error of the policy's; it is tried again, ever less often. It is taken off while MPTCP is
switched off, too, since socket(2) would fail for programs that never asked for it.
"""

from __future__ import annotations

import math
import time

from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import Attached, protocol, protocolprobe
from dmm_ebpf.loader.spec import PROTOCOL
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.threads import in_thread

RETRY_S = 1.0, 300.0  # the first pause between two tries, and the longest


class Mptcp(Item):
    """Of one instance."""

    def __init__(self, attached: Attached) -> None:
        super().__init__("MPTCP")
        self._attached = attached
        self._wanted = False
        self._why = ""  # it failed last
        self._pause_s, self._due = RETRY_S[0], -math.inf  # by time.monotonic()

    async def follow(self, wanted: bool) -> None:
        """A policy is in force, and asks for it or not."""
        self._wanted = wanted
        self._pause_s, self._due = RETRY_S[0], -math.inf
        await in_thread(self._settle)

    def look(self) -> str:
        if not self._wanted:
            return ""
        why = protocolprobe.switched_off() or self._why
        if not why and PROTOCOL.pin in self._attached.links:
            return ""
        return f"sockets are made as TCP's: {why or 'its program is not there'}"

    async def mend(self) -> None:
        await in_thread(self._settle)

    def _settle(self) -> None:
        if not self._wanted or protocolprobe.switched_off():
            protocol.take_off(self._attached)
        elif time.monotonic() >= self._due:
            try:
                protocol.put(self._attached)
            except DmmError as error:
                self._why, self._due = error.why, time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, RETRY_S[1])
            else:
                self._why = ""
