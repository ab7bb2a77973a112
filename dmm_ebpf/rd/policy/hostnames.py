# SPDX-License-Identifier: Apache-2.0
"""Hostnames, by which routes name addresses that change: how a policy writes them.

Whose addresses they have, DNS tells the host that applies the policy (rd/director/hostnames.py).
Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from dmm_ebpf.rd.policy.shape import spelled, takes
from dmm_ebpf.rd.policy.values import ValueRefusedError, shown

MARK = "dns:"  # what a route's `to` begins with that names a host
_MOST = 253  # characters: 255 bytes in a message (RFC 1035 section 3.1), without the root's
# RFC 1123 section 2.1
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_FORM = rf"{MARK}(?:{_LABEL}[.])*{_LABEL}[.]?"
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class HostName(NamedTuple):
    """A name of DNS, in small letters, from the root and without the dot at its end."""

    name: str

    def __str__(self) -> str:
        return f"{MARK}{self.name}"


@takes(spelled(_FORM, most=len(MARK) + _MOST + 1))
def parse_host(text: str) -> HostName:
    """The hostname that text names, "dns:db.example.com"."""
    name = text.removeprefix(MARK).removesuffix(".")
    if not text.isascii():
        raise ValueRefusedError(
            f"{shown(text)} has letters that are not ASCII's",
            'write the name as DNS has it, for example "dns:xn--bcher-kva.example"',
        )
    if not re.fullmatch(_FORM, text) or len(name) > _MOST:
        raise ValueRefusedError(
            f"{shown(text)} does not name a host",
            f"expected a name of letters, digits and hyphens, at most 63 characters between two dots and {_MOST} in "
            'all, for example "dns:db.example.com"',
        )
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        raise ValueRefusedError(
            f"{shown(text)} ends in a number, as no hostname does",
            f'an address is written without "{MARK}"',
        )
    return HostName(name.lower())
