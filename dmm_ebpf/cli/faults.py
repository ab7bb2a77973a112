# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf faults`: what user stacks do to their own packets, set and listed through the Resource
Director.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmm_ebpf.cli import output
from dmm_ebpf.digits import whole
from dmm_ebpf.errors import UsageError
from dmm_ebpf.show import units

if TYPE_CHECKING:
    from dmm_ebpf.records.fault import FaultRow

LEGS, DIRECTIONS = ("inner", "outer"), ("in", "out")
MAX_DELAY_US = 10_000_000
_TIME_US = {"us": 1, "ms": 1000, "s": 1_000_000}
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(us|ms|s)")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%")
_HOW = "write 1% (at random), 1/100 (each hundredth) or 5 (the next five)"
_ALL_PPM = 1_000_000


def which(name: str, text: str) -> dict[str, int]:
    """Which packets have the fault of that name, as a stack process is told. Raises UsageError."""
    if share := _SHARE.fullmatch(text):
        ppm = round(float(share[1]) * 10_000)
        if 0 < ppm <= _ALL_PPM:
            return {"share_ppm": ppm}
    every = text.removeprefix("1/")
    if number := whole(every, 1 << 63):
        return {"every" if every != text else "first": number}
    raise UsageError(
        f"inject faults with --{name} {text}", why="no packets are named so", hint=_HOW
    )


def delay(text: str) -> tuple[int, dict[str, int]]:
    """Microseconds, and which packets: TIME or TIME,WHICH. Raises UsageError."""
    time, _, packets = text.partition(",")
    said = _TIME.fullmatch(time)
    time_us = round(float(said[1]) * _TIME_US[said[2]]) if said else 0
    if not 0 < time_us <= MAX_DELAY_US:
        raise UsageError(
            f"inject faults with --delay {text}",
            why="that is no time of 1us to 10s",
            hint="write 20ms, or 20ms,5% for one in twenty",
        )
    return time_us, which("delay", packets) if packets else {"share_ppm": _ALL_PPM}


def plans(
    rules: Mapping[str, str],
    delayed: str | None,
    *,
    leg: str | None,
    direction: str | None,
    seed: int | None,
) -> list[dict[str, Any]]:
    """One for each leg and direction that is meant. rules: by the name of a fault, as typed; none,
    and no delay: faults end. Raises UsageError.
    """
    plan: dict[str, Any] = {"rules": {name: which(name, text) for name, text in rules.items()}}
    if delayed is not None:
        plan["delay_us"], plan["rules"]["delay"] = delay(delayed)
    if plan["rules"]:
        plan["seed"] = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    return [
        plan | {"leg": one, "direction": bound}
        for one in ([leg] if leg else LEGS)
        for bound in ([direction] if direction else DIRECTIONS)
    ]


def asked(
    rules: Mapping[str, str],
    delayed: str | None,
    *,
    leg: str | None,
    direction: str | None,
    seed: int | None,
    off: bool,
    on: Sequence[str],
) -> list[dict[str, Any]]:
    """What a command line asks for, as plans(): none to list those that are. off: to end faults;
    on: the stacks. Raises UsageError where its options do not go together.
    """
    new = bool(rules) or delayed is not None
    if off and new:
        raise UsageError("end faults", why="--off and new faults exclude each other")
    if off or new:
        if on:
            return plans(rules, delayed, leg=leg, direction=direction, seed=seed)
        raise UsageError(
            "inject faults", why="no stack is named", hint="`dmm-ebpf stacks` lists them"
        )
    if leg or direction or seed is not None:
        raise UsageError("inject faults", why="none is named", hint="add --drop 1%, or see --help")
    return []


def run(
    instance: str, stacks: Sequence[str], wanted: list[dict[str, Any]], *, as_json: bool
) -> None:
    """Sets what is wanted, and prints what is injected then."""
    from dmm_ebpf.rd.api import client

    with client.Client(instance) as rd:
        rows = rd.faults(stacks, wanted)
    if as_json:
        output.print_json(rows)
        return
    for row in rows:
        print(sentence(row))
    if not rows:
        output.note("no faults are injected")


def sentence(row: FaultRow) -> str:
    """What is injected on one leg in one direction, and was so far."""
    process = f"@{row.process}" if row.process else ""
    told = [_rule(name, rule, row.delay_us) for name, rule in row.rules.items()]
    done = [f"{count} {_DONE[name]}" for name, count in row.done.items() if count]
    if row.no_room:
        done.append(f"{row.no_room} lost for want of room")
    return units.clean(
        f"{row.stack}{process} injects faults, {row.leg} leg {row.direction}: "
        f"{', '.join(told)}, seed {row.seed}; of {row.seen} packets "
        f"{', '.join(done) or 'none had one'}"
    )


_DONE = {
    "drop": "dropped",
    "corrupt": "corrupted",
    "duplicate": "duplicated",
    "reorder": "reordered",
    "delay": "delayed",
}


def _rule(name: str, rule: Mapping[str, int], delay_us: int) -> str:
    ((how, value),) = rule.items()
    said = {
        "share_ppm": f"{value / 10_000:g}%",
        "every": f"1/{value}",
        "first": f"the next {value}",
    }
    of = "" if name == "delay" and value == _ALL_PPM and how == "share_ppm" else f" {said[how]}"
    return f"{name} {delay_us / 1000:g}ms{of}" if name == "delay" else f"{name}{of}"
