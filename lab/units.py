# SPDX-License-Identifier: Apache-2.0
"""Rates, times, probabilities and queue lengths as people write them.

Rates are in bit/s with decimal prefixes, as in tc(8): "100mbit". A queue is "1000p" (packets),
"64KiB" or "9000B" (bytes on the wire), "50ms" (at the rate of the moment), "2bdp" (times rate and
round trip), or "none".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dmm_ebpf.errors import UsageError

_NUMBER = r"(\d+(?:\.\d+)?)"
_RATES = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_TIMES = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_BYTES = {"b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
MIN_BDP_QUEUE_BYTES = 32 * 1538


def _split(what: str, text: str, units: dict[str, int], example: str) -> float:
    match = re.fullmatch(_NUMBER + r"\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise UsageError(f"use {text!r} as {what}", why=f"it should look like {example}")
    return float(match[1]) * units[match[2]]


def parse_rate(value: str | float | None) -> int:
    """bit/s; 0 for None, "none" and "unlimited"."""
    if value is None or value in {"none", "unlimited"}:
        return 0
    return round(_split("a rate", str(value), _RATES, "100mbit, 20kbit or 1gbit"))


def parse_time_ns(value: str | float) -> int:
    """ns; a bare number has no unit and is refused, except 0."""
    text = str(value)
    return (
        0 if text in {"0", "0.0"} else round(_split("a time", text, _TIMES, "50ms, 10us or 1.5s"))
    )


def parse_probability(value: str | float) -> float:
    """0 to 1, from 0.01 or "1%"."""
    text = str(value).strip()
    try:
        p = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        p = -1
    if not 0 <= p <= 1:
        raise UsageError(
            f"use {value!r} as a probability", why="it should look like 1% or 0.01, from 0 to 100%"
        )
    return p


@dataclass(frozen=True)
class Queue:
    """A drop-tail queue's limit, in one of four measures; all None: no limit."""

    pkts: int | None = None
    size_bytes: int | None = None
    time_ns: int | None = None
    bdp: float | None = None

    def limits(self, rate_bps: int, rtt_ns: int) -> dict[str, int]:
        """The emulator's queue keys; 0 means no limit."""
        size = self.size_bytes or 0
        if self.bdp is not None:
            size = max(round(self.bdp * rate_bps * rtt_ns / 8e9), MIN_BDP_QUEUE_BYTES)
        return {"queue_pkts": self.pkts or 0, "queue_bytes": size, "queue_ns": self.time_ns or 0}


def parse_queue(value: str | Queue | None) -> Queue:
    """A Queue from its spelling; None is one bandwidth-delay product."""
    if isinstance(value, Queue):
        return value
    text = "1bdp" if value is None else value.strip().lower()
    if text in {"none", "unlimited"}:
        return Queue()
    if match := re.fullmatch(_NUMBER + "bdp", text):
        return Queue(bdp=float(match[1]))
    if match := re.fullmatch(r"(\d+)p(?:kts?)?", text):
        return Queue(pkts=max(1, int(match[1])))
    example = "1000p, 64KiB, 50ms, 2bdp or none"
    if re.fullmatch(_NUMBER + "(ns|us|ms|s)", text):
        return Queue(time_ns=max(1, round(_split("a queue length", text, _TIMES, example))))
    return Queue(size_bytes=max(1, round(_split("a queue length", text, _BYTES, example))))
