# SPDX-License-Identifier: Apache-2.0
"""Many connections and little memory, in virtual time, under sanitizers: what is refused, what
waits, and what is shared.
"""

from __future__ import annotations

from lab.sim.corelab import MS, Programs, S, simulate


def test_thousand_connections(programs: Programs) -> None:
    result = simulate(programs.sim_asan, conns=1000, up=5000, down=10_000, loss=0.01)
    assert (result["complete"], result["errors"], result["wrong"]) == (1000, 0, 0)
    assert result["left_a"] == result["left_b"] == 0


def test_thousand_syn_cookies(programs: Programs) -> None:
    """A queue that overflows takes many of the ACKs that carry the cookies; what follows them
    makes up for it.
    """
    result = simulate(
        programs.sim_asan, timeout_s=120, conns=1000, up=2000, down=2000, syn_cookies=1
    )
    assert (result["complete"], result["errors"], result["wrong"]) == (1000, 0, 0)
    assert result["syn_cookies_valid_b"] == result["passive_open_b"] == 1000
    assert result["bad_seq_b"] > 0


def test_connections_beyond_the_limit_are_refused(programs: Programs) -> None:
    result = simulate(programs.sim_asan, conns=20, maxconn=10, up=50_000, down=50_000)
    assert (result["complete"], result["errors"]) == (10, 10)
    assert result["refused_limit_a"] == 10


def test_memory_limit_is_back_pressure(programs: Programs) -> None:
    result = simulate(
        programs.sim_asan, check=1, conns=20, memory=2_000_000, loss=0.01, up=200_000, down=200_000
    )
    assert (result["complete"], result["wrong"]) == (20, 0)


def test_many_connections_share_a_small_memory(programs: Programs) -> None:
    """20 KB for each of 200 connections, both ways at once: all finish, in no more than twice
    what the link takes.
    """
    keys = {"conns": 200, "memory": 4_000_000, "up": 500_000, "down": 500_000, "loss": 0.01}
    result = simulate(programs.sim, timeout_s=120, limit_ns=3600 * S, **keys)
    assert (result["complete"], result["errors"], result["wrong"]) == (200, 0, 0)
    assert result["done_ns"] < 200 * 500_000 * S // 12_500_000 * 2  # the link of params.c


def test_slow_readers_leave_memory_to_others(programs: Programs) -> None:
    keys = {
        "conns": 60,
        "memory": 1_000_000,
        "up": 60_000,
        "down": 60_000,
        "krcvbuf": 20_000,
        "pause_ns": 2 * S,
    }
    result = simulate(programs.sim_asan, check=1, timeout_s=120, limit_ns=3600 * S, **keys)
    assert (result["complete"], result["errors"], result["wrong"]) == (60, 0, 0)


def test_one_connection_takes_the_memory_that_its_path_needs(programs: Programs) -> None:
    """1 Gbit/s, 200 ms, 1 % loss, and no buffer sizes given: 25 MB are on the way, and 256 MiB
    of memory are there.
    """
    rate_bps, got = 125_000_000, []
    for seconds in (6, 10):
        result = simulate(
            programs.sim,
            timeout_s=120,
            cc="wan",
            up=2**40,
            down=0,
            rate_Bps=rate_bps,
            delay_ns=100 * MS,
            queue_bytes=rate_bps // 5,
            loss=0.01,
            krcvbuf=2**30,
            limit_ns=seconds * S,
        )
        got.append(result["got_b"])
    assert (got[1] - got[0]) / 4 > 0.93 * rate_bps * 0.99 * 1448 / 1538


def test_time_wait_gives_way_to_new_connections(programs: Programs) -> None:
    result = simulate(
        programs.sim_asan,
        conns=200,
        maxconn=20,
        gap_ns=100 * MS,
        up=1000,
        down=1000,
        timewait_ns=3600 * S,
    )
    assert (result["complete"], result["refused_limit_a"]) == (200, 0)
