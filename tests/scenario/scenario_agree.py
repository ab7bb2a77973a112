# SPDX-License-Identifier: Apache-2.0
"""The experimental option by which two stacks agree (tcp_agree.c), made and read with no
code of the core's.

A script writes `offer F`, `answer F` or `confirm F` with the features F, and the right nonce or
check value is filled in; a second number is that value instead. `parity N` and `repaired N` say how
many symbols were repaired, with a payload that is parity and without.
"""

from __future__ import annotations

import struct

KIND = 253
EXID = 0x444D4D31
LENGTH = 8
VERSION = 1
ROLES = {"offer": 1, "answer": 2, "confirm": 3}
COUNTS = {"repaired": 0, "parity": 8}  # by the bit that tells of the payload; the role is 0
NONCE = 90  # of the far end's offers


def check_value(nonce: int, role: int, features: int) -> int:
    """What an answer or a confirmation must bear, 8 bits."""
    return ((nonce << 8 | role << 4 | features) * 0x9E3779B1) % 2**32 >> 24


def pack(name: str, features: int, value: int) -> bytes:
    """The option's bytes."""
    return struct.pack(
        ">BBIBB", KIND, LENGTH, EXID, ROLES[name] << 6 | VERSION << 4 | features, value
    )


def pack_count(name: str, count: int) -> bytes:
    """The bytes of the option that counts."""
    return struct.pack(
        ">BBIBB", KIND, LENGTH, EXID, VERSION << 4 | COUNTS[name] | count >> 8, count & 255
    )


def read(body: bytes) -> tuple[str, tuple[int, ...]] | None:
    """The option whose kind is KIND as (name, (features, value)); None: it is another."""
    if len(body) != LENGTH - 2 or struct.unpack(">I", body[:4])[0] != EXID:
        return None
    names = {role: name for name, role in ROLES.items()}
    if body[4] >> 4 == VERSION:
        return ("parity" if body[4] & 8 else "repaired"), ((body[4] & 7) << 8 | body[5],)
    if body[4] >> 6 not in names or body[4] >> 4 & 3 != VERSION:
        return None
    return names[body[4] >> 6], (body[4] & 15, body[5])
