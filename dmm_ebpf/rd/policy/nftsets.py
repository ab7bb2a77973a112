# SPDX-License-Identifier: Apache-2.0
"""nft sets, by which routes name prefixes that change: how a policy writes them. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from dmm_ebpf.rd.policy.shape import spelled, takes
from dmm_ebpf.rd.policy.values import ValueRefusedError, shown

MARK = "nft:"  # what a route's `to` begins with that names a set
FAMILIES = ("inet", "ip", "ip6", "arp", "bridge", "netdev")
# A string of nft's scanner, which takes more than nft(8) tells of
_NAME = r"[A-Za-z_.][A-Za-z0-9/\\_.-]{0,127}"
_FORM = rf"{MARK}(?:(?:{'|'.join(FAMILIES)}) +)?{_NAME} +{_NAME}"


class SetName(NamedTuple):
    """A set as nft(8) names it."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"{MARK}{' '.join(self)}"


@takes(spelled(_FORM))
def parse_set(text: str) -> SetName:
    """The set that text names, "nft:inet filter lossy"; without a family it is ip, as to nft."""
    if not re.fullmatch(_FORM, text):
        raise ValueRefusedError(
            f"{shown(text)} does not name an nft set",
            'expected family, table and set as nft has them, for example "nft:inet filter lossy"',
        )
    family, table, name = ["ip", *text.removeprefix(MARK).split()][-3:]
    return SetName(family, table, name)
