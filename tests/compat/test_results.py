# SPDX-License-Identifier: Apache-2.0
"""Results that are kept in a file: what is there is not tried again, whatever ended the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compat.case import CARRIERS
from compat.guest import Said
from compat.page import page
from compat.results import Results, line_of
from compat.run import DIFFERS, KERNELS, SAME, Result, Spot, series, spots
from dmm_ebpf.errors import DmmError

SPOTS = spots(["marks"])


def result(spot: Spot, carrier: str, verdict: str = SAME, kernel: str = "6.1") -> Result:
    case = spot.case
    return Result(
        case.group, case.name, spot.direction, spot.family, carrier, verdict, "", {}, 1.0, kernel
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that a run of three cells has left: two of a spot's, and one of the next."""
    path = tmp_path / "results"
    known = Results(path)
    for one in (result(SPOTS[0], "kernel"), result(SPOTS[0], "tap"), result(SPOTS[1], "tap")):
        known.add(one)
    return path


def test_what_is_known_of_a_kernel_is_not_missing(path: Path):
    known = Results(path)
    assert known.missing(SPOTS, ("kernel", "tap"), "6.1") == SPOTS[1:]
    assert known.missing(SPOTS, ("tap",), "6.1") == SPOTS[2:]
    assert known.missing(SPOTS, CARRIERS, "6.1") == SPOTS
    assert known.missing(SPOTS, ("tap",), "6.18") == SPOTS
    assert [r.carrier for r in known.of(SPOTS, CARRIERS, "6.1")] == ["kernel", "tap", "tap"]
    assert known.of(SPOTS, CARRIERS, "6.18") == []


def test_the_last_line_of_a_cell_counts(path: Path):
    known = Results(path)
    known.add(result(SPOTS[0], "tap", DIFFERS))
    known.add(result(SPOTS[0], "tap", kernel="6.18"))
    again = Results(path)
    assert [r.verdict for r in again.of(SPOTS, ("tap",), "6.1")] == [DIFFERS, SAME]
    assert again.kernels() == ["6.18", "6.1"]


def test_a_line_that_was_cut_off_is_tried_again_and_the_file_goes_on(path: Path):
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 9)
    known = Results(path)
    assert known.missing(SPOTS, ("tap",), "6.1") == SPOTS[1:]
    known.add(result(SPOTS[1], "tap"))
    assert Results(path).missing(SPOTS, ("tap",), "6.1") == SPOTS[2:]


def test_a_file_of_something_else_is_refused_and_stays(path: Path):
    path.write_text(text := "[section]\nkey = 1\n")
    with pytest.raises(DmmError, match="line 1 is no result of tools/compat"):
        Results(path)
    assert path.read_text() == text


def test_a_last_line_without_an_end_that_is_something_else_is_left_alone(path: Path):
    path.write_text(text := "a letter, whose last line is not ended")
    with pytest.raises(DmmError, match="line 1 is no result"):
        Results(path)
    assert path.read_text() == text


def test_what_a_guest_says_is_passed_on_as_it_comes():
    came: list[Result] = []
    said = Said(came.append)
    wanted = [result(SPOTS[0], one) for one in CARRIERS]
    data = "".join(line_of(one) + "\n" for one in wanted).encode()
    for at in range(0, len(data), 100):
        said.take(1, data[at : at + 100])
        said.take(2, b"a word\nand another\n")
    assert came == wanted
    assert said.last_words() == "and another"


def test_a_kernel_is_called_by_two_numbers():
    assert series("6.1.0-57-amd64") == "6.1"
    assert series("6.18.44-fc-v657") == "6.18"


@pytest.mark.parametrize("word", ["peer", "device"])
def test_the_page_has_a_sentence_for_a_word_of_flows(word: str):
    cells = [result(SPOTS[0], "kernel"), replace(result(SPOTS[0], "tap", KERNELS), detail=word)]
    _, _, why = page(cells, {}, []).partition("## Why")
    assert f"(`flows`: `{word}`)." in why
    assert len(why.split()) > 10
