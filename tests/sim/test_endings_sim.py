# SPDX-License-Identifier: Apache-2.0
"""How connections end, in virtual time, under sanitizers: refusals, resets, dead peers, closes,
and the same ports once more.
"""

from __future__ import annotations

import errno

import pytest

from lab.sim.corelab import MS, Programs, S, simulate

STRIP_TS = 2

ENDS = {
    "refused": ({"refuse": 1}, errno.ECONNREFUSED, 20 * MS, 21 * MS),
    "unreachable host": ({"unreach": errno.EHOSTUNREACH}, errno.EHOSTUNREACH, 0, 1),
    "unreachable network, IPv6": ({"unreach": errno.ENETUNREACH, "v6": 1}, errno.ENETUNREACH, 0, 1),
    "ICMP network unreachable": ({"icmp_code": 1}, errno.ENETUNREACH, 10 * MS, 11 * MS),
    "ICMP host unreachable": ({"icmp_code": 2}, errno.EHOSTUNREACH, 10 * MS, 11 * MS),
    "ICMP port unreachable": ({"icmp_code": 4}, errno.ECONNREFUSED, 10 * MS, 11 * MS),
    "ICMPv6 address unreachable": ({"icmp_code": 4, "v6": 1}, errno.EHOSTUNREACH, 10 * MS, 11 * MS),
    "silent peer": ({"mute": 1}, errno.ETIMEDOUT, 127 * S, 128 * S),
}


@pytest.mark.parametrize("case", ENDS)
def test_connect_fails_as_without_us(programs: Programs, case: str) -> None:
    keys, error, earliest_ns, latest_ns = ENDS[case]
    result = simulate(programs.sim_asan, check=1, **keys)
    assert result["error_a"] == error
    assert earliest_ns <= result["done_ns"] <= latest_ns
    assert result["left_a"] == result["left_b"] == 0
    assert result["closed_a"] == 1
    assert result["owned_a"] == result["disowned_a"]
    assert result["accepted"] == 0


def test_reset_by_the_app_reaches_the_peer(programs: Programs) -> None:
    result = simulate(programs.sim_asan, check=1, abort_at=50_000)
    assert result["error_b"] == errno.ECONNRESET
    assert result["left_a"] == result["left_b"] == 0


def test_peer_gone_resets_the_app(programs: Programs) -> None:
    """A path that stays down ends both ends, within the kernel's own limit
    of 15 retransmissions.
    """
    result = simulate(
        programs.sim_asan,
        up=10_000_000,
        cut_from_ns=1100 * MS,
        cut_to_ns=2**63,
        limit_ns=7200 * S,
        check=1,
    )
    assert result["core_error_a"] == errno.ETIMEDOUT
    assert result["errors"] == 1
    assert result["left_a"] == result["left_b"] == 0


def test_keepalive_finds_a_dead_peer(programs: Programs) -> None:
    result = simulate(
        programs.sim_asan,
        down_after_ns=9000 * S,
        keepalive_ns=60 * S,
        cut_from_ns=3 * S,
        cut_to_ns=2**63,
        limit_ns=7200 * S,
    )
    assert result["core_error_a"] == errno.ETIMEDOUT
    assert result["left_a"] == result["left_b"] == 0


def test_abort_all_resets_everything(programs: Programs) -> None:
    result = simulate(programs.sim_asan, check=1, conns=20, abort_all_ns=60 * MS)
    assert (result["error_a"], result["error_b"]) == (errno.ECONNRESET, errno.ECONNRESET)
    assert result["left_a"] == result["left_b"] == 0


def test_full_close_still_delivers(programs: Programs) -> None:
    """The app closes when it has read 50 kB: what it wrote before reaches the peer."""
    result = simulate(programs.sim_asan, check=1, close_at=50_000, loss=0.02)
    assert (result["errors"], result["wrong"]) == (0, 0)
    assert result["got_b"] > 0
    assert result["left_a"] == result["left_b"] == 0


@pytest.mark.parametrize("strip", [0, STRIP_TS])
def test_same_ports_again_in_time_wait(programs: Programs, strip: int) -> None:
    result = simulate(
        programs.sim_asan, check=1, again=3, up=10_000, down=10_000, timewait_ns=60 * S, strip=strip
    )
    assert result["complete"] == 1
    assert result["active_open_a"] == result["passive_open_b"] == 4
    assert result["done_ns"] < 10 * S
