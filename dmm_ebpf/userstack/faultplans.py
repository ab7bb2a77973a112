# SPDX-License-Identifier: Apache-2.0
"""What a stack process is asked to do to its packets, and what it says that it has done: between
the messages of its control socket and the structures of engine.h.

A plan is of one leg and one direction: {"leg", "direction", "rules", "delay_us", "seed"}. rules
says by the name of a fault which packets have it: {"first": the next so many}, {"every": each
so-manyth} or {"share_ppm": so many of a million, at random}. Without rules the faults end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.userstack._core import ffi, lib

LEGS = {"inner": lib.DMM_LEG_INNER, "outer": lib.DMM_LEG_OUTER}
BOUNDS = {"in": lib.DMM_INBOUND, "out": lib.DMM_OUTBOUND}
FAULTS = {
    "drop": lib.DMM_FAULT_DROP,
    "corrupt": lib.DMM_FAULT_CORRUPT,
    "duplicate": lib.DMM_FAULT_DUPLICATE,
    "reorder": lib.DMM_FAULT_REORDER,
    "delay": lib.DMM_FAULT_DELAY,
}
MAX_DELAY_US = 10_000_000
_MILLION = 1_000_000
_MOST = {"first": 1 << 63, "every": 1 << 63, "share_ppm": _MILLION}  # of the ways to say which
_WHAT = "inject faults"


def _whole(what: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise UsageError(_WHAT, why=f"{what} {value!r} is no whole number of {least} to {most}")
    return value


def _rule(name: str, said: Any) -> tuple[str, int]:
    """How the packets are named, and the number."""
    if not isinstance(said, Mapping) or len(said) != 1 or not set(said) <= set(_MOST):
        raise UsageError(_WHAT, why=f"{name} says not which packets, by one of {', '.join(_MOST)}")
    ((how, value),) = said.items()
    return how, _whole(f"{name} {how}", value, 1, _MOST[how])


def _plan(params: Mapping[str, Any]) -> Any:
    rules = params.get("rules")
    if not isinstance(rules, Mapping) or not set(rules) <= set(FAULTS):
        raise UsageError(_WHAT, why=f"there are {', '.join(FAULTS)}, and not {rules!r}")
    plan = ffi.new("struct dmm_fault_plan *")
    plan.seed = _whole("the seed", params.get("seed", 0), 0, (1 << 64) - 1)
    plan.delay_ns = 1000 * _whole("the delay", params.get("delay_us", 0), 0, MAX_DELAY_US)
    if "delay" in rules and not plan.delay_ns:
        raise UsageError(_WHAT, why="a delay has no time")
    for name, said in rules.items():
        how, value = _rule(name, said)
        rule = plan.rule[FAULTS[name]]
        if how == "share_ppm":
            rule.share = (value << 32) // _MILLION
        else:
            setattr(rule, how, value)
    return plan


def put(engine: Any, params: Mapping[str, Any]) -> None:
    """Gives a struct dmm_engine the plan that params say. Raises UsageError for what is none, and
    DmmError when there is no memory.
    """
    leg, bound = params.get("leg"), params.get("direction")
    if leg not in LEGS or bound not in BOUNDS:
        raise UsageError(_WHAT, why=f"there is no leg {leg!r} with a direction {bound!r}")
    if lib.dmm_engine_set_faults(engine, LEGS[leg], BOUNDS[bound], _plan(params)) < 0:
        raise DmmError(_WHAT, why="there is no memory for packets that are kept")


def told(engine: Any) -> Iterator[dict[str, Any]]:
    """The plans of an engine, as they were given, with "seen", the packets since then, "done", how
    many had each fault, and "no_room", how many were lost since too many were kept.
    """
    plan, counts = ffi.new("struct dmm_fault_plan *"), ffi.new("struct dmm_fault_counts *")
    for leg, leg_number in LEGS.items():
        for bound, bound_number in BOUNDS.items():
            if lib.dmm_engine_faults(engine, leg_number, bound_number, plan, counts):
                yield {
                    "leg": leg,
                    "direction": bound,
                    "rules": {n: said for n, i in FAULTS.items() if (said := _said(plan.rule[i]))},
                    "delay_us": int(plan.delay_ns) // 1000,
                    "seed": int(plan.seed),
                    "seen": int(counts.seen),
                    "done": {name: int(counts.done[i]) for name, i in FAULTS.items()},
                    "no_room": int(counts.no_room),
                }


def _said(rule: Any) -> dict[str, int]:
    if rule.share:
        return {"share_ppm": round(int(rule.share) * _MILLION / (1 << 32))}
    return {how: int(getattr(rule, how)) for how in ("first", "every") if getattr(rule, how)}
