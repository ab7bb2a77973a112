# SPDX-License-Identifier: Apache-2.0
"""The erasure code (core/fec) against another one: a field whose tables come from its polynomial,
and plain elimination, written here with none of its code.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.fec import feclab
from lab.fec.feclab import CONTRADICTS, KEPT, REFUSED, UNKNOWN, USELESS, WAYS, WINDOW, Code

POLYNOMIAL = 0x11D

Row = list[int]


def _powers() -> list[int]:
    out, value = [], 1
    for _ in range(255):
        out.append(value)
        value <<= 1
        value ^= POLYNOMIAL if value & 0x100 else 0
    return out


POWERS = _powers()
LOGS = {value: number for number, value in enumerate(POWERS)}


def times(a: int, b: int) -> int:
    """The product, by logarithms."""
    return POWERS[(LOGS[a] + LOGS[b]) % 255] if a and b else 0


def reduced(rows: list[Row], columns: int) -> list[Row]:
    """Reduced row echelon form of the first so many columns; rows of zeros are left out."""
    rows = [list(row) for row in rows]
    done = 0
    for column in range(columns):
        pivot = next((r for r in range(done, len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        inverse = POWERS[-LOGS[rows[done][column]] % 255]
        rows[done] = [times(inverse, value) for value in rows[done]]
        for r, row in enumerate(rows):
            if r != done and row[column]:
                factor = row[column]
                rows[r] = [x ^ times(factor, y) for x, y in zip(row, rows[done], strict=True)]
        done += 1
    return rows[:done]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return feclab.build(Path(tmp_path_factory.mktemp("fec")))


def stream(n: int, size: int, seed: int = 1) -> list[bytes]:
    """So many source symbols."""
    rng = random.Random(seed)
    return [rng.randbytes(size) for _ in range(n)]


def test_the_field_is_that_of_its_polynomial(built: tuple[Any, Any]) -> None:
    _, lib = built
    assert all(lib.gf256_mul(a, b) == times(a, b) for a in range(256) for b in range(256))
    assert all(times(a, lib.gf256_inverse(a)) == 1 for a in range(1, 256))


@pytest.mark.parametrize("way", range(len(WAYS)), ids=WAYS)
def test_each_way_multiplies_the_same(built: tuple[Any, Any], way: int) -> None:
    """At every length and alignment, and not a byte beyond."""
    ffi, lib = built
    if not lib.gf256_can(way):
        pytest.skip(f"this processor has no {WAYS[way]}")
    rng = random.Random(2)
    for length in (*range(70), 1400, 1461):
        for shift, c in ((0, 1), (1, 255), (3, rng.randrange(256)), (7, 0)):
            before, source = rng.randbytes(length + 16), rng.randbytes(length + 16)
            to = ffi.new("uint8_t[]", before)
            from_ = ffi.new("uint8_t[]", source)
            lib.gf256_add_product_by(way, to + shift, from_ + 5, c, length)
            wanted = bytearray(before)
            for i in range(length):
                wanted[shift + i] ^= times(c, source[5 + i])
            assert bytes(ffi.buffer(to, length + 16)) == wanted


def test_a_repair_symbol_is_the_sum_that_it_says(built: tuple[Any, Any]) -> None:
    _, lib = built
    code = Code(built, stream(40, 33))
    for first, n, seed in ((0, 1, 0), (3, 20, 7), (0, 40, 2**32 - 1)):
        wanted = [0] * 33
        for i in range(first, first + n):
            factor = lib.fec_coefficient(seed, i)
            assert factor
            wanted = [x ^ times(factor, y) for x, y in zip(wanted, code.symbols[i], strict=True)]
        assert code.encode(first, n, seed) == bytes(wanted)
    assert code.encode(0, 0, 1) is None
    assert code.encode(0, WINDOW + 1, 1) is None


def test_as_many_repair_symbols_as_are_missing_mend_a_window(built: tuple[Any, Any]) -> None:
    """One more is needed less than once in a hundred windows."""
    rng = random.Random(3)
    more = 0
    for take in range(300):
        code = Code(built, stream(30, 8, take))
        missing = rng.sample(range(30), rng.randint(1, 10))
        for index in missing:
            code.there[index] = 0
        found: dict[int, bytes] = {}
        sent = 0
        while len(found) < len(missing):
            repair = code.encode(0, 30, 1000 * take + sent)
            assert repair is not None
            code.repair(0, 30, 1000 * take + sent, repair)
            found |= code.solved()
            sent += 1
        assert found == {index: code.symbols[index] for index in missing}
        more += sent - len(missing)
    assert more <= 6


@st.composite
def _losses(draw: st.DrawFn) -> tuple[int, set[int], list[tuple[int, int, int]], list[int]]:
    """Symbols, which are missing, the windows of repair symbols, and which come late in between."""
    n = draw(st.integers(1, 40))
    missing = draw(st.sets(st.integers(0, n - 1), max_size=20))
    repairs = []
    for seed in range(draw(st.integers(0, 24))):
        first = draw(st.integers(0, n - 1))
        repairs.append((first, draw(st.integers(1, n - first)), seed))
    late = draw(st.lists(st.sampled_from(sorted(missing)), max_size=6)) if missing else []
    return n, missing, repairs, late


@settings(max_examples=150)
@given(case=_losses(), seed=st.integers(0, 1 << 30))
def test_what_is_solved_is_what_the_equations_say(
    built: tuple[Any, Any], case: Any, seed: int
) -> None:
    """No more, no less, whatever the order; and the bytes are those of the source."""
    n, missing, repairs, late = case
    _, lib = built
    code = Code(built, stream(n, 5, seed))
    for index in missing:
        code.there[index] = 0
    found: dict[int, bytes] = {}
    known = set(range(n)) - missing
    for number, (first, length, repair_seed) in enumerate(repairs):
        repair = code.encode(first, length, repair_seed)
        assert repair is not None
        assert code.repair(first, length, repair_seed, repair) in (KEPT, USELESS)
        found |= code.solved()
        if number < len(late) and not code.there[late[number]]:
            code.arrived(late[number])
            known.add(late[number])
            found |= code.solved()
    columns = sorted(missing - known)
    rows = [
        [lib.fec_coefficient(s, c) if f <= c < f + m else 0 for c in columns] for f, m, s in repairs
    ]
    wanted = {
        columns[row.index(1)] for row in reduced(rows, len(columns)) if sum(map(bool, row)) == 1
    }
    assert set(found) - known == wanted
    assert all(found[index] == code.symbols[index] for index in found)


def test_a_window_that_slides_over_a_long_stream_with_losses(built: tuple[Any, Any]) -> None:
    """A repair symbol for each four source symbols, over the last sixteen; 12 % of all are lost."""
    rng = random.Random(4)
    code = Code(built, stream(4000, 16))
    late: dict[int, int] = {}
    mended: set[int] = set()
    for at in range(4000):
        code.there[at] = rng.random() >= 0.12
        if at % 4 == 3 and at >= 16 and rng.random() >= 0.12:
            repair = code.encode(at - 15, 16, at)
            assert repair is not None
            assert code.repair(at - 15, 16, at, repair) in (KEPT, USELESS)
            for index, symbol in code.solved().items():
                assert symbol == code.symbols[index]
                mended.add(index)
                late[index] = at - index
        if at >= 32:
            for index in range(at - 40, at - 31):
                if index >= 0 and not code.there[index]:
                    code.there[index] = 1  # sent again
            code.forget(at - 31)
    assert len(mended) > 0.9 * 4000 * 0.12
    assert sum(late.values()) / len(late) < 8


def test_too_much_is_refused_and_changes_nothing(built: tuple[Any, Any]) -> None:
    code = Code(built, stream(100, 8))
    for index in range(UNKNOWN + 1):
        code.there[index] = 0
    repair = code.encode(0, UNKNOWN + 1, 1)
    assert repair is not None
    assert code.repair(0, UNKNOWN + 1, 1, repair) == REFUSED
    assert code.repair(0, WINDOW + 1, 1, repair) == REFUSED
    assert code.repair(0, 0, 1, repair) == REFUSED
    for number in range(UNKNOWN):
        repair = code.encode(0, UNKNOWN, number)
        assert repair is not None
        assert code.repair(0, UNKNOWN, number, repair) == KEPT
    assert code.solved() == {index: code.symbols[index] for index in range(UNKNOWN)}


def test_a_lie_that_shows_is_told_of(built: tuple[Any, Any]) -> None:
    """By a sum too many, and by a source symbol that comes after a false sum."""
    code = Code(built, stream(10, 8))
    honest = code.encode(0, 10, 1)
    assert honest is not None
    assert code.repair(0, 10, 1, honest) == USELESS
    assert code.repair(0, 10, 1, bytes([honest[0] ^ 1]) + honest[1:]) == CONTRADICTS
    code.there[4] = 0
    assert code.repair(0, 10, 1, bytes([honest[0] ^ 1]) + honest[1:]) == KEPT
    assert code.arrived(4) == CONTRADICTS


def test_what_is_forgotten_takes_no_more_with_it_than_it_must(built: tuple[Any, Any]) -> None:
    """A sum with a forgotten symbol in it goes, and nothing else."""
    code = Code(built, stream(10, 8))
    code.there[2] = code.there[7] = code.there[8] = 0
    for seed, (first, n) in enumerate(((0, 8), (1, 9), (1, 8))):
        repair = code.encode(first, n, seed)
        assert repair is not None
        code.repair(first, n, seed, repair)
    found = code.solved()
    assert set(found) == {2, 7, 8}
    code = Code(built, stream(10, 8))
    code.there[2] = code.there[7] = 0
    repair = code.encode(0, 10, 1)
    assert repair is not None
    code.repair(0, 10, 1, repair)
    code.forget(3)
    code.there[2] = 1
    assert code.solved() == {}
    assert code.arrived(7) == KEPT
