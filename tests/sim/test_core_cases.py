# SPDX-License-Identifier: Apache-2.0
"""Connections of every kind (simcases.py): the streams arrive exactly, or an app is told
of an error.

Always the same cases here. `tools/soak simulated` makes up others, as many as one likes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lab.sim import simcases
from lab.sim.corelab import MS, Programs, S

BUDGET_S = 40.0
SHRINK_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


def run_cases(
    programs: Programs, cases: st.SearchStrategy[simcases.Case], examples: int
) -> Counter[str]:
    """How many connections ended how; a case that breaks the invariant is made
    smaller and raised.
    """
    verdicts: Counter[str] = Counter()
    end = time.monotonic() + BUDGET_S

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(cases)
    def check(case: simcases.Case) -> None:
        if time.monotonic() > end + (SHRINK_S if verdicts["failed"] else 0):
            return  # a slow machine does fewer, and a broken case is not made smaller for ever
        try:
            result = simcases.run(programs.sim_asan, case)
        except simcases.ViolationError:
            verdicts["failed"] += 1
            raise
        verdicts.update({name: result[name] for name in ("complete", "errors", "aborted")})

    check()
    return verdicts


def test_whatever_the_path_does_every_stream_arrives(programs: Programs) -> None:
    """No excuse: loss, reordering, duplicates, corruption, tiny windows, a path that is down
    for a while.
    """
    verdicts = run_cases(programs, simcases.honest_cases(), 300)
    assert verdicts["complete"] > 30
    assert verdicts["errors"] == verdicts["aborted"] == 0


def test_whatever_anyone_does_every_stream_arrives_or_reports_an_error(programs: Programs) -> None:
    """Wild peers, dead paths, apps that reset, no memory: nothing is delivered wrong, nobody
    waits for ever.
    """
    verdicts = run_cases(programs, simcases.wild_cases(), 400)
    # some must have failed, or the cases prove little, but far from all
    assert verdicts["errors"] > 10
    assert verdicts["complete"] > verdicts["errors"] / 2


# Found by tools/soak, and mended
MENDED: dict[str, simcases.Case] = {
    "after a stall SACK alone says that the path is back, while timeouts are far apart": {
        "seed": 1,
        "cc": "cubic",
        "up": 30_000,
        "down": 30_000,
        "v6": 1,
        "mtu": 1280,
        "queue_bytes": 3000,
        "stall_from_ns": 1041 * MS,
        "stall_to_ns": 10 * S,
    },
    "the ACK of the app's last FIN was lost on the inner leg": {
        "seed": 3,
        "gso": 4000,
        "sndbuf": 500,
        "inner_loss": 0.02,
        "inner_reorder": 0.4,
        "inner_reorder_ns": 8 * MS,
    },
    "of data and FIN whose ACK was lost on the inner leg the data alone came again": {
        "seed": 150862513,
        "gso": 0,
        "cc": "cubic",
        "again": 1,
        "inner_reorder": 0.36,
        "inner_reorder_ns": 2 * MS,
        "inner_dup": 0.01,
        "inner_loss": 0.02,
        "cut_from_ns": 1053 * MS,
        "cut_to_ns": 2 * S,
    },
    "all is aborted while a kernel's small window is full": {
        "seed": 2**30,
        "cc": "reno",
        "abort_all_ns": 280 * MS,
        "krcvbuf": 300,
        "direct": 1,
        "wild_shut": 0.05,
        "wild_data": 0.07,
    },
    "a window of a byte, and a peer that goes back to what was acknowledged": {
        "seed": 59651,
        "cc": "reno",
        "up": 351,
        "down": 3000,
        "loss": 0.04,
        "loss_back": 0.1,
        "dup": 0.13,
        "reorder": 0.15,
        "reorder_ns": 49 * MS,
        "v6": 1,
        "mtu": 4125,
        "rcvbuf": 1,
        "conns": 7,
        "direct": 1,
    },
}


@pytest.mark.parametrize("name", MENDED)
def test_what_once_broke(programs: Programs, name: str) -> None:
    simcases.run(programs.sim_asan, {"up": 30_000, "down": 30_000} | MENDED[name])


def test_a_wild_peer_and_the_core_do_not_answer_each_other_for_ever(programs: Programs) -> None:
    """Once a peer that made several packets of one, and the core's ACKs, kept a link
    busy without end.
    """
    often = {
        "wild_acks": 0.4,
        "wild_data": 0.45,
        "wild_flags": 0.2,
        "wild_shut": 0.25,
        "wild_renege": 0.25,
    }
    result = simcases.run(
        programs.sim_asan, {"seed": 2**30, "direct": 1, "wild_sack": 1, "v6": 1} | often
    )
    assert result["sent_pkts"] < 20_000
    assert result["end_ns"] < 3600 * S


@settings(
    max_examples=300,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(simcases.honest_cases())
def test_hard_cases_have_no_excuse(case: simcases.Case) -> None:
    assert simcases.excuse(case) is None


@pytest.mark.parametrize("every", [1, 7, 30])
def test_bytes_changed_on_the_way_are_seen(programs: Programs, every: int) -> None:
    """The harness itself: damage under a right checksum is what no TCP can find, and
    the verdict must.
    """
    with pytest.raises(simcases.ViolationError, match="bytes arrived that were not sent there"):
        simcases.run(programs.sim_asan, {"forge_every": every, "up": 100_000, "down": 0})


def test_an_app_that_waits_for_ever_is_seen(programs: Programs) -> None:
    with pytest.raises(simcases.ViolationError, match="an app waits for ever"):
        simcases.run(programs.sim_asan, {"down_after_ns": 2**62})


def test_a_failure_without_a_reason_is_seen() -> None:
    result = dict.fromkeys(("wrong", "truncated", "hung", "complete", "aborted"), 0) | {"errors": 1}
    result |= {"owned_a": 1, "disowned_a": 1, "owned_b": 1, "disowned_b": 1}
    with pytest.raises(simcases.ViolationError, match="failed with no reason"):
        simcases.judge({"loss": 0.01}, result)
    simcases.judge({"loss": 0.15}, result)
    simcases.judge({"loss": 0.01, "direct": 1, "wild_lie": 0.01}, result)


def soak(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soak", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_tool_counts_what_it_ran() -> None:
    done = soak("simulated", "--connections", "60", "--workers", "2", "--seed", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout


def test_the_tool_repeats_a_broken_case() -> None:
    done = soak("repeat", "forge_every=3", "seed=4")
    assert done.returncode == 1
    assert "bytes arrived that were not sent there" in done.stderr
    assert soak("repeat", "seed=4").returncode == 0


def test_the_tool_says_in_one_sentence_what_is_wrong() -> None:
    done = soak("repeat", "seeds")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
