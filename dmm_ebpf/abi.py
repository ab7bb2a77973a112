# SPDX-License-Identifier: Apache-2.0
"""bpf/abi.h, and dmm.h that it includes, as Python sees them: the same text, read by cffi when the
package is built (build_abi.py).

ffi makes and reads the structs; C holds every enumerator by name. There is no second definition to
keep in step; a header that has changed since the build is refused.

What a BPF map has as key or value is a Form: of an integer, of a struct, or of a struct that
is a key.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import socket
import struct as _struct
from collections import namedtuple
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from dmm_ebpf._abi import ffi as _ffi
from dmm_ebpf._abi import lib as _lib
from dmm_ebpf.errors import DmmError

ffi: Any = _ffi
C: Any = _lib
Struct = Any  # a struct of abi.h, as new() makes it: its fields are attributes
T = TypeVar("T")

_HERE = Path(__file__).resolve().parent


def bpf_dir() -> Path:
    """Where abi.h and the BPF sources are: bpf/ of the checkout, or the copy that
    a wheel carries.
    """
    for candidate in (_HERE.parent / "bpf", _HERE / "_bpf"):
        if (candidate / "abi.h").is_file():
            return candidate
    raise FileNotFoundError("bpf/abi.h is neither beside the package nor inside it")


def _check_built() -> None:
    header = bpf_dir() / "abi.h"
    text = header.with_name("dmm.h").read_bytes() + header.read_bytes()
    if hashlib.sha256(text).hexdigest() != ffi.string(C.dmm_abi_digest).decode():
        raise DmmError(
            "use the compiled parts of dmm-ebpf",
            why=f"{header} has changed since they were built",
            hint="build them: tools/bootstrap",
        )


_check_built()


def new(struct: str, **fields: Any) -> Any:
    """A zeroed `struct struct`, with fields set; char and byte arrays take bytes."""
    obj = ffi.new(f"struct {struct} *")
    for key, value in fields.items():
        if isinstance(value, bytes):
            array = getattr(obj, key)
            ffi.buffer(array)[0 : len(value)] = value
        else:
            setattr(obj, key, value)
    return obj


def pack(obj: Any) -> bytes:
    """The bytes of a struct made by new()."""
    return bytes(ffi.buffer(obj))


def unpack(struct: str, data: bytes) -> Any:
    """A `struct struct` read from data, which must be at least as long as the struct."""
    obj = ffi.new(f"struct {struct} *")
    size = ffi.sizeof(f"struct {struct}")
    if len(data) < size:
        raise ValueError(f"struct {struct} takes {size} bytes, got {len(data)}")
    ffi.memmove(obj, data, size)
    return obj


def copy(view: Struct) -> Struct:
    """A struct of its own, as new() makes it, from one such, or from a part of another, which
    ends with that.
    """
    whole = view[0] if ffi.typeof(view).kind == "pointer" else view
    return ffi.new(ffi.typeof(ffi.addressof(whole)), whole)


def sizeof(struct: str) -> int:
    """Size of `struct struct` in bytes."""
    return int(ffi.sizeof(f"struct {struct}"))


def offset(struct: str, member: str) -> int:
    """Where member begins in `struct struct`, in bytes."""
    return int(ffi.offsetof(f"struct {struct}", member))


def text(array: Any) -> str:
    """A char array as text, up to its first NUL."""
    return bytes(ffi.buffer(array)).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


_MAPPED = b"\0" * 10 + b"\xff\xff"  # RFC 4291 section 2.5.5.2


def addr16(address: str | ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """16 bytes in network order; IPv4 is v4-mapped."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return _MAPPED + ip.packed
    return ip.packed


@functools.lru_cache(maxsize=4096)  # listings of many flows have few addresses
def addr_text(data: bytes) -> str:
    """The address that addr16() packed, IPv4 as dotted quad."""
    if data[:12] == _MAPPED:
        return socket.inet_ntop(socket.AF_INET, data[12:])
    return socket.inet_ntop(socket.AF_INET6, data)


