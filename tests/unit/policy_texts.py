# SPDX-License-Identifier: Apache-2.0
"""Random policies, as text, and the flows to ask them about (Hypothesis strategies)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policy

CGROUPS = {"/": (1, 0), "/a": (11, 1), "/a/b": (12, 2), "/c": (13, 1)}
# Device and inode number: one of each is not enough
EXECUTABLES = {"/bin/a": (1, 10), "/bin/b": (1, 11), "/b": (2, 10)}
STACKS = """
[stacks.k]
kind = "kernel"
[stacks.u]
kind = "user"
[stacks.v]
kind = "user"
fallback = "reject"
"""


def one_of_each(*choices: Sequence[Any]) -> st.SearchStrategy[list[Any]]:
    """One of each of choices, drawn as one number: a draw is what an example costs."""

    def read(number: int) -> list[Any]:
        chosen = []
        for some in choices:
            number, at = divmod(number, len(some))
            chosen.append(some[at])
        return chosen

    return st.integers(0, math.prod(map(len, choices)) - 1).map(read)


# Few prefixes, nearly all around two addresses, so that they nest; few ports, so that they meet.
NESTED = [
    "default", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/23", "10.1.2.0/24", "10.1.2.2/31", "10.1.2.3",
    "::/0", "2001::/16", "2001:db8::/32", "2001:db8::/64", "2001:db8::/127", "2001:db8::1", "11.0.0.0/8", "fe80::/10",
]  # fmt: skip
ASKED = [
    "10.1.2.3", "10.1.2.3", "10.1.2.2", "10.1.3.9", "10.2.0.1", "11.0.0.1", "255.255.255.255", "::ffff:10.1.2.3",
    "2001:db8::1", "2001:db8::1", "2001:db8::", "2001:db8:0:1::5", "2001::1", "fe80::1", "::1",
]  # fmt: skip
ports = st.sampled_from([1, 2, 3, 80, 442, 443, 444, 8000, 8063, 8064, 65534, 65535])
SERVING = ["k", "u", "v", "kernel", "reject", "blackhole"]


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
COMMON = [
    ("tcp", "443"),
    ("tcp", "80"),
    ("tcp", "80-443"),
    ("udp", ""),
    ("tcp", ""),
    ("", "443"),
    ("", ""),
]


@st.composite
def routes(draw: st.DrawFn) -> dict[str, str]:
    to, stack, (proto, span), other = draw(one_of_each(NESTED, SERVING, COMMON, range(3)))
    if other == 2:
        proto = draw(st.sampled_from(["tcp", "udp", ""]))
        span = draw(port_lists())
    route = {"to": to, "stack": stack, "proto": proto, "ports": span}
    return {key: value for key, value in route.items() if value}


CONDITIONS: dict[str, list[object]] = {
    "cgroup": ["/*", "/[!a]", "/a/?", "/*/b*", *sorted(CGROUPS)],
    "uid": [0, 999, 1000, "1000-2000", "0-4294967294", 2001],
    "gid": [33, 999, "33-1000", "1001-4294967294"],
    "comm": ["curl", "nginx", "fifteen-letters"],
    "executable": sorted(EXECUTABLES),
    "mark": [0, "0x10", "0x10/0x30", "0/0x1"],
    "dscp": [0, 10],
    "local_port": [443, "1-1023", "80, 8000-8100"],
    "interface": ["eth0", "wg0"],
}

MOST_RULES, MOST_EXCEPTIONS = 5, 3
MOST_WAYS = C.DMM_MAX_CHECKS // (MOST_RULES * (1 + MOST_EXCEPTIONS))  # a policy's lists are bounded


@st.composite
def conditions(draw: st.DrawFn, rarity: int) -> dict[str, object]:
    """Each in one of rarity + 1 tables, and some of them as lists, of MOST_WAYS together. The
    least and the greatest number are drawn often, so neither means that all are there.
    """
    found: dict[str, object] = {}
    ways = 1
    here = draw(one_of_each(*[range(rarity + 1)] * len(CONDITIONS)))
    for at, (key, values) in zip(here, CONDITIONS.items(), strict=True):
        if at == 1:
            some = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
            single = len(some) == 1 or key == "local_port" or ways * len(some) > MOST_WAYS
            found[key] = some[0] if single else some
            ways *= 1 if single else len(some)
    return found


@st.composite
def rules(draw: st.DrawFn) -> dict[str, object]:
    rule: dict[str, object] = {"table": draw(st.sampled_from(["t", "s"]))}
    rule |= draw(conditions(5))
    if draw(st.integers(0, 3)) == 0:
        some = draw(st.lists(conditions(3).filter(bool), min_size=1, max_size=MOST_EXCEPTIONS))
        rule["not"] = some[0] if len(some) == 1 else some
    if draw(st.integers(0, 7)) == 0:
        del rule["table"]
        rule["action"] = draw(st.sampled_from(["prohibit", "unreachable"]))
    elif "interface" not in str(rule) and draw(st.integers(0, 2)) == 0:
        rule["direction"] = draw(st.sampled_from(["connect", "listen"]))
    return rule


FACTS: dict[str, Sequence[Any]] = {
    "addr": ASKED,
    "proto": [6, 17],
    "cgroup": sorted(CGROUPS),
    "uid": [0, 999, 1000, 2000],
    "gid": [0, 33, 1000],
    "comm": ["curl", "nginx", "fifteen-letters"],
    "executable": [*EXECUTABLES, "/bin/other"],
    "mark": [0, 1, 0x10, 0x30],
    "dscp": [0, 10],
    "local_port": [0, 80, 443, 8000, 60000],
    "interface": ["", "eth0", "wg0"],
    "direction": [C.DMM_DIR_CONNECT, C.DMM_DIR_LISTEN],
}


def queries() -> st.SearchStrategy[evaluate.Query]:
    return st.builds(
        lambda facts, port: evaluate.Query(port=port, **dict(zip(FACTS, facts, strict=True))),
        one_of_each(*FACTS.values()),
        st.one_of(ports, st.just(0), st.integers(0, 65535)),
    )


def toml(table: str, items: Sequence[Mapping[str, object]]) -> str:
    """An array of tables of that name."""

    def value(v: object) -> str:
        if isinstance(v, Mapping):
            return "{ " + ", ".join(f"{key} = {value(one)}" for key, one in v.items()) + " }"
        if isinstance(v, list):
            return f"[{', '.join(map(value, v))}]"
        return f'"{v}"' if isinstance(v, str) else str(v)

    return "".join(
        f"[[{table}]]\n" + "".join(f"{key} = {value(v)}\n" for key, v in item.items())
        for item in items
    )


def _accepted(chosen: list[dict[str, str]]) -> list[dict[str, str]]:
    """The routes, without those that contradict another one: whichever a refusal names goes."""
    kept = list(chosen)
    while True:
        text = STACKS + toml("tables.t.routes", kept)
        try:
            policy.parse(text, source="p.toml", base=Path("/"))
        except PolicyError as refused:
            above = text.splitlines()[: int(refused.what.rpartition(":")[2])]
            del kept[above.count("[[tables.t.routes]]") - 1]
        else:
            return kept


@st.composite
def policy_texts(draw: st.DrawFn, *, min_rules: int = 1) -> str:
    """A policy that is accepted: two tables, with routes that hide each other, and rules that
    lead to them.
    """
    return (
        STACKS
        + "[tables.t]\n[tables.s]\n"
        + toml("rules", draw(st.lists(rules(), min_size=min_rules, max_size=MOST_RULES)))
        + toml("tables.t.routes", _accepted(draw(st.lists(routes(), min_size=3, max_size=16))))
        + toml("tables.s.routes", _accepted(draw(st.lists(routes(), max_size=4))))
    )
