# SPDX-License-Identifier: Apache-2.0
"""bpf/abi.h as Python sees it: the same text, read by cffi when the package is built (build_abi.py).

ffi makes and reads the structs; C holds every enumerator by name. There is no second definition to keep in step; a
header that has changed since the build is refused.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from pathlib import Path
from typing import Any

from dmm_ebpf._abi import ffi as _ffi
from dmm_ebpf._abi import lib as _lib
from dmm_ebpf.errors import DmmError

ffi: Any = _ffi
C: Any = _lib

_HERE = Path(__file__).resolve().parent


def bpf_dir() -> Path:
    """Where abi.h and the BPF sources are: bpf/ of the checkout, or the copy that a wheel carries."""
    for candidate in (_HERE.parent / "bpf", _HERE / "_bpf"):
        if (candidate / "abi.h").is_file():
            return candidate
    raise FileNotFoundError("bpf/abi.h is neither beside the package nor inside it")


def _check_built() -> None:
    header = bpf_dir() / "abi.h"
    if hashlib.sha256(header.read_bytes()).hexdigest() != ffi.string(C.dmm_abi_digest).decode():
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


def sizeof(struct: str) -> int:
    """Size of `struct struct` in bytes."""
    return int(ffi.sizeof(f"struct {struct}"))


def offset(struct: str, member: str) -> int:
    """Where member begins in `struct struct`, in bytes."""
    return int(ffi.offsetof(f"struct {struct}", member))


def text(array: Any) -> str:
    """A char array as text, up to its first NUL."""
    return bytes(ffi.buffer(array)).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def addr16(address: str | ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """16 bytes in network order; IPv4 is v4-mapped (RFC 4291 section 2.5.5.2)."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + ip.packed
    return ip.packed


@functools.lru_cache(maxsize=4096)  # listings of many flows have few addresses
def addr_text(data: bytes) -> str:
    """The address that addr16() packed, IPv4 as dotted quad."""
    ip = ipaddress.IPv6Address(data)
    return str(ip.ipv4_mapped or ip)
