# SPDX-License-Identifier: Apache-2.0
"""What other hosts tell of paths: how much of it counts, and what of it is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmm_ebpf.rd.adaptive.mind import ENOUGH
from dmm_ebpf.rd.adaptive.paths import Choice, Paths
from dmm_ebpf.rd.adaptive.prefix import ROOT, prefixes
from dmm_ebpf.rd.adaptive.sample import Sample
from dmm_ebpf.rd.adaptive.shared import (
    CAP,
    HALF_S,
    MOST_HOSTS,
    MOST_PREFIXES,
    UnlikelyError,
    read,
)

PEER = bytes(10) + b"\xff\xff" + bytes([203, 0, 113, 9])
FAR = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
AROUND = prefixes(PEER)[0]
CANDIDATES = ("kernel", "wan")
CHOICE = Choice("auto:throughput:kernel,wan:shared", "throughput", CANDIDATES, frozenset({"wan"}))


def learns(paths: Paths, now: float, peer: bytes = PEER, **rates: float) -> None:
    """Ten samples of each."""
    for number in range(10):
        for stack, rate in rates.items():
            about = rate * (1 + number % 3 / 50)
            paths.add(Sample(peer, stack, 1.0, int(about), 700, 1, 20_000), now + number / 10)


def rows_of(paths: Paths, now: float) -> Any:
    """As they come out of etcd."""
    return json.loads(json.dumps(paths.told(now)))


@pytest.fixture
def told() -> Any:
    """Of a host on which wan is three times as fast."""
    other = Paths(CHOICE, 0.0)
    learns(other, 1.0, kernel=1e6, wan=3e6)
    return rows_of(other, 2.0)


def decides(paths: Paths, begin: float, seconds: int = 30) -> str:
    """Who serves after some seconds without flows."""
    for now in range(seconds):
        draws = paths.decide((), begin + now)
    return draws[next(one for one in prefixes(PEER) if one in draws)].chosen


def test_who_has_seen_nothing_goes_by_what_others_have(told: Any) -> None:
    mine = Paths(CHOICE, 0.0)
    assert decides(mine, 2.0) == "kernel"
    mine.tree.shared.take("b/default", read(told, CANDIDATES, 40.0))
    assert decides(mine, 40.0) == "wan"
    row = mine.row("default", AROUND, 70.0)
    assert (row.chosen, row.hosts) == ("wan", ["b/default"])
    assert [one.samples for one in row.candidates] == [0.0, 0.0], "others' samples are not its own"
    assert row.candidates[1].rate_Bps == pytest.approx(3e6, rel=0.05)
    mine.tree.shared.take("b/default", {})
    assert mine.row("default", AROUND, 71.0).hosts == []


def test_what_was_seen_here_counts_for_more(told: Any) -> None:
    mine = Paths(CHOICE, 0.0)
    mine.tree.shared.take("b/default", read(told, CANDIDATES, 0.0))
    assert decides(mine, 0.0) == "wan"
    for turn in range(30):
        learns(mine, 30.0 + turn, kernel=3e6, wan=1e6)
        mine.decide((), 31.0 + turn)
    assert decides(mine, 61.0, 2) == "kernel"
    found = mine.tree.estimates(AROUND, 62.0)
    assert found["wan"].rate == pytest.approx(1e6, rel=0.1)
    assert found["kernel"].others == 0.0


def test_what_is_told_is_forgotten_and_of_no_host_counts_more_than_a_few_samples(told: Any) -> None:
    mine = Paths(CHOICE, 0.0)
    mine.tree.shared.take("b/default", read(told, CANDIDATES, 0.0))
    nothing = mine.tree.estimates(ROOT, 0.0)["wan"]
    assert mine.tree.shared.estimate(AROUND, "wan", 0.0, nothing).samples == ENOUGH
    assert mine.tree.shared.estimate(AROUND, "wan", 6 * HALF_S, nothing) is None
    many = [
        [*row[:3], {name: [v * 1000 for v in one] for name, one in row[3].items()}] for row in told
    ]
    taken = read(many, CANDIDATES, 0.0)
    assert all(one.samples <= CAP * 1.001 for node in taken.values() for one in node.values())
    for number in range(2 * MOST_HOSTS):
        mine.tree.shared.take(f"h{number}/default", taken)
    assert len(mine.tree.shared.hosts) == MOST_HOSTS


def test_own_experience_alone_is_told(told: Any) -> None:
    mine = Paths(CHOICE, 0.0)
    mine.tree.shared.take("b/default", read(told, CANDIDATES, 0.0))
    decides(mine, 0.0)
    assert mine.told(30.0) == []
    for number in range(200):
        peer = bytes(10) + b"\xff\xff" + bytes([10, 1, number, 1])
        learns(mine, 30.0 + number, peer, kernel=1e6)
    rows = rows_of(mine, 300.0)
    assert len(rows) == MOST_PREFIXES
    assert len(json.dumps(rows)) < 64 << 10
    read(rows, CANDIDATES, 300.0)


def _values(change: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    def changed(rows: Any) -> Any:
        rows[0][3]["wan"] = change(rows[0][3]["wan"])
        return rows

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda _: {"a": 1},
        lambda rows: rows * 30,
        lambda rows: [[], *rows],
        lambda rows: [[*rows[0], 1]],
        lambda rows: [[25, *rows[0][1:]]],
        lambda rows: [[rows[0][0], "zz" * 16, *rows[0][2:]]],
        lambda rows: [[*rows[0][:2], -1.0, rows[0][3]]],
        lambda rows: [[*rows[0][:2], math.nan, rows[0][3]]],
        lambda rows: [[*rows[0][:2], True, rows[0][3]]],
        lambda rows: [[*rows[0][:3], []]],
        _values(lambda _: "much"),
        _values(lambda v: v[:-1]),
        _values(lambda v: [math.nan, *v[1:]]),
        _values(lambda v: [*v[:2], math.inf, *v[3:]]),
        _values(lambda v: [*v[:2], 1e18, *v[3:]]),
        _values(lambda v: [*v[:7], 1e17, *v[8:]]),
        _values(lambda v: [*v[:11], 1e12, *v[12:]]),
        _values(lambda v: [-1.0, *v[1:]]),
        _values(lambda v: ["1", *v[1:]]),
        _values(lambda v: [0.0, *v[1:]]),
        _values(lambda v: [*v[:4], 1e9, *v[5:]]),
    ],
)
def test_what_no_path_can_have_is_refused(told: Any, change: Callable[[Any], Any]) -> None:
    assert read(told, CANDIDATES, 2.0)
    with pytest.raises(UnlikelyError):
        read(change(told), CANDIDATES, 2.0)


json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda one: st.one_of(st.lists(one, max_size=5), st.dictionaries(st.text(max_size=4), one)),
)


@given(json_like)
def test_anything_is_read_or_refused(rows: Any) -> None:
    try:
        found = read(rows, CANDIDATES, 0.0)
    except UnlikelyError as error:
        assert str(error)
    else:
        assert all(set(one) <= set(CANDIDATES) for one in found.values())


def test_of_a_stack_that_is_no_candidate_here_nothing_counts(told: Any) -> None:
    for row in told:
        row[3]["other"] = row[3].pop("wan")
    assert {name for one in read(told, CANDIDATES, 2.0).values() for name in one} == {"kernel"}


def test_what_is_old_is_passed_over(told: Any) -> None:
    for row in told:
        row[2] = 1e9
    assert read(told, CANDIDATES, 2.0) == {}
