# SPDX-License-Identifier: Apache-2.0
"""A program's own choice of its stack: the socket options of dmm.h, to be copied as it is."""

import socket
import struct

SOL_DMM, DMM_STACK, DMM_SERVING = 0x444D4D, 1, 2


def choose(sock: socket.socket, stack: str) -> None:
    """Before connect() or listen(). OSError: ENOPROTOOPT, ENOENT, EPERM, EISCONN, as in dmm.h."""
    sock.setsockopt(SOL_DMM, DMM_STACK, stack.encode())


def serving(sock: socket.socket) -> tuple[str, str, int, int]:
    """(stack that serves, stack that was wanted, why another, what became of the choice)."""
    told = struct.unpack("32s32sII", sock.getsockopt(SOL_DMM, DMM_SERVING, 72))
    stack, wanted = (name.rstrip(b"\0").decode() for name in told[:2])
    return stack, wanted, *told[2:]
