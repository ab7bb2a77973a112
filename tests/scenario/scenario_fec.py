# SPDX-License-Identifier: Apache-2.0
"""Parity segments (tcp_parity_out.c, fec/repair.h), made and checked with no code of the core's.

A line with `fec_s` bears a repair symbol of that many bytes; its window begins with symbol
`fec_first` at byte `fec_at` of the stream, and has the runs `fec_run`, `fec_run2`, bytes;
`fec_seed` is its number. `fec_lie` changes its last byte, `fec_check` its check value, by XOR.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from scenario_packets import BadPacketError

HEADER = 32
RUNS = 7
ATTRS = {f"fec_{name}" for name in ("s", "first", "at", "run", "run2", "seed", "lie", "check")}
POLYNOMIAL = 0x11D
MASK = 2**64 - 1

Stream = Callable[[int, int], bytes]  # bytes of a stream from an offset on, so many


def _mix(value: int) -> int:
    """The output of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) for a state."""
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def times(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (POLYNOMIAL if a & 0x80 else 0)
        b >>= 1
    return product


def coefficient(seed: int, index: int) -> int:
    """What source symbol index is multiplied by in repair symbol seed."""
    return 1 + (_mix((index ^ seed << 40 ^ seed) & MASK) >> 32) % 255


def _hash(index: int, symbol: bytes) -> int:
    state = _mix(index)
    whole = len(symbol) // 8 * 8
    for at in range(0, whole, 8):
        word = int.from_bytes(symbol[at : at + 8], "little")
        state = (state ^ word) * 0x9E3779B97F4A7C15 & MASK
        state ^= state >> 29
    for byte in symbol[whole:]:
        state = (state ^ byte) * 0x100000001B3 & MASK
    return _mix(state)


def _symbols(size: int, place: int, runs: Sequence[int], stream: Stream) -> list[bytes]:
    out = []
    for run in runs:
        for at in range(0, run, size):
            symbol = stream(place + at, min(size, run - at))
            out.append(symbol + bytes(size - len(symbol)))
        place += run
    return out


def payload(
    size: int, first: int, place: int, seed: int, runs: Sequence[int], stream: Stream
) -> bytes:
    """Header and repair symbol of a window."""
    repair = bytearray(size)
    total = 0
    for index, symbol in enumerate(_symbols(size, place, runs, stream), first):
        total += _hash(index, symbol)
        row = [times(value, coefficient(seed, index)) for value in range(256)]
        for at, byte in enumerate(symbol):
            repair[at] ^= row[byte]
    check = (total & MASK) >> 32
    padded = (*runs, *[0] * (RUNS - len(runs)))
    low = (value & 0xFFFFFFFF for value in (first, place, seed, check))
    return struct.pack(f">4IH{RUNS}H", *low, size, *padded) + bytes(repair)


def made(attrs: Mapping[str, int], stream: Stream) -> bytes:
    """The payload that a line's attributes say."""
    first, place, seed = (attrs.get(f"fec_{name}", 0) for name in ("first", "at", "seed"))
    runs = [attrs[name] for name in ("fec_run", "fec_run2") if name in attrs]
    out = bytearray(payload(attrs["fec_s"], first, place, seed, runs, stream))
    out[-1] ^= attrs.get("fec_lie", 0)
    out[15] ^= attrs.get("fec_check", 0)
    return bytes(out)


def check(got: bytes, stream: Stream) -> None:
    """Raises BadPacketError unless it is what its own header says of the stream."""
    if len(got) <= HEADER:
        raise BadPacketError("parity without a repair symbol")
    first, place, seed, _, size, *runs = struct.unpack(f">4IH{RUNS}H", got[:HEADER])
    if size != len(got) - HEADER or got != payload(size, first, place, seed, runs, stream):
        raise BadPacketError(f"parity over {runs} bytes from {place} on is wrong")
