# SPDX-License-Identifier: Apache-2.0
"""netlink(7): messages, their attributes, and sockets to ask the kernel by.

The kernel answers within send(2), so nothing here waits and nothing needs an event loop. A refusal
is an OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError, KernelFeatureError, PrivilegeError

NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_RECEIVE_BYTES = 1 << 17
_DUMPS = 5  # that were disturbed by a change, before one is taken as it is

Message = tuple[int, bytes]  # type, payload


class NetlinkSocket(Closing):
    """A netlink socket of the calling thread's network namespace. protocol: NETLINK_*. For one
    thread at a time.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.bind((0, 0))
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    @property
    def port(self) -> int:
        """By which events name what was changed through this socket."""
        return int(self._socket.getsockname()[0])

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Every object that a request of that type lists: the payloads of the answers."""
        found: list[bytes] = []
        for _ in range(_DUMPS):
            found, disturbed = self._exchange(kind, _NLM_F_DUMP, payload)
            if not disturbed:
                break
        return found

    def get(self, kind: int, payload: bytes) -> bytes:
        """The one object that is asked for."""
        found, _ = self._exchange(kind, _NLM_F_ACK, payload)
        if not found:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return found[0]

    def change(self, kind: int, flags: int, payload: bytes) -> None:
        """A request that changes something. flags: NLM_F_CREATE and so on."""
        self._exchange(kind, flags | _NLM_F_ACK, payload)

    def _exchange(self, kind: int, flags: int, payload: bytes) -> tuple[list[bytes], bool]:
        """The payloads of the answers, and whether the list changed while it was read."""
        number = next(self._numbers)
        length = _HEADER.size + len(payload)
        self._socket.send(_HEADER.pack(length, kind, flags | _NLM_F_REQUEST, number, 0) + payload)
        found: list[bytes] = []
        disturbed = False
        while True:
            for answer, answer_flags, body in _frames(self._socket.recv(_RECEIVE_BYTES)):
                disturbed = disturbed or bool(answer_flags & _NLM_F_DUMP_INTR)
                if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return found, disturbed
                found.append(body)


class RouteSocket(NetlinkSocket):
    """One that asks rtnetlink(7)."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)


@contextlib.contextmanager
def explained(what: str, lacking: Mapping[int, str] = MappingProxyType({})) -> Iterator[None]:
    """Turns the kernel's refusal into a DmmError about what. lacking: errno to what the kernel then
    has not.
    """
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno or 0)
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PrivilegeError(what, why=why, hint="CAP_NET_ADMIN is needed") from error
        if error.errno == errno.EAFNOSUPPORT:
            hint = "a unit's RestrictAddressFamilies= has to name AF_NETLINK, too"
            raise PrivilegeError(what, why="netlink is not allowed here", hint=hint) from error
        missing = lacking.get(error.errno or 0)
        if missing:
            raise KernelFeatureError(what, why=f"this kernel has no {missing}") from error
        raise DmmError(what, why=why) from error


def messages(data: bytes) -> Iterator[Message]:
    """Type and payload of each message of a datagram (struct nlmsghdr)."""
    return ((kind, payload) for kind, _, payload in _frames(data))


def event_socket(groups: int, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """Hears of what these groups of rtnetlink, or of another protocol, tell, in the calling
    thread's namespace; does not block.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.setblocking(False)
    sock.bind((0, groups))
    return sock


def drain(sock: socket.socket) -> bool:
    """Takes all that an event_socket() has; whether there was anything, or something was lost."""
    heard = False
    while True:
        try:
            sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return heard
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        heard = True


def heard(sock: socket.socket) -> list[Message] | None:
    """All that an event_socket() has; None: some of it was lost."""
    found: list[Message] = []
    try:
        while True:
            found += messages(sock.recv(_RECEIVE_BYTES))
    except BlockingIOError:
        return found
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
    drain(sock)
    return None


def _frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and payload of each."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute from offset on (struct nlattr, without its flag bits)."""
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attribute_u32(kind: int, value: int) -> bytes:
    """One attribute that is a u32 in host order."""
    return attribute(kind, struct.pack("=I", value))
