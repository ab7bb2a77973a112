# SPDX-License-Identifier: Apache-2.0
"""A stack process that somebody has taken over: the real one, from its real start to the moment it
serves; after that it does what it is told by the control socket's request "do", which evaluates an
expression and tells how that went.

Run as StackSupervisor.COMMAND runs the real one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmm_ebpf import frames
from dmm_ebpf.frames import Message
from dmm_ebpf.userstack import process
from dmm_ebpf.userstack.spec import StackSpec

_LIBC = ctypes.CDLL(None, use_errno=True)
_BUFFER = ctypes.create_string_buffer(4096)


def call(number: int, *args: int | bytes) -> int:
    """A system call by its number on x86-64 (asm/unistd_64.h)."""
    values = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in args]
    _LIBC.syscall.restype = ctypes.c_long
    result = int(_LIBC.syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def ioctl(fd: int, request: int, value: int) -> int:
    """ioctl(2)."""
    return call(16, fd, request, value)


def thread() -> None:
    """One more thread."""
    import _thread

    _thread.start_new_thread(lambda: None, ())


TOOLS = {
    "call": call,
    "ioctl": ioctl,
    "thread": thread,
    "buffer": ctypes.addressof(_BUFFER),
    "os": os,
    "signal": signal,
    "socket": socket,
    "struct": struct,
}


class TakenOver(process.StackProcess):
    """Does as it is told."""

    lies: Mapping[str, Any] = {}

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        # While it may still look: the descriptor of its TAP device.
        fds = Path("/proc/self/fd")
        self.device = next(
            int(fd.name) for fd in fds.iterdir() if str(fd.readlink()) == "/dev/net/tun"
        )

    def _answer(self, number: int, method: str, params: Message) -> Message:
        if method == "do":
            return frames.reply(number, self._do(params["code"]))
        if method == "lie":
            type(self).lies = params["lies"]
            return frames.reply(number, None)
        if method in self.lies:
            answer: Message = eval(self.lies[method], {"id": number, "os": os})
            return answer
        return super()._answer(number, method, params)

    def _do(self, code: str) -> str:
        try:
            return repr(eval(code, TOOLS | {"me": self}))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        except Exception as error:
            return type(error).__name__


if __name__ == "__main__":
    process.StackProcess = TakenOver  # type: ignore[misc]
    sys.exit(process.main())
