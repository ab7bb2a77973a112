# SPDX-License-Identifier: Apache-2.0
"""The trace of messages that the demo shows."""

from __future__ import annotations

from demo.messages import BAR, PACE, SHOWN, times_ms, trace
from lab.steady import Told


def test_a_message_that_never_came_is_longer_than_all():
    told = Told(message_s={(0, 0): 0.05})
    times = times_ms(told)
    assert (times[0], times[1]) == (50, float("inf"))
    assert len(times) == PACE.messages


def test_each_message_has_a_line_and_a_bar_as_long_as_it_took():
    slow = [50.0] * 30 + [126.0, 4000.0, float("inf")]
    lines = list(trace({"kernel": slow, "ours": [51.0] * 33}, 50))
    assert len(lines) == 1 + SHOWN + 2
    rows = {line.split()[0]: line for line in lines}
    assert rows["29"].count("=") == 2 + 2
    assert rows["30"].count("=") == 5 + 2
    assert rows["31"].count("=") == BAR - 1 + 2
    assert "never" in rows["32"]
    assert rows["median"].split()[1:] == ["50", "ms", "51", "ms"]
    assert rows["slowest"].split()[1:] == ["inf", "ms", "51", "ms"]
    # Both sides begin in the same column of every line.
    assert (
        len({line.rindex("==") for line in lines[1:] if line.endswith("51 ms") and "=" in line})
        == 1
    )
    assert max(map(len, lines)) < 90
