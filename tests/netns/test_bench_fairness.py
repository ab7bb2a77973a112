# SPDX-License-Identifier: Apache-2.0
"""tools/bench fairness: its arithmetic, and one contest on a real, short path."""

from __future__ import annotations

import json

import pytest
from bench_fairness import (
    PAIRS,
    Contest,
    Outcome,
    Shared,
    build_simulator,
    contests,
    run_once,
    sim_arguments,
    simulate,
)
from bench_fairness_report import fairness_table, plot_fairness
from bench_matrix import FRAME_BYTES, Cell
from rich.console import Console

from dmm_ebpf.errors import UsageError

CELL = Cell(100, 40, 0)


def contest(*pair: str, buffer_bdp: float = 1.0) -> Contest:
    return Contest(CELL, buffer_bdp, (pair[0], pair[1]))


def test_every_pair_meets_with_every_buffer():
    made = contests([CELL], [0.1, 4])
    assert len(made) == 2 * len(PAIRS) == len(set(made))
    assert [c.buffer_bytes for c in made[:2]] == [50_000, 2_000_000]
    assert Contest(Cell(1, 1, 0), 0.1, PAIRS[0]).buffer_bytes == 2 * FRAME_BYTES


@pytest.mark.parametrize("buffer", [0, -1, float("inf")])
def test_a_bottleneck_without_a_buffer_is_refused(buffer):
    with pytest.raises(UsageError, match="two flows cannot share it"):
        contests([CELL], [buffer])


@pytest.mark.parametrize(("shares", "jain"), [((0.5, 0.5), 1), ((1.0, 0.0), 0.5), ((0.6, 0.2), 0.8)])
def test_jains_index(shares, jain):
    assert Shared(shares, 0, 0).jain == pytest.approx(jain)


def test_medians_leave_out_runs_in_which_the_laboratory_lost_frames():
    runs = (Shared((0.9, 0.1), 1, 0, own_drops=3), Shared((0.5, 0.4), 2, 0.01))
    outcome = Outcome(contest("wan", "cubic"), runs)
    assert outcome.valid
    assert outcome.median.shares == (0.5, 0.4)
    assert not outcome.starved
    assert Outcome(outcome.contest, runs[:1]).starved
    assert not Outcome(contest("cubic", "bbr"), runs[:1]).starved
    assert json.loads(json.dumps(outcome.to_json()))["median"]["jain"] == pytest.approx(0.988, abs=0.001)


def test_the_simulator_runs_the_same_contest(tmp_path):
    assert sim_arguments(contest("wan", "bbr"), 10)[-2:] == ["flow=wan", "flow=bbr1"]
    shared = simulate(build_simulator(tmp_path), contest("wan", "wan"), 20)
    assert 0.9 < sum(shared.shares) < 1.02
    assert shared.jain > 0.6


def test_table_and_plot_show_every_contest(tmp_path):
    outcomes = [
        Outcome(contest(*pair, buffer_bdp=buffer), (Shared((0.7, 0.2), 3, 0.01),))
        for pair in PAIRS
        for buffer in (0.1, 1.0)
    ]
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(fairness_table(outcomes))
    text = console.export_text()
    assert text.count("cubic") == text.count("bbr") == 4
    assert "…" not in text
    for path in plot_fairness(outcomes, tmp_path):
        assert path.stat().st_size > 5000


def test_two_real_flows_share_a_bottleneck(tmp_path):
    tmp_path.chmod(0o755)
    shared = run_once(Contest(Cell(20, 10, 0), 1.0, ("wan", "cubic")), tmp_path, seconds=2, seed=1)
    assert shared.valid
    assert min(shared.shares) > 0
    assert 0.7 < sum(shared.shares) < 1.1
