# SPDX-License-Identifier: Apache-2.0
"""Sets of nft(8): the addresses that one has, and what the kernel tells of changes, by nfnetlink's
group NFNLGRP_NFTABLES (linux/netfilter/nf_tables.h).

Every transaction of nft's has a generation, which its messages have, too, and which the last of
them, NFT_MSG_NEWGEN, ends: so what is heard is told by whole transactions, and what was read
already is known. Nothing tells of an element whose time is over, nor of one that a rule adds:
SetFound says whether there may be such. Works in the network namespace that the calling thread is
in, needs CAP_NET_ADMIN there, and changes nothing.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal.netlink import (
    NetlinkSocket,
    attribute,
    attributes,
    event_socket,
    explained,
    messages,
)
from dmm_ebpf.hal.nftelements import Block, Edit, Element, Elements, elements

Name = tuple[str, str, str]  # family, table, set

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7
_NFNL_SUBSYS_NFTABLES = 10
_GETSET, _GETSETELEM, _NEWGEN, _GETGEN = 10, 13, 15, 16  # NFT_MSG_*
_NEWSETELEM, _DELSETELEM, _DESTROYSETELEM = 12, 14, 30
_DELTABLE, _DESTROYTABLE, _NEWSET, _DELSET, _DESTROYSET = 2, 26, 9, 11, 29
_ELEMENTS = (_NEWSETELEM, _DELSETELEM, _DESTROYSETELEM)
_TABLES = (_DELTABLE, _DESTROYTABLE)
_SETS = (_NEWSET, _DELSET, _DESTROYSET)
_NFTA_TABLE, _NFTA_SET = 1, 2  # NFTA_SET_*, NFTA_SET_ELEM_LIST_*; the first of NFTA_TABLE_*, too
_NFTA_SET_FLAGS, _NFTA_SET_KEY_TYPE = 3, 4
_NFTA_SET_ELEM_LIST_ELEMENTS = 3
_NFTA_GEN_ID = 1
_INTERVAL, _MAP, _TIMEOUT, _EVAL, _OBJECT = 0x4, 0x8, 0x10, 0x20, 0x40  # NFT_SET_*
_GENMSG = struct.Struct(">BBH")  # struct nfgenmsg; the last is the end of a generation
_FAMILY_NAMES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_FAMILY_NUMBERS = {name: number for number, name in _FAMILY_NAMES.items()}
_RECEIVE_BYTES = 1 << 17
_READINGS = 5  # that were disturbed by a change, before one is taken as it is

# What nft calls types of keys, by number (its include/datatype.h), which the kernel keeps for it
_FAMILIES = {7: 4, 8: 6}
_TYPE_NAMES = {
    5: "string",
    7: "ipv4_addr",
    8: "ipv6_addr",
    9: "ether_addr",
    10: "ether_type",
    12: "inet_proto",
    13: "inet_service",
    14: "icmp_type",
    19: "mark",
    20: "iface_index",
    24: "uid",
    25: "gid",
    26: "ct_state",
    29: "icmpv6_type",
    36: "dscp",
    41: "ifname",
}
_TYPE_BITS = 6  # of each in that of a concatenation


@dataclass(frozen=True)
class SetFound:
    """What a set has. generation: with which it was read. restless: elements may come by rules and
    go by time, of which nothing tells.
    """

    elements: Elements
    generation: int
    restless: bool = False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Its prefixes."""
        return tuple(self.elements.blocks)


class NoAddressesError(DmmError):
    """What has that name is no set of addresses."""


def read(name: Name) -> SetFound | None:
    """What the set has now; None: there is none. NoAddressesError; DmmError: it cannot be read."""
    what = f"read the nft set {' '.join(name)}"
    # Subsystems that a kernel has not it calls invalid
    lacking = {errno.EPROTONOSUPPORT: "nfnetlink", errno.EINVAL: "nf_tables"}
    with explained(what, lacking), NetlinkSocket(_NETLINK_NETFILTER) as sock:
        for _ in range(_READINGS):
            generation = _generation(sock)
            found = _read(sock, what, name, generation)
            if _generation(sock) == generation:
                break
        return found


def _read(sock: NetlinkSocket, what: str, name: Name, generation: int) -> SetFound | None:
    try:
        told = dict(attributes(sock.get(_kind(_GETSET), _named(name)), _GENMSG.size))
        flags, family = _number(told.get(_NFTA_SET_FLAGS)), _family(what, told)
        listed = sock.dump(_kind(_GETSETELEM), _named(name))
    except FileNotFoundError:
        return None
    has: list[Element] = []
    try:
        for one in listed:
            has += elements(dict(attributes(one, _GENMSG.size))[_NFTA_SET_ELEM_LIST_ELEMENTS])
    except (KeyError, ValueError):
        raise DmmError(what, why="an element of it is no address") from None
    made = Elements(family, has, intervals=bool(flags & _INTERVAL))
    # The kernel lets rules add to what has time-outs alone, too.
    return SetFound(made, generation, bool(flags & (_TIMEOUT | _EVAL)))


