# SPDX-License-Identifier: Apache-2.0
"""News of the host: the kernel's netlink events, or somebody's word, that something is to be
looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Iterator

from dmm_ebpf.hal import netlink

DEBOUNCE_S = 0.05


class News:
    """Lives in an event loop."""

    def __init__(self) -> None:
        self._come = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._come.set()

    @contextlib.contextmanager
    def heard_by(self, sockets: Iterable[socket.socket]) -> Iterator[None]:
        """What comes by these event sockets is news; they are closed in the end."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            for sock in sockets:
                stack.enter_context(sock)
                loop.add_reader(sock.fileno(), self._hear, sock)
                stack.callback(loop.remove_reader, sock.fileno())
            yield

    def _hear(self, sock: socket.socket) -> None:
        if netlink.drain(sock):
            self._come.set()

    async def wait(self, within_s: float) -> None:
        """Until there are news and a burst of them is over, or until within_s have passed."""
        try:
            async with asyncio.timeout(within_s):
                await self._come.wait()
        except TimeoutError:
            return
        await asyncio.sleep(DEBOUNCE_S)
        self._come.clear()
