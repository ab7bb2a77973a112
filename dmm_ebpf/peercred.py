# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a UNIX socket, as the kernel says (SO_PEERCRED, unix(7))."""

from __future__ import annotations

import socket
import struct

_UCRED = struct.Struct("=iII")  # pid, uid, gid


def peer(sock: socket.socket) -> tuple[int, int]:
    """pid and uid of the process that connected, or that listens."""
    pid, uid, _gid = _credentials(sock)
    return pid, uid


def peer_gid(sock: socket.socket) -> int:
    """Its effective group."""
    return _credentials(sock)[2]


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(packed)
    return pid, uid, gid
