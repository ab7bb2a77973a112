# SPDX-License-Identifier: Apache-2.0
"""`wan` in virtual time: goodput over the matrix, standing queue, fairness, and congestive loss
that stays congestive.

The simulator (lab/sim/cc) is compiled with the product's cc_wan.c, unchanged. Every run is a pure
function of its arguments, so the bounds below are exact, not statistical. `python -m lab.sim.cclab`
prints the whole picture.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from lab.sim.cclab import (
    BUFFERS_BDP,
    LOSSES_PCT,
    RATES_MBIT,
    RTTS_MS,
    SANITIZE,
    build,
    cold_start_s,
    run,
)


@pytest.fixture(scope="module")
def ccsim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("ccsim"))


@pytest.mark.parametrize("rate", RATES_MBIT)
@pytest.mark.parametrize("rtt", RTTS_MS)
def test_goodput_and_queue_over_the_matrix(ccsim: Path, rate: int, rtt: int) -> None:
    for loss in LOSSES_PCT:
        (flow,) = run(ccsim, "wan", rate=rate, rtt=rtt, loss=loss, dur=15)
        assert flow.ratio >= 0.97, (rate, rtt, loss, flow)
        # BBR keeps 0.03 RTT on long clean paths here, and 0.1 RTT where it overflows the buffer
        assert flow.qdelay_ms <= 0.06 * rtt, (rate, rtt, loss, flow)
        assert flow.rtos == 0


def test_less_queue_than_bbr_and_more_goodput(ccsim: Path) -> None:
    for loss in (0, 1, 5):
        (wan,) = run(ccsim, "wan", rate=100, rtt=100, loss=loss, dur=15)
        (bbr,) = run(ccsim, "bbr1", rate=100, rtt=100, loss=loss, dur=15)
        assert wan.qdelay_ms < bbr.qdelay_ms
        assert loss < 5 or wan.ratio > bbr.ratio


@pytest.mark.parametrize("loss", [0, 5])
@pytest.mark.parametrize("buf", BUFFERS_BDP)
def test_two_flows_share(ccsim: Path, buf: float, loss: int) -> None:
    first, second = run(ccsim, "wan", "wan:start=2", buf=buf, loss=loss, dur=60, warm=10)
    assert first.ratio + second.ratio > 0.95
    assert min(first.ratio, second.ratio) > 0.2
    assert first.queue_loss < 0.01


@pytest.mark.parametrize("buf", BUFFERS_BDP)
def test_neither_starves_nor_is_starved_by_cubic(ccsim: Path, buf: float) -> None:
    cubic, wan = run(ccsim, "cubic", "wan", buf=buf, dur=60)
    assert wan.ratio > 0.2
    assert cubic.ratio > 0.2
    assert wan.queue_loss < 0.01


@pytest.mark.parametrize("loss", [0, 1, 5])
@pytest.mark.parametrize("buf", [0.05, 0.1])
def test_queue_loss_is_not_taken_for_random_loss(ccsim: Path, buf: float, loss: int) -> None:
    (flow,) = run(ccsim, "wan", buf=buf, loss=loss, dur=30)
    assert flow.queue_loss < 0.01
    assert flow.ratio > 0.9


def test_ten_flows_that_come_one_after_the_other(ccsim: Path) -> None:
    # Which of ten finds room when is chaos; a seed says little, and the bounds are for the
    # middle of many.
    jain, queue_loss = [], []
    for seed in range(1, 16):
        flows = run(ccsim, *(f"wan:start={i}" for i in range(10)), dur=100, warm=40, seed=seed)
        shares = [flow.ratio for flow in flows]
        jain.append(sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)))
        queue_loss.append(max(flow.queue_loss for flow in flows))
    assert statistics.median(jain) > 0.85
    assert statistics.median(queue_loss) < 0.03
    assert max(queue_loss) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"ack": 1},
        {"ack": 8},
        {"ackloss": 12},
        {"burst": 1000},
        {"jitter": 2000},
    ],
    ids=str,
)
def test_ack_thinning_bursts_and_jitter(ccsim: Path, options: dict[str, float]) -> None:
    for loss in (0, 12):
        (flow,) = run(ccsim, "wan", rate=100, rtt=100, loss=loss, dur=15, **options)
        assert flow.ratio >= 0.96, (options, loss, flow)


def test_capacity_and_loss_that_change(ccsim: Path) -> None:
    up, down = 100 / 20, 20 / 100
    (flow,) = run(ccsim, "wan", rate=20, rate2=100, at2=8, warm=16, dur=24, buf=5)
    assert flow.ratio > 0.95 * up
    (flow,) = run(ccsim, "wan", rate=100, rate2=20, at2=8, warm=12, dur=20)
    assert flow.ratio > 0.95 * down
    assert flow.qdelay_ms < 10
    (flow,) = run(ccsim, "wan", loss=0, loss2=12, rate2=100, at2=8, warm=14, dur=24)
    assert flow.ratio > 0.97 * 0.88
    (flow,) = run(ccsim, "wan", loss=12, loss2=0, rate2=100, at2=8, warm=10, dur=20)
    assert flow.ratio > 0.97 / 0.88


def test_idle_and_application_limited_flows_keep_their_model(ccsim: Path) -> None:
    (flow,) = run(ccsim, "wan:on=500:off=500", rate=100, rtt=100, loss=5, dur=20)
    assert flow.ratio > 0.38  # half of the time, and one RTT of ACKs
    assert flow.queue_loss < 0.001


@pytest.mark.parametrize("rate", RATES_MBIT)
@pytest.mark.parametrize("rtt", RTTS_MS)
def test_short_transfer_no_slower_than_bbr(ccsim: Path, rate: int, rtt: int) -> None:
    """1 MB from cold, in every cell; 1 % is what the median of 21 seeds cannot tell
    apart under loss.
    """
    for loss in LOSSES_PCT:
        wan, bbr = (cold_start_s(ccsim, cc, rate, rtt, loss, seeds=21) for cc in ("wan", "bbr1"))
        assert wan <= bbr * 1.012, (rate, rtt, loss, wan, bbr)


def test_start_up_overshoots_less_than_bbr(ccsim: Path) -> None:
    for buf, rtt, loss in ((1, 100, 0), (0.1, 100, 0), (1, 200, 12)):
        wan, bbr = (
            run(ccsim, cc, buf=buf, rtt=rtt, loss=loss, warm=0, dur=rtt * 0.03)[0]
            for cc in ("wan", "bbr1")
        )
        assert wan.queue_loss <= 0.5 * bbr.queue_loss
        assert wan.ratio > 0.97 * bbr.ratio


@pytest.mark.parametrize("buf", BUFFERS_BDP)
def test_beside_bbr_of_the_draft_neither_starves(ccsim: Path, buf: float) -> None:
    wan, bbr = run(ccsim, "wan", "bbr", buf=buf, dur=60, warm=10)
    assert min(wan.ratio, bbr.ratio) > 0.15
    assert wan.ratio + bbr.ratio > 0.95
    assert wan.queue_loss < 0.03


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    binary = build(tmp_path, *SANITIZE)
    run(binary, "wan", "wan:start=1", "cubic:start=2", rate=20, rtt=20, loss=5, dur=10, buf=0.3)
    run(binary, "wan:on=300:off=1200", rate=20, rtt=100, loss=60, dur=60)
    run(binary, "wan", rate=0.1, rtt=2, loss=1, dur=30)
