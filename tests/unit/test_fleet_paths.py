# SPDX-License-Identifier: Apache-2.0
"""Figures of hosts' paths: their form in etcd, and when they are worse than before."""

from __future__ import annotations

import json

import pytest

from dmm_ebpf.central.layout import LayoutError
from dmm_ebpf.central.paths import Figures, Watch, tells, worse
from dmm_ebpf.rd.sources.figures import Flows, connects
from dmm_ebpf.records.flow import Flow

BEFORE = Figures(10, 10_000_000, 10, 40, 40 * 20_000, 1000, 1)


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (Figures(10, 10_000_000, 70, 40, 40 * 20_000, 1000, 1), ""),
        (Figures(10, 10_000_000, 90, 40, 40 * 20_000, 1000, 1), "9.0 segments are sent again"),
        (Figures(10, 10_000_000, 10, 40, 40 * 31_000, 1000, 1), "a round trip takes 31.0 ms, 20.0"),
        (Figures(10, 10_000_000, 10, 40, 40 * 29_000, 1000, 1), ""),
        (Figures(10, 10_000_000, 10, 40, 40 * 20_000, 1000, 22), "2.2% of connect() calls fail"),
        (Figures(10, 10_000_000, 10, 40, 40 * 20_000, 1000, 19), ""),
        (Figures(10, 90_000, 90, 2, 2 * 90_000, 19, 19), ""),
    ],
)
def test_what_is_worse(after: Figures, why: str) -> None:
    found = worse(BEFORE, after)
    assert bool(found) == bool(why)
    assert all(why in one for one in found)


def test_what_is_too_little_to_tell() -> None:
    assert not tells(BEFORE, Figures(10, 90_000, 90, 2, 180_000, 19, 19))
    assert tells(BEFORE, Figures(opens=20))
    assert not tells(Figures(opens=19), Figures(opens=20))


def test_a_host_that_began_anew_counts_from_0() -> None:
    later = Figures(12, 10_500_000, 11, 50, 50 * 20_000, 1100, 2)
    assert later.since(BEFORE) == Figures(2, 500_000, 1, 10, 10 * 20_000, 100, 1)
    anew = Figures(3, 5_000, 1, 1, 20_000, 7, 0)
    assert anew.since(BEFORE) == anew


def test_figures_are_read_as_they_are_written() -> None:
    assert Figures.read("paths/a/b", BEFORE.write()) == BEFORE


@pytest.mark.parametrize(
    "said",
    [
        b"x",
        b"{}",
        json.dumps({"format": 1, "reports": 1}).encode(),
        BEFORE.write().replace(b"1000", b"-1"),
        BEFORE.write().replace(b"1000", b"true"),
        BEFORE.write().replace(b"1000", b"1e3"),
        BEFORE.write().replace(b"1000,", b"NaN,"),
    ],
)
def test_what_are_no_figures(said: bytes) -> None:
    with pytest.raises(LayoutError, match="cannot use the value of paths/a/b"):
        Figures.read("paths/a/b", said)


@pytest.mark.parametrize(
    "change", [{"steps": "a"}, {"every_s": 0}, {"every_s": "1"}, {"steps": [1]}]
)
def test_what_is_no_watch(change: dict[str, object]) -> None:
    said = {"format": 1, "steps": ["role=a"], "every_s": 1.0}
    assert Watch.read("k", json.dumps(said).encode()) == Watch(["role=a"], 1.0)
    with pytest.raises(LayoutError):
        Watch.read("k", json.dumps(said | change).encode())


def test_the_kernel_s_counts_of_connects() -> None:
    text = "Ip: A B\nIp: 1 2\nTcp: RtoMin ActiveOpens AttemptFails MaxConn\nTcp: 200 71 5 -1\n"
    assert connects(text) == (71, 5)


def flow(cookie: int, sent: int, again: int, age_s: float, proto: str = "tcp") -> Flow:
    return Flow(
        "x", "socket", proto, "10.0.0.1", 40000 + cookie, "10.0.0.2", 443, "connect", None,
        "kernel", "kernel", "", None, None, None, 1, "ESTABLISHED", 7, "curl", 0, None,
        sent, 0, 20_000, again, cookie, age_s,
    )  # fmt: skip


def test_what_a_flow_did_before_it_was_looked_at_is_not_of_the_watch() -> None:
    """Of more flows than are looked at others may come first the next time."""
    looks, sums = Flows(), Figures()
    for now, open_then in (
        (100.0, [flow(1, 5_000, 5, 60)]),
        (105.0, [flow(1, 6_000, 6, 65), flow(2, 300, 1, 4.0), flow(3, 9_000_000, 900, 3600)]),
        (110.0, [flow(3, 9_000_100, 902, 3605), flow(4, 70, 0, 1.0), flow(5, 1, 1, 1.0, "udp")]),
    ):
        looks.begin(now)
        for one in open_then:
            sums = looks.add(sums, one)
        looks.end()
    assert (sums.sent_bytes, sums.retransmits) == (1_000 + 300 + 100 + 70, 1 + 1 + 2)
    assert (sums.trips, sums.trip_us) == (6, 6 * 20_000)
