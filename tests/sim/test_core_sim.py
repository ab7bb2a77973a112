# SPDX-License-Identifier: Apache-2.0
"""The core in virtual time, under AddressSanitizer and UBSan, its invariants checked after
every step (check.h).
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.sim.corelab import MS, Programs, S, simulate

STRIP_SACK, STRIP_TS, STRIP_WS = 1, 2, 4

# What must arrive whole, both ways, and leave nothing behind
# A chain of lab/chance.h whose bad state loses everything
BURSTS = {"burst_p": 0.02, "burst_r": 0.25, "burst_loss_bad": 1}
WHOLE = {
    "clean": {},
    "bursts of losses": BURSTS,
    "bursts of losses, of 5 ms": BURSTS | {"burst_step_ns": MS, "burst_r": 0.2},
    "jitter": {"jitter_ns": 20 * MS, "loss": 0.02},
    "jitter that reorders": {"jitter_ns": 20 * MS, "jitter_reorder": 1},
    "long-tailed jitter and bursts": BURSTS | {"jitter_ns": 5 * MS, "jitter_exponential": 1},
    "half of the long packets vanish": {"loss": 0.5, "loss_above": 1300},
    "loss 1 %": {"loss": 0.01},
    "loss 5 %": {"loss": 0.05},
    "loss 12 %": {"loss": 0.12},
    "reordering": {"reorder": 0.2},
    "heavy reordering": {"reorder": 0.6, "reorder_ns": 30 * MS},
    "duplication": {"dup": 0.3},
    "corruption": {"corrupt": 0.05},
    "all at once": {"loss": 0.05, "reorder": 0.1, "dup": 0.1, "corrupt": 0.01},
    "shallow queue": {"queue_bytes": 6000},
    "tiny windows": {"sndbuf": 4096, "rcvbuf": 4096},
    "tiny windows and loss": {
        "sndbuf": 3000,
        "rcvbuf": 3000,
        "loss": 0.03,
        "up": 100_000,
        "down": 100_000,
    },
    "tiny kernel window": {"krcvbuf": 3000},
    "zero window": {"krcvbuf": 20_000, "pause_ns": 30 * S},
    "zero window, small buffers, loss": {
        "krcvbuf": 20_000,
        "pause_ns": 30 * S,
        "loss": 0.05,
        "sndbuf": 50_000,
        "rcvbuf": 50_000,
    },
    "no SACK": {"strip": STRIP_SACK, "loss": 0.05},
    "no timestamps": {"strip": STRIP_TS, "loss": 0.05},
    "no window scaling": {"strip": STRIP_WS, "loss": 0.05},
    "no options": {"strip": 7, "loss": 0.05},
    "kernel without timestamps": {"kts": 1, "loss": 0.02},
    "kernel without window scaling": {"kws": 1, "loss": 0.02},
    "small MSS": {"mss": 200, "loss": 0.02},
    "tiny MSS": {"mss": 1, "up": 20_000, "down": 20_000},
    "IPv6": {"v6": 1, "loss": 0.02},
    "no GSO": {"gso": 0, "loss": 0.01},
    "one way": {"up": 0, "loss": 0.02},
    "nothing at all": {"up": 0, "down": 0},
    "half-closed for 20 s": {"up": 50_000, "down_after_ns": 20 * S},
    "half-closed, kept alive for 50 min": {
        "up": 1000,
        "down_after_ns": 3000 * S,
        "keepalive_ns": 60 * S,
    },
    "simultaneous open": {"simopen": 1, "loss": 0.02},
    "SYNs lost": {"synloss": 3},
    "path MTU falls, IPv4": {"icmp_mtu": 1000, "loss": 0.01},
    "path MTU falls, IPv6": {"icmp_mtu": 1300, "v6": 1},
    "long packets vanish": {"hole_bytes": 1300},
    "all but short packets vanish": {"hole_bytes": 700, "up": 300_000, "down": 300_000},
    "long packets vanish, IPv6": {"hole_bytes": 1400, "v6": 1},
    "long packets vanish, some others too": {"hole_bytes": 1300, "loss": 0.05},
    "firewall drops on the inner leg for 2 s": {
        "inner_drop_from_ns": 1100 * MS,
        "inner_drop_to_ns": 3100 * MS,
    },
    "path down for 8 s": {"cut_from_ns": 1100 * MS, "cut_to_ns": 9100 * MS},
    "SYN cookies": {"syn_cookies": 1},
    "SYN cookies, all at once": {
        "syn_cookies": 1,
        "loss": 0.05,
        "reorder": 0.1,
        "dup": 0.1,
        "corrupt": 0.01,
    },
    "SYN cookies, heavy reordering": {"syn_cookies": 1, "reorder": 0.6, "reorder_ns": 30 * MS},
    "SYN cookies, no options": {"syn_cookies": 1, "strip": 7, "loss": 0.05},
    "SYN cookies, IPv6, tiny windows": {"syn_cookies": 1, "v6": 1, "sndbuf": 4096, "rcvbuf": 4096},
    "little memory": {"memory": 65_536, "loss": 0.02},
    "kernel's sequence numbers wrap": {"isn": 2**32 - 300_000},
    "reno": {"cc": "reno", "loss": 0.05},
    "wan": {"cc": "wan", "loss": 0.05},
    "wan, everything at once": {
        "cc": "wan",
        "loss": 0.05,
        "reorder": 0.1,
        "dup": 0.1,
        "corrupt": 0.01,
    },
}


@pytest.mark.parametrize("case", WHOLE)
def test_stream_arrives_whole(programs: Programs, case: str) -> None:
    result = simulate(programs.sim_asan, check=1, **{"limit_ns": 7200 * S} | WHOLE[case])
    assert (result["complete"], result["errors"], result["wrong"]) == (1, 0, 0)
    assert result["left_a"] == result["left_b"] == 0
    assert result["chunks_a"] == result["chunks_b"] == 0
    assert result["owned_a"] == result["disowned_a"] == result["closed_a"] == 1
    assert result["owned_b"] == result["disowned_b"] == result["closed_b"] == 1


@pytest.mark.parametrize("step_ns", [0, MS])
def test_losses_come_in_bursts_of_the_length_that_was_said(
    programs: Programs, step_ns: int
) -> None:
    keys = BURSTS | {"up": 10_000_000, "down": 0, "burst_step_ns": step_ns}
    result = simulate(programs.sim, **keys, linux_window=1 << 26)
    share, row = result["lost"] / result["sent_pkts"], result["lost"] / result["lost_rows"]
    if step_ns:  # in bad slots the sender has less to send: few packets fall into them
        assert 0.01 < share < 0.12
    else:
        assert (share, row) == (pytest.approx(2 / 27, rel=0.1), pytest.approx(4, rel=0.1))


def test_jitter_adds_to_the_delay_and_reorders_only_when_told(programs: Programs) -> None:
    keys = {"up": 20_000, "down": 0, "delay_ns": 10 * MS}
    plain, late, loose = (
        simulate(programs.sim, **keys | more)
        for more in (
            {},
            {"jitter_ns": 30 * MS, "up": 2_000_000},
            {"jitter_ns": 30 * MS, "jitter_reorder": 1, "up": 2_000_000},
        )
    )
    assert plain["done_ns"] < late["done_ns"]
    # What came early was taken for what was left of a loss.
    assert (plain["resent"], late["resent"]) == (0, 0)
    assert loose["resent"] > 0


def test_sequence_numbers_of_the_core_wrap(programs: Programs) -> None:
    """Who opens has that of the app's kernel. Who answers has a keyed hash plus a clock of 4.096 us
    steps (RFC 6528): start the clock where the sum nearly wraps.
    """
    steps = (2**32 - 200_000 - simulate(programs.sim_asan, up=0, down=0)["isn_b"]) % 2**32
    for words in ({"start_ns": S + steps * 4096}, {"isn": 2**32 - 200_000}):
        result = simulate(programs.sim_asan, check=1, loss=0.02, **words)
        assert max(result["isn_a"], result["isn_b"]) > 2**32 - 300_000
        assert result["complete"] == 1


@pytest.mark.parametrize("ksack", [0, 1])
@pytest.mark.parametrize("sndbuf", [1, 500])
def test_a_lossy_inner_leg_is_not_flooded(programs: Programs, sndbuf: int, ksack: int) -> None:
    """The kerns keep nothing out of order, so each loss costs what is behind it; that may not go in
    one burst, for it
    would be lost again: once a window of one-byte segments was sent some 10,000 times.
    """
    result = simulate(
        programs.sim,
        up=20_000,
        down=20_000,
        inner_reorder=0.4,
        inner_reorder_ns=8 * MS,
        inner_loss=0.02,
        sndbuf=sndbuf,
        ksack=ksack,
    )
    assert (result["got_a"], result["got_b"], result["wrong"]) == (20_000, 20_000, 0)
    segments = 20_000 // sndbuf
    assert result["retransmits_a"] < segments + 50
    assert result["retransmits_b"] < segments + 50


def test_reordering_costs_no_timeouts(programs: Programs) -> None:
    result = simulate(programs.sim_asan, reorder=0.2)
    assert result["rto_a"] == result["rto_b"] == 0
    assert result["retransmits_a"] < 30


@pytest.mark.parametrize("cc", ["cubic", "reno"])
@pytest.mark.parametrize(
    ("strip", "stall_ns", "resent"),
    [(0, 2000 * MS, 3), (STRIP_TS, 700 * MS, 3), (STRIP_TS | STRIP_SACK, 700 * MS, 3)],
    ids=["timestamps tell (Eifel)", "F-RTO", "F-RTO without SACK"],
)
def test_spurious_timeout_is_undone(
    programs: Programs, cc: str, strip: int, stall_ns: int, resent: int
) -> None:
    """A link that holds its packets for a while makes the timer fire; next to nothing is sent
    twice, and the window is what it was before.
    """
    result = simulate(
        programs.sim_asan,
        check=1,
        up=0,
        down=20_000_000,
        delay_ns=20 * MS,
        queue_bytes=100_000_000,
        stall_from_ns=1500 * MS,
        stall_to_ns=1500 * MS + stall_ns,
        strip=strip,
        cc=cc,
    )
    assert (result["complete"], result["wrong"], result["undone_b"]) == (1, 0, 1)
    assert result["rto_b"] >= 1
    assert result["retransmits_b"] <= resent
    assert result["done_ns"] < 1.9 * S + stall_ns


@pytest.mark.parametrize("strip", [0, STRIP_TS], ids=["Eifel", "DSACK"])
def test_reordering_taken_for_loss_is_undone(programs: Programs, strip: int) -> None:
    """The first segments that come late are sent again for nothing: the window comes back. How soon
    no more is taken for loss is a matter of luck, so the mean counts; without undo it is 6 s.
    """
    keys = {"up": 0, "down": 20_000_000, "delay_ns": 20 * MS, "queue_bytes": 100_000_000}
    keys |= {"reorder": 0.02, "reorder_ns": 30 * MS, "strip": strip}
    result = simulate(programs.sim_asan, check=1, **keys)
    assert (result["complete"], result["wrong"], result["rto_b"]) == (1, 0, 0)
    assert result["undone_b"] >= 1
    done_ns = [simulate(programs.sim, seed=seed, **keys)["done_ns"] for seed in range(1, 9)]
    assert sum(done_ns) / len(done_ns) < 5.3 * S


@pytest.mark.parametrize("cc", ["cubic", "reno"])
@pytest.mark.parametrize("v6", [0, 1])
@pytest.mark.parametrize("accecn_off", [0, 1])
def test_ecn_replaces_loss(programs: Programs, cc: str, v6: int, accecn_off: int) -> None:
    """A queue that marks at 100 kB never overflows at 500 kB; one answer per round, not per echo.
    RFC 9768 tells of every mark, RFC 3168 of one in a window.
    """
    keys = {
        "up": 0,
        "down": 20_000_000,
        "delay_ns": 20 * MS,
        "queue_bytes": 500_000,
        "mark_bytes": 100_000,
    }
    result = simulate(programs.sim_asan, check=1, cc=cc, v6=v6, accecn_off=accecn_off, **keys)
    assert (result["complete"], result["wrong"]) == (1, 0)
    assert result["queue_lost"] == result["retransmits_b"] == 0
    assert result["ecn_ce_a"] == result["marked"] > 0
    assert result["ecn_marks_b"] == (0 if accecn_off else result["marked"])
    assert 0 < result["ecn_ece_b"] < 10 if accecn_off else result["ecn_ece_b"] == 0
    off = simulate(programs.sim_asan, check=1, cc=cc, v6=v6, ecn_off=1, **keys)
    assert (off["complete"], off["marked"]) == (1, 0)
    assert off["queue_lost"] > 0


@pytest.mark.parametrize(
    ("cc", "loss", "accecn_off", "ect"),
    [
        ("wan", 0.05, 1, True),
        ("wan", 0.003, 1, False),
        ("wan", 0.05, 0, False),
        ("cubic", 0.05, 1, False),
    ],
    ids=["much random loss", "little", "RFC 9768", "cubic"],
)
def test_retransmissions_are_ect_only_where_much_is_lost_at_random(
    programs: Programs, cc: str, loss: float, accecn_off: int, ect: bool
) -> None:
    """RFC 3168 section 6.1.5 but for one case; there a Linux receiver would be slow to tell
    what has arrived.
    """
    keys = {
        "up": 30_000_000,
        "down": 0,
        "delay_ns": 20 * MS,
        "queue_bytes": 500_000,
        "limit_ns": 20 * S,
    }
    result = simulate(programs.sim_asan, cc=cc, loss=loss, accecn_off=accecn_off, **keys)
    assert result["resent"] > 0
    share = result["resent_ect"] / result["resent"]
    assert share > 0.7 if ect else share == 0


def test_reordering_that_has_ended_costs_no_more_waiting(programs: Programs) -> None:
    """A control that tolerates loss waits RACK's window only as long as there is reordering."""
    keys = {
        "up": 2_000_000_000,
        "down": 0,
        "delay_ns": 20 * MS,
        "queue_bytes": 500_000,
        "limit_ns": 4 * S,
    }
    for reorder_to_ns, waits in ((0, 1), (2 * S, 0)):
        result = simulate(
            programs.sim,
            check=1,
            cc="wan",
            reorder=0.2,
            reorder_ns=8 * MS,
            reorder_to_ns=reorder_to_ns,
            **keys,
        )
        assert result["reordered_a"] == waits