class Form(Protocol[T]):
    """How a fact of type T stands in a BPF map. size: bytes there; c_type: what C calls it."""

    @property
    def size(self) -> int: ...

    @property
    def c_type(self) -> str: ...

    def pack(self, value: T) -> bytes:
        """value as the map has it; TypeError or OverflowError if it is none."""

    def unpack_all(self, data: bytes) -> list[T]:
        """Those that are laid end to end in data, which they fill."""


class IntForm:
    """An unsigned integer of so many bytes, in host order: an int."""

    def __init__(self, c_type: str, code: str) -> None:
        self.c_type = c_type
        self._one = _struct.Struct(f"={code}")
        self._code = code
        self.size = self._one.size

    def pack(self, value: int) -> bytes:
        """See Form."""
        try:
            return self._one.pack(value)
        except _struct.error as error:
            raise OverflowError(f"{value!r} is no {self.c_type}") from error

    def unpack_all(self, data: bytes) -> list[int]:
        """See Form."""
        return list(_struct.unpack(f"={len(data) // self.size}{self._code}", data))


U32 = IntForm("__u32", "I")
U64 = IntForm("__u64", "Q")


class StructForm:
    """`struct NAME` of abi.h: what new(NAME) makes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.c_type = f"struct {name}"
        self.size = sizeof(name)
        self._pointer = ffi.typeof(f"struct {name} *")
        self._array = ffi.typeof(f"struct {name}[]")

    def new(self, **fields: Any) -> Struct:
        """See new()."""
        return new(self.name, **fields)

    def pack(self, value: Struct) -> bytes:
        """See Form."""
        if not isinstance(value, ffi.CData) or ffi.typeof(value) is not self._pointer:
            raise TypeError(f"{value!r} is no {self.c_type}")
        return pack(value)

    def views(self, data: bytes) -> Any:
        """Those that are laid end to end in data, to be indexed; each holds as long as
        what is returned.
        """
        return ffi.from_buffer(self._array, data)

    def column(self, data: bytes, name: str) -> list[int]:
        """One field, an integer, of each that is laid end to end in data."""
        field = dict(self._array.item.fields)[name]
        bytes_each = ffi.sizeof(field.type)
        words = memoryview(data).cast(_CODES[bytes_each])
        return list(words[field.offset // bytes_each :: self.size // bytes_each])

    def unpack_all(self, data: bytes) -> list[Struct]:
        """See Form."""
        return [ffi.new(self._pointer, view) for view in self.views(data)]


class KeyForm:
    """`struct NAME` of abi.h as a key: a named tuple with its fields, arrays as bytes; so it can be
    hashed, compared, and shown. Fields that are left out are 0.

    A struct that is a key has no holes: the kernel compares all of its bytes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.c_type = f"struct {name}"
        self._fields = ffi.typeof(self.c_type).fields
        self._one = _struct.Struct("=" + "".join(_code(field.type) for _, field in self._fields))
        self.size = self._one.size
        if self.size != sizeof(name):
            raise AssertionError(
                f"{self.c_type} has holes, or fields that are no integers or bytes"
            )

    @functools.cached_property
    def type(self) -> Any:
        """The named tuple's class."""
        empty = self._one.unpack(bytes(self.size))
        return namedtuple(self.name, [name for name, _ in self._fields], defaults=empty)

    def pack(self, value: Any) -> bytes:
        """See Form."""
        if not isinstance(value, self.type):
            raise TypeError(f"{value!r} is no {self.c_type}")
        return self._one.pack(*value)

    def unpack_all(self, data: bytes) -> list[Any]:
        """See Form."""
        return list(map(self.type._make, self._one.iter_unpack(data)))


_CODES: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _code(field: Any) -> str:
    """Of a field in a format of the module struct."""
    if field.kind == "array":
        return f"{ffi.sizeof(field)}s" if ffi.sizeof(field.item) == 1 else ""
    return _CODES[ffi.sizeof(field)] if field.kind == "primitive" else ""
