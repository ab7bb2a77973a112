# SPDX-License-Identifier: Apache-2.0
"""What tools/bench control prints besides routes: connect() while the policy changes, connect() as
routes grow, and a fleet's hosts; and that a record of two policies would be found.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from bench import swaps
from bench.control import bench_control, control_table
from bench.elements import bench_elements, elements_table
from bench.growth import bench_growth, growth_table
from bench.swaps import PEERS, Swapped, bench_swaps, swaps_table
from lab import Cgroup, Lab
from lab.flooding import Flood, swallow
from lab.routed import Routed

pytestmark = pytest.mark.root
MIXED = swaps.TEXTS[1].replace("1002", "1003")  # not the priority that it should have


def _printed(table: object) -> str:
    console = Console(width=200, record=True)
    console.print(table)
    return console.export_text()


@pytest.mark.timeout(300)
def test_each_flow_is_decided_by_one_policy_while_policies_change(tmp_path, no_leaks) -> None:
    told: list[int] = []
    found = bench_swaps(tmp_path, 25, done=told.append)
    assert (found.found, found.wrong, found.failed) == ([], 0, 0)
    assert found.swaps == told[-1] == 25
    assert found.connects >= 2 * swaps.ROUND and found.seconds > 0
    assert found.generations > 5, "policies changed while flows were decided"
    assert f"{found.per_s:,.0f}" in _printed(swaps_table(found))


def test_a_record_of_another_policy_than_its_generations_is_found(
    lab: Lab, cgroup: Cgroup, tmp_path: Path
) -> None:
    host = lab.host("h")
    swallow(host)
    with Routed(host, cgroup, MIXED, tmp_path) as routed, Flood(host, cgroup, PEERS) as flood:
        generation = int(routed.ask("status")[0]["generation"])
        flood.begin(10)
        assert flood.opened().done == 10
        sockets = flood.sockets()
        for policies, sentence in (
            ({generation: 1}, "its socket has priority 1003"),
            ({}, f"of generation {generation}, which was never in force"),
        ):
            swapped = Swapped()
            swaps._Judge(routed.instance, policies, swapped).look(sockets)
            assert swapped.wrong == 10 and sentence in swapped.found[0]
        swapped = Swapped()
        swaps._Judge(routed.instance, {generation: 1}, swapped).look({1 << 60: 1002})
        assert swapped.found == [f"the socket {1 << 60} has no record"]


@pytest.mark.timeout(300)
def test_connect_as_routes_grow(tmp_path, no_leaks) -> None:
    found = bench_growth(tmp_path, (10, 5000), rounds=3)
    wanted = [(family, count) for family in (4, 6) for count in (None, 10, 5000)]
    assert [(one.family, one.routes) for one in found] == wanted
    assert all(one.one_ns > 0 and one.any_ns > 0 for one in found)
    assert set(found[0].to_json()) == {"family", "routes", "one_ns", "any_ns"}
    assert "5,000" in _printed(growth_table(found))


@pytest.mark.timeout(300)
def test_connect_meets_each_change_of_a_set(tmp_path, no_leaks) -> None:
    """Also of one that is read whole at first, for it has more than the kernel can tell."""
    found = list(bench_elements(tmp_path, (10, 5000), 20, lambda _: None))
    assert [(one.elements, one.changes) for one in found] == [(10, 20), (5000, 20)]
    assert all(0 < one.median_ms <= one.p95_ms <= one.most_ms for one in found)
    assert "5,000" in _printed(elements_table(found))


@pytest.mark.timeout(300)
def test_a_fleet_of_two_tells_what_etcd_pays(tmp_path, no_leaks) -> None:
    (found,) = bench_control(tmp_path, (2,), lambda _: None)
    assert found.hosts == 2 and 0 < found.half_s <= found.last_s
    assert found.requests >= 4, "each host reads the push, and tells what it has"
    assert found.rest_requests > 0 and found.host_kb > 0
    assert f"{found.requests:,.0f}" in _printed(control_table([found]))
