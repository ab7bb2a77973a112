# SPDX-License-Identifier: Apache-2.0
"""Programs of fuzz_core.c, step by step: seeds that reach open connections."""

from __future__ import annotations

import random

INNER, OUTER = 0, 1
SYN, ACK, FIN, SYNACK, RSTACK = 0, 1, 4, 5, 6
ANSWER, POLL, DRAIN = 16, 32, 64
COOKIES_ALWAYS, COOKIES_OFF, ONE_HALF_OPEN, PARK_AT_ONCE = 16, 32, 64, 128  # in the first byte


def packet(
    leg: int, kind: int, tuple_no: int = 0, bend: int = 0, tail: bytes = b"", *, then: int = DRAIN
) -> bytes:
    """One packet step of fuzz_core.c's program."""
    return bytes([then, leg | tuple_no << 1 | kind << 3, bend]) + tail


def handshake(active: bool, tuple_no: int) -> bytes:
    """Both legs open. The options byte: SACK, timestamps, window scale 7; an MSS of 1460."""
    options = bytes([0x3F, 0x05, 0xB4, 0])
    first, second = (INNER, OUTER) if active else (OUTER, INNER)
    return (
        packet(first, SYN, tuple_no, 32, options, then=DRAIN | ANSWER)
        + bytes([200])
        + packet(second, SYNACK, tuple_no, 32, options)
        + packet(first, ACK, tuple_no)
        + packet(second, ACK, tuple_no)
    )


def cookie_handshake(tuple_no: int) -> bytes:
    """The peer's handshake first, by a SYN cookie, then the inner leg."""
    options = bytes([0x3F, 0x05, 0xB4, 0])
    return (
        packet(OUTER, SYN, tuple_no, 32, options)
        + packet(OUTER, ACK, tuple_no, 0, b"", then=DRAIN | ANSWER)
        + bytes([200])
        + packet(INNER, SYNACK, tuple_no, 32, options)
    )


def outsider(leg: int, tuple_no: int, rng: random.Random) -> bytes:
    """Somebody who knows the tuple and guesses the numbers."""
    flags = rng.choice([0x10, 0x18, 0x02, 0x04, 0x11, 0x00, rng.randrange(256)])
    bits = rng.choice([1 | 2, 1 | 16 | 32, 2 | 16 | 32, 1 | 2 | 16, 1 | 2 | 8 | 16 | 32])
    return bytes([12 | DRAIN, leg | 2 | tuple_no << 2, bits, flags]) + rng.randbytes(20)


def program(rng: random.Random) -> bytes:
    """A handshake or two, data both ways, holes with SACK, time, and an end."""
    how = rng.choice(
        [0, 0, 1, 2, 4, 7, COOKIES_ALWAYS, COOKIES_ALWAYS | 3, COOKIES_OFF | ONE_HALF_OPEN]
    )
    how |= rng.choice([0, PARK_AT_ONCE])
    out = bytes([how, rng.randrange(3)])
    for tuple_no in rng.sample(range(3), rng.randint(1, 2)):
        cookie = how & COOKIES_ALWAYS and rng.random() < 0.7
        out += cookie_handshake(tuple_no) if cookie else handshake(rng.random() < 0.5, tuple_no)
        for _ in range(rng.randint(2, 25)):
            leg = rng.choice([INNER, OUTER])
            kind = rng.choice([ACK, ACK, ACK, ACK, FIN, RSTACK] if rng.random() < 0.2 else [ACK])
            bend = rng.choice([64, 64, 64 | 2, 32, 64 | 8, 16])
            tail = bytes(rng.randrange(256) for _ in range(rng.randint(1, 6)))
            out += packet(
                leg, kind, tuple_no, bend, tail, then=rng.choice([DRAIN, DRAIN | POLL, 0])
            )
            if rng.random() < 0.3:
                out += bytes([14 | DRAIN | POLL])
            if rng.random() < 0.1:
                out += bytes([15 | DRAIN, rng.randrange(128, 256)])  # another MTU of the device
            if rng.random() < 0.3:
                out += outsider(leg, tuple_no, rng)
    return out
