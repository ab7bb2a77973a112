# SPDX-License-Identifier: Apache-2.0
"""The group whose members may ask a Resource Director (RD), and change nothing: its name, and who
is in it at the other end of a UNIX socket.
"""

from __future__ import annotations

import errno
import socket
import struct

from dmm_ebpf.digits import whole
from dmm_ebpf.errors import UsageError
from dmm_ebpf.peercred import peer_gid

SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_FEW, _MOST = 256, 1 << 16  # groups: what Python's getsockopt() has room for; NGROUPS_MAX, limits.h
_GID = struct.Struct("=I")


def gid_of(name: str) -> int:
    """Of a group by group(5) name, or by number. Raises UsageError."""
    import grp  # attach --group alone has a use for it

    if name.isdecimal() and (number := whole(name, 2**32 - 2)) is not None:
        return number
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise UsageError(
            "let a group ask", why=f"there is no group {name!r}", hint="see getent group"
        ) from None


def name_of(gid: int) -> str:
    """Of a group: its name, or its number, if it has none."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)


def belongs(sock: socket.socket, gid: int) -> bool:
    """Whether the process that connected has the group, as its effective one or besides, at that
    moment (SO_PEERCRED, SO_PEERGROUPS, unix(7)).
    """
    return peer_gid(sock) == gid or gid in _groups(sock)


def _groups(sock: socket.socket) -> set[int]:
    """The supplementary ones."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _FEW * _GID.size)
    except OSError as error:
        return _many_groups(sock) if error.errno == errno.ERANGE else set()
    return {one for (one,) in _GID.iter_unpack(packed)}


def _many_groups(sock: socket.socket) -> set[int]:
    import ctypes  # hardly anybody has so many

    found = (ctypes.c_uint32 * _MOST)()
    size = ctypes.c_uint32(ctypes.sizeof(found))
    getsockopt = ctypes.CDLL(None).getsockopt
    option = socket.SOL_SOCKET, SO_PEERGROUPS
    failed = getsockopt(sock.fileno(), *option, found, ctypes.byref(size))
    return set() if failed else set(found[: size.value // _GID.size])
