# SPDX-License-Identifier: Apache-2.0
"""What the service manager is told that has started a Resource Director: sd_notify(3), a
datagram to $NOTIFY_SOCKET.

A unit with Type=notify counts as started when hooks and policy are in force, so that what is
ordered after it is routed from its first connection.
"""

from __future__ import annotations

import contextlib
import os
import socket


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
