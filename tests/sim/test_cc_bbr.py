# SPDX-License-Identifier: Apache-2.0
"""`bbr` (draft-ietf-ccwg-bbr-06) in virtual time: the draft's own promises, and its Appendix A
where a flow shows it.

Every run is a pure function of its arguments, so the bounds are exact, not statistical.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.sim.cclab import BUFFERS_BDP, RATES_MBIT, RTTS_MS, SANITIZE, build, run


@pytest.fixture(scope="module")
def ccsim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("ccsim"))


@pytest.mark.parametrize("rate", RATES_MBIT)
@pytest.mark.parametrize("rtt", RTTS_MS)
def test_goodput_and_queue_without_loss(ccsim: Path, rate: int, rtt: int) -> None:
    (flow,) = run(ccsim, "bbr", rate=rate, rtt=rtt, dur=15)
    assert flow.ratio >= 0.95
    assert flow.qdelay_ms <= 0.25 * rtt  # three rounds of ProbeBW_UP find no more
    assert flow.rtos == 0


@pytest.mark.parametrize("rtt", RTTS_MS)
def test_one_percent_of_loss_is_tolerated_and_five_are_not(ccsim: Path, rtt: int) -> None:
    """Between probes the draft follows the loss down, (1 - p) a round for up to 63 rounds; 2 %
    is its limit.
    """
    (one,) = run(ccsim, "bbr", rate=100, rtt=rtt, loss=1, dur=20)
    (five,) = run(ccsim, "bbr", rate=100, rtt=rtt, loss=5, dur=20)
    assert one.ratio > 0.75
    assert five.ratio < 0.2
    assert one.rtos == five.rtos == 0


@pytest.mark.parametrize("buf", [0.02, 0.05, 0.1])
def test_shallow_buffers_do_not_overflow(ccsim: Path, buf: float) -> None:
    (flow,) = run(ccsim, "bbr", buf=buf, dur=30)
    assert flow.queue_loss < 0.005
    assert flow.ratio > 0.7


@pytest.mark.parametrize("buf", BUFFERS_BDP)
def test_two_flows_share(ccsim: Path, buf: float) -> None:
    first, second = run(ccsim, "bbr", "bbr:start=2", buf=buf, dur=60, warm=10)
    assert first.ratio + second.ratio > 0.95
    assert min(first.ratio, second.ratio) > 0.25
    assert max(first.queue_loss, second.queue_loss) < 0.01


@pytest.mark.parametrize("buf", BUFFERS_BDP)
def test_beside_cubic_neither_stops(ccsim: Path, buf: float) -> None:
    cubic, bbr = run(ccsim, "cubic", "bbr", buf=buf, dur=60)
    assert cubic.ratio + bbr.ratio > 0.9
    assert bbr.ratio > 0.2
    assert cubic.ratio > 0.05
    assert bbr.queue_loss < 0.01


def test_ten_flows_converge_slowly(ccsim: Path) -> None:
    """Who comes later leaves Startup by the first ones' loss; Jain's index is 0.46 after a
    minute, 0.68 after three.
    """
    flows = run(ccsim, *(f"bbr:start={i}" for i in range(10)), dur=180, warm=120)
    shares = [flow.ratio for flow in flows]
    assert sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)) > 0.6
    assert max(flow.queue_loss for flow in flows) < 0.02


def test_ten_times_the_bandwidth_is_found(ccsim: Path) -> None:
    """A.15"""
    (flow,) = run(ccsim, "bbr", rate=100, rate2=1000, at2=8, warm=11, dur=20, buf=10)
    assert flow.ratio > 0.9 * 10


def test_a_tenth_of_the_bandwidth_is_found(ccsim: Path) -> None:
    """A.16; the buffer is one second at the new rate"""
    (flow,) = run(ccsim, "bbr", rate=100, rate2=10, at2=8, warm=20, dur=30)
    assert flow.ratio > 0.9 / 10
    assert flow.qdelay_ms < 50
    assert flow.queue_loss < 0.001


def test_bdp_below_a_packet(ccsim: Path) -> None:
    """A.14"""
    (flow,) = run(ccsim, "bbr", rate=0.1, rtt=2, dur=60, buf=400)
    assert flow.ratio > 0.95
    assert flow.rtos == 0


@pytest.mark.parametrize(
    "options",
    [{"ack": 1}, {"ack": 16}, {"ackloss": 12}, {"burst": 1000}, {"jitter": 3000}],
    ids=str,
)
def test_aggregation_bursts_and_jitter(ccsim: Path, options: dict[str, float]) -> None:
    """A.12, A.13"""
    (flow,) = run(ccsim, "bbr", rate=100, rtt=100, dur=15, **options)
    assert flow.ratio >= 0.95


def test_idle_and_application_limited_flows_keep_their_model(ccsim: Path) -> None:
    """A.11, A.22"""
    (flow,) = run(ccsim, "bbr:on=500:off=500", dur=20)
    assert flow.ratio > 0.45
    assert flow.queue_loss < 0.001


def test_two_flows_that_came_at_different_times_see_the_path_empty(ccsim: Path) -> None:
    """ProbeRTT is common to both: the one that came second cannot know the RTT of the
    empty path otherwise.
    """
    first, second = run(ccsim, "bbr", "bbr:start=7", buf=4, dur=60, warm=20)
    assert max(first.qdelay_ms, second.qdelay_ms) < 120
    assert min(first.ratio, second.ratio) > 0.25


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    binary = build(tmp_path, *SANITIZE)
    run(binary, "bbr", "bbr:start=1", "cubic:start=2", rate=20, rtt=20, loss=1, dur=20, buf=0.3)
    run(binary, "bbr:on=300:off=6200", rate=20, rtt=100, loss=60, dur=120)
    run(binary, "bbr", rate=0.1, rtt=2, loss=1, dur=30)
    run(binary, "bbr", jitter=20000, rate=20, rtt=20, dur=20)
