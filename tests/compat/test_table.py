# SPDX-License-Identifier: Apache-2.0
"""The compatibility table's quick cells, each a test: it is as without dmm-ebpf, or limits.toml
says that it is not. A cell that this kernel lacks something for is skipped.

DMM_COMPAT=all in the environment tries every cell.
"""

from __future__ import annotations

import os

import pytest
from labfixtures import assert_no_leaks, snapshot

from compat.case import CARRIERS
from compat.limits import known_limits, objection
from compat.run import UNTRIED, Result, Spot, run, spots

SPOTS = spots(quick=os.environ.get("DMM_COMPAT") != "all")
LIMITS = known_limits()

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all cells


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Result]:
    """Every cell by its place and carrier, all tried in one run; whatever they made is gone."""
    before = snapshot()
    found = run(SPOTS, tmp_path_factory.mktemp("compat"))
    assert_no_leaks(before, snapshot())
    places = [(spot.name, carrier) for spot in SPOTS for carrier in CARRIERS]
    return dict(zip(places, found, strict=True))


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("spot", SPOTS, ids=lambda spot: spot.name)
def test_a_cell(results, spot: Spot, carrier: str):
    result = results[spot.name, carrier]
    if result.verdict == UNTRIED:
        assert not result.detail.startswith("there is no "), (
            "a program that tools/bootstrap installs"
        )
        pytest.skip(f"could not be tried here: {result.detail}")
    assert not objection(result, LIMITS), f"{result.facts}"


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.why[:60])
def test_a_known_limit_names_cases_that_there_are(limit):
    kernel = limit.kernels[0] if limit.kernels else ""
    every = [Result(s.case.group, s.case.name, s.direction, s.family, c, "", "", {}, 0.0, kernel)
             for s in spots() for c in CARRIERS]  # fmt: skip
    for pattern in limit.cases:
        assert any(limit.names(r) for r in every if r), pattern
