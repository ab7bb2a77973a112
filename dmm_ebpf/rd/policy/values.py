# SPDX-License-Identifier: Apache-2.0
"""The scalar values of a policy: prefixes, ports, marks, DSCP, rates, sizes, user ids.

Owns their text forms. Every function takes what TOML or a routes file gives, returns plain
integers, and refuses with ValueRefusedError, whose text says what was expected; nothing here knows
files or lines.
The prefix and port parsers run once per line of a million-line file, so they avoid the ipaddress
module until there is an error to explain.
"""

from __future__ import annotations

import grp
import ipaddress
import itertools
import pwd
import re
import socket
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from dmm_ebpf.rd.policy.shape import (
    ANY_TEXT,
    any_case,
    any_of,
    list_of,
    spaced,
    spelled,
    takes,
    whole,
)

U32_MAX = 0xFFFFFFFF
PORT_MAX = 65535
MILLION = 1_000_000
TCP = socket.IPPROTO_TCP
UDP = socket.IPPROTO_UDP
PROTOCOLS = {"tcp": TCP, "udp": UDP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

V4_MAPPED_FIRST = 0xFFFF << 32  # ::ffff:0:0, RFC 4291 section 2.5.5.2

# RFC 2474 (class selectors), RFC 2597 (AF), RFC 3246 (EF), RFC 5865 (VA), RFC 8622 (LE)
DSCP_NAMES: dict[str, int] = {
    "default": 0,
    "be": 0,
    "le": 1,
    "va": 44,
    "ef": 46,
    **{f"cs{n}": 8 * n for n in range(8)},
    **{f"af{c}{d}": 8 * c + 2 * d for c in range(1, 5) for d in range(1, 4)},
}

_SI = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_IEC = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_RATE = re.compile(
    r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kKmMgGtT][iI]?)?([bB][iI][tT]|[bB][pP][sS])"
)
_SHARE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%")
_SIZE = re.compile(r"([0-9]{1,15})\s*([kKmMgG]?)")
_PORT_ITEM = re.compile(r"([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}")
_MAX_SIZE = 1 << 40
_LENGTH4 = r"/(?:0{0,2}[0-9]|0?[12][0-9]|0?3[0-2])"
_LENGTH6 = r"/(?:0{0,2}[0-9]|0?[1-9][0-9]|1[01][0-9]|12[0-8])"
_BYTE = r"(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_MARK_NUMBER = spaced(_NUMBER.pattern)
_PORTS_ITEM = spaced(_PORT_ITEM.pattern)

Ports = tuple[tuple[int, int], ...]


