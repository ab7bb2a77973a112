# SPDX-License-Identifier: Apache-2.0
"""tools/bench routes: what it measures is there, and told."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.routes import bench_routes, routes_table


def test_what_grows_with_the_routes(tmp_path: Path) -> None:
    told: list[int] = []
    found = list(bench_routes(tmp_path, (10, 20_000), lambda one: told.append(one.routes)))
    assert told == [one.routes for one in found] == [10, 20_000]
    few, many = found
    assert many.all_s == many.read_s + many.compile_s + many.live_s > many.read_s > few.read_s
    assert 0 < few.before_mb <= few.peak_mb
    assert many.peak_mb - many.before_mb < 20
    assert 0 < few.change_ms <= few.change_most_ms
    assert 0 < many.change_ms < 2, "a change looks at the routes that it does not change"
    assert 0 < many.element_ms < 2, "so does one of a set's element"
    assert 0 < many.fleet_ms < 2, "so does one of a fleet's route"
    assert set(few.to_json()) >= {"routes", "all_s", "user_s", "kernel_s", "peak_mb"}
    console = Console(width=200, record=True)
    console.print(routes_table(found))
    assert "20,000" in console.export_text()
