# SPDX-License-Identifier: Apache-2.0
"""Sets of nft(8): the addresses that one has, by nft's own JSON (libnftables-json(5)), and what
tells of changes, the group NFNLGRP_NFTABLES of nfnetlink.

Nothing tells of an element whose time is over, nor of one that a rule adds: SetFound says whether
there may be such. Works in the network namespace that the calling thread is in, needs CAP_NET_ADMIN
there, and changes nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.asking import Answer, NoAnswerError, ask
from dmm_ebpf.closing import Closing
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal.netlink import attributes, event_socket, messages

Name = tuple[str, str, str]  # family, table, set
Block = tuple[int, int, int]  # a prefix: 4 or 6, the network as an integer, its length

WITHIN_S = 20.0
MOST_BYTES = 256 << 20  # of JSON: some million elements
_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_FAMILIES = {"ipv4_addr": 4, "ipv6_addr": 6}  # by the type of a set's keys
_PROTOCOLS = {"ip": 4, "ip6": 6}
_CATCH_ALL = "*"
_V4_MAPPED = 0xFFFF  # ::ffff:0:0/96 (RFC 4291 section 2.5.5.2), without the last 32 bits

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_TABLES = (0, 2)  # NEWTABLE, DELTABLE
_NFT_MSG_SETS = (9, 11, 12, 14)  # NEWSET, DELSET, NEWSETELEM, DELSETELEM
_NFTA_TABLE, _NFTA_SET = 1, 2  # NFTA_SET_NAME, NFTA_SET_ELEM_LIST_SET, and the tables of both
_NFGENMSG = 4  # bytes of struct nfgenmsg, the first of which is the family
_FAMILY_NAMES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_RECEIVE_BYTES = 1 << 17


@dataclass(frozen=True)
class SetFound:
    """What a set has. restless: elements may come by rules and go by time, of which nothing
    tells.
    """

    blocks: tuple[Block, ...]
    restless: bool = False


class NoAddressesError(DmmError):
    """What has that name is no set of addresses."""


def read(name: Name) -> SetFound | None:
    """What the set has now; None: there is none. NoAddressesError; DmmError: it cannot be read."""
    family, table, own = name
    what = f"read the nft set {' '.join(name)}"
    said = _ask(what, {"list": {"set": {"family": family, "table": table, "name": own}}})
    if said.code == 0:
        found = [one["set"] for one in _objects(what, said) if "set" in one]
        if len(found) != 1:
            raise DmmError(what, why=f"nft lists {len(found)} sets of that name")
        return decoded(found[0])
    # In words nft says why not. It says it in another way, too.
    for kind in ("sets", "maps"):
        listed = _ask(what, {"list": {kind: {}}}, terse=True)
        if listed.code:
            first = listed.err.decode(errors="replace").strip().partition("\n")[0]
            raise DmmError(what, why=f"nft says {first or 'nothing'!r}")
        one = kind.removesuffix("s")
        there = (o[one] for o in _objects(what, listed) if one in o)
        if not any((o.get("family"), o.get("table"), o.get("name")) == name for o in there):
            continue
        if kind == "maps":
            raise NoAddressesError(what, why="it is a map", hint="name a set of addresses")
        first = said.err.decode(errors="replace").strip().partition("\n")[0]
        raise DmmError(what, why=f"nft says {first!r}")
    return None


def decoded(said: Mapping[str, Any]) -> SetFound:
    """What a SET object of libnftables-json(5) has. NoAddressesError; DmmError: it is not as told
    there.
    """
    what = f"read the nft set {said.get('family')} {said.get('table')} {said.get('name')}"
    family = _family(said.get("type"))
    if family is None:
        why = f"its keys are of the type {_type_text(said.get('type'))}"
        raise NoAddressesError(what, why=why, hint="expected ipv4_addr or ipv6_addr")
    blocks: dict[Block, None] = {}
    for element in said.get("elem", ()):
        more = isinstance(element, dict) and "elem" in element  # a counter, a time, a comment
        try:
            value = element["elem"]["val"] if more else element
            blocks |= dict.fromkeys(_plain(one) for one in _blocks(value, family))
        except (KeyError, TypeError, ValueError, OSError):
            why = f"an element is no address, prefix or range: {json.dumps(element)[:100]}"
            raise DmmError(what, why=why) from None
    # The kernel lets rules add to what has time-outs alone, too.
    return SetFound(tuple(blocks), not {"dynamic", "timeout"}.isdisjoint(said.get("flags", ())))


def _family(kind: object) -> int | None:
    """4 or 6, by the type of a set's keys; None: they are no addresses."""
    if isinstance(kind, str):
        return _FAMILIES.get(kind)
    said = kind.get("typeof") if isinstance(kind, dict) else None
    payload = said.get("payload") if isinstance(said, dict) else None
    if isinstance(payload, dict) and payload.get("field") in {"saddr", "daddr"}:
        return _PROTOCOLS.get(str(payload.get("protocol")))
    return None


