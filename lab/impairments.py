# SPDX-License-Identifier: Apache-2.0
"""Losses and jitter as people write them, and as the emulator's parameters (lab/wanem/emu.h).

Loss is "1%", each packet for itself; "12% burst 3" or "12% burst 5ms", a mean and the mean length
of bursts, in packets or in time; or "gemodel P R 1-H 1-K", the chain itself as netem has it
(tc-netem(8)), also with "step 1ms", a slot of time. Jitter is "10ms", even between 0 and that, or
"10ms exponential", with that for its mean; with "reorder" a packet may overtake another.
"""

from __future__ import annotations

from typing import Any

from dmm_ebpf.errors import UsageError
from lab.units import parse_probability, parse_time_ns

# A burst that is told by its time is walked in steps of so much.
STEP_NS = 100_000
LOSS_EXAMPLE = "it should look like 1%, 12% burst 3, 12% burst 5ms or gemodel 5% 25% 100% 0%"
NO_BURSTS: dict[str, Any] = {
    "burst_p": 0.0,
    "burst_r": 0.0,
    "burst_loss_bad": 0.0,
    "burst_loss_good": 0.0,
    "burst_step_ns": 0,
}


def chain(
    p: float, r: float, bad: float = 1.0, good: float = 0.0, step_ns: int = 0
) -> dict[str, Any]:
    """The fields of a chain: good to bad, bad to good, losses in both."""
    if p > 0 and not r > 0:
        raise UsageError("lose packets in bursts", why="bursts that begin must end: R is above 0")
    return {
        "loss": 0.0,
        "burst_p": p,
        "burst_r": r,
        "burst_loss_bad": bad,
        "burst_loss_good": good,
        "burst_step_ns": step_ns,
    }


def _mean_and_length(value: object, mean: float, length: str) -> dict[str, Any]:
    """A chain whose bad state loses all, whose good one nothing."""
    step_ns = 0 if length.replace(".", "", 1).isdigit() else STEP_NS
    steps = parse_time_ns(length) / STEP_NS if step_ns else float(length)
    least = max(1.0, mean / (1 - mean)) if mean < 1 else float("inf")
    if steps < least:
        shown = f"{least * STEP_NS / 1e6:g} ms" if step_ns else f"{least:g} packets"
        why = (
            f"bursts are at least {shown} long where the mean is so"
            if mean < 1
            else "a burst that never ends has no length"
        )
        raise UsageError(f"use {value!r} as a loss", why=why)
    return chain(mean / (1 - mean) / steps, 1 / steps, step_ns=step_ns) if mean else _independent(0)


def _independent(loss: float) -> dict[str, Any]:
    return {"loss": float(loss)} | NO_BURSTS


def _gemodel(value: object, words: list[str]) -> dict[str, Any]:
    step_ns = 0
    if len(words) > 2 and words[-2] == "step":
        step_ns = parse_time_ns(words[-1])
        words = words[:-2]
        if step_ns < STEP_NS:
            raise UsageError(f"use {value!r} as a loss", why="a step is at least 100us")
    if not 1 <= len(words) <= 4:
        raise UsageError(f"use {value!r} as a loss", why=LOSS_EXAMPLE)
    said = [parse_probability(word) for word in words]
    p, r, bad, good = said + [0.0, 1 - said[0], 1.0, 0.0][len(said) :]
    return chain(p, r, bad, good, step_ns)


def parse_loss(value: str | float) -> dict[str, Any]:
    """Fields of LinkParams."""
    words = str(value).split()
    if words[:1] == ["gemodel"]:
        return _gemodel(value, words[1:])
    if len(words) == 3 and words[1] == "burst":
        return _mean_and_length(value, parse_probability(words[0]), words[2])
    if len(words) != 1:
        raise UsageError(f"use {value!r} as a loss", why=LOSS_EXAMPLE)
    return _independent(parse_probability(words[0]))


def parse_jitter(value: str | float) -> dict[str, Any]:
    """Fields of LinkParams."""
    time, *words = str(value).split() or [""]
    known = {"uniform", "exponential", "reorder"}
    if not set(words) <= known or {"uniform", "exponential"} <= set(words):
        raise UsageError(
            f"use {value!r} as jitter",
            why="it should look like 10ms, 10ms exponential or 10ms uniform reorder",
        )
    return {
        "jitter_ns": parse_time_ns(time),
        "jitter_exponential": int("exponential" in words),
        "jitter_reorder": int("reorder" in words),
    }


def parse_length(value: str | int) -> int:
    """Bytes of a packet; 0: none."""
    text = str(value)
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(
            f"use {value!r} as a length", why="it is a number of bytes from 0 to 65535"
        )
    return int(text)
