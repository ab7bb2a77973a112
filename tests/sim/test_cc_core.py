# SPDX-License-Identifier: Apache-2.0
"""`wan` and `bbr` through the whole core (sim.c): what ccsim idealises away is here, from
handshake to RACK and TLP.
"""

from __future__ import annotations

import pytest

from lab.sim.corelab import MS, Programs, S, simulate

RATE_BPS = 12_500_000  # bytes/s
RTT_NS = 100 * MS
BDP_BYTES = RATE_BPS * RTT_NS // S
WIDE = {"krcvbuf": 2**30, "sndbuf": 2**30, "rcvbuf": 2**30, "memory": 2**32}


def bulk(programs: Programs, cc: str, loss: float, seconds: int, **more: float) -> dict[str, int]:
    """A flow that does not end, for so long; the queue is one BDP."""
    path = {"rate_Bps": RATE_BPS, "delay_ns": RTT_NS // 2, "queue_bytes": BDP_BYTES, "loss": loss}
    keys = path | {"loss_back": 0, "up": 2**36, "down": 0, "limit_ns": seconds * S} | WIDE | more
    return simulate(programs.sim, cc=cc, **keys)


def limit(loss: float) -> float:
    """The most payload a second that can arrive, in bytes."""
    return RATE_BPS * (1 - loss) * 1448 / 1538


def share(programs: Programs, cc: str, loss: float) -> float:
    """Goodput from the 3rd to the 23rd second ÷ (rate × (1 - loss) × 1448 / 1538)."""
    early, late = bulk(programs, cc, loss, 3), bulk(programs, cc, loss, 23)
    assert late["rto_a"] == early["rto_a"] == 0
    return (late["got_b"] - early["got_b"]) / 20 / limit(loss)


@pytest.mark.parametrize("loss", [0, 0.01, 0.05, 0.12])
def test_wan_fills_a_lossy_path(programs: Programs, loss: float) -> None:
    assert share(programs, "wan", loss) >= 0.97


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.12])
def test_wan_opens_the_window_of_a_linux_receiver(programs: Programs, loss: float) -> None:
    """It begins at 64 KiB and follows what was read: while it is full, copies keep holes from
    holding it up.
    """
    shares = []
    for seed in (1, 2, 3):
        early, late = (
            bulk(programs, "wan", loss, seconds, seed=seed, linux_window=131072)
            for seconds in (8, 18)
        )
        assert late["spare_copies_a"] > 0
        shares.append((late["got_b"] - early["got_b"]) / 10 / limit(loss))
    assert sorted(shares)[1] >= 0.96


def bursty_share(programs: Programs, loss: float, seed: int) -> float:
    """All of 5 ms is lost, on average, some forty segments. Goodput from the 3rd to the 23rd second
    ÷ limit.
    """
    chain = {
        "burst_step_ns": MS,
        "burst_p": 0.2 * loss / (1 - loss),
        "burst_r": 0.2,
        "burst_loss_bad": 1,
    }
    early, late = (bulk(programs, "wan", 0, seconds, seed=seed, **chain) for seconds in (3, 23))
    return (late["got_b"] - early["got_b"]) / 20 / limit(loss)


@pytest.mark.parametrize("loss", [0.05, 0.12])
def test_wan_does_not_take_bursts_for_congestion(programs: Programs, loss: float) -> None:
    """From one look to the next such loss varies far more than as many independent losses."""
    assert sorted(bursty_share(programs, loss, seed) for seed in (1, 2, 3))[1] >= 0.9


def test_bursts_that_time_out_do_not_end_the_start(programs: Programs) -> None:
    """Two windows in a row are lost whole, then most of a round: what a window of four segments
    brings says nothing of the path, nor does a burst in a round that brought more than before.
    """
    assert bursty_share(programs, 0.12, 30) >= 0.8


@pytest.mark.parametrize("loss", [0, 0.12])
@pytest.mark.parametrize(("rtt_ms", "longer_ms"), [(20, 6), (100, 100)])
def test_wan_believes_that_the_path_has_become_longer(
    programs: Programs, rtt_ms: int, longer_ms: int, loss: float
) -> None:
    """What looks like a queue that never empties costs at most until PROBE_RTT, and never all
    of the rate.
    """
    got = {
        seconds: bulk(
            programs,
            "wan",
            loss,
            seconds,
            delay_ns=rtt_ms * MS // 2,
            queue_bytes=RATE_BPS * rtt_ms // 1000,
            longer_from_ns=3 * S,
            longer_ns=longer_ms * MS // 2,
        )["got_b"]
        for seconds in (4, 13, 15, 25)
    }
    assert (got[13] - got[4]) / 9 >= 0.6 * limit(loss)
    assert (got[25] - got[15]) / 10 >= 0.93 * limit(loss)


