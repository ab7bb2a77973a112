# SPDX-License-Identifier: Apache-2.0
"""Somebody who knows addresses and ports, but no sequence numbers, writes segments of
any shape (outsider.h).

No state of any connection may change by them: it is compared before and after each (unmoved.h; a
breach ends the simulator), and the transfers arrive whole.
"""

from __future__ import annotations

import pytest

from lab.sim.corelab import Programs, S, simulate

AT_LEAST = 10_000
CONNECTIONS: dict[str, dict[str, float | str]] = {
    "accurate ECN, SACK, timestamps": {},
    "ECN of RFC 3168, with marks": {"accecn_off": 1, "mark_bytes": 10_000},
    "no ECN, IPv6": {"ecn_off": 1, "v6": 1},
    "no timestamps": {"direct": 1, "kts": 1},
    "no options": {"direct": 1, "kts": 1, "ksack": 1, "kws": 1},
    "holes": {"loss": 0.03, "loss_back": 0.03},
    "SYN cookies": {"syn_cookies": 1},
    "simultaneous open": {"simopen": 1},
    "half closed": {"close_at": 1000, "down_after_ns": 1 * S},
    "idle": {"pause_ns": 2 * S, "down_after_ns": 30 * S},
    "three at once": {"conns": 3, "up": 300_000, "down": 300_000},
    "lossy inner leg": {"inner_loss": 0.2, "up": 5000, "down": 5000, "conns": 4, "outsider": 2},
}
# A simultaneous open is anybody's SYN; and when TIME-WAIT comes before the peer has heard of it, a
# SYN that seems newer, whoever wrote it, may end it early (RFC 6191), and the peer be reset
NOT_AT_RANDOM = {"simultaneous open", "idle", "lossy inner leg"}
STATES = {
    "inner": "syn_sent syn_recv established fin_wait2 time_wait close_wait last_ack close",
    "outer": "syn_sent syn_recv established fin_wait1 fin_wait2 time_wait close_wait last_ack closing close",
}


@pytest.fixture(scope="module")
def seen() -> dict[str, int]:
    """Forged segments by leg and state, of all runs so far."""
    return {}


def volume(keys: dict[str, float | str]) -> dict[str, float | str]:
    return {"check": 1, "outsider": 8, "up": 1_000_000, "down": 1_000_000} | keys


@pytest.mark.parametrize("name", CONNECTIONS)
def test_what_is_not_acceptable_changes_nothing(
    name: str, programs: Programs, seen: dict[str, int]
) -> None:
    result = simulate(programs.sim, **volume(CONNECTIONS[name]))
    assert result["forged"] >= AT_LEAST
    assert result["complete"] == CONNECTIONS[name].get("conns", 1)
    for key, value in result.items():
        if key.startswith("forged_"):
            seen[key] = seen.get(key, 0) + value


def test_every_state_was_tried(seen: dict[str, int]) -> None:
    if len(seen) == 0:
        pytest.skip("of the runs that the other tests make, and they did not run")
    wanted = [f"forged_{leg}_{state}" for leg, states in STATES.items() for state in states.split()]
    assert {key for key in wanted if not seen[key]} == set()


@pytest.mark.parametrize("name", sorted(CONNECTIONS.keys() - NOT_AT_RANDOM))
def test_random_numbers_do_not_hurt(name: str, programs: Programs) -> None:
    """As they come, in the handshake, too, where anybody's SYN is one."""
    result = simulate(programs.sim, **volume(CONNECTIONS[name]), outsider_any=1)
    assert result["forged"] > AT_LEAST / 2
    assert result["complete"] == CONNECTIONS[name].get("conns", 1)
