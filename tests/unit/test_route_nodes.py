# SPDX-License-Identifier: Apache-2.0
"""The trees of routes[] say of each address what its longest prefix does, whatever lies in what."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from policy_lpm import nodes
from routenodes import Nodes

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.values import Prefix

BITS = {4: 32, 6: 128}
NEAR_DIGITS = 1, 2, 3, 64, 65, 66
Tables = dict[str, list[Prefix]]


def _cut(family: int, addr: int, length: int) -> Prefix:
    free = BITS[family] - length
    return Prefix(family, addr >> free << free, length)


def _prefixes(rng: random.Random, most: int) -> list[Prefix]:
    """Some that lie in one another, some at the ends of all addresses and of their halves."""
    found = {}
    shared = [rng.getrandbits(128) for _ in range(4)]
    for _ in range(rng.randrange(most)):
        family = rng.choice((4, 6))
        bits = BITS[family]
        kept = rng.randrange(bits + 1)
        addr = rng.choice((*shared, 0, (1 << 128) - 1)) >> 128 - bits
        addr ^= rng.getrandbits(bits) >> kept if kept < bits else 0
        length = rng.choice((rng.randrange(bits + 1), bits, bits // 2, 0, rng.choice(NEAR_DIGITS)))
        length = min(length, bits)
        prefix = _cut(family, addr, length)
        found[prefix] = prefix
    return list(found)


def _compiled(tables: Tables, folder: Path) -> tuple[Nodes, IdSpace]:
    text = ""
    for name, prefixes in tables.items():
        lines = "".join(f"{prefix},,,kernel\n" for prefix in prefixes)
        (folder / f"{name}.csv").write_text(f"to,proto,ports,stack\n{lines}")
        text += f'[tables.{name}]\nroutes_from = "{name}.csv"\n'
    ids = IdSpace()
    policy = policies.parse(text, source="p.toml", base=folder)
    return nodes(compile_policy(policy, ids, lambda _: (0, 0))), ids


def _longest(prefixes: dict[Prefix, int], family: int, addr: int) -> int | None:
    for length in range(BITS[family], -1, -1):
        if (found := prefixes.get(_cut(family, addr, length))) is not None:
            return found
    return None


def _addresses(rng: random.Random, prefixes: list[Prefix]) -> Iterator[tuple[int, int]]:
    """The first and the last of each prefix, those beside it, and some anywhere."""
    for family, addr, length in prefixes:
        last = addr + (1 << BITS[family] - length) - 1
        inside = rng.randint(addr, last)
        for one in (addr - 1, addr, inside, last, last + 1):
            if 0 <= one < 1 << BITS[family]:
                yield family, one
    for family, bits in BITS.items():
        yield from ((family, rng.getrandbits(bits)) for _ in range(20))


@pytest.mark.parametrize("seed", range(60))
def test_the_longest_prefix_is_found(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    most = (4, 12, 60, 300)[seed % 4]
    tables = {f"t{n}": _prefixes(rng, most) for n in range(rng.randrange(1, 6))}
    tables["empty"] = []
    found_in, ids = _compiled(tables, tmp_path)
    base = 0
    for name, prefixes in tables.items():
        numbers = {prefix: base + number for number, prefix in enumerate(prefixes)}
        for family, addr in _addresses(rng, prefixes):
            found = found_in.lookup(ids.table(name), family, addr)
            assert (found and found.route) == _longest(numbers, family, addr), (name, family, addr)
        base += len(prefixes)


def test_without_a_route_there_is_one_node(tmp_path: Path) -> None:
    found_in, _ = _compiled({"t": []}, tmp_path)
    assert len(found_in.nodes) == 1
    assert found_in.nodes[0].values[0].route == C.DMM_ROUTE_NONE


def test_many_tables_are_told_apart(tmp_path: Path) -> None:
    tables = {f"t{n}": [Prefix(4, n << 8, 24), Prefix(6, n << 64, 64)] for n in range(70)}
    found_in, ids = _compiled(tables, tmp_path)
    for n, name in enumerate(tables):
        for family, addr in ((4, n << 8), (6, n << 64)):
            found = found_in.lookup(ids.table(name), family, addr)
            assert found is not None and found.route == 2 * n + (family == 6)
            assert (
                found_in.lookup(ids.table(name), family, addr + (1 << 70 if family == 6 else 256))
                is None
            )
