# SPDX-License-Identifier: Apache-2.0
"""Parity from a peer that means harm (core/tcp/tcp_parity_in.c): what it may cost. That what it
says is never believed unproven is in tests/scenario/parity and in the fuzzers.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from corepackets import (
    ACK,
    INNER,
    MS,
    OUTER,
    SYN,
    SYN_OPTIONS,
    Core,
    Open,
    built_core,
    timestamps,
    to_core,
)
from scenario_agree import ROLES, check_value, pack, pack_count
from scenario_fec import coefficient, times

ALLOW, FEATURES = 1, 3
SYMBOL = 240  # bytes
HERE, MISSING = 190, 63  # symbols of a window that came, behind the first, and that did not
BEFORE = 4000  # bytes that came in order
PACKETS = 200


def open_agreed(core: Core) -> Open:
    core.put(INNER, to_core(INNER, 1000, 0, SYN, options=SYN_OPTIONS))
    core.actions()
    (syn,) = core.get(OUTER)
    offer = syn.options.index(pack("offer", FEATURES, 0)[:7])
    answer = pack(
        "answer", FEATURES, check_value(syn.options[offer + 7], ROLES["answer"], FEATURES)
    )
    core.wait(20 * MS)
    core.put(OUTER, to_core(OUTER, 7000, syn.seq + 1, SYN | ACK, options=SYN_OPTIONS + answer))
    (synack,) = core.get(INNER)
    core.put(INNER, to_core(INNER, 1001, synack.seq + 1, ACK, options=timestamps(1001, 0)))
    core.get(OUTER)
    ours = {INNER: synack.seq + 1, OUTER: syn.seq + 1}
    return Open(core, {INNER: 1001, OUTER: 7001}, ours, {INNER: 0, OUTER: 0})


def send_parity(flow: Open, seed: int, symbols: int) -> None:
    """Over so many symbols from the first that is missing on; its bytes are noise."""
    header = struct.pack(">4IH7H", 0, BEFORE, seed, 0, SYMBOL, symbols * SYMBOL, *[0] * 6)
    flow.clock += 1
    options = timestamps(flow.clock, 0) + pack_count("parity", 0)
    at = flow.seq[OUTER] - len(header) - SYMBOL
    payload = header + os.urandom(SYMBOL)
    segment = to_core(OUTER, at, flow.ack[OUTER], ACK, options=options, payload=payload)
    flow.core.put(OUTER, segment)


def seeds_that_solve_the_first(symbols: int) -> tuple[int, int]:
    """Two, by which the last two symbols go off together."""
    known: dict[int, tuple[int, int]] = {}
    inverse = {
        value: next(n for n in range(256) if times(n, value) == 1) for value in range(1, 256)
    }
    for seed in range(1, 3000):
        first, one, other = (coefficient(seed, n) for n in (0, symbols - 2, symbols - 1))
        ratio, whole = times(one, inverse[other]), times(first, inverse[other])
        if ratio in known and known[ratio][1] != whole:
            return known[ratio][0], seed
        known.setdefault(ratio, (seed, whole))
    raise AssertionError


def test_windows_that_are_never_whole_cost_no_packet_much(tmp_path: Path) -> None:
    """One symbol is solved, in as many windows as are kept; each lacks another one."""
    flow = open_agreed(built_core(tmp_path)(negotiate=ALLOW))
    core = flow.core
    flow.send(OUTER, bytes(BEFORE))
    flow.send(OUTER, bytes(HERE * SYMBOL), offset=SYMBOL)
    symbols = 1 + HERE + 2
    for seed in seeds_that_solve_the_first(symbols):
        send_parity(flow, seed, symbols)
    for more in range(1, MISSING - 1):
        send_parity(flow, 10_000 + more, symbols + more)
    assert (core.count("PARITY_IN"), core.count("PARITY_REFUSED")) == (MISSING, 0)
    assert core.count("REPAIRED") == core.count("REPAIRED_WRONG") == 0
    core.raw(OUTER)
    at = (1 + HERE + MISSING) * SYMBOL
    began = time.process_time()
    for number in range(PACKETS):
        flow.send(OUTER, b"x", offset=at + number)
    took_ms = (time.process_time() - began) / PACKETS * 1e3
    print(f"  {took_ms:.3f} ms for a packet")
    assert took_ms < 0.5
