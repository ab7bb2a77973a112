# SPDX-License-Identifier: Apache-2.0
"""Packets that the link's device cuts (nic.h), or has put together (gro.h): for the wire, and for
the core's answers, they are the segments that they stand for.
"""

from __future__ import annotations

import pytest

from lab.sim.corelab import MS, Programs, simulate

CASES = {
    "clean": {},
    "loss": {"loss": 0.05},
    "loss, reordering, duplication, damage": {
        "loss": 0.05,
        "reorder": 0.2,
        "dup": 0.1,
        "corrupt": 0.01,
    },
    "wan": {"cc": "wan", "loss": 0.05},
    "bbr": {"cc": "bbr", "rate_Bps": 100_000_000, "delay_ns": 5 * MS, "queue_bytes": 500_000},
    "reno": {"cc": "reno", "loss": 0.02},
    "IPv6": {"v6": 1, "loss": 0.02},
    "accurate ECN": {"mark_bytes": 20_000, "queue_bytes": 500_000},
    "ECN": {"mark_bytes": 20_000, "queue_bytes": 500_000, "accecn_off": 1},
    "no options": {"strip": 7, "loss": 0.05},
    "small segments": {"mss": 200, "loss": 0.02},
    "small windows": {"sndbuf": 4096, "rcvbuf": 4096, "loss": 0.01},
    "window shut": {"krcvbuf": 20_000, "pause_ns": 3_000 * MS},
    "path MTU falls": {"icmp_mtu": 1000},
    "long packets vanish": {"hole_bytes": 1300, "loss": 0.01},
    "path down": {"cut_from_ns": 1100 * MS, "cut_to_ns": 3100 * MS},
    "little memory": {"memory": 65_536, "loss": 0.02},
    "app resets": {"abort_at_b": 200_000},
}


@pytest.mark.parametrize("case", CASES)
def test_the_wire_sees_the_same_segments(programs: Programs, case: str) -> None:
    """Headers, payload and time of each packet of both hosts, loss drawn alike."""
    for seed in range(1, 6):
        keys = {"seed": seed, "up": 600_000, "down": 600_000} | CASES[case]
        alone = simulate(programs.sim, **keys)
        cut = simulate(programs.sim_asan, check=1, tso=65_535, **keys)
        assert alone.pop("super_segments") == 0
        assert cut.pop("super_segments") > 0
        counted = {name for name in alone if name.startswith(("out_packets", "slabs"))}
        assert {k: v for k, v in cut.items() if k not in counted} == {
            k: v for k, v in alone.items() if k not in counted
        }


@pytest.mark.parametrize("tso", [3000, 9000, 65_535])
def test_few_packets_carry_a_bulk_transfer(programs: Programs, tso: int) -> None:
    """As long as the device takes them: pulled packets, against what the wire sees."""
    keys = {"up": 10_000_000, "down": 0, "queue_bytes": 100_000_000, "rate_Bps": 1_000_000_000}
    result = simulate(programs.sim, tso=tso, **keys)
    assert result["complete"] == 1
    pulled = result["out_packets_a"]
    assert pulled < simulate(programs.sim, **keys)["out_packets_a"]
    assert result["super_segments"] >= 10_000_000 // tso


@pytest.mark.parametrize("gro_ns", [300_000, 3_000_000])
@pytest.mark.parametrize("case", CASES)
def test_segments_count_the_same_when_they_arrive_as_one_packet(
    programs: Programs, case: str, gro_ns: int
) -> None:
    """Put together, or at the same moment one by one: whatever both hosts send after it
    is the same.
    """
    for seed in range(1, 5):
        keys = {"seed": seed, "up": 600_000, "down": 600_000, "gro_ns": gro_ns} | CASES[case]
        apart = simulate(programs.sim, gro_split=1, **keys)
        whole = simulate(programs.sim_asan, check=1, tso=65_535, **keys)
        assert whole["merged"] == apart["merged"] > 0
        assert (whole["complete"], whole["wrong"]) == (apart["complete"], 0)
        if (
            "memory" in keys or "abort_at_b" in keys
        ):  # which finds room; how many a closed port answers
            continue
        assert whole["wire"] == apart["wire"]
        for counter in ("ecn_ce", "ecn_marks", "retransmits", "paws", "challenge_acks"):
            assert whole[f"{counter}_a"] == apart[f"{counter}_a"]
            assert whole[f"{counter}_b"] == apart[f"{counter}_b"]