def test_path_that_drops_ecn_syns(programs: Programs) -> None:
    """A SYN that is sent again asks for RFC 9768 once more after a second, for nothing after three;
    only RFC 3168 is not asked for twice.
    """
    for accecn_off, opened_s in ((0, 3), (1, 1)):
        result = simulate(
            programs.sim_asan,
            check=1,
            ecn_drop=1,
            mark_bytes=1,
            up=100_000,
            down=100_000,
            accecn_off=accecn_off,
        )
        assert (result["complete"], result["marked"]) == (1, 0)
        assert opened_s * S <= result["est_ns"] < (opened_s + 0.1) * S


def test_black_hole_is_found_and_left(programs: Programs) -> None:
    """Two timeouts find it; a path that was merely down gets its MTU back, so no more
    packets than without.
    """
    keys = {"up": 0, "down": 5_000_000, "delay_ns": 20 * MS}
    hole = simulate(programs.sim_asan, check=1, hole_bytes=1300, **keys)
    assert (hole["complete"], hole["mtu_holes_b"], hole["rto_b"]) == (1, 1, 2)
    assert hole["done_ns"] < 6 * S
    plain = simulate(programs.sim_asan, **keys)
    down = simulate(programs.sim_asan, check=1, cut_from_ns=1150 * MS, cut_to_ns=4000 * MS, **keys)
    assert down["complete"] == 1
    assert down["mtu_holes_b"] >= 1
    assert down["sent_pkts"] < 1.05 * plain["sent_pkts"]


