# SPDX-License-Identifier: Apache-2.0
"""Forward error correction between two cores (core/tcp/tcp_parity_out.c, tcp_parity_in.c): what
streams gain by it, what it costs, where there is none, and what becomes of parity that is bent.

Frames at 60 a second, one way; times are virtual, so a share is exact.
"""

from __future__ import annotations

from typing import Any

import pytest

from lab.sim.corelab import MS, Programs, S, simulate

LOW, ALLOW = 1, 1
FRAMES_PER_S = 60
SLACK_MS = 60  # a frame is late when it takes half a round trip and so much
NO_PARITY = 2**32 - 1
TAKEN_AWAY, LIES, CUT, TWICE, WRONG_CHECK, ANYTHING = range(1, 7)  # parity_box of params.def


def stream(
    programs: Programs, mbit: float, rtt_ms: int, seconds: int = 20, **words: Any
) -> dict[str, Any]:
    """One connection's; the first five seconds, in which loss is measured, do not count."""
    frame = round(mbit * 1e6 / 8 / FRAMES_PER_S)
    app = {
        "up": frame * FRAMES_PER_S * seconds,
        "down": 0,
        "write_bytes": frame,
        "write_gap_ns": S // FRAMES_PER_S,
        "one_way": 1,
        "skip": 5 * FRAMES_PER_S,
        "late_ns": (rtt_ms // 2 + SLACK_MS) * MS,
    }
    path = {"rate_Bps": 125_000_000, "queue_bytes": 1 << 24, "delay_ns": rtt_ms * MS // 2}
    hosts = {"cc": "wan", "latency": LOW, "latency_b": LOW, "negotiate": ALLOW, "krcvbuf": 1 << 24}
    result: dict[str, Any] = simulate(programs.sim, **(app | path | hosts | {"loss": 0.12} | words))
    assert (result["complete"], result["wrong"]) == (1, 0)
    result["late_share"] = result["late"] / result["trips"]
    result["cost"] = result["bytes_a"] / app["up"]
    return result


@pytest.mark.parametrize(
    ("mbit", "rtt_ms", "late", "cost"),
    [(25, 20, 0.001, 1.35), (25, 100, 0.001, 1.35), (25, 200, 0.001, 1.35), (8, 100, 0.02, 1.35)],
)
def test_frames_are_in_time_where_the_path_loses(
    programs: Programs, mbit: float, rtt_ms: int, late: float, cost: float
) -> None:
    with_it = stream(programs, mbit, rtt_ms)
    without = stream(programs, mbit, rtt_ms, parity_ppm=NO_PARITY)
    shares = [f"{r['late_share']:.3%} late for {r['cost']:.3f}" for r in (with_it, without)]
    print(f"  {mbit} Mbit/s, {rtt_ms} ms: {shares[0]}, without {shares[1]}")
    assert with_it["late_share"] <= late
    assert with_it["cost"] <= cost < without["cost"]
    if rtt_ms > SLACK_MS:
        assert without["late_share"] > 0.05
    assert without["parity_a"] == 0
    assert with_it["copies_a"] < 200, "only until loss is known, and of the end"


def test_the_sender_hears_of_all_that_was_repaired(programs: Programs) -> None:
    result = stream(programs, 8, 100)
    assert result["repaired_b"] > 500
    assert result["peer_repaired_a"] == result["repaired_b"]
    assert result["repaired_wrong_b"] == 0
    assert result["parity_in_b"] <= result["parity_a"]
    assert result["parity_refused_b"] < result["parity_in_b"] / 50


def test_parity_stays_within_its_share(programs: Programs) -> None:
    for share_ppm in (50_000, 150_000):
        result = stream(programs, 8, 100, parity_ppm=share_ppm)
        symbols = 8e6 / 8 * 20 / 1408
        assert 0.8 * share_ppm / 1e6 * symbols < result["parity_a"] <= share_ppm / 1e6 * symbols


def test_little_loss_wants_little_parity(programs: Programs) -> None:
    parity = [stream(programs, 8, 100, loss=loss)["parity_a"] for loss in (0, 0.01, 0.05, 0.12)]
    assert parity[0] == 0
    assert 0 < parity[1] < parity[2] < parity[3]


def test_who_writes_little_has_copies(programs: Programs) -> None:
    """Messages of 1 KB each 50 ms."""
    app = {"up": 1024 * 400, "write_bytes": 1024, "write_gap_ns": 50 * MS, "echo": 1}
    hosts = {"cc": "wan", "latency": LOW, "latency_b": LOW, "negotiate": ALLOW}
    result = simulate(programs.sim, delay_ns=50 * MS, loss=0.12, check=1, **app, **hosts)
    assert result["complete"] == 1
    assert result["parity_a"] == result["parity_b"] == 0
    assert result["copies_a"] > 400


def test_bulk_has_none_but_at_its_end(programs: Programs) -> None:
    hosts = {"cc": "wan", "latency": LOW, "latency_b": LOW, "negotiate": ALLOW}
    result = simulate(programs.sim, up=20_000_000, down=0, loss=0.05, check=1, **hosts)
    assert result["complete"] == 1
    assert result["parity_a"] <= 50


def test_none_is_sent_on_a_link_that_the_app_fills(programs: Programs) -> None:
    """What is lost there is congestion."""
    words = {"rate_Bps": 900_000, "queue_bytes": 60_000, "loss": 0, "cc": "cubic"}
    result = stream(programs, 8, 40, **words)
    assert result["queue_lost"] > 0
    assert result["parity_a"] <= result["sent_pkts"] / 200


def test_who_has_not_agreed_gets_none(programs: Programs) -> None:
    result = stream(programs, 8, 100, negotiate_b=1)
    assert result["agree_plain_a"] == 1
    assert result["parity_a"] == 0


def bent(programs: Programs, box: int, **words: Any) -> dict[str, int]:
    """A stream under sanitizers whose parity a middlebox bends."""
    stream = {"up": 600_000, "down": 0, "write_bytes": 15_000, "write_gap_ns": 16 * MS}
    hosts = {"cc": "wan", "latency": LOW, "latency_b": LOW, "negotiate": ALLOW, "check": 1}
    path = {"loss": 0.08, "delay_ns": 30 * MS, "seed": 3}
    result = simulate(programs.sim_asan, parity_box=box, **(stream | hosts | path | words))
    assert (result["wrong"], result["truncated"], result["hung"]) == (0, 0, 0)
    assert result["parity_bent"] > 0
    return result


@pytest.mark.parametrize("words", [{}, {"v6": 1}, {"kts": 1}, {"isn": 2**32 - 20_000}])
@pytest.mark.parametrize("box", [TAKEN_AWAY, CUT, TWICE])
def test_bent_parity_does_no_harm(programs: Programs, box: int, words: dict[str, Any]) -> None:
    result = bent(programs, box, **words)
    assert (result["complete"], result["errors"], result["repaired_wrong_b"]) == (1, 0, 0)
    if box == TWICE:
        assert result["repaired_b"] > 0
    else:
        assert result["repaired_b"] == 0
        assert result["parity_refused_b" if box == CUT else "parity_a"] > 0


@pytest.mark.parametrize("box", [LIES, WRONG_CHECK])
def test_parity_that_lies_ends_the_connection(programs: Programs, box: int) -> None:
    """Both apps hear of it, and no byte of it reaches one."""
    result = bent(programs, box)
    assert (result["complete"], result["errors"], result["repaired_wrong_b"]) == (0, 1, 1)
    assert result["left_a"] == result["left_b"] == 0


def test_a_header_that_is_bent_is_refused_or_found_out(programs: Programs) -> None:
    for seed in range(1, 9):
        result = bent(programs, ANYTHING, seed=seed)
        assert result["complete"] + result["errors"] == 1
        assert result["errors"] == result["repaired_wrong_b"]


@pytest.mark.parametrize("words", [{"icmp_mtu": 1200}, {"hole_bytes": 1300}, {"mtu": 576}])
def test_parity_fits_the_path(programs: Programs, words: dict[str, Any]) -> None:
    """Where its MTU falls, symbols are shorter from then on. A black hole is found although no
    segment of such a stream has the full size.
    """
    result = stream_checked(programs, **words)
    assert (result["complete"], result["wrong"], result["repaired_wrong_b"]) == (1, 0, 0)
    assert "hole_bytes" in words or result["repaired_b"] > 0
    assert result["mtu_holes_a"] == ("hole_bytes" in words)


def stream_checked(programs: Programs, **words: Any) -> dict[str, int]:
    """A stream under sanitizers."""
    app = {"up": 1_500_000, "down": 0, "write_bytes": 15_000, "write_gap_ns": 16 * MS}
    hosts = {"cc": "wan", "latency": LOW, "latency_b": LOW, "negotiate": ALLOW, "check": 1}
    path = {"loss": 0.08, "delay_ns": 30 * MS, "seed": 3}
    return simulate(programs.sim_asan, **(app | hosts | path | words))


@pytest.mark.parametrize(
    "words",
    [
        {"reorder": 0.3, "dup": 0.2, "corrupt": 0.01},
        {"tso": 65535, "gro_ns": 300_000},
        {"burst_p": 0.02, "burst_r": 0.3, "burst_loss_bad": 1},
        {"down": 1_500_000},
        {"memory": 2_000_000},
        {"strip": 1},
    ],
)
def test_the_stream_is_exact(programs: Programs, words: dict[str, Any]) -> None:
    result = stream_checked(programs, **words)
    assert (result["complete"], result["wrong"], result["repaired_wrong_b"]) == (1, 0, 0)
