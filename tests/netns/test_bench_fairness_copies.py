# SPDX-License-Identifier: Apache-2.0
"""tools/bench fairness-copies: its arithmetic, contests in the simulator and on a real path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.fairness_copies import (
    PARTIES,
    RIVALS,
    Beside,
    Kept,
    Pair,
    besides,
    copies_table,
    run_once,
    sim_arguments,
    simulate,
)
from bench.matrix import Cell
from lab.sim.corelab import build_plain

MESSAGES, STREAMS = PARTIES
CELL = Cell(20, 40, 0)


def pair(kept: float) -> Pair:
    without, low = Kept(0.5, 40, 90, 0), Kept(0.5 * kept, 41, 50, 1234)
    return Pair(Beside(CELL, 1, MESSAGES, "cubic"), "lab", without, low)


def test_every_party_meets_every_rival_with_every_buffer() -> None:
    made = besides((CELL,), (0.1, 1))
    assert len(made) == len(PARTIES) * len(RIVALS) * 2 == len(set(made))


def test_both_runs_of_a_contest_differ_in_copies_alone() -> None:
    beside = Beside(CELL, 0.1, STREAMS, "bbr")
    without, low = (set(sim_arguments(beside, on, 10)) for on in (False, True))
    assert {word.split("=")[0] for word in without ^ low} == {"latency", "latency_b", "negotiate"}


def test_the_table_and_the_json_tell_what_is_kept(tmp_path: Path) -> None:
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    console.print(copies_table([pair(1.0), pair(0.5)]))
    text = console.export_text(styles=True)
    assert "0.500 → 0.250" in text
    assert "1,234" in text
    (red,) = [line for line in text.splitlines() if "\x1b[31m" in line]
    assert "0.250" in red
    assert json.loads(json.dumps(pair(0.5).to_json()))["kept"] == 0.5


@pytest.mark.parametrize("rival", RIVALS)
def test_copies_take_nothing_from_who_fills_a_queue(tmp_path: Path, rival: str) -> None:
    """What is lost there is congestion, and the queue tells."""
    simulator = build_plain(tmp_path)
    beside = Beside(CELL, 1.0, MESSAGES, rival)
    without, low = (simulate(simulator, beside, on, 5) for on in (False, True))
    assert low.share >= 0.97 * without.share > 0.5
    assert without.sent == 0


def test_a_real_contest(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    kept = run_once(Beside(Cell(20, 20, 5), 1.0, MESSAGES, "bbr"), True, tmp_path, seconds=2)
    assert 0 < kept.share < 1.1
    assert 20 <= kept.p50_ms <= kept.p99_ms
    assert kept.sent > 0