def test_a_run_repeats_exactly(programs: Programs) -> None:
    keys = {"loss": 0.05, "reorder": 0.1, "dup": 0.05, "seed": 99, "cc": "wan"}
    assert simulate(programs.sim, **keys) == simulate(programs.sim_asan, **keys)


@pytest.mark.parametrize("cc", ["cubic", "reno", "wan"])
def test_goodput_long_fat_lossy(
    programs: Programs, cc: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 MB at 100 Mb/s and 100 ms with 1 % loss each way completes; the figure is
    printed, not judged.
    """
    result = simulate(
        programs.sim,
        up=0,
        down=100_000_000,
        rate_Bps=12_500_000,
        delay_ns=50 * MS,
        queue_bytes=1_250_000,
        loss=0.01,
        cc=cc,
        limit_ns=3600 * S,
    )
    assert result["complete"] == 1
    share = 100_000_000 / (result["done_ns"] / S) / (12_500_000 * 0.99 * 1448 / 1538)
    with capsys.disabled():
        print(
            f"\n  {cc}: {result['done_ns'] / S:.2f} s, {share:.3f} of the limit, {result['rto_b']} timeouts"
        )


@pytest.mark.parametrize("cc", ["cubic", "reno"])
def test_slow_start_ends_gently_in_a_deep_queue(programs: Programs, cc: str) -> None:
    """HyStart++ (RFC 9406): where doubling would lose thousands of packets in a queue of 2 BDP, its
    rounds of growth by a quarter overflow it by little; the link is full all the same.
    """
    result = simulate(
        programs.sim,
        up=0,
        down=50_000_000,
        rate_Bps=12_500_000,
        delay_ns=50 * MS,
        queue_bytes=2_500_000,
        krcvbuf=16_000_000,
        cc=cc,
    )
    assert result["complete"] == 1
    assert result["queue_lost"] < 1500
    assert result["done_ns"] < 5.2 * S


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(1, 2**31),
    loss=st.floats(0, 0.15),
    loss_back=st.floats(0, 0.15),
    dup=st.floats(0, 0.2),
    reorder=st.floats(0, 0.5),
    reorder_ns=st.integers(0, 100 * MS),
    corrupt=st.floats(0, 0.05),
    delay_ns=st.integers(0, 200 * MS),
    rate_Bps=st.integers(20_000, 1_000_000_000),
    queue_bytes=st.integers(3000, 1_000_000),
    mtu=st.integers(576, 9000),
    mss=st.sampled_from([0, 0, 0, 88, 536, 1400]),
    strip=st.integers(0, 7),
    up=st.integers(0, 60_000),
    down=st.integers(0, 60_000),
    sndbuf=st.sampled_from([0, 0, 2000, 10_000]),
    rcvbuf=st.sampled_from([0, 0, 2000, 10_000]),
    krcvbuf=st.integers(1000, 100_000),
    pause_ns=st.sampled_from([0, 0, 2 * S]),
    isn=st.integers(0, 2**32 - 1),
    mark_bytes=st.sampled_from([0, 0, 1, 10_000]),
    accecn_off=st.integers(0, 1),
    syn_cookies=st.sampled_from([0, 0, 1]),
    cc=st.sampled_from(["cubic", "reno", "wan"]),
)
def test_any_link_delivers_or_reports(programs: Programs, **keys: float | str) -> None:
    if not keys["up"]:
        keys["syn_cookies"] = (
            # a client that only listens, and whose one ACK is lost, learns it by keep-alive alone
            0
        )
    # Longer than keep-alive: who only waits for the peer learns of a lost RST by that alone.
    result = simulate(programs.sim_asan, check=1, limit_ns=10_000 * S, **keys)
    assert result["wrong"] == 0
    assert result["complete"] + result["errors"] == 1


def test_what_a_bulk_sender_has_not_sent_lies_in_its_socket(programs: Programs) -> None:
    bdp = 12_500_000 // 10  # 100 Mbit/s and 100 ms
    path = {
        "rate_Bps": 12_500_000,
        "delay_ns": 50 * MS,
        "queue_bytes": bdp,
        "cc": "wan",
        "memory": 1 << 30,
    }
    result = simulate(programs.sim, **path, up=40_000_000, down=0, limit_ns=20 * S)
    assert result["complete"] == 1
    assert (
        result["peak_a"] < 3 * bdp
    )  # its window of two, and what goes before the app's kernel can send more