class ValueRefusedError(ValueError):
    """A value that is refused: why, and what to do about it (may be empty)."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


class Prefix(NamedTuple):
    """An IP prefix: family 4 or 6, the network as an integer, the prefix length."""

    family: int
    addr: int
    length: int

    def __str__(self) -> str:
        return prefix_text(*self)


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a device's name is one of these, in which * and ? stand for others."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Mark(NamedTuple):
    """An fwmark and the bits of it that count; value has no bit outside mask."""

    value: int
    mask: int

    def __str__(self) -> str:
        return f"{self.value:#x}" if self.mask == U32_MAX else f"{self.value:#x}/{self.mask:#x}"


class IdRange(NamedTuple):
    """Ids of users or groups, first..last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def shown(value: object) -> str:
    """A user's value, quoted and cut so that an error stays one line."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return '"' + "".join(c if c.isprintable() else "?" for c in text) + '"'


def prefix_text(family: int, addr: int, length: int) -> str:
    """A prefix in its usual text form (RFC 5952 for IPv6)."""
    if family == 4:
        return f"{socket.inet_ntop(socket.AF_INET, addr.to_bytes(4, 'big'))}/{length}"
    return f"{socket.inet_ntop(socket.AF_INET6, addr.to_bytes(16, 'big'))}/{length}"


@takes(
    spelled(
        rf"default|{_BYTE}(?:\.{_BYTE}){{3}}(?:{_LENGTH4})?"
        rf"|[0-9a-fA-F]*:[0-9a-fA-F:.]+(?:{_LENGTH6})?"
    )
)
def parse_prefix(text: str) -> tuple[Prefix, ...]:
    """The prefix that text names; "default" names two, 0.0.0.0/0 and ::/0. A bare address is
    a host prefix.
    """
    if text == "default":
        return (Prefix(4, 0, 0), Prefix(6, 0, 0))
    address, slash, length_text = text.partition("/")
    try:
        if ":" in address:
            family, bits = 6, 128
            addr = int.from_bytes(socket.inet_pton(socket.AF_INET6, address), "big")
        else:
            family, bits = 4, 32
            addr = int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
    except (OSError, ValueError):
        raise _bad_prefix(text) from None
    length = bits
    if slash:
        if not (length_text.isascii() and length_text.isdigit() and len(length_text) <= 3):
            raise _bad_prefix(text)
        length = int(length_text)
        if length > bits:
            raise ValueRefusedError(
                f"{shown(text)} has a prefix length above {bits}", f"IPv{family} ends at /{bits}"
            )
    host = addr & ((1 << (bits - length)) - 1)
    if host:
        raise ValueRefusedError(
            f"{shown(text)} has host bits set after /{length}",
            f"the network is {prefix_text(family, addr - host, length)}",
        )
    if family == 6 and length >= 96 and addr >> 32 == V4_MAPPED_FIRST >> 32:
        plain = prefix_text(4, addr & U32_MAX, length - 96)
        raise ValueRefusedError(f"{shown(text)} is an IPv4-mapped prefix", f"write it as {plain}")
    return (Prefix(family, addr, length),)


def _bad_prefix(text: str) -> ValueRefusedError:
    return ValueRefusedError(
        f"{shown(text)} is not an IPv4 or IPv6 prefix",
        'expected for example "203.0.113.0/24", "2001:db8::/32" or "default"',
    )


@takes({"enum": [*PROTOCOLS, "any", ""]})
def parse_protocol(text: str) -> int:
    """IPPROTO_TCP or IPPROTO_UDP; 0 for an empty text or "any": both."""
    if text in ("", "any"):
        return 0
    try:
        return PROTOCOLS[text]
    except KeyError:
        raise ValueRefusedError(
            f"{shown(text)} is not a protocol", 'expected "tcp" or "udp"'
        ) from None


_PORTS = any_of(whole(1, PORT_MAX), spelled(f"{_PORTS_ITEM}(?:,{_PORTS_ITEM})*"))


@takes(
    {
        "description": 'Ports: 443, "443, 8000-8100" or a list of such; left out, every port.',
        **any_of(*_PORTS["anyOf"], list_of(_PORTS)),
    }
)
def parse_ports(value: object) -> Ports:
    """Port ranges, sorted, from 443, "443, 8000-8100" or a list of such; () means every port."""
    items: list[object] = list(value) if isinstance(value, list | tuple) else [value]
    ranges: list[tuple[int, int]] = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise ValueRefusedError(
                f"{shown(item)} is not a port", 'expected for example 443 or "443, 8000-8100"'
            )
        if isinstance(item, int):
            ranges.append((_port(item), _port(item)))
        else:
            ranges.extend(_port_range(part.strip()) for part in item.split(","))
    if not ranges:
        raise ValueRefusedError("the list of ports is empty", "leave ports out to mean every port")
    ranges.sort()
    for (first, last), (next_first, next_last) in itertools.pairwise(ranges):
        if next_first <= last:
            raise ValueRefusedError(
                f"ports {range_text(first, last)} and {range_text(next_first, next_last)} overlap",
                "name each port once",
            )
    return tuple(ranges)


def _port_range(text: str) -> tuple[int, int]:
    match = _PORT_ITEM.fullmatch(text)
    if match is None:
        raise ValueRefusedError(
            f"{shown(text)} is not a port or a range", 'expected for example "443" or "8000-8100"'
        )
    first = _port(int(match[1]))
    last = _port(int(match[2])) if match[2] else first
    if last < first:
        raise ValueRefusedError(
            f"the port range {first}-{last} is reversed", f"write {last}-{first}"
        )
    return first, last


def _port(number: int) -> int:
    if not 1 <= number <= PORT_MAX:
        raise ValueRefusedError(f"{number} is not a port", f"ports are 1 to {PORT_MAX}")
    return number


def range_text(first: int, last: int) -> str:
    """A port, or a range of ports."""
    return str(first) if first == last else f"{first}-{last}"


def ports_text(ports: Ports) -> str:
    """Ports as a policy writes them; empty for every port."""
    return ",".join(range_text(first, last) for first, last in ports)


def _number(text: str, what: str) -> int:
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise ValueRefusedError(f"{shown(text)} is not {what}", 'expected for example 16 or "0x10"')
    return int(text, 16 if text[:2].lower() == "0x" else 10)


@takes(any_of(whole(0, U32_MAX), spelled(f"{_MARK_NUMBER}(?:/{_MARK_NUMBER})?")))
def parse_mark(value: object) -> Mark:
    """A mark from 16, "0x10" or "0x10/0xff"; without a mask all 32 bits count."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueRefusedError(
            f"{shown(value)} is not a mark", 'expected for example 16, "0x10" or "0x10/0xff"'
        )
    if isinstance(value, int):
        mark, mask = value, U32_MAX
    else:
        mark_text, slash, mask_text = value.partition("/")
        mark = _number(mark_text, "a mark")
        mask = _number(mask_text, "a mask") if slash else U32_MAX
    if not (0 <= mark <= U32_MAX and 0 < mask <= U32_MAX):
        raise ValueRefusedError(
            f"{shown(value)} does not fit a mark",
            "marks and masks have 32 bits, and a mask is not 0",
        )
    if mark & ~mask:
        raise ValueRefusedError(
            f"{shown(value)} has bits of the mark outside the mask",
            "widen the mask or clear those bits",
        )
    return Mark(mark, mask)


