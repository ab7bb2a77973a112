# SPDX-License-Identifier: Apache-2.0
"""For random policies and flows the compiled maps say what the evaluator says."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_lpm import DEVICES, Reader
from policy_texts import CGROUPS, EXECUTABLES, STACKS, policy_texts, queries, routes, toml

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import compile_policy, route_bases
from dmm_ebpf.rd.policy.ids import IdSpace


@settings(max_examples=250)
@given(
    policy_texts(),
    st.lists(queries(), min_size=20, max_size=40),
)
def test_compiled_is_evaluated(
    text: str,
    asked: list[evaluate.Query],
) -> None:
    parsed = policy.parse(text, source="p.toml", base=Path("/"))
    ids = IdSpace()
    compiled = compile_policy(
        parsed,
        ids,
        CGROUPS.__getitem__,
        device_lookup=DEVICES.__getitem__,
        executable_lookup=EXECUTABLES.__getitem__,
    )
    reader = Reader(compiled, CGROUPS)
    for query in asked:
        verdict = evaluate.route_get(parsed, query)
        found = reader.find(query)
        assert ids.stack_name(found.stack) == verdict.wanted
        assert found.rule == verdict.rule
        assert (ids.table_name(found.table) or None) == verdict.table
        assert (compiled.route_text(found.route) or None) == verdict.route
        if verdict.route is not None:
            bases = dict(zip(parsed.tables, route_bases(parsed), strict=True))
            own = found.route - bases[verdict.table]
            assert parsed.tables[verdict.table][own].stack == verdict.wanted


@settings(max_examples=60)
@given(st.lists(routes(), max_size=10))
def test_contradictions_are_exactly_undecidable_flows(chosen: list[dict[str, str]]) -> None:
    """A table is refused if and only if some flow has two best routes that
    name different stacks.
    """
    text = STACKS + toml("tables.t.routes", chosen)
    try:
        policy.parse(text, source="p.toml", base=Path("/"))
        refused = False
    except PolicyError:
        refused = True
    assert refused == _undecidable(chosen)


def _undecidable(chosen: list[dict[str, str]]) -> bool:
    seen: dict[tuple[str, str, str, int], str] = {}
    for route in chosen:
        to = ["0.0.0.0/0", "::/0"] if route["to"] == "default" else [route["to"]]
        items = route.get("ports", "0-65535 any").split(",")
        for prefix in to:
            for item in items:
                span, _, kind = item.partition(" ")
                first, _, last = span.partition("-")
                kind = kind or ("range" if last and last != first else "exact")
                for port in (
                    range(int(first), int(last or first) + 1) if kind == "range" else [int(first)]
                ):
                    key = (prefix, route.get("proto", ""), kind, port)
                    if seen.setdefault(key, route["stack"]) != route["stack"]:
                        return True
    return False