def _generation(sock: NetlinkSocket) -> int:
    said = sock.get(_kind(_GETGEN), _GENMSG.pack(0, 0, 0))
    return _number(dict(attributes(said, _GENMSG.size)).get(_NFTA_GEN_ID))


def _family(what: str, told: Mapping[int, bytes]) -> int:
    """4 or 6, of a set's keys. NoAddressesError."""
    if _number(told.get(_NFTA_SET_FLAGS)) & (_MAP | _OBJECT):
        raise NoAddressesError(what, why="it is a map", hint="name a set of addresses")
    kind = _number(told.get(_NFTA_SET_KEY_TYPE))
    family = _FAMILIES.get(kind)
    if family is None:
        why = f"its keys are of the type {type_text(kind)}"
        raise NoAddressesError(what, why=why, hint="expected ipv4_addr or ipv6_addr")
    return family


def type_text(kind: int) -> str:
    """A type of keys, as nft calls it; those of a concatenation with dots between them."""
    parts: list[str] = []
    while kind:
        number = kind & (1 << _TYPE_BITS) - 1
        parts.append(_TYPE_NAMES.get(number, f"number {number} of nft's"))
        kind >>= _TYPE_BITS
    return " . ".join(reversed(parts)) or "that has no name"


def _named(name: Name) -> bytes:
    family, table, own = name
    said = attribute(_NFTA_TABLE, table.encode() + b"\0") + attribute(
        _NFTA_SET, own.encode() + b"\0"
    )
    return _GENMSG.pack(_FAMILY_NUMBERS[family], 0, 0) + said


def _kind(message: int) -> int:
    return _NFNL_SUBSYS_NFTABLES << 8 | message


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


# -- what changes --


class Heard(NamedTuple):
    """Of one set in one transaction. generation: that it made, of which there are 16 bits.
    elements: what came there (True) and went; None: it is another set now, or none.
    """

    name: Name
    generation: int
    elements: Sequence[tuple[bool, Element]] | None


class LostError(Exception):
    """The kernel had more to tell than it had room for."""


class Changes(Closing):
    """What the kernel tells of changed sets, from when it is made."""

    def __init__(self) -> None:
        self._socket = event_socket(1 << (_NFNLGRP_NFTABLES - 1), _NETLINK_NETFILTER)
        self._begun: list[Heard] = []  # of a transaction whose end was not heard yet

    def close(self) -> None:
        """Hears no more."""
        self._socket.close()

    def fileno(self) -> int:
        """Can be read when there is something to hear."""
        return self._socket.fileno()

    def heard(self, names: Iterable[Name]) -> list[Heard]:
        """What has become of these sets since it was asked last, by whole transactions, in order.
        LostError: nobody knows; they are to be read anew.
        """
        wanted = {(_FAMILY_NUMBERS[family], table, own) for family, table, own in names}
        whole: list[Heard] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            for kind, payload in messages(data):
                if kind == _kind(_NEWGEN):
                    whole += self._begun
                    self._begun.clear()
                elif kind >> 8 == _NFNL_SUBSYS_NFTABLES and len(payload) >= _GENMSG.size:
                    self._begun += _told(kind & 0xFF, payload, wanted)
        if lost:
            self._begun.clear()
            raise LostError
        return whole


def _told(message: int, payload: bytes, wanted: set[tuple[int, str, str]]) -> list[Heard]:
    """Of the sets that a message is about."""
    if message not in _ELEMENTS and message not in _SETS and message not in _TABLES:
        return []
    family, _, generation = _GENMSG.unpack_from(payload)
    told = dict(attributes(payload, _GENMSG.size))
    table, own = (_text(told.get(one)) for one in (_NFTA_TABLE, _NFTA_SET))
    if message in _TABLES:  # whose second attribute is none's name
        concerned = [one for one in wanted if one[:2] == (family, table)]
    else:
        concerned = [(family, table, own)] if (family, table, own) in wanted else []
    if not concerned:
        return []
    changed: list[tuple[bool, Element]] | None = None
    if message in _ELEMENTS:
        listed = told.get(_NFTA_SET_ELEM_LIST_ELEMENTS, b"")
        try:
            changed = [(message == _NEWSETELEM, one) for one in elements(listed)]
        except ValueError:  # what that is, reading it anew tells
            changed = None
    return [
        Heard((_FAMILY_NAMES[number], table, own), generation, changed)
        for number, table, own in concerned
    ]


def follow(found: SetFound, heard: Iterable[Heard]) -> Edit | None:
    """Have in found what has become of it since it was read, and say what that changes; None: it is
    another set now, or none.
    """
    for one in heard:
        if not _is_later(one.generation, found.generation):
            continue
        if one.elements is None:
            return None
        for came, element in one.elements:
            if came:
                found.elements.put(element)
            else:
                found.elements.drop(element)
    return found.elements.settle()


def _is_later(generation: int, than: int) -> bool:
    """Whether one of which there are 16 bits is later, as numbers go that begin anew."""
    return 0 < (generation - than) & 0xFFFF < 0x8000


def _text(value: bytes | None) -> str:
    return (value or b"").split(b"\0", 1)[0].decode(errors="replace")
