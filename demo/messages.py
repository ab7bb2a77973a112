# SPDX-License-Identifier: Apache-2.0
"""Small messages over a lossy link, two traces side by side: each message, and how long it took
there and back.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from lab.steady import Pace, Told

# One connection, long enough for a sender to learn what the link loses
PACE = Pace(1, 160, 1024, 0.05)
SHOWN = 24  # the last ones
BAR = 26  # characters of the longest bar


def times_ms(told: Told) -> list[float]:
    """In the order in which they were sent; infinite: it never came."""
    keys = ((0, number) for number in range(PACE.messages))
    return [told.message_s.get(key, float("inf")) * 1e3 for key in keys]


def _bar(ms: float, unit_ms: float) -> str:
    """One mark for each unit; what is longer than the column ends in +."""
    if ms == float("inf"):
        return "never"
    marks = max(1, round(ms / unit_ms))
    bar = "=" * marks if marks <= BAR else "=" * (BAR - 1) + "+"
    return f"{bar:{BAR}} {ms:4.0f} ms"


def trace(sides: Mapping[str, Sequence[float]], rtt_ms: float) -> Iterator[str]:
    """Lines of plain text: the last messages, then what all of them took."""
    unit_ms = rtt_ms / 2
    wide = BAR + 8
    names = list(sides)
    yield f"{'message':>7}  " + "  ".join(f"{name:{wide}}" for name in names).rstrip()
    count = len(sides[names[0]])
    for number in range(max(0, count - SHOWN), count):
        bars = (f"{_bar(sides[name][number], unit_ms):{wide}}" for name in names)
        yield f"{number:7}  " + "  ".join(bars).rstrip()
    for what, share in (("median", 0.5), ("slowest", 1.0)):
        texts = []
        for name in names:
            ordered = sorted(sides[name])
            value = statistics.median(ordered) if share < 1 else ordered[-1]
            texts.append(f"{'':{BAR}} {value:4.0f} ms")
        yield f"{what:>7}  " + "  ".join(texts)
