# SPDX-License-Identifier: Apache-2.0
"""100,000 connections in one core: memory of an idle one, timers, processor time (scale.c)."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.sim.corelab import Programs, simulate

CONNECTIONS = 100_000
IDLE_BYTES_MAX = 1024  # both legs and their share of the table


def _scale(binary: Path, **keys: int | str) -> dict[str, int]:
    return simulate(binary, timeout_s=300, **keys)


@pytest.mark.parametrize("cc", ["cubic", "reno", "bbr", "wan"])
def test_hundred_thousand_connections(programs: Programs, cc: str) -> None:
    """Opened, used, idle with keep-alive probes, used again, closed; nothing is lost,
    left or slow.
    """
    result = _scale(programs.scale, conns=CONNECTIONS, cc=cc)
    assert (result["wrong"], result["answers"], result["answers_after"]) == (
        0,
        CONNECTIONS,
        2 * CONNECTIONS,
    )
    assert result["probes"] > 2 * CONNECTIONS  # keep-alive went on meanwhile
    for core in "ab":
        assert result[f"idle_{core}_connections"] == result[f"idle_{core}_parked"] == CONNECTIONS
        assert result[f"idle_{core}_bytes_per_conn"] < IDLE_BYTES_MAX
        # what the system has given is not much more than what is used
        assert result[f"idle_{core}_held_bytes"] < 1.2 * result[f"idle_{core}_used_bytes"] + 2**23
        assert result[f"end_{core}_connections"] == result[f"end_{core}_used_bytes"] == 0
        assert result[f"end_{core}_held_bytes"] < 2**23
    # 30,000 polls of 100,000 connections that have nothing to do: no poll walks through them
    assert result["busy_poll_packets"] == 0
    assert result["cpu_busy_poll_ms"] < 500
    assert result["cpu_ms"] < 30_000


def test_parking_under_sanitizers(programs: Programs) -> None:
    result = _scale(programs.scale_asan, conns=2000, cc="wan")
    assert (result["wrong"], result["idle_a_parked"]) == (0, 2000)
