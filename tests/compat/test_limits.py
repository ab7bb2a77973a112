# SPDX-License-Identifier: Apache-2.0
"""What is held against a cell and limits.toml, and how a cell is said on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat.cases import CASES, GROUPS
from compat.cell import Seen, amount
from compat.limits import Limit, known_limits, objection
from compat.page import WIDTH, page
from compat.run import DIFFERS, KERNELS, SAME, UNTRIED, Result, spots, verdict_of

FILE = """
[[differs]]
why = "of two minds"
cases = ["g: a*"]
carriers = ["tap"]
[[differs]]
why = "a race"
cases = ["g: race"]
sometimes = true
[[differs]]
why = "old"
cases = ["g: old"]
kernels = ["6.1"]
[[kernels]]
why = "bound to a device"
cases = ["g: bound"]
"""


def result(
    case: str,
    verdict: str,
    carrier: str = "tap",
    detail: str = "",
    family: str = "ip4",
    kernel: str = "6.18",
) -> Result:
    return Result("g", case, "connect", family, carrier, verdict, detail, {}, 0.0, kernel)


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
        (result("old", DIFFERS, kernel="6.1"), ""),
        (result("old", SAME, kernel="6.1"), 'it holds now; take it out of limits.toml ("old")'),
        (result("old", SAME), ""),
        (result("old", DIFFERS, detail="x"), "it differs, and limits.toml does not say so: x"),
        (result("race", SAME), ""),
        (result("race", DIFFERS), ""),
    ],
)
def test_what_is_held_against_a_cell(limits: list[Limit], cell: Result, said: str):
    assert objection(cell, limits).startswith(said)
    assert bool(objection(cell, limits)) == bool(said)


FAMILIES_CARRIERS = [(f, c) for f in ("ip4", "ip6") for c in ("kernel", "af_xdp", "tap")]


def test_the_page_says_a_word_for_both_families_once_and_a_reason_once(limits: list[Limit]):
    cells = [
        result("a1", DIFFERS, "tap", "x", family)
        if carrier == "tap"
        else result("a1", SAME, carrier, "", family)
        for family, carrier in FAMILIES_CARRIERS
    ]
    text = page(cells, {}, limits)
    assert "| a1 | connect | same | same | differs [1](#why) |" in text
    assert text.count("1. Of two minds.") == 1


def test_the_page_says_another_kernels_word_where_it_is_another(limits: list[Limit]):
    """Of the IPv4 cells alone, which is all that is known of it."""
    here = [result("old", SAME, c, family=f) for f, c in FAMILIES_CARRIERS]
    here += [result("new", UNTRIED, c, "no such device", f) for f, c in FAMILIES_CARRIERS]
    there = [
        result("old", SAME if c == "kernel" else DIFFERS, c, kernel="6.1")
        for f, c in FAMILIES_CARRIERS
        if f == "ip4"
    ]
    there += [result("new", SAME, c, family=f, kernel="6.1") for f, c in FAMILIES_CARRIERS]
    text = page(here, {"6.1": there}, limits)
    word = "IPv4 same; on 6.1 differs [1](#why), IPv6 same"
    assert f"| old | connect | same | {word} | {word} |" in text
    assert "| new | connect | same (6.1) | same (6.1) | same (6.1) |" in text
    assert "| group | cells | tried on 6.18 | tried on 6.1 |" in text
    assert "| g | 12 | 6 | 9 |" in text
    assert "1. Old.\n" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= WIDTH


def test_what_cannot_be_set_up_beside_us_differs_also_where_no_rate_holds():
    (spot, *_) = spots(["at the device: policing at ingress"])
    without = Seen({"rate": "far below the limit"})
    beside = Seen(untried="tc qdisc add: Exclusivity flag on")
    assert verdict_of(spot, "tap", without, beside)[0] == DIFFERS
    assert verdict_of(spot, "tap", Seen(untried="no such module"), beside)[0] == UNTRIED


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
