# SPDX-License-Identifier: Apache-2.0
"""When the ports of user stacks are looked at again: at the kernel's word that a device, a qdisc, a
tc filter or an nft chain has changed, when somebody asks, and once a second, since an XDP program
may come without a word.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import netlink
from dmm_ebpf.rd.director.news import News

LOOK_S = 1.0
_ROUTE_GROUPS = 0x1 | 0x8  # LINK, TC: qdiscs and filters
_NETFILTER, _NFTABLES_GROUP = 12, 0x40  # NETLINK_NETFILTER, NFNLGRP_NFTABLES

log = logging.getLogger("dmm-ebpf")


class PortWatch:
    """Lives in an event loop and a network namespace."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._news = News()

    def hurry(self) -> None:
        """Look soon."""
        self._news.tell()

    async def run(self) -> None:
        """Until cancelled."""
        with self._news.heard_by(_event_sockets()):
            while True:
                await self._news.wait(LOOK_S)
                try:
                    await self._look()
                except (DmmError, OSError) as error:
                    log.warning(
                        "the ports of user stacks could not be looked at; it is tried again: %s",
                        error,
                    )


def _event_sockets() -> list[socket.socket]:
    found = [netlink.event_socket(_ROUTE_GROUPS)]
    with contextlib.suppress(OSError):  # a kernel without nfnetlink has no nft chains
        found.append(netlink.event_socket(_NFTABLES_GROUP, _NETFILTER))
    return found
