# SPDX-License-Identifier: Apache-2.0
"""Two cores that agree by the option in their handshake (tcp_agree.c), on paths of every kind and
with every middlebox that does not like it: the streams arrive whole, and each end takes the
connection for what it is.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from lab.sim.corelab import MS, Programs, S, simulate

ALLOW, DEMAND = 1, 2
# agree_box of lab/sim/params.def
DROPS_SYNS, STRIPS, STRIPS_ANSWERS, STRIPS_THE_REST, ECHOES, MANGLES = range(1, 7)

PATHS: dict[str, dict[str, Any]] = {
    "clean": {},
    "IPv6": {"v6": 1},
    "loss": {"loss": 0.12},
    "everything at once": {"loss": 0.05, "reorder": 0.3, "dup": 0.2, "corrupt": 0.01},
    "no options": {"strip": 7, "loss": 0.02},
    "tiny MSS": {"mss": 64, "up": 20_000, "down": 20_000},
    "small MTU": {"mtu": 576, "loss": 0.02},
    "packets that are cut by the device": {"tso": 65535, "gro_ns": 100_000},
    "wan": {"cc": "wan", "loss": 0.05},
}

# Who has which box between them: what counts of the connection, at the opener and at the other end
BOXES: dict[int, tuple[str, str]] = {
    DROPS_SYNS: ("agree_unanswered", "agree_plain"),
    STRIPS: ("agree_plain", "agree_plain"),
    STRIPS_ANSWERS: ("agree_plain", "agree_unconfirmed"),
    STRIPS_THE_REST: ("agreed", "agree_unconfirmed"),
    ECHOES: ("agree_echoed", "agree_unconfirmed"),
    MANGLES: ("agree_wrong", "agree_unconfirmed"),
}


def run(programs: Programs, **keys: Any) -> dict[str, int]:
    """One connection, its invariants checked."""
    words = {"check": 1, "negotiate": ALLOW, "limit_ns": 7200 * S, "up": 300_000, "down": 300_000}
    return simulate(programs.sim_asan, **words | keys)


@pytest.mark.parametrize("path", PATHS)
def test_two_cores_agree(programs: Programs, path: str) -> None:
    """On a path that only loses, the opener may have given up a SYN's offer, never the stream."""
    result = run(programs, **PATHS[path])
    assert (result["complete"], result["errors"], result["wrong"]) == (1, 0, 0)
    assert result["agreed_a"] >= result["agreed_b"]
    assert result["agreed_a"] + result["agree_unanswered_a"] + result["agree_plain_a"] == 1
    if not PATHS[path].get("loss"):
        assert result["agreed_a"] == result["agreed_b"] == 1


@pytest.mark.parametrize("loss", [0.0, 0.05])
@pytest.mark.parametrize("box", BOXES)
def test_a_middlebox_makes_it_plain_tcp(programs: Programs, box: int, loss: float) -> None:
    result = run(programs, agree_box=box, loss=loss)
    assert (result["complete"], result["errors"], result["wrong"]) == (1, 0, 0)
    assert result["left_a"] == result["left_b"] == 0
    if not loss:
        of_a, of_b = BOXES[box]
        assert (result[f"{of_a}_a"], result[f"{of_b}_b"]) == (1, 1)
        assert result["agreed_b"] == 0


def test_an_agreement_costs_no_round_trip(programs: Programs) -> None:
    words = {"delay_ns": 50 * MS, "up": 1000, "down": 1000}
    plain = run(programs, **words, negotiate=0)
    agreed = run(programs, **words)
    assert agreed["agreed_a"] == agreed["agreed_b"] == 1
    assert abs(agreed["est_ns"] - plain["est_ns"]) < MS
    assert abs(agreed["done_ns"] - plain["done_ns"]) < MS
    assert agreed["sent_pkts"] == plain["sent_pkts"]


def test_what_drops_syns_with_it_is_spared(programs: Programs) -> None:
    """The first connection waits three seconds for its third SYN, those after it for nothing."""
    result = run(programs, agree_box=DROPS_SYNS, conns=5, gap_ns=20 * S, up=1000, down=1000)
    assert result["complete"] == 5
    assert (result["agree_unanswered_a"], result["agree_spared_a"]) == (1, 4)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ({"negotiate": DEMAND, "agree_box": STRIPS}, "b"),
        ({"negotiate": DEMAND, "agree_box": STRIPS_ANSWERS}, "a"),
        ({"negotiate": DEMAND, "agree_box": STRIPS_THE_REST}, "b"),
        ({"negotiate": DEMAND, "negotiate_b": 1}, "a"),  # the other end says nothing of it
        ({"negotiate": 0, "negotiate_b": DEMAND + 1}, "b"),  # nor does this one
    ],
)
def test_without_what_is_demanded_it_is_refused(
    programs: Programs, words: dict[str, int], refused: str
) -> None:
    result = run(programs, **words)
    assert (result["complete"], result["wrong"]) == (0, 0)
    assert result[f"agree_refused_{refused}"] == 1
    assert result["error_a"] in (errno.ECONNREFUSED, errno.ECONNRESET)
    assert result["left_a"] == result["left_b"] == 0


def test_what_is_demanded_comes(programs: Programs) -> None:
    result = run(programs, negotiate=DEMAND, conns=20, gap_ns=5 * MS, up=20_000, down=20_000)
    assert (result["complete"], result["agreed_a"], result["agreed_b"]) == (20, 20, 20)


def test_ends_that_both_open_agree_on_nothing(programs: Programs) -> None:
    result = run(programs, simopen=1)
    assert (result["complete"], result["agreed_a"], result["agreed_b"]) == (1, 0, 0)


def test_no_cookie_carries_it(programs: Programs) -> None:
    result = run(programs, syn_cookies=1)
    assert (result["complete"], result["agreed_a"], result["agree_plain_a"]) == (1, 0, 1)
