# SPDX-License-Identifier: Apache-2.0
"""Adaptive routes as a policy writes them: stack = "auto", with candidates and a goal. What makes
one, and what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from dmm_ebpf.rd.policy.keyed import KeysRefusedError
from dmm_ebpf.rd.policy.model import (
    AUTO,
    GOALS,
    Auto,
    RejectStack,
    RouteRecord,
    Stack,
)
from dmm_ebpf.rd.policy.rule import REFUSING
from dmm_ebpf.rd.policy.values import ValueRefusedError, shown


def is_adaptive(route: RouteRecord, named: Collection[str]) -> bool:
    """Whether a route means to be one. named: the policy's stacks; one may be called "auto"."""
    return bool(route.candidates or route.goal or route.share) or (
        route.stack == AUTO and AUTO not in named
    )


def auto_of(
    route: RouteRecord, stacks: Mapping[str, Stack], problem: Callable[[str], str | None]
) -> Auto:
    """What it names. problem: None for a stack that there is, else what to do. KeysRefusedError:
    the key that is wrong.
    """
    if route.stack != AUTO:
        why = f"candidates, goal and share are for {shown(AUTO)}, and this is {shown(route.stack)}"
        _refuse("stack", why, f'write stack = "{AUTO}", or take candidates, goal and share away')
    if not route.candidates:
        raise KeysRefusedError({"candidates": None})
    if len(route.candidates) < 2:
        _refuse("candidates", "there is one candidate", "name two at least")
    for name in route.candidates:
        hint = problem(name)
        if hint is not None:
            _refuse("candidates", f"no stack is called {shown(name)}", hint)
        if name in REFUSING or isinstance(stacks.get(name), RejectStack):
            why = f"{shown(name)} serves nothing that could be measured"
            _refuse("candidates", why, "name kernel and user stacks")
    goal = next((goal for goal in GOALS if goal == route.goal), GOALS[0])
    return Auto(goal, route.candidates, route.share)


def _refuse(key: str, why: str, hint: str) -> None:
    raise KeysRefusedError({key: ValueRefusedError(why, hint)})


def may_serve(named: Iterable[str], autos: Mapping[str, Auto]) -> Iterator[str]:
    """Who may serve where routes name these: themselves, or the candidates."""
    for name in named:
        auto = autos.get(name)
        yield from auto.candidates if auto else (name,)
