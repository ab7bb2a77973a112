# SPDX-License-Identifier: Apache-2.0
"""pyroute2 from anywhere, and the framing of netlink(7) for what is read by hand.

pyroute2 runs an event loop of its own inside each call, which asyncio forbids in a
thread whose loop is running. aside() then lends it a thread; a new thread has its creator's network
namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pyroute2 import NetlinkError

from dmm_ebpf.errors import DmmError, PrivilegeError

P = ParamSpec("P")
T = TypeVar("T")


def aside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """function(...) in the caller's network namespace, where no event loop is running. Blocks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function(*args, **kwargs)
    with ThreadPoolExecutor(1, "dmm-netlink") as pool:
        return pool.submit(function, *args, **kwargs).result()


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns the kernel's refusal into a DmmError about what."""
    try:
        yield
    except NetlinkError as exc:
        why = os.strerror(exc.code)
        if exc.code in (errno.EPERM, errno.EACCES):
            raise PrivilegeError(what, why=why, hint="CAP_NET_ADMIN is needed") from exc
        raise DmmError(what, why=why) from exc


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each message of a datagram (struct nlmsghdr)."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            return
        yield kind, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute from offset on (struct nlattr, without its flag bits)."""
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
