# SPDX-License-Identifier: Apache-2.0
"""tools/bench latency-wan: its arithmetic, its tables and plots, and a short run of each item on
real hosts. Nothing is timed but against what no run can beat.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import bench.latency_paths
import bench.latency_wan
from bench.__main__ import app, items_of, latency_plan_of
from bench.latency_paths import DATAGRAM_SIDES, SIDES, LatencyPath, Times, paths, quantile
from bench.latency_wan import ITEMS, PROTOCOLS, Found, LatencyPlan, run_latency_wan
from bench.latency_wan_goals import goals, goals_table
from bench.latency_wan_report import latency_wan_tables, plot_latency_wan
from dmm_ebpf.errors import DmmError
from lab import Lab
from lab.steady import Pace, Sender, Told, echo_server

NEAR = LatencyPath(20, 5)


def test_paths_are_every_combination_and_nothing_lost_is_of_no_kind():
    made = paths((20, 100), (0, 12))
    assert len(made) == 6
    assert [str(path) for path in made[:3]] == [
        "20 ms, 0 %",
        "20 ms, 12 %",
        "20 ms, 12 % in bursts",
    ]
    assert made[2].changes == {"delay": "10ms", "loss": "12% burst 5ms"}


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.01, 1), (0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)]
)
def test_a_quantile_is_one_of_the_values(share, wanted):
    assert quantile([float(n) for n in range(1, 101)], share) == wanted


def test_what_never_came_is_later_than_all():
    times = Times(
        "bbr", (1.0, 2.0, float("inf"), float("inf")), payload_bytes=100, wire_bytes=(130, 50)
    )
    assert (times.missing, times.came_share, times.later_than(1.5)) == (2, 0.5, 0.75)
    assert times.to_json()["came_share"] == 0.5
    assert times.cost == (1.3, 0.5)
    assert times.at(0.99) == float("inf")


def test_the_quick_plan_is_short_and_has_a_thousand_messages():
    plan = LatencyPlan()
    quick = plan.quick
    assert quick.estimate_s < plan.estimate_s / 3
    for one in (plan, quick):
        assert one.messages.connections * (one.messages.messages - one.warm) >= 1000
        assert one.datagrams.connections * (one.datagrams.messages - one.datagram_warm) >= 1000
    assert {path.loss_pct for path in plan.paths} == {0, 1, 5, 12}


def test_what_is_measured_is_chosen():
    this = ("latency-wan",)
    assert items_of("latency-wan", this, None, ITEMS) == ITEMS
    assert items_of("latency-wan", this, "page,many", ITEMS) == ("page", "many")
    assert items_of("latency-wan", ("swaps",), "page,many", ITEMS) == ITEMS
    plan = latency_plan_of("50", "3", ("messages",), quick=False)
    assert [str(path) for path in plan.paths] == ["50 ms, 3 %", "50 ms, 3 % in bursts"]
    done = CliRunner().invoke(app, ["latency-wan", "--only", "cake"])
    assert done.exit_code == 2
    with pytest.raises(DmmError, match="there are messages"):
        list(run_latency_wan(LatencyPlan(items=("cake",)), Path(), lambda _what: None))


def every_cell() -> list[Found]:
    """Figures that are different in each cell."""
    cells = []
    for number, path in enumerate(paths((20, 100), (0, 12))):
        times = tuple(
            Times(side, tuple(float(100 + number + n * m) for m in range(40)), 1000, (1500, 200))
            for n, side in enumerate(SIDES, 1)
        )
        cells.append(Found("messages", "1024 bytes each 50 ms", path, times))
    datagrams = [
        replace(
            cell,
            item="datagrams",
            sides=tuple(
                replace(times, side=side, ms=(*times.ms[:38], *[float("inf")] * lost), copies=4321)
                for times, side, lost in zip(cell.sides, DATAGRAM_SIDES, (10, 2), strict=False)
            ),
        )
        for cell in cells
    ]
    others = [replace(cells[0], item=item, what=item) for item in ITEMS[2:]]
    others[0] = replace(others[0], later_ms=110.0)
    return cells + datagrams + others


def test_tables_and_plots_hold_every_cell(tmp_path):
    found = every_cell()
    console = Console(file=io.StringIO(), record=True, width=200)
    for table in latency_wan_tables(found):
        console.print(table)
    text = console.export_text()
    for cell in found:
        assert str(cell.path) in text
    assert text.count("kernel bbr") >= sum(cell.rival.side == "bbr" for cell in found)
    assert "1.50 / 0.20" in text
    json.dumps([one.to_json() for one in found])
    files = plot_latency_wan(found, tmp_path / "plots")
    assert {f.stem for f in files} == {"messages", "tail", "datagrams", "others"}
    assert all(f.stat().st_size > 5000 for f in files)


def test_of_datagrams_the_share_that_came_back_is_told():
    """And beside it quantiles, in which what is lost is later than all."""
    found = [cell for cell in every_cell() if cell.item == "datagrams"]
    (table,) = latency_wan_tables(found)
    rows = dict(
        zip((c.header for c in table.columns), (list(c.cells) for c in table.columns), strict=True)
    )
    assert rows["who"][:2] == ["kernel", "ours at both ends"]
    assert rows["came back %"][:2] == ["79.17", "95.00"]
    assert rows["p50"][:2] == ["123", "138 (1.12)"]
    assert rows["p99"][:2] == ["never", "never"]
    assert rows[""][:2] == ["10 never came", "2 never came"]


def test_each_goal_is_told_with_the_rival_and_whether_it_is_met():
    """Ours at both ends is best, but sends copies where nothing is lost."""
    at = {"bbr": 300.0, "one": 200.0, "both": 102.0}

    def cell(item: str, path: LatencyPath, **more: Any) -> Found:
        sides = tuple(
            Times(side, (ms, ms, ms), 1000, (1300, 200), copies=0 if side == "one" else 7)
            for side, ms in at.items()
        )
        return Found(item, item, path, sides, **more)

    clean, lossy = LatencyPath(100, 0), LatencyPath(100, 12)
    found = [cell("messages", clean), cell("messages", lossy)]
    found += [cell("streams", lossy, later_ms=110.0), cell("page", lossy), cell("many", lossy)]
    said = goals(found)
    assert [goal.what for goal in said if not goal.met] == [
        "messages, 100 ms, 0 %: copies",
        "a page by page, 100 ms, 12 %: p50, p95",
    ]
    rows = {(goal.what, goal.who): goal for goal in said}
    p99 = rows["messages, 100 ms, 12 %: p99", "ours at both ends"]
    assert (p99.rival, p99.ours, p99.goal, p99.met) == ("300 ms", "102 ms", "≤ 130 ms", True)
    page = rows["a page by page, 100 ms, 12 %: p50, p95", "ours at one end"]
    assert (page.ours, page.met) == ("0.67, 0.67 of it", False)
    assert rows["a page by page, 100 ms, 12 %: p50, p95", "ours at both ends"].met
    assert len(list(goals_table(found).columns[0].cells)) == len(said) == 11


def test_messages_are_told_of_one_by_one(lab: Lab, tmp_path):
    a, b = lab.host("a"), lab.host("b")
    lab.wan(a, b, delay="10ms", neighbours="static")
    echo_server(b, 4300, tmp_path / "echo.log")
    told = Sender("ask", a, (b.ip4, 4300), Pace(3, 10, 2000, 0.01)).result()
    assert sorted(told.message_s) == [(c, n) for c in range(3) for n in range(10)]
    assert min(told.message_s.values()) >= 0.02
    assert set(told.connect_s) == set(told.life_s) == {0, 1, 2}
    assert not told.failed
    # One after the other, as the answers come
    told = Sender("ask", a, (b.ip4, 4300), Pace(1, 5, 100, 0.0)).result()
    assert told.life_s[0] >= 6 * 0.02
    refused = Sender("ask", a, (b.ip4, 4301), Pace(1, 5, 100, 0.0)).result()
    assert refused.failed == {0: "ECONNREFUSED"}
    with pytest.raises(DmmError, match="usage: steady"):
        Sender("ask", a, (b.ip4, 4300), Pace(1, 5, 1, 0.0)).result()


def test_nobody_has_to_listen_while_messages_are_sent(lab: Lab, tmp_path):
    """More lines than a pipe holds, and nobody reads them yet."""
    a, b = lab.host("a"), lab.host("b")
    lab.wan(a, b, delay="5ms", neighbours="static")
    echo_server(b, 4300, tmp_path / "echo.log")
    pace = Pace(50, 400, 100, 0.01)
    first, second = (Sender("ask", a, (b.ip4, 4300), pace) for _ in range(2))
    for told in (first.result(), second.result()):
        assert len(told.message_s) == 20_000
        assert max(told.message_s.values()) < 2


def test_datagrams_are_told_of_and_the_lost_are_no_failure(lab: Lab, tmp_path):
    a, b = lab.host("a"), lab.host("b")
    link = lab.wan(a, b, delay="10ms", neighbours="static")
    echo_server(b, 4300, tmp_path / "echo.log", datagrams=True)
    pace = Pace(3, 100, 200, 0.01, wait_s=1)
    told = Sender("ask-datagrams", a, (b.ip4, 4300), pace).result()
    assert sorted(told.message_s) == [(c, n) for c in range(3) for n in range(100)]
    assert min(told.message_s.values()) >= 0.02
    link.set(loss="30%", seed=5)
    told = Sender("ask-datagrams", a, (b.ip4, 4300), pace).result()
    assert 50 < len(told.message_s) < 250
    assert set(told.life_s) == {0, 1, 2}
    assert not told.failed


def test_a_datagram_that_comes_twice_is_a_failure(lab: Lab, tmp_path):
    a, b = lab.host("a"), lab.host("b")
    link = lab.wan(a, b, delay="1ms", neighbours="static")
    echo_server(b, 4300, tmp_path / "echo.log", datagrams=True)
    link.set("ba", duplicate="100%")
    pace = Pace(2, 20, 200, 0.01, wait_s=1)
    told = Sender("ask-datagrams", a, (b.ip4, 4300), pace).result()
    assert told.failed == {0: "twice", 1: "twice"}
    refused = Sender("ask-datagrams", a, (b.ip4, 4301), pace).result()
    assert refused.failed == {0: "ECONNREFUSED", 1: "ECONNREFUSED"}
    for wrong in (replace(pace, interval_s=0.0), replace(pace, size_bytes=65508)):
        with pytest.raises(DmmError, match="usage: steady"):
            Sender("ask-datagrams", a, (b.ip4, 4300), wrong).result()


def test_what_does_not_come_in_time_is_given_up(lab: Lab, tmp_path):
    a, b = lab.host("a"), lab.host("b")
    link = lab.wan(a, b, delay="1ms", neighbours="static")
    echo_server(b, 4300, tmp_path / "echo.log")
    link.set("ba", loss="100%")
    told = Sender("ask", a, (b.ip4, 4300), Pace(2, 5, 100, 0.01, wait_s=1)).result()
    assert told.failed == {0: "time", 1: "time"}
    assert not told.message_s


def test_a_line_that_is_none_is_an_error():
    with pytest.raises(DmmError, match="x 1 2"):
        Told().add(["x 1 2"])


def short(*items: str) -> LatencyPlan:
    return LatencyPlan(
        items,
        paths=(NEAR,),
        stream_paths=(NEAR,),
        messages=Pace(5, 30, 1024, 0.02),
        warm=5,
        datagrams=Pace(5, 30, 200, 0.02, wait_s=1),
        datagram_warm=5,
        stream_s=1.0,
        stream_warm_s=0.2,
        loads=1,
        many=Pace(60, 2, 1024, 0.0, wait_s=60),
    )


@pytest.fixture
def near(monkeypatch):
    """Also where the path is not the plan's."""
    monkeypatch.setattr(bench.latency_wan, "PAGE_PATH", NEAR)
    monkeypatch.setattr(bench.latency_wan, "MANY_PATH", NEAR)


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_from_end_to_end(no_leaks, near, tmp_path, item):
    tmp_path.chmod(0o755)
    said: list[str] = []
    found = list(run_latency_wan(short(item), tmp_path, said.append))
    assert len(found) == {"streams": 3, "page": len(PROTOCOLS)}.get(item, 1)
    assert said
    for cell in found:
        sides = DATAGRAM_SIDES if item == "datagrams" else SIDES
        assert [times.side for times in cell.sides] == list(sides)
        for times in cell.sides:
            assert (times.failed, times.own_drops) == ((), 0)
            assert item == "datagrams" or not times.missing
            least = NEAR.rtt_ms * {"streams": 0.5, "page": 2, "many": 3}.get(item, 1)
            assert least <= times.at(0) <= times.at(0.5) < 20_000
            assert sum(times.cost) > 1
        json.dumps(cell.to_json())


def test_copies_bring_datagrams_back_that_the_kernel_loses(no_leaks, tmp_path):
    """At 12 % each way three quarters come back of themselves."""
    tmp_path.chmod(0o755)
    pace = Pace(5, 200, 200, 0.05, wait_s=1)
    plan = replace(short("datagrams"), datagrams=pace, datagram_warm=100)
    plan = replace(plan, paths=(LatencyPath(100, 12),))
    (cell,) = run_latency_wan(plan, tmp_path, lambda _what: None)
    kernel, both = cell.sides
    assert 0.6 < kernel.came_share < 0.9
    assert both.came_share > 0.95
    assert kernel.copies is None
    assert both.copies > 100
