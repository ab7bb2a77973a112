# SPDX-License-Identifier: Apache-2.0
"""For random policies and flows the compiled maps say what the evaluator says."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_lpm import Reader

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd import evaluate, policy
from dmm_ebpf.rd.compile import compile_policy, route_bases
from dmm_ebpf.rd.ids import IdSpace

CGROUPS = {"/": (1, 0), "/a": (11, 1), "/a/b": (12, 2), "/c": (13, 1)}
STACKS = """
[stacks.k]
kind = "kernel"
[stacks.u]
kind = "user"
[stacks.v]
kind = "user"
fallback = "reject"
"""

# Few prefixes, nearly all around two addresses, so that they nest; few ports, so that they meet.
NESTED = [
    "default", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/23", "10.1.2.0/24", "10.1.2.2/31", "10.1.2.3",
    "::/0", "2001::/16", "2001:db8::/32", "2001:db8::/64", "2001:db8::/127", "2001:db8::1", "11.0.0.0/8", "fe80::/10",
]  # fmt: skip
prefixes = st.sampled_from(NESTED)
ASKED = [
    "10.1.2.3", "10.1.2.3", "10.1.2.2", "10.1.3.9", "10.2.0.1", "11.0.0.1", "255.255.255.255", "::ffff:10.1.2.3",
    "2001:db8::1", "2001:db8::1", "2001:db8::", "2001:db8:0:1::5", "2001::1", "fe80::1", "::1",
]  # fmt: skip
ports = st.sampled_from([1, 2, 3, 80, 442, 443, 444, 8000, 8063, 8064, 65534, 65535])
stacks = st.sampled_from(["k", "u", "v", "kernel", "reject"])


@st.composite
def port_lists(draw: st.DrawFn) -> str:
    cuts = sorted(draw(st.sets(ports, min_size=1, max_size=6)))
    items: list[str] = []
    while cuts:
        first = cuts.pop(0)
        if cuts and draw(st.booleans()):
            items.append(f"{first}-{cuts.pop(0)}")
        else:
            items.append(str(first))
    return ",".join(items)


# Mostly the same few matches, so that a longer prefix often hides just a part of a shorter one.
COMMON = [("tcp", "443"), ("tcp", "80"), ("tcp", "80-443"), ("udp", ""), ("tcp", ""), ("", "443"), ("", "")]


@st.composite
def routes(draw: st.DrawFn) -> dict[str, str]:
    proto, span = draw(st.sampled_from(COMMON))
    if draw(st.integers(0, 2)) == 0:
        proto = draw(st.sampled_from(["tcp", "udp", ""]))
        span = draw(port_lists())
    route = {"to": draw(prefixes), "stack": draw(stacks), "proto": proto, "ports": span}
    return {key: value for key, value in route.items() if value}


@st.composite
def rules(draw: st.DrawFn) -> dict[str, object]:
    rule: dict[str, object] = {"table": draw(st.sampled_from(["t", "s"]))}
    if draw(st.integers(0, 3)) == 0:
        rule["cgroup"] = draw(st.sampled_from(sorted(CGROUPS)))
    if draw(st.integers(0, 3)) == 0:
        rule["uid"] = draw(st.sampled_from([0, 1000, "1000-2000", "0-4294967294"]))
    if draw(st.integers(0, 3)) == 0:
        rule["comm"] = draw(st.sampled_from(["curl", "nginx", "fifteen-letters"]))
    if draw(st.integers(0, 3)) == 0:
        rule["mark"] = draw(st.sampled_from([0, "0x10", "0x10/0x30", "0/0x1"]))
    if draw(st.integers(0, 2)) == 0:
        rule["direction"] = draw(st.sampled_from(["connect", "listen"]))
    return rule


@st.composite
def queries(draw: st.DrawFn) -> evaluate.Query:
    return evaluate.Query(
        addr=draw(st.sampled_from(ASKED)),
        port=draw(st.one_of(ports, st.just(0), st.integers(0, 65535))),
        proto=draw(st.sampled_from([6, 17])),
        cgroup=draw(st.sampled_from(sorted(CGROUPS))),
        uid=draw(st.sampled_from([0, 999, 1000, 2000])),
        comm=draw(st.sampled_from(["curl", "nginx", "fifteen-letters"])),
        mark=draw(st.sampled_from([0, 1, 0x10, 0x30])),
        direction=draw(st.sampled_from([C.DMM_DIR_CONNECT, C.DMM_DIR_LISTEN])),
    )


def _toml(table: str, items: list[dict[str, object]]) -> str:
    def value(v: object) -> str:
        return f'"{v}"' if isinstance(v, str) else str(v)

    return "".join(
        f"[[{table}]]\n" + "".join(f"{key} = {value(v)}\n" for key, v in item.items()) for item in items
    )


def _accepted(chosen: list[dict[str, str]]) -> list[dict[str, str]]:
    """The routes, without those that contradict an earlier one."""
    kept: list[dict[str, str]] = []
    for route in chosen:
        text = STACKS + _toml("tables.t.routes", [*kept, route])
        try:
            policy.parse(text, source="p.toml", base=Path("/"))
        except PolicyError:
            continue
        kept.append(route)
    return kept


@settings(max_examples=250, deadline=None)
@given(
    st.lists(routes(), min_size=3, max_size=16),
    st.lists(routes(), max_size=4),
    st.lists(rules(), min_size=1, max_size=5),
    st.lists(queries(), min_size=20, max_size=40),
)
def test_compiled_is_evaluated(
    first: list[dict[str, str]],
    second: list[dict[str, str]],
    rule_list: list[dict[str, object]],
    asked: list[evaluate.Query],
) -> None:
    text = (
        STACKS
        + "[tables.t]\n[tables.s]\n"
        + _toml("rules", rule_list)
        + _toml("tables.t.routes", _accepted(first))
        + _toml("tables.s.routes", _accepted(second))
    )
    parsed = policy.parse(text, source="p.toml", base=Path("/"))
    ids = IdSpace()
    compiled = compile_policy(parsed, ids, CGROUPS.__getitem__)
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


@settings(max_examples=60, deadline=None)
@given(st.lists(routes(), max_size=10))
def test_contradictions_are_exactly_undecidable_flows(chosen: list[dict[str, str]]) -> None:
    """A table is refused if and only if some flow has two best routes that name different stacks."""
    text = STACKS + _toml("tables.t.routes", chosen)
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
                for port in range(int(first), int(last or first) + 1) if kind == "range" else [int(first)]:
                    key = (prefix, route.get("proto", ""), kind, port)
                    if seen.setdefault(key, route["stack"]) != route["stack"]:
                        return True
    return False
