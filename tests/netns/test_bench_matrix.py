# SPDX-License-Identifier: Apache-2.0
"""The wide-area benchmarks: what they count and how, and one small cell from end to end.
Nothing is timed.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

import bench.flows
from bench.matrix import (
    Cell,
    Plan,
    Result,
    Run,
    cells,
    numbers,
    order,
    payload_bps,
    run_matrix,
    sim_arguments,
)
from bench.report import cold_table, matrix_table, plot_cold, plot_matrix
from dmm_ebpf.errors import DmmError, UsageError

TINY = Cell(20, 20, 1)


def a_run(rival: str, share: float, own_drops: int = 0) -> Run:
    return Run(rival, share, share * TINY.limit_bps, 0.5, 1.0, 0.01, own_drops, 1.0)


def test_the_limit_is_what_full_frames_carry_after_loss():
    assert Cell(100, 50, 0).limit_bps == pytest.approx(94.148e6, rel=1e-4)
    assert Cell(100, 50, 12).limit_bps == pytest.approx(0.88 * 94.148e6, rel=1e-4)


def test_a_queue_in_bytes_is_a_delay_at_the_rate():
    assert Cell(100, 50, 0).queue_ms(125_000) == pytest.approx(10)


def test_cells_are_every_combination():
    made = cells((20, 100), (20,), (0, 12))
    assert [str(c) for c in made[:2]] == ["20 Mbit/s, 20 ms, 0 %", "20 Mbit/s, 20 ms, 12 %"]
    assert len(made) == 4


@pytest.mark.parametrize("text", ["", "fast", "20,,100", "-1", "nan", "inf"])
def test_a_list_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        numbers(text, "Mbit/s")


@pytest.mark.parametrize(("rate", "loss"), [(0, 0), (20, 100)])
def test_a_path_over_which_nothing_arrives_is_refused(rate, loss):
    with pytest.raises(UsageError):
        cells((rate,), (20,), (loss,))


def test_each_round_begins_with_another_rival():
    rounds = [order(("wan", "bbr", "cubic"), n) for n in range(3)]
    assert {r[0] for r in rounds} == {"wan", "bbr", "cubic"}
    assert all(sorted(r) == ["bbr", "cubic", "wan"] for r in rounds)


def intervals(*rows: tuple[float, float, int]) -> list[dict]:
    return [{"sum": {"start": start, "end": end, "bytes": got}} for start, end, got in rows]


def test_payload_counts_from_the_first_bytes_and_borders_in_proportion():
    rows = intervals((0, 1, 0), (1, 2, 1000), (2, 3, 2000), (3, 4, 4000))
    assert payload_bps(rows, 0, 1) == pytest.approx(8000)
    assert payload_bps(rows, 0.5, 2.5) == pytest.approx(8 * (500 + 2000 + 2000) / 2)


def test_a_flow_that_delivered_nothing_is_an_error():
    with pytest.raises(DmmError, match="got nothing"):
        payload_bps(intervals((0, 1, 0)), 0, 1)


def test_medians_leave_out_runs_in_which_the_laboratory_lost_frames():
    result = Result(
        TINY, (a_run("wan", 0.9), a_run("wan", 0.1, own_drops=3), a_run("bbr", 0.2, own_drops=1))
    )
    assert result.median("wan", "share") == 0.9
    assert result.valid("wan")
    assert result.median("bbr", "share") == 0.2
    assert not result.valid("bbr")
    assert result.median("cubic", "share") is None
    assert [run["valid"] for run in result.to_json()["runs"]] == [True, False, False]


def test_the_simulator_gets_the_same_path():
    said = dict(word.split("=") for word in sim_arguments(Cell(100, 50, 5), 3, 131072))
    assert (said["rate_Bps"], said["delay_ns"], said["loss"]) == ("12500000", "25000000", "0.05")
    assert (said["queue_bytes"], said["limit_ns"]) == ("625000", "3000000000")
    assert said["linux_window"] == "131072"


def test_tables_and_plots_hold_every_cell(tmp_path: Path):
    results = [
        Result(cell, (a_run("wan", 0.98), a_run("bbr", 0.9, own_drops=1)), 0.99)
        for cell in cells((20, 100), (20, 200), (0, 5))
    ]
    cold = [
        bench.flows.ColdResult(r.cell, {"wan": [0.5, 0.6, 0.4], "bbr": [0.7, 0.5, 0.6]})
        for r in results
    ]
    console = Console(file=io.StringIO(), record=True, width=200)
    console.print(matrix_table(results))
    console.print(cold_table(cold))
    text = console.export_text()
    assert text.count("not valid: bbr") == len(results)
    assert text.count("0.833") == len(results)
    files = plot_matrix(results, tmp_path / "plots") + plot_cold(cold, tmp_path / "plots")
    assert {f.name for f in files} == {
        f"{name}.{kind}" for name in ("share", "queue", "coldstart") for kind in ("svg", "png")
    }
    assert all(f.stat().st_size > 5000 for f in files)


def test_one_cell_from_end_to_end(no_leaks: None, tmp_path: Path):
    tmp_path.chmod(0o755)
    plan = Plan((TINY,), ("wan", "bbr"), seconds=2, repeat=1, simulate=True)
    seen: list[str] = []
    (result,) = run_matrix(plan, tmp_path, lambda cell, run: seen.append(run.rival))
    assert seen == ["wan", "bbr"]
    assert plan.n_runs == 2
    for run in result.runs:
        # The goal is a benchmark's matter; here the flow must have been counted at all,
        # and not twice.
        assert 0 < run.share < 1.2
        assert 0 < run.retransmits < 0.2
        assert math.isfinite(run.queue_ms)
    assert 0 < (result.sim_share or 0) < 1.1
    json.dumps(result.to_json())


def test_a_cold_start_is_fetched_by_both(no_leaks: None, tmp_path: Path):
    tmp_path.chmod(0o755)
    found = bench.flows.cold_start(TINY, tmp_path, 1)
    assert {side: len(times) for side, times in found.seconds.items()} == {"wan": 1, "bbr": 1}
    assert min(t for times in found.seconds.values() for t in times) > 0


def test_latency_counts_requests_on_either_side(no_leaks: None, tmp_path: Path):
    tmp_path.chmod(0o755)
    sides = bench.flows.latency_sides(50)
    assert list(sides) == ["user stack", "busy_poll_us = 50", "kernel"]
    for policy in sides.values():
        found = bench.flows.latency_once(policy, tmp_path, 0.2)
        assert found.request_response.per_second > 10
        assert found.connections.median_us <= found.connections.p99_us
        assert found.bulk_gbps > 0


def test_processes_share_the_flows(no_leaks: None, tmp_path: Path):
    tmp_path.chmod(0o755)
    found = bench.flows.bulk_once(2, tmp_path, 1)
    assert found.gbps > 0
    assert sum(found.connections) == bench.flows.FLOWS + 1
    assert len(found.connections) == 2