def test_wan_keeps_its_rate_while_a_small_window_is_the_limit(programs: Programs) -> None:
    """With half a BDP of window no round measures the path; the estimate of it must not fall to
    what was sent.
    """
    early, late = (
        bulk(programs, "wan", 0.01, seconds, rcvbuf=BDP_BYTES // 2) for seconds in (10, 30)
    )
    # Each window has some four holes, and takes two round trips.
    assert (late["got_b"] - early["got_b"]) / 20 >= 0.9 * RATE_BPS / 4


def test_bbr_fills_a_clean_path_and_tolerates_one_percent(programs: Programs) -> None:
    assert share(programs, "bbr", 0) >= 0.95
    assert share(programs, "bbr", 0.01) >= 0.75


@pytest.mark.parametrize("cc", ["bbr", "wan"])
@pytest.mark.parametrize("rtt_ms", [20, 100, 200])
def test_one_megabyte_from_cold(programs: Programs, cc: str, rtt_ms: int) -> None:
    """Handshake, doubling from ten segments, and no timeout: eight round trips and
    the bytes themselves.
    """
    result = simulate(
        programs.sim,
        cc=cc,
        up=1_000_000,
        down=0,
        rate_Bps=RATE_BPS,
        delay_ns=rtt_ms * MS // 2,
        queue_bytes=RATE_BPS * rtt_ms // 1000,
        **WIDE,
    )
    assert result["complete"] == 1
    assert result["rto_a"] == 0
    assert result["done_ns"] < 8 * rtt_ms * MS + 1_000_000 * S // RATE_BPS


@pytest.mark.parametrize("cc", ["bbr", "wan"])
def test_needless_recoveries_are_undone(programs: Programs, cc: str) -> None:
    """A.18: reordering beyond RACK's window costs neither bytes nor the rate, whatever
    the order was.
    """
    keys = {"reorder": 0.02, "reorder_ns": 40 * MS, "loss": 0, "up": 20_000_000, "down": 0}
    done_ns = []
    for seed in (1, 2, 3):
        result = simulate(programs.sim_asan, check=1, cc=cc, seed=seed, **WIDE, **keys)
        assert (result["complete"], result["wrong"]) == (1, 0)
        done_ns.append(result["done_ns"])
    assert sorted(done_ns)[1] < 20_000_000 * S // RATE_BPS * 1.4


@pytest.mark.parametrize("cc", ["bbr", "wan"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_path(programs: Programs, cc: str, seed: int) -> None:
    result = simulate(
        programs.sim_asan,
        check=1,
        cc=cc,
        seed=seed,
        loss=0.03 * seed,
        reorder=0.2,
        reorder_ns=30 * MS,
        dup=0.1,
        corrupt=0.01,
        limit_ns=7200 * S,
    )
    assert (result["complete"], result["errors"], result["wrong"]) == (1, 0, 0)


@pytest.mark.parametrize(("cc", "least"), [("cubic", 0.9), ("reno", 0.7)])
@pytest.mark.parametrize("rtt_ms", [80, 120])
def test_a_shallow_queue_does_not_undo_recovery(
    programs: Programs, cc: str, least: float, rtt_ms: int
) -> None:
    """Slow start overflows a queue of 0.4 BDP by hundreds of segments. Resent in a burst they
    overflow it again, for ever at 120 ms; PRR sends them as fast as others arrive, and each is
    sent again once.
    """
    result = simulate(
        programs.sim,
        cc=cc,
        up=2**36,
        down=0,
        rate_Bps=RATE_BPS,
        delay_ns=rtt_ms * MS // 2,
        queue_bytes=RATE_BPS * rtt_ms * 4 // 10_000,
        loss=0,
        limit_ns=20 * S,
        **WIDE,
    )
    assert result["rto_a"] == 0
    assert result["queue_lost"] == result["retransmits_a"] > 300
    assert result["got_b"] / 19 / RATE_BPS > least
