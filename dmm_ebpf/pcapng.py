# SPDX-License-Identifier: Apache-2.0
"""pcapng files (draft-ietf-opsawg-pcapng): what stands before the packets, and several streams put
into one file.

Blocks are in the byte order of this machine, as their writers are on it. A block is its type and
its length (4 bytes each), its body, padding to 4 bytes, and its length again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dmm_ebpf.errors import DmmError

SECTION_HEADER, INTERFACE, ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
LINKTYPE_ETHERNET = 1
SNAPLEN_MAX_BYTES = 262144  # as tcpdump has it
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_USERAPPL, _IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _END = 4, 2, 3, 9, 0
_NANOSECONDS = 9  # 10 to the -9
_HEAD, _WORD = struct.Struct("=II"), struct.Struct("=I")
INBOUND, OUTBOUND = 1, 2  # bits 0 and 1 of epb_flags
_EPB_FLAGS = 2
_PACKET = struct.Struct("=IIIII")
_MORE_BYTES = 1024  # that a block may have beside its packet


def section() -> bytes:
    """The Section Header Block with which a file begins; its length is left open."""
    body = struct.pack("=IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
    return _block(SECTION_HEADER, body + _option(_USERAPPL, b"dmm-ebpf") + _option(_END, b""))


def interface(name: str, description: str, snaplen_bytes: int) -> bytes:
    """An Interface Description Block: Ethernet, times in nanoseconds."""
    body = struct.pack("=HHI", LINKTYPE_ETHERNET, 0, snaplen_bytes)
    options = (
        _option(_IF_NAME, name.encode(errors="surrogateescape")),
        _option(_IF_DESCRIPTION, description.encode(errors="surrogateescape")),
        _option(_IF_TSRESOL, bytes([_NANOSECONDS])),
        _option(_END, b""),
    )
    return _block(INTERFACE, body + b"".join(options))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return _HEAD.pack(kind, length) + body + _WORD.pack(length)


class StreamError(DmmError):
    """What came is no stream of Enhanced Packet Blocks."""


class Stream:
    """The blocks of one writer, whose interfaces get the numbers from first on in the file that
    they are put into.

    The writer is not believed: what is no block, is longer than a block may be, or names an
    interface that there is not, ends the stream.
    """

    def __init__(self, name: str, first: int, interfaces: int) -> None:
        """name: of the writer, for errors."""
        self.name = name
        self._first, self._interfaces = first, interfaces
        self._rest = b""

    def feed(self, data: bytes, most: int | None = None) -> tuple[bytes, int]:
        """The whole blocks that data completes, at most so many, with their interfaces' numbers;
        and how many they are. Raises StreamError.
        """
        whole = bytearray(self._rest + data)
        at = count = 0
        while len(whole) - at >= _HEAD.size and count != most:
            kind, length = _HEAD.unpack_from(whole, at)
            self._check(kind, length)
            if len(whole) - at < length:
                break
            self._renumber(whole, at, length)
            at += length
            count += 1
        self._rest = bytes(whole[at:])
        return bytes(whole[:at]), count

    def _check(self, kind: int, length: int) -> None:
        if kind != ENHANCED_PACKET:
            raise self._refusal(f"a block of type {kind:#x}")
        if length % 4 or not _HEAD.size + 24 <= length <= SNAPLEN_MAX_BYTES + _MORE_BYTES:
            raise self._refusal(f"a block of {length} bytes")

    def _renumber(self, whole: bytearray, at: int, length: int) -> None:
        (number,) = _WORD.unpack_from(whole, at + _HEAD.size)
        (again,) = _WORD.unpack_from(whole, at + length - _WORD.size)
        if number >= self._interfaces or again != length:
            raise self._refusal(f"a block of interface {number}")
        _WORD.pack_into(whole, at + _HEAD.size, self._first + number)

    def _refusal(self, what: str) -> StreamError:
        return StreamError(f"read the capture of {self.name}", why=f"it sent {what}")


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each block of a whole file. Raises StreamError."""
    at = 0
    while at < len(data):
        if len(data) - at < _HEAD.size + 4:
            raise StreamError("read a pcapng file", why="its last block is cut short")
        kind, length = _HEAD.unpack_from(data, at)
        if length % 4 or length < _HEAD.size + 4 or len(data) - at < length:
            raise StreamError("read a pcapng file", why=f"a block says that it has {length} bytes")
        yield kind, data[at + _HEAD.size : at + length - 4]
        at += length


@dataclass(frozen=True)
class Packet:
    """An Enhanced Packet Block: data, of whole_bytes that there were, at a time since 1970, on a
    number of an interface; flags: INBOUND, OUTBOUND, or 0 where that is not said.
    """

    interface: int
    time_ns: int
    whole_bytes: int
    flags: int
    data: bytes


def packets(data: bytes) -> Iterator[Packet]:
    """The packets in whole blocks, whose times are in nanoseconds. Raises StreamError."""
    for kind, body in blocks(data):
        if kind != ENHANCED_PACKET:
            continue
        if len(body) < _PACKET.size:
            raise StreamError("read a pcapng file", why="a packet is cut short")
        number, high, low, kept, whole = _PACKET.unpack_from(body)
        if kept > len(body) - _PACKET.size:
            raise StreamError("read a pcapng file", why=f"a packet says that it has {kept} bytes")
        end = _PACKET.size + kept
        flags = _flags(body[end + -kept % 4 :])
        yield Packet(number, high << 32 | low, whole, flags, body[_PACKET.size : end])


def _flags(options: bytes) -> int:
    """The direction in a block's first option, which is where ours is."""
    if len(options) < 8 or struct.unpack_from("=HH", options) != (_EPB_FLAGS, 4):
        return 0
    return int(_WORD.unpack_from(options, 4)[0] & 3)


def header(interfaces: Sequence[tuple[str, str]], snaplen_bytes: int) -> bytes:
    """What a file begins with; interfaces: name and description of each."""
    return section() + b"".join(interface(*one, snaplen_bytes) for one in interfaces)
