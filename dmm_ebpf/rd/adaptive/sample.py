# SPDX-License-Identifier: Apache-2.0
"""What one flow showed of its path, during a while or at its end, and how much of it is believed.

Figures come from programs in the kernel, and from stack processes, which read packets of strangers:
what no path can have is refused here, so that nothing behind this has to ask.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

MAX_SECONDS = 1e7  # four months of one flow
MAX_RATE_BPS = 1e12  # bytes per second: ten times the fastest link there is
MAX_RTT_US = 600_000_000  # ten minutes: no interplanetary paths
MAX_SEGMENTS = 1 << 48
RATE_BYTES = 65536  # a flow that carries less says nothing of the rate
MSS_BYTES = 1448  # of Ethernet and IPv4 with timestamps; where segments are not counted


class End(enum.Enum):
    """How a transfer ended."""

    WELL = "well"
    FAILED = "failed"  # by what a path does: time-out, reset, no way to the peer
    NEITHER = "neither"  # refused by the peer, or given up by the program


@dataclass(frozen=True, slots=True)
class Sample:
    """address: 16 bytes, IPv4 v4-mapped. seconds: for how long. n_bytes: both ways. segments: sent,
    with those that were sent again (resent). rtt_us: 0 is unknown. end: None while it is open.
    """

    address: bytes
    stack: str
    seconds: float
    n_bytes: int
    segments: int
    resent: int
    rtt_us: int
    end: End | None = None

    @property
    def rate(self) -> float | None:
        """Bytes per second; None: too few bytes to tell."""
        return self.n_bytes / self.seconds if self.n_bytes >= RATE_BYTES else None


def checked(sample: Sample) -> Sample | None:
    """The sample, if a path can have these figures; else None: it is as if it had not come."""
    numbers = (sample.seconds, sample.n_bytes, sample.segments, sample.resent, sample.rtt_us)
    if not all(_is_number(number) for number in numbers) or len(sample.address) != 16:
        return None
    in_range = (
        0 < sample.seconds <= MAX_SECONDS
        and 0 <= sample.n_bytes <= sample.seconds * MAX_RATE_BPS
        and 0 <= sample.resent <= sample.segments <= MAX_SEGMENTS
        and 0 <= sample.rtt_us <= MAX_RTT_US
    )
    return sample if in_range else None


def _is_number(value: object) -> bool:
    return type(value) in {int, float} and math.isfinite(value)  # type: ignore[arg-type]


def segments_of(n_bytes: int, resent: int) -> int:
    """About how many segments carried so many bytes, with those that were sent again."""
    return -(-n_bytes // MSS_BYTES) + resent
