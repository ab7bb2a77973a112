# SPDX-License-Identifier: Apache-2.0
"""tools/bench fairness: its arithmetic, and one contest on a real, short path."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.fairness import (
    PAIRS,
    Contest,
    Outcome,
    Shared,
    build_simulator,
    contests,
    run_once,
    shared_of,
    sim_arguments,
    simulate,
)
from bench.fairness_report import draw_fairness, fairness_table, plot_fairness
from bench.matrix import FRAME_BYTES, Cell
from bench.report import NAMES
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


@pytest.mark.parametrize(
    ("shares", "jain"), [((0.5, 0.5), 1), ((1.0, 0.0), 0.5), ((0.6, 0.2), 0.8)]
)
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
    assert json.loads(json.dumps(outcome.to_json()))["median"]["jain"] == pytest.approx(
        0.988, abs=0.001
    )


def test_the_simulator_runs_the_same_contest(tmp_path):
    assert sim_arguments(contest("wan", "bbr"), 10)[-2:] == ["flow=wan", "flow=bbr1"]
    shared = simulate(build_simulator(tmp_path), contest("wan", "wan"), 20)
    assert 0.9 < sum(shared.shares) < 1.02
    assert shared.jain > 0.6


def test_two_flows_of_which_nothing_arrived_have_shares():
    silent = {"ratio": 0.0, "queue_loss": 0.2, "qdelay_ms": 1.0}
    shared = shared_of([silent, silent | {"queue_loss": 0.4}])
    assert shared.shares == (0, 0)
    assert shared.dropped == pytest.approx(0.3)
    assert shared_of(
        [silent | {"ratio": 0.5}, silent | {"queue_loss": 0.4}]
    ).dropped == pytest.approx(0.2)


def every_contest():
    """Shares, queue and buffers that are different in each, so that none can stand for another."""
    return [
        Outcome(
            contest(*pair, buffer_bdp=buffer),
            (Shared((0.7 - n / 20 - buffer / 10, 0.2 + n / 20), 4 + n, 0.01),),
        )
        for n, pair in enumerate(PAIRS)
        for buffer in (0.1, 1.0)
    ]


def test_the_table_shows_every_contest(tmp_path):
    outcomes = every_contest()
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(fairness_table(outcomes))
    text = console.export_text()
    assert text.count("cubic") == text.count("bbr") == 4
    assert "…" not in text
    for outcome in outcomes:
        assert f"{outcome.median.shares[0]:.2f}" in text


def test_the_plot_shows_every_contest():
    outcomes = every_contest()
    panels = {panel.get_title(loc="left"): panel for panel in draw_fairness(outcomes).axes}
    assert len(panels) == len(PAIRS)
    for pair in PAIRS:
        mine = [outcome for outcome in outcomes if outcome.contest.pair == pair]
        panel = panels[" and ".join(NAMES[name] for name in pair)]
        first, second = panel.containers
        for place, bars in enumerate((first, second)):
            assert [bar.get_height() for bar in bars] == [o.median.shares[place] for o in mine]
        for left, right in zip(first, second, strict=True):
            assert left.get_x() < right.get_x() < left.get_x() + 1
        (queue,) = [line for line in panel.lines if line.get_label() == "queue ÷ round trip"]
        assert list(queue.get_ydata()) == [o.median.queue_ms / CELL.rtt_ms for o in mine]
        assert [label.get_text() for label in panel.get_xticklabels()] == ["0.1", "1"]
        assert panel.get_ylim()[0] == 0
        assert panel.get_ylim()[1] > max(max(o.median.shares) for o in outcomes)


def test_the_plot_is_written_as_a_drawing_and_as_a_picture(tmp_path):
    files = plot_fairness(every_contest(), tmp_path / "new")
    assert {path.suffix for path in files} == {".svg", ".png"}
    drawing = ElementTree.parse(next(path for path in files if path.suffix == ".svg")).getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawing.findall(".//*[@id]")) > 50


def test_two_real_flows_share_a_bottleneck(tmp_path):
    tmp_path.chmod(0o755)
    shared = run_once(Contest(Cell(20, 10, 0), 1.0, ("wan", "cubic")), tmp_path, seconds=2, seed=1)
    assert shared.valid
    assert min(shared.shares) > 0
    assert 0.7 < sum(shared.shares) < 1.1
