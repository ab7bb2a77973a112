# SPDX-License-Identifier: Apache-2.0
"""A fleet's single routes beside a policy mean what they would if they were written in it: the same
stacks, and the same contradictions.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy_texts import CGROUPS, STACKS, queries, routes, toml
from test_overlay import RULE, _best, _find, _Ranked

from dmm_ebpf.central.client import Item
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.director import fleetroutes
from dmm_ebpf.rd.director.fleetroutes import NotBesideError, beside
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.livetable import LiveRoutes
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.overlay import Overlay
from dmm_ebpf.rd.policy.owning import of_live
from dmm_ebpf.rd.sources.compose import single


def _parsed(written: list[dict[str, str]]) -> Policy:
    text = STACKS + RULE + toml("tables.t.routes", written)
    return policy.parse(text, source="p.toml", base=Path("/"))


def _line(route: dict[str, str]) -> str:
    ports = route.get("ports", "")
    quoted = f'"{ports}"' if "," in ports else ports
    return f"{route['to']},{route.get('proto', '')},{quoted},{route['stack']}"


@pytest.mark.parametrize("few", [0, 100])
@settings(max_examples=80)
@given(
    st.lists(routes(), min_size=1, max_size=6),
    st.lists(routes(), min_size=1, max_size=6),
    st.lists(queries(), min_size=10, max_size=20),
)
@example(
    written=[{"to": "default", "stack": "k", "proto": "tcp", "ports": "1-2"}],
    alone=[{"to": "default", "stack": "k", "proto": "tcp", "ports": "1-2,3"}],
    asked=[evaluate.Query(addr="10.1.2.3", port=2, proto=6, cgroup="/a/b", uid=0, comm="curl")],
)
def test_they_mean_what_they_would_in_the_policy(
    few: int,
    written: list[dict[str, str]],
    alone: list[dict[str, str]],
    asked: list[evaluate.Query],
) -> None:
    try:
        base = _parsed(written)
    except PolicyError:
        return
    item = Item("want/routes/t/x", "\n".join(map(_line, alone)).encode(), 1)
    rows = single([item])
    assert rows is not None
    try:
        joined = _parsed([*written, *alone])
    except PolicyError:
        joined = None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fleetroutes, "_FEW", few)
        try:
            made = beside(base, rows, 1)
        except NotBesideError:
            made = None
    assert (made is None) == (joined is None)
    if made is None or joined is None or made.fleet is None:
        return
    made = made.with_live(LiveRoutes())
    ids, overlay = IdSpace(), Overlay()
    compiled = compile_policy(made, ids, CGROUPS.__getitem__)
    reader = _Ranked(compiled, CGROUPS)
    names = {one.recorded: one.text() for one in made.fleet.routes.values()}
    overlay.change([of_live(one, ids) for one in made.fleet.routes.values()])
    for query in asked:
        verdict, wanted = evaluate.route_get(made, query), evaluate.route_get(joined, query)
        assert verdict.wanted == wanted.wanted
        assert (verdict.route is None) == (wanted.route is None)
        found = _best(reader.policy(ids.table("t"), query), _find(overlay, ids.table("t"), query))
        assert (found is None) == (verdict.route is None)
        if found is not None:
            assert ids.stack_name(found[0]) == verdict.wanted
            told = names.get(found[1]) or compiled.route_text(found[1])
            assert told == verdict.route, "the same one, where two are equal"


@pytest.mark.parametrize(
    "line", ["nft:inet filter s,,,k", "dns:a.example,,,k", "10.0.0.0/8,,,auto", "x,,,k"]
)
def test_what_only_a_policy_can_mean_is_left_to_it(line: str) -> None:
    assert single([Item("want/routes/t/x", line.encode(), 1)]) is None


@pytest.mark.parametrize("key", ["want/routes/nosuch/x", "want/routes/t/x"])
def test_a_table_or_stack_that_is_not_there_is_not_beside(key: str) -> None:
    told = single([Item(key, b"10.0.0.0/8,,,nosuch", 1)])
    assert told is not None
    with pytest.raises(NotBesideError, match=key):
        beside(_parsed([{"to": "192.0.2.0/24", "stack": "kernel"}]), told, 1)
