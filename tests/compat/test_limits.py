# SPDX-License-Identifier: Apache-2.0
"""What is held against a cell and limits.toml, and how a cell is said on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat.cases import CASES, GROUPS
from compat.cell import amount
from compat.limits import Limit, known_limits, objection
from compat.page import page
from compat.run import DIFFERS, KERNELS, SAME, UNTRIED, Result, spots

FILE = """
[[differs]]
why = "of two minds"
cases = ["g: a*"]
carriers = ["tap"]
[[differs]]
why = "a race"
cases = ["g: race"]
sometimes = true
[[kernels]]
why = "bound to a device"
cases = ["g: bound"]
"""


def result(
    case: str, verdict: str, carrier: str = "tap", detail: str = "", family: str = "ip4"
) -> Result:
    return Result("g", case, "connect", family, carrier, verdict, detail, {}, 0.0)


@pytest.fixture
def limits(tmp_path: Path) -> list[Limit]:
    path = tmp_path / "limits.toml"
    path.write_text(FILE)
    return known_limits(path)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (result("b", SAME), ""),
        (result("b", DIFFERS, detail="x"), "it differs, and limits.toml does not say so: x"),
        (result("a1", DIFFERS, detail="x"), ""),
        (result("a1", DIFFERS, "af_xdp", "x"), "it differs, and limits.toml does not say so: x"),
        (result("a1", SAME), 'it holds now; take it out of limits.toml ("of two minds")'),
        (result("a1", UNTRIED), ""),
        (
            result("a1", KERNELS),
            "the kernel serves it now, as without us; limits.toml says that it differs",
        ),
        (result("bound", KERNELS), ""),
        (result("bound", SAME), 'it holds now; take it out of limits.toml ("bound to a device")'),
        (result("bound", DIFFERS, detail="x"), "it differs, and limits.toml does not say so: x"),
        (result("b", KERNELS, detail="forwarded"), ""),
        (
            result("b", KERNELS),
            "the kernel serves it, and neither a listing nor limits.toml says why",
        ),
        (result("race", SAME), ""),
        (result("race", DIFFERS), ""),
    ],
)
def test_what_is_held_against_a_cell(limits: list[Limit], cell: Result, said: str):
    assert objection(cell, limits).startswith(said)
    assert bool(objection(cell, limits)) == bool(said)


def test_the_page_says_a_word_for_both_families_once_and_a_reason_once(limits: list[Limit]):
    cells = [
        result("a1", DIFFERS, "tap", "x", family)
        if carrier == "tap"
        else result("a1", SAME, carrier, "", family)
        for family in ("ip4", "ip6")
        for carrier in ("kernel", "af_xdp", "tap")
    ]
    text = page(cells, limits)
    assert "| a1 | connect | same | same | differs [1](#why) |" in text
    assert text.count("1. Of two minds.") == 1


def test_amounts_are_multiples_of_the_payload():
    sizes = (0, 60_000, 600_000, 1_040_000, 2_080_000, 5_000_000)
    assert [amount(s, 1_000_000) for s in sizes] == [
        "none",
        "few",
        "part",
        "once",
        "twice",
        "5 times",
    ]


def test_cases_have_names_of_their_own_and_each_group_has_quick_ones():
    keys = [case.key for case in CASES]
    assert len(set(keys)) == len(keys)
    slow = set(GROUPS) - {spot.case.group for spot in spots(quick=True)}
    assert slow == {"iptables (nft)"}  # told by the other kind
