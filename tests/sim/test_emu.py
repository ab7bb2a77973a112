# SPDX-License-Identifier: Apache-2.0
"""What the link emulator does by chance, under a virtual clock: shares and lengths against what the
models say, with fixed seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmm_ebpf.errors import UsageError
from lab.build import LAB_DIR
from lab.links import LinkParams

MS = 1_000_000
COUNT = 400_000
HEADER_BYTES = 14


@dataclass(frozen=True)
class Fates:
    """Numbers of the frames that were delivered, in order of delivery, and how long each took."""

    numbers: list[int]
    took_ns: list[int]
    losses: int
    bursts: int

    @property
    def lost_rows(self) -> list[int]:
        """Lengths of rows of lost frames."""
        arrived = sorted(self.numbers)
        return [b - a - 1 for a, b in itertools.pairwise(arrived) if b - a > 1]


@pytest.fixture(scope="session")
def emu_fates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("emu") / "emu_fates"
    sources = [
        Path(__file__).parent / "emu_fates.c",
        *(LAB_DIR / "wanem" / f"{n}.c" for n in ("emu", "assign")),
    ]
    strict = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{LAB_DIR / 'wanem'}")
    subprocess.run(["gcc", *strict, "-o", program, *sources, "-lm"], check=True)
    return program


def fates(
    program: Path, *, count: int = COUNT, gap_ns: int = MS, size: int = 1000, **said: Any
) -> Fates:
    """said: as for Lab.wan."""
    params = LinkParams().with_changes({"queue": "none"} | said)
    words = [program, str(count), str(gap_ns), str(size + HEADER_BYTES), *params.assignments(0)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    pairs = [line.split() for line in lines]
    losses, bursts = (int(word) for word in last.split()[1:])
    return Fates([int(n) for n, _ in pairs], [int(t) for _, t in pairs], losses, bursts)


def assert_near(seen: float, wanted: float, deviation: float) -> None:
    assert abs(seen - wanted) < 5 * deviation, (seen, wanted)


def assert_chain(found: Fates, p: float, r: float, bad: float = 1.0, good: float = 0.0) -> None:
    """Share of losses of a chain whose steps are frames. A share of n dependent trials deviates by
    √(s(1−s)/n × (1+c)/(1−c)), where c = 1−p−r is the chain's correlation from step to step.
    """
    share = p / (p + r)
    wanted = share * bad + (1 - share) * good
    stretch = (2 - p - r) / (p + r)
    assert_near(found.losses / COUNT, wanted, math.sqrt(wanted * (1 - wanted) / COUNT * stretch))


@pytest.mark.parametrize(("mean", "length"), [(0.01, 2), (0.12, 3), (0.12, 10), (0.5, 4)])
def test_bursts_have_their_mean_and_length(emu_fates: Path, mean: float, length: float) -> None:
    found = fates(emu_fates, loss=f"{mean} burst {length}", seed=5)
    r = 1 / length
    assert_chain(found, mean / (1 - mean) * r, r)
    rows = found.lost_rows
    assert_near(statistics.fmean(rows), length, math.sqrt((1 - r) / r**2 / len(rows)))
    # Geometric: each row goes on with the same probability.
    assert_near(sum(n == 1 for n in rows) / len(rows), r, math.sqrt(r * (1 - r) / len(rows)))
    assert abs(found.losses / found.bursts - length) < 0.1 * length


@pytest.mark.parametrize(
    ("said", "p", "r", "bad", "good"),
    [
        ("gemodel 2%", 0.02, 0.98, 1, 0),
        ("gemodel 5% 25%", 0.05, 0.25, 1, 0),
        ("gemodel 5% 25% 70%", 0.05, 0.25, 0.7, 0),
        ("gemodel 1% 10% 80% 2%", 0.01, 0.10, 0.8, 0.02),
    ],
)
def test_gemodel_loses_what_its_parameters_say(
    emu_fates: Path, said: str, p: float, r: float, bad: float, good: float
) -> None:
    assert_chain(fates(emu_fates, loss=said, seed=2), p, r, bad, good)


@pytest.mark.parametrize("gap_ns", [MS // 2, 5 * MS, 40 * MS])
def test_bursts_of_time_last_as_long_however_often_frames_come(
    emu_fates: Path, gap_ns: int
) -> None:
    found = fates(emu_fates, loss="12% burst 5ms", gap_ns=gap_ns, seed=3)
    share = found.losses / COUNT
    assert share == pytest.approx(0.12, abs=0.004)
    # The state after a gap is forgotten as exp(-gap × (1/bad + 1/good)).
    stays = 0.12 + 0.88 * math.exp(-gap_ns / (5 * MS) / 0.88)
    assert 1 - found.bursts / found.losses == pytest.approx(stays, abs=0.015)


def test_a_pause_of_hours_is_walked_in_no_time(emu_fates: Path) -> None:
    found = fates(emu_fates, count=50, gap_ns=3_600_000 * MS, loss="50% burst 5ms")
    assert 10 < found.losses < 40


def test_the_same_seed_loses_the_same_frames(emu_fates: Path) -> None:
    said = {"loss": "12% burst 3", "count": 2000}
    first = fates(emu_fates, seed=7, **said)
    assert fates(emu_fates, seed=7, **said) == first
    assert fates(emu_fates, seed=7, rate="100mbit", jitter="5ms", **said).numbers == first.numbers
    assert fates(emu_fates, seed=8, **said).numbers != first.numbers


def test_only_long_packets_are_lost(emu_fates: Path) -> None:
    said = {"loss": "100%", "loss_above": 1200, "count": 1000}
    assert fates(emu_fates, size=1200, **said).losses == 0
    assert fates(emu_fates, size=1201, **said).losses == 1000


def test_jitter_is_even_up_to_what_was_said(emu_fates: Path) -> None:
    took = fates(emu_fates, delay="20ms", jitter="10ms", gap_ns=11 * MS, seed=4).took_ns
    assert 20 * MS <= min(took) < max(took) < 30 * MS
    assert_near(statistics.fmean(took), 25 * MS, 10 * MS / math.sqrt(12 * COUNT))
    assert_near(sum(t < 22.5 * MS for t in took) / COUNT, 0.25, math.sqrt(0.25 * 0.75 / COUNT))


def test_exponential_jitter_has_its_mean_and_its_tail(emu_fates: Path) -> None:
    found = fates(emu_fates, delay="20ms", jitter="10ms exponential reorder", seed=4)
    late = [t - 20 * MS for t in found.took_ns]
    assert_near(statistics.fmean(late), 10 * MS, 10 * MS / math.sqrt(COUNT))
    tail = math.exp(-3)
    assert_near(sum(t > 30 * MS for t in late) / COUNT, tail, math.sqrt(tail / COUNT))


def test_jitter_reorders_only_where_it_may(emu_fates: Path) -> None:
    kept = fates(emu_fates, jitter="10ms", count=5000)
    assert kept.numbers == list(range(5000))
    loose = fates(emu_fates, jitter="10ms reorder", count=5000)
    assert sorted(loose.numbers) == kept.numbers != loose.numbers
    # What is due first is delivered first.
    due = [n * MS + t for n, t in zip(loose.numbers, loose.took_ns, strict=True)]
    assert due == sorted(due)
    # Neighbours, 1 ms apart, change places with a probability of (1 - 1/10)² / 2.
    place = {n: at for at, n in enumerate(loose.numbers)}
    swapped = sum(place[n] > place[n + 1] for n in range(0, 5000, 2)) / 2500
    assert_near(swapped, 0.405, math.sqrt(0.405 * 0.595 / 2500))


def test_a_copy_comes_right_behind_also_among_the_jittered(emu_fates: Path) -> None:
    found = fates(emu_fates, jitter="10ms reorder", duplicate="100%", count=100)
    assert found.numbers[::2] == found.numbers[1::2]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"loss": "12% burst"}, "should look like"),
        ({"loss": "12% burst 0"}, "at least 1 packets"),
        ({"loss": "90% burst 3"}, "at least 9 packets"),
        ({"loss": "90% burst 0.5ms"}, "at least 0.9 ms"),
        ({"loss": "100% burst 3"}, "never ends"),
        ({"loss": "gemodel"}, "should look like"),
        ({"loss": "gemodel 1% 2% 3% 4% 5%"}, "should look like"),
        ({"loss": "gemodel 1% 0"}, "must end"),
        ({"loss": "gemodel 1% 200%"}, "probability"),
        ({"loss": "gemodel 1% 5% step 1us"}, "at least 100us"),
        ({"jitter": ""}, "a time"),
        ({"jitter": "10"}, "a time"),
        ({"jitter": "10ms normal"}, "should look like"),
        ({"jitter": "10ms uniform exponential"}, "should look like"),
        ({"loss_above": "-1"}, "number of bytes"),
    ],
)
def test_what_cannot_be_is_refused(said: Mapping[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        LinkParams().with_changes(said)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["burst_p=0.1"], "must end"),
        (["burst_r=2"], "probability"),
        (["burst_step_ns=1000"], "between 100 us and one hour"),
        (["jitter_ns=3600000000001"], "at most one hour"),
        (["jitter_reorder=2"], "0 or 1"),
        (["loss_above=x"], "whole number"),
    ],
)
def test_the_emulator_refuses_it_too(emu_fates: Path, words: list[str], why: str) -> None:
    done = subprocess.run(
        [emu_fates, "1", "1", "100", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert why in done.stderr
