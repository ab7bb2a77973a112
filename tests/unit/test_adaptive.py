# SPDX-License-Identifier: Apache-2.0
"""Adaptive routes, pure: what is believed of a sample, the tree of prefixes, a mind that changes,
and what is kept; each with a clock of the test's.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmm_ebpf import abi
from dmm_ebpf.cli.pathtables import reasons
from dmm_ebpf.rd.adaptive import tree as trees
from dmm_ebpf.rd.adaptive.figures import NOTHING, RECENT_S, Estimate, Figures
from dmm_ebpf.rd.adaptive.goal import merit, scores
from dmm_ebpf.rd.adaptive.mind import (
    BAD_SHARE,
    CALM_S,
    HOLD_S,
    LASTING_S,
    SEARCH_SHARE,
    SHARE,
    Draw,
    Mind,
)
from dmm_ebpf.rd.adaptive.paths import TURNS, Choice, Paths
from dmm_ebpf.rd.adaptive.prefix import ROOT, prefixes
from dmm_ebpf.rd.adaptive.sample import End, Sample, checked
from dmm_ebpf.rd.adaptive.tree import PathTree
from dmm_ebpf.records.path import Goal

HOST = abi.addr16("203.0.113.7")
CHOICE = Choice("auto:throughput:kernel,wan", "throughput", ("kernel", "wan"), frozenset({"wan"}))


def sample(stack: str = "wan", rate: float = 1e6, **more: Any) -> Sample:
    """Of one second."""
    one = Sample(HOST, stack, 1.0, int(rate), 100, 0, 20_000)
    return replace(one, **more)


def known(**rates: float) -> dict[str, Estimate]:
    """Five samples of each that differ by a twentieth."""
    return {
        name: Estimate(5.0, rate, 0.0, None, 20_000.0, 0.0, math.log(rate), 0.02)
        for name, rate in rates.items()
    }


# -- samples --


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"seconds": -1.0},
        {"seconds": 0.0},
        {"n_bytes": -1},
        {"n_bytes": 1 << 63},
        {"resent": 101},
        {"resent": -1},
        {"segments": 1 << 60},
        {"rtt_us": -5},
        {"rtt_us": 1 << 40},
        {"rtt_us": "20"},
        {"n_bytes": True},
        {"address": b"1234"},
    ],
)
def test_what_no_path_can_have_is_not_believed(wrong: dict[str, Any]) -> None:
    assert checked(sample()) is not None
    assert checked(sample(**wrong)) is None
    paths = Paths(CHOICE, 0.0)
    paths.add(sample(**wrong), 1.0)
    assert paths.refused == 1
    assert paths.tree.estimates(ROOT, 1.0)["wan"] == NOTHING


numbers = st.one_of(st.floats(), st.integers(-(1 << 70), 1 << 70))
anything = st.builds(
    Sample,
    st.binary(min_size=16, max_size=16),
    st.sampled_from(["kernel", "wan", "other"]),
    *[numbers] * 5,
    st.sampled_from([None, *End]),
)
times = st.floats(-1e12, 1e12)


@settings(deadline=None)
@given(st.lists(st.tuples(anything, times), max_size=30), times)
def test_no_sample_and_no_clock_makes_a_figure_that_cannot_be(
    told: list[tuple[Sample, float]], end: float
) -> None:
    paths = Paths(CHOICE, 0.0)
    for one, now in told:
        paths.add(one, now)
        draws = paths.decide((), now)
        for draw in draws.values():
            assert draw.chosen in CHOICE.candidates
            assert draw.explores != draw.chosen
            assert 0 <= draw.share <= SEARCH_SHARE
    for prefix in paths.tree:
        for known in paths.tree.estimates(prefix, end).values():
            figures = [
                known.samples,
                known.rate,
                known.loss,
                known.burst,
                known.rtt_us,
                known.failed,
            ]
            assert all(f is None or (math.isfinite(f) and f >= 0) for f in figures)
            assert known.failed <= 1
            assert known.loss is None or known.loss <= 1
    json.dumps(paths.kept(end), allow_nan=False)


# -- figures and tree --


def test_half_of_what_was_of_late_is_forgotten_in_its_half_life() -> None:
    figures = Figures(0.0)
    for _ in range(4):
        figures.add(sample(), 14.0, 0.0)
    assert figures.estimate(RECENT_S).samples == pytest.approx(2.0)
    assert figures.estimate(RECENT_S - 100).samples == pytest.approx(2.0)  # the clock went back
    assert figures.estimate(1e12).rate is None or figures.estimate(1e12).samples == 0


def test_losses_that_come_together_show() -> None:
    alone, together = Figures(0.0), Figures(0.0)
    for number in range(40):
        alone.add(sample(resent=1), 14.0, 0.0)
        together.add(sample(resent=20 if number % 20 == 0 else 0), 14.0, 0.0)
    one, other = alone.estimate(0.0), together.estimate(0.0)
    assert one.loss == other.loss
    assert one.burst == pytest.approx(0.0)
    assert (other.burst or 0) > 10


@given(st.binary(min_size=16, max_size=16))
def test_each_prefix_of_a_peer_is_in_the_next_and_the_last_is_all(address: bytes) -> None:
    found = prefixes(address)
    assert found[-1] == ROOT
    number = int.from_bytes(address, "big")
    for inner, outer in itertools.pairwise(found):
        assert trees.parent(inner) == outer
        assert inner.length > outer.length
        shift = 128 - outer.length
        assert inner.number >> shift == outer.number >> shift == number >> shift


def test_a_network_that_nobody_knows_is_as_the_one_around_it() -> None:
    tree = PathTree(("kernel", "wan"))
    for _ in range(10):
        tree.add(sample(rate=2e6), 14.5, 0.0)
    near = prefixes(abi.addr16("203.0.200.1"))[0]
    assert tree.estimates(near, 0.0)["wan"].rate == pytest.approx(2e6)
    assert tree.estimates(near, 0.0)["wan"].samples == 0
    assert tree.estimates(near, 0.0)["kernel"] == NOTHING
    assert [str(prefix) for prefix in tree] == ["default", "203.0.0.0/16", "203.0.113.0/24"]


def test_the_tree_is_bounded_and_keeps_its_root() -> None:
    tree = PathTree(("wan",))
    for number in range(trees.MAX_NODES + 500):
        address = b"\x20\x01" + number.to_bytes(4, "big") + bytes(10)
        tree.add(sample(address=address), None, float(number))
    assert len(tree.nodes) == trees.MAX_NODES
    assert ROOT in tree.nodes


# -- goals --


def test_goals_weigh_differently() -> None:
    dear = frozenset({"wan"})
    kernel = sample("kernel", 1e7, resent=5)  # of a hundred segments
    wan = sample("wan", 1.5e7, rtt_us=25_000)

    def best(goal: Goal, *samples: Sample) -> str:
        one = {
            sample.stack: Estimate(5, None, None, None, None, 0.0, merit(goal, sample))
            for sample in samples
        }
        told = scores(goal, one, dear)
        return max(told, key=lambda name: told[name])

    assert best("throughput", kernel, wan) == "wan"
    assert best("latency", kernel, wan) == "wan"  # 20 ms and a twentieth of 200 ms, against 25 ms
    assert best("latency", replace(kernel, resent=1), wan) == "kernel"
    assert best("cpu", kernel, wan) == "kernel"  # it is at least half as fast
    assert best("cpu", replace(kernel, n_bytes=5_000_000), wan) == "wan"


def test_transfers_that_fail_count_also_where_nothing_else_is_known() -> None:
    one = known(wan=1e6) | {"kernel": replace(NOTHING, samples=5.0, failed=0.9)}
    told = scores("throughput", one, frozenset())
    assert told["kernel"] < told["wan"]


# -- the mind --


def told(mind: Mind, now: float, **rates: float) -> str:
    estimates = known(**rates)
    return mind.consider(scores("throughput", estimates, frozenset()), estimates, (), now).chosen


def test_a_lead_has_to_be_wide_and_to_last() -> None:
    mind = Mind("kernel", 0.0)
    assert told(mind, 100.0, kernel=100, wan=110) == "kernel"  # not wide
    assert told(mind, 101.0, kernel=100, wan=150) == "kernel"  # not yet
    assert told(mind, 102.0, kernel=100, wan=100) == "kernel"  # nothing now
    assert told(mind, 103.0, kernel=100, wan=150) == "kernel"
    assert told(mind, 103.0 + LASTING_S, kernel=100, wan=150) == "wan"
    assert mind.changes == 1
    assert "1.50 times as good as kernel" in mind.why
    # It is held, even if it was wrong.
    assert told(mind, 107.0, kernel=300, wan=100) == "wan"
    assert told(mind, 103.0 + LASTING_S + HOLD_S, kernel=300, wan=100) == "kernel"


def test_who_changes_back_and_forth_has_to_see_more_and_more() -> None:
    mind = Mind("kernel", 0.0)
    margins = []
    now = 0.0
    for _ in range(4):
        margins.append(mind.margin)
        other = "wan" if mind.chosen == "kernel" else "kernel"
        for _ in range(30):
            now += 1.0
            told(mind, now, **{mind.chosen: 1.0, other: 10.0})
            if mind.chosen == other:
                break
    assert mind.changes == 4
    assert margins == sorted(margins)
    assert margins[-1] > margins[0]
    told(mind, now + CALM_S + 1, kernel=1, wan=1)
    assert mind.margin == margins[0]


def test_a_lead_that_may_be_chance_is_looked_into_and_not_followed() -> None:
    mind = Mind("kernel", 0.0)
    unsure = {name: replace(one, error=0.5) for name, one in known(kernel=100, wan=150).items()}
    for now in range(100, 110):
        mind.consider(scores("throughput", unsure, frozenset()), unsure, (), float(now))
        assert (mind.chosen, mind.draw) == ("kernel", Draw("kernel", "wan", SEARCH_SHARE))
    told(mind, 110.0, kernel=100, wan=150)  # the same, of many samples
    assert told(mind, 110.0 + LASTING_S, kernel=100, wan=150) == "wan"


def test_who_is_down_is_left_at_once_and_nobody_explores_it() -> None:
    mind = Mind("wan", 0.0)
    estimates = known(kernel=10, wan=1000, lan=100)
    draw = mind.consider(scores("throughput", estimates, frozenset()), estimates, {"wan"}, 1.0)
    assert (draw.chosen, draw.explores) == ("lan", "kernel")
    assert mind.why == "wan is down"
    # All are: the last one stays, and its fallback serves.
    draw = mind.consider({}, estimates, {"wan", "lan", "kernel"}, 2.0)
    assert (draw.chosen, draw.explores, draw.share) == ("lan", None, 0.0)


def test_a_clock_that_leaps_changes_nothing_by_itself() -> None:
    mind = Mind("kernel", 1e6)
    for now in (1e6, 5.0, 1e9, 3.0, 1e9):
        assert told(mind, now, kernel=100, wan=100) == "kernel"
    assert mind.changes == 0
    # A time in the future holds nothing up.
    mind = Mind("kernel", 1e9)
    for now in range(20):
        told(mind, float(now), kernel=1, wan=100)
    assert mind.chosen == "wan"


def test_nan_is_no_score() -> None:
    mind = Mind("kernel", 0.0)
    estimates = known(kernel=1, wan=1)
    for now in range(30):
        mind.consider({"kernel": math.nan, "wan": math.inf}, estimates, (), float(now))
    assert mind.chosen == "kernel"


def test_exploration_is_small_and_smaller_where_the_other_is_bad() -> None:
    mind = Mind("kernel", 0.0)
    shares = []
    for second in range(1, 200):
        told(mind, float(second), kernel=100, wan=95)
        shares.append(mind.draw.share)
    # In the beginning it is looked for more.
    assert set(shares[:11]) == {SEARCH_SHARE}
    assert set(shares[20:]) == {SHARE}
    told(mind, 201.0, kernel=100, wan=20)
    assert mind.draw.share == BAD_SHARE


# -- over a restart --


def test_what_is_known_is_kept_over_a_restart() -> None:
    paths = Paths(CHOICE, 0.0)
    for second in range(60):
        paths.add(sample("kernel", 1e5), float(second))
        paths.add(sample("wan", 1e6), float(second))
        paths.decide((), float(second))
    assert paths.minds[ROOT].chosen == "wan"
    kept = json.loads(json.dumps(paths.kept(60.0)))
    again = Paths(CHOICE, 5.0)  # of another clock
    again.take_back(kept, 5.0)
    assert again.minds[ROOT].chosen == "wan"
    rate = again.tree.estimates(ROOT, 5.0)["wan"].rate
    assert rate == pytest.approx(1e6, rel=0.01)
    assert list(again.tree) == list(paths.tree)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
nodes = st.lists(
    st.one_of(
        json_values,
        st.tuples(
            st.sampled_from([0, 96, 112, 120, 48, 7]),
            st.sampled_from(["0" * 32, "00" * 10 + "ffffcb007100", "zz" * 16]),
            json_values,
            st.dictionaries(st.sampled_from(["kernel", "wan"]), st.lists(numbers, max_size=12)),
            st.sampled_from([None, "wan", "other", 3]),
        ).map(list),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(st.one_of(json_values, st.fixed_dictionaries({"form": st.just(1), "nodes": nodes})))
def test_what_was_kept_may_be_anything(kept: object) -> None:
    paths = Paths(CHOICE, 0.0)
    paths.take_back(kept, 0.0)
    assert all(draw.chosen in CHOICE.candidates for draw in paths.decide((), 1.0).values())
    json.dumps(paths.kept(2.0), allow_nan=False)


def test_a_network_has_its_own_mind_when_it_has_shown_enough() -> None:
    paths = Paths(CHOICE, 0.0)
    far = abi.addr16("198.51.100.1")
    for second in range(60):
        now = float(second)
        for _ in range(3):
            paths.add(sample("kernel", 1e6), now)
            paths.add(sample("wan", 2e5), now)
        paths.add(sample("kernel", 1e5, address=far), now)
        paths.add(sample("wan", 1e6, address=far), now)
        paths.decide((), now)
    prefix, mind = paths.mind_of(far)
    assert (str(prefix), mind.chosen) == ("198.51.100.0/24", "wan")
    assert paths.mind_of(HOST)[1].chosen == "kernel"
    assert paths.mind_of(abi.addr16("2001:db8::1"))[0] == ROOT
    row = paths.row("default", prefix, 60.0)
    assert row.candidates[1].stack == "wan"
    assert (row.candidates[1].rate_Bps or 0) > 5e5
    paths.decide((), 60.0 + 601.0)  # nothing was heard of it for long
    assert paths.mind_of(far)[0] == ROOT


def networks(count: int) -> list[bytes]:
    """A peer in each of so many networks."""
    return [abi.addr16(f"198.{18 + n // 256}.{n % 256}.1") for n in range(count)]


def told_of(peers: list[bytes]) -> Paths:
    """Each has shown enough for a mind of its own, one second after the other."""
    paths = Paths(CHOICE, 0.0)
    for second, peer in enumerate(peers):
        for stack in ("kernel", "wan"):
            for _ in range(4):
                paths.add(sample(stack, address=peer), float(second))
        paths.decide((), float(second))
    return paths


def test_who_was_heard_of_last_is_forgotten_last_also_after_a_restart() -> None:
    paths = told_of(networks(6))
    again = Paths(CHOICE, 100.0)
    again.take_back(paths.kept(10.0), 100.0)
    heard = [node.heard for node in again.tree.nodes.values()]
    assert heard == sorted(heard)
    assert next(reversed(again.tree.nodes)) == ROOT


def test_minds_are_as_many_as_may_be() -> None:
    paths = told_of(networks(20))
    assert len(paths.minds) > 20
    paths.allow(8)
    assert len(paths.minds) == 8 and ROOT in paths.minds
    for peer in networks(40):
        paths.add(sample("kernel", address=peer), 20.0)
        paths.add(sample("wan", address=peer), 20.0)
    assert len(paths.decide((), 20.0)) == 8
    assert all(paths.mind_of(peer)[1] for peer in networks(40))


def test_thousands_of_quiet_networks_cost_little_and_none_is_passed_by() -> None:
    paths = told_of(networks(300))
    now = 400.0
    for _ in range(TURNS):  # what had begun by then is over
        now += 1
        paths.decide((), now)
    looked = [paths._due(frozenset()) for _ in range(TURNS)]
    assert max(map(len, looked)) < 300 / 4
    assert {one for some in looked for one in some} == set(paths.tree.nodes)
    paths.add(sample(address=networks(1)[0]), now)
    assert prefixes(networks(1)[0])[0] in paths._due(frozenset())
    assert len(paths._due(frozenset({"wan"}))) == len(paths.tree.nodes), "all, once one is down"


def _lines(paths: Paths, now: float) -> list[str]:
    prefix, _ = paths.mind_of(HOST)
    return list(reasons(paths.row("i", prefix, now), paths.rows_around("i", HOST, now)))


def test_why_a_candidate_serves_is_told_with_what_stands_against_a_change() -> None:
    paths = Paths(CHOICE, 0.0)
    fresh = _lines(paths, 4.0)
    assert fresh[0] == (
        "another must be 1.15 times as good, and beyond chance, for a while, "
        "not before 6.0 s from now; 0 changes of mind until now"
    )
    assert fresh[-2:] == [
        "  * kernel: not tried yet, 0.0 samples of late",
        "    wan: not tried yet, 0.0 samples of late",
    ]
    for second in range(20):
        for stack, rate in (("kernel", 1e6), ("wan", 3e6)):
            paths.add(sample(stack, rate), float(second))
        paths.decide((), second + 0.5)
    told = _lines(paths, 20.0)
    decides = [line for line in told if line.endswith(" decides")]
    # The /24 has shown enough, and so have those around it.
    assert decides == ["203.0.113.0/24 decides"]
    assert [line for line in told if line in {"203.0.0.0/16", "default"}] == [
        "203.0.0.0/16",
        "default",
    ]
    assert any("wan: 3.0M/s" in line and "*" in line for line in told)
    assert any("kernel: 1.0M/s" in line and "3 times worse" in line for line in told)
    assert "1 change of mind until now" in told[0]
    assert any("kernel is tried by" in line for line in told)


def test_a_lead_and_a_search_are_told_while_they_last() -> None:
    paths = Paths(CHOICE, 0.0)
    for second in range(12):
        for stack, rate in (("kernel", 1e6), ("wan", 0.99e6)):
            paths.add(sample(stack, rate), float(second))
        paths.decide((), second + 0.5)
    prefix, mind = paths.mind_of(HOST)
    mind.leader, mind.leads_since, mind.searching_until = "wan", 11.0, 15.0
    mind.draw = Draw("kernel", "wan", SEARCH_SHARE)
    row = paths.row("i", prefix, 12.0)
    assert (row.leader, row.leads_s, row.searches_s) == ("wan", 1.0, 3.0)
    assert row.holds_s == LASTING_S - 1.0
    told = list(reasons(row, []))
    assert told[1] == "wan leads for 1.0 s now"
    assert told[2] == (
        "wan is tried by 25% of new flows, for 3 s more, since the path seems to have changed"
    )