def _type_text(kind: object) -> str:
    return " . ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def _blocks(value: Any, family: int) -> Iterable[Block]:
    """Of an element's key: an address, a prefix or a range."""
    if isinstance(value, str):
        if value == _CATCH_ALL:
            return ((family, 0, 0),)
        return ((family, _number(value, family), 32 if family == 4 else 128),)
    if "prefix" in value:
        prefix = value["prefix"]
        return ((family, _number(prefix["addr"], family), int(prefix["len"])),)
    return _range_blocks(*value["range"])


def _range_blocks(first: str, last: str) -> Iterator[Block]:
    ends = ipaddress.ip_address(first), ipaddress.ip_address(last)
    for one in ipaddress.summarize_address_range(*ends):
        yield one.version, int(one.network_address), one.prefixlen


def _number(address: str, family: int) -> int:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    return int.from_bytes(socket.inet_pton(kind, address), "big")


def _plain(block: Block) -> Block:
    """An IPv4-mapped prefix as the IPv4 prefix that it is."""
    family, addr, length = block
    if family == 6 and length >= 96 and addr >> 32 == _V4_MAPPED:
        return 4, addr & 0xFFFFFFFF, length - 96
    return block


def _ask(what: str, command: Mapping[str, Any], *, terse: bool = False) -> Answer:
    """In JSON, where no name is taken for a keyword. terse: without elements."""
    program = shutil.which("nft", path=_FOLDERS)
    if program is None:
        hint = "install it (Debian: the package nftables)"
        raise DmmError(what, why="this host has no program nft", hint=hint)
    options = ["-j", "-n", *(["-t"] if terse else [])]
    argv = [program, *options, json.dumps({"nftables": [command]})]
    try:
        return ask(argv, within_s=WITHIN_S, most_bytes=MOST_BYTES)
    except NoAnswerError as e:
        raise DmmError(what, why=f"nft: {e.why}") from e


def _objects(what: str, said: Answer) -> Sequence[Mapping[str, Any]]:
    try:
        found: Sequence[Mapping[str, Any]] = json.loads(said.out or b'{"nftables":[]}')["nftables"]
    except (ValueError, KeyError, TypeError) as e:
        raise DmmError(what, why=f"nft's answer is not the JSON that it should be ({e})") from None
    return found


class Changes(Closing):
    """What the kernel tells of changed sets, from when it is made."""

    def __init__(self) -> None:
        self._socket = event_socket(1 << (_NFNLGRP_NFTABLES - 1), _NETLINK_NETFILTER)

    def close(self) -> None:
        """Hears no more."""
        self._socket.close()

    def fileno(self) -> int:
        """Can be read when there is something to hear."""
        return self._socket.fileno()

    def heard(self, names: Iterable[Name]) -> set[Name]:
        """Of these sets those that may have changed since it was asked last: all of them, where
        something was lost.
        """
        changed: set[Name] = set()
        wanted = set(names)
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return changed
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                changed = wanted
                continue
            for kind, payload in messages(data):
                changed |= _concerned(kind, payload, wanted)


def _concerned(kind: int, payload: bytes, wanted: set[Name]) -> set[Name]:
    """The sets that a message may be about."""
    subsystem, message = kind >> 8, kind & 0xFF
    about_set = message in _NFT_MSG_SETS
    if subsystem != _NFNL_SUBSYS_NFTABLES or not (about_set or message in _NFT_MSG_TABLES):
        return set()
    told = dict(attributes(payload, _NFGENMSG))
    family = _FAMILY_NAMES.get(payload[0]) if payload else None
    table, own = (_text(told.get(one)) for one in (_NFTA_TABLE, _NFTA_SET))
    return {
        name for name in wanted if name[:2] == (family, table) and (not about_set or name[2] == own)
    }


def _text(value: bytes | None) -> str:
    return (value or b"").split(b"\0", 1)[0].decode(errors="replace")