@takes(
    any_of(
        whole(0, 63),
        {"enum": sorted(DSCP_NAMES)},  # for editors to offer
        spelled(any_case(sorted(DSCP_NAMES))),
    )
)
def parse_dscp(value: object) -> int:
    """A DSCP from its number, 0..63, or its name, "af21", "cs1", "ef", "le"."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 63:
        return value
    if isinstance(value, str) and value.lower() in DSCP_NAMES:
        return DSCP_NAMES[value.lower()]
    raise ValueRefusedError(
        f"{shown(value)} is not a DSCP",
        'expected 0 to 63, or a name such as "af21", "cs1", "ef", "le"',
    )


@takes(any_of(whole(1, U32_MAX - 1), spelled(spaced(_RATE.pattern))))
def parse_rate(value: object) -> int:
    """A rate in bytes a second, from such an integer or from tc(8)'s units:
    "80mbit", "10mbps" (bytes).
    """
    hint = 'expected bytes a second as an integer, or a text such as "80mbit", "1.5gbit", "10mbps" (as in tc)'
    if isinstance(value, int) and not isinstance(value, bool):
        rate = value
    else:
        match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueRefusedError(f"{shown(value)} is not a rate", hint)
        unit = (match[2] or "").lower()
        per_second = float(match[1]) * (_IEC[unit] if unit in _IEC else _SI[unit])
        rate = int(per_second / 8 if match[3].lower() == "bit" else per_second)
    if not 1 <= rate <= U32_MAX - 1:
        raise ValueRefusedError(
            f"{shown(value)} is {rate} bytes a second", f"expected 1 to {U32_MAX - 1}"
        )
    return rate


SHARE = spelled(spaced(_SHARE.pattern))


def parse_share(value: object, least_ppm: int, what: str) -> int:
    """A share in parts per million, from "5%" or "0.2%"; at most all."""
    match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueRefusedError(
            f"{shown(value)} is not {what}", 'expected a share such as "5%" or "0.2%", in quotes'
        )
    ppm = round(float(match[1]) * 10_000)
    if not least_ppm <= ppm <= MILLION:
        raise ValueRefusedError(
            f"{shown(value)} is not {what}", f"expected {least_ppm / 10_000:g}% to 100%"
        )
    return ppm


@takes(any_of(whole(1, _MAX_SIZE), spelled(spaced(_SIZE.pattern))))
def parse_size(value: object) -> int:
    """A size in bytes, from an integer or from "16M" (K, M and G are powers of 1024)."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueRefusedError(
                f"{shown(value)} is not a size",
                'expected bytes, or a text such as "512K", "16M", "1G"',
            )
        size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
    if not 1 <= size <= _MAX_SIZE:
        raise ValueRefusedError(f"{shown(value)} is {size} bytes", "expected 1 byte to 1024G")
    return size


_IDS = any_of(whole(0, U32_MAX - 1), spelled(f"{ANY_TEXT}+"))


@takes(_IDS)
def parse_uid(value: object) -> IdRange:
    """User ids from 1000, "1000-2000" or a user name that this host knows."""
    return _ids(value, "user", lambda name: pwd.getpwnam(name).pw_uid)


@takes(_IDS)
def parse_gid(value: object) -> IdRange:
    """Group ids from 1000, "1000-2000" or a group's name that this host knows."""
    return _ids(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def _ids(value: object, what: str, by_name: Callable[[str], int]) -> IdRange:
    """what: "user" or "group". by_name: the id of one; KeyError: there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif isinstance(value, str) and (
        match := re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", value, re.ASCII)
    ):
        first = int(match[1])
        last = int(match[2]) if match[2] else first
    elif isinstance(value, str) and value and "\0" not in value:
        try:
            first = last = by_name(value)
        except KeyError:
            raise ValueRefusedError(
                f"this host has no {what} {shown(value)}",
                f"use the number, or create the {what}",
            ) from None
    else:
        raise ValueRefusedError(
            f"{shown(value)} is not a {what}", f'expected 1000, "1000-2000" or a {what} name'
        )
    if not (0 <= first < U32_MAX and 0 <= last < U32_MAX):
        raise ValueRefusedError(
            f"{shown(value)} is not a {what} id", f"{what} ids are 0 to {U32_MAX - 1}"
        )
    if last < first:
        raise ValueRefusedError(
            f"the range of {what} ids {first}-{last} is reversed", f"write {last}-{first}"
        )
    return IdRange(first, last)


def parse_address(text: str) -> tuple[int, int]:
    """(family, address) of an IP address; an IPv4-mapped one is IPv4, as the kernel routes it."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise ValueRefusedError(
            f"{shown(text)} is not an IP address", "expected IPv4 or IPv6"
        ) from None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.version, int(ip)
