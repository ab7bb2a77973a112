# SPDX-License-Identifier: Apache-2.0
"""Documentation names what is here: links lead somewhere, and the glossary's places have
what it says.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GLOSSARY = ROOT / "docs/glossary.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def terms() -> list[tuple[str, str, str | None]]:
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \| `([^`|]+)`(?:: `([^`|]+)`)? \|$",
        GLOSSARY.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [(term, file, name or None) for term, file, name in rows]


def test_every_term_of_the_glossary_says_where_it_is() -> None:
    lines = [x for x in GLOSSARY.read_text(encoding="utf-8").splitlines() if x.startswith("| ")]
    assert len(terms()) == len(lines) - 1


@pytest.mark.parametrize(("term", "file", "name"), terms())
def test_a_term_is_where_the_glossary_says(term: str, file: str, name: str | None) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert name is None or re.search(rf"{re.escape(name)}\b", text), (term, name)


def test_every_topic_of_scenarios_is_told() -> None:
    scenarios = ROOT / "tests" / "scenario"
    told = set(
        re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "conformance.md").read_text(), re.MULTILINE)
    )
    assert {path.parent.name for path in scenarios.rglob("*.tcp")} == told
    assert not list(scenarios.glob("*.tcp")), "a scenario stands in its topic's folder"
