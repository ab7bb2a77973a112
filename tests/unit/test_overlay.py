# SPDX-License-Identifier: Apache-2.0
"""Routes beside a policy, live ones and elements of its sets: whatever comes and goes, what the
kernel would find in both together is what the evaluator says of both.
"""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_lpm import Reader
from policy_texts import CGROUPS, NESTED, STACKS, queries, routes, toml

from dmm_ebpf import abi
from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.director.places import after, place_of
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.livetable import LiveRoute, LiveRoutes, contradiction
from dmm_ebpf.rd.policy.named import Contents, edits
from dmm_ebpf.rd.policy.nftsets import parse_set
from dmm_ebpf.rd.policy.overlay import Block, Overlay, Own, Place, Shown
from dmm_ebpf.rd.policy.owning import of_elements, of_live
from dmm_ebpf.rd.policy.routes import Match
from dmm_ebpf.rd.policy.values import (
    Prefix,
    parse_address,
    parse_ports,
    parse_prefix,
    parse_protocol,
)

SETS = ["nft:inet filter s0", "nft:inet filter s1"]
RULE = '[[rules]]\ntable = "t"\n[tables.t]\n'


def _live(route: dict[str, str], number: int) -> list[LiveRoute]:
    ports = parse_ports(route["ports"]) if "ports" in route else ()
    match = Match(parse_protocol(route.get("proto", "")), ports)
    return [
        LiveRoute(number + at, "t", prefix, match, route["stack"])
        for at, prefix in enumerate(parse_prefix(route["to"]))
    ]


def _prefixes(texts: list[str]) -> tuple[Prefix, ...]:
    return tuple(dict.fromkeys(prefix for text in texts for prefix in parse_prefix(text)))


def _find(overlay: Overlay, table: int, query: evaluate.Query) -> Shown | None:
    """As bpf/decide.h looks live[] and live_ports[] up."""
    family, addr = parse_address(query.addr)
    bits = 32 if family == 4 else 128
    for length in range(bits, -1, -1):
        said = overlay.said(Place(table, family, addr >> bits - length << bits - length, length))
        if isinstance(said, Shown):
            return said
        if said is not None:
            return _port(said, query)
    return None


def _port(blocks: tuple[Block, ...], query: evaluate.Query) -> Shown | None:
    fit = [
        one
        for one in blocks
        if one.proto == query.proto and not (one.first ^ query.port) >> 64 - one.length
    ]
    return max(fit, key=lambda one: one.length).shown if fit else None


def _best(policy_found: tuple[int, int] | None, live: Shown | None) -> tuple[int, int] | None:
    """The route that counts, by its number and its stack."""
    if live is not None and (
        policy_found is None or live.stack >> C.DMM_RANK_SHIFT > policy_found[0] >> C.DMM_RANK_SHIFT
    ):
        return live.stack & 0xFF, live.route
    return None if policy_found is None else (policy_found[0] & 0xFF, policy_found[1])


class _Ranked(Reader):
    """One that tells ranks, too."""

    def policy(self, table: int, query: evaluate.Query) -> tuple[int, int] | None:
        found = self._route(table, query)
        return None if found is None else (self.ranked, found[1])

    def _seen(self, ranked: int) -> int:
        self.ranked = ranked
        return super()._seen(ranked)


@settings(max_examples=150)
@given(
    st.lists(routes(), max_size=8),
    st.lists(st.tuples(st.booleans(), routes()), min_size=1, max_size=14),
    st.lists(st.tuples(routes(), st.sampled_from(SETS)), max_size=4),
    st.lists(st.lists(st.lists(st.sampled_from(NESTED), max_size=5), min_size=2, max_size=2)),
    st.lists(queries(), min_size=10, max_size=30),
)
def test_both_together_are_what_the_evaluator_says(
    written: list[dict[str, str]],
    changes: list[tuple[bool, dict[str, str]]],
    named: list[tuple[dict[str, str], str]],
    contents: list[list[list[str]]],
    asked: list[evaluate.Query],
) -> None:
    own = [*written, *({**route, "to": to} for route, to in named)]
    try:
        parsed = policy.parse(
            STACKS + RULE + toml("tables.t.routes", own), source="p.toml", base=Path("/")
        )
    except PolicyError:
        return  # two contradict
    live, overlay, ids = LiveRoutes(), Overlay(), IdSpace()
    names = [*parsed.stacks, *("k", "u", "v", "reject", "blackhole")]
    ids.assign(dict.fromkeys(names), parsed.tables)
    for number, (puts, said) in enumerate(changes):
        for one in _live(said, 2 * number):
            there = live.routes.get(one.key)
            of_prefix = [r for r in live.of_prefix("t", one.prefix) if r is not there]
            put = [one] if puts and contradiction([*of_prefix, one]) is None else []
            drop = [there] if there is not None and (put or not puts) else []
            live.change(put, drop)
            overlay.change((of_live(r, ids) for r in put), (of_live(r, ids) for r in drop))
    before: Contents = {}
    for elements in contents:
        now = {parse_set(to): _prefixes(one) for to, one in zip(SETS, elements, strict=True)}
        what = edits(before, now)
        overlay.change(
            list(of_elements(parsed, ids, {name: one.put for name, one in what.items()})),
            list(of_elements(parsed, ids, {name: one.drop for name, one in what.items()})),
        )
        before = now
    filled = parsed.with_elements(before)
    afresh = Overlay()
    afresh.change(
        [
            *(of_live(one, ids) for one in live.routes.values()),
            *of_elements(filled, ids, filled.elements),
        ]
    )
    assert list(afresh) == list(overlay)
    assert [afresh.said(place) for place in afresh] == [overlay.said(place) for place in overlay]

    joined = filled.with_live(live)
    compiled = compile_policy(joined, ids, CGROUPS.__getitem__)
    reader = _Ranked(compiled, CGROUPS)
    table = ids.table("t")
    numbers = {one.recorded: one.text() for one in live.routes.values()}
    for query in asked:
        verdict = evaluate.route_get(joined, query)
        found = _best(reader.policy(table, query), _find(overlay, table, query))
        if found is None:
            assert verdict.route is None
            continue
        assert ids.stack_name(found[0]) == verdict.wanted
        assert bool(verdict.live) == bool(found[1] & C.DMM_ROUTE_LIVE)
        texts = numbers.get(found[1]) if verdict.live else compiled.route_text(found[1])
        assert texts == verdict.route


def test_a_prefix_among_many_leaves_the_others_as_they_are() -> None:
    overlay, match = Overlay(), Match(6, ((443, 443),))
    places = [Place(1, 4, (10 << 24) + number, 32) for number in range(2000)]
    overlay.change((place, Own(match, 1, 7, 0)) for place in places)
    assert overlay.change([(places[5], Own(Match(0, ()), 2, 8, C.DMM_RANK_LIVE))]) == {places[5]}
    above = Place(1, 4, 10 << 24, 24)
    changed = overlay.change([(above, Own(Match(0, ()), 3, 9, C.DMM_RANK_LIVE))])
    open_ones = {*places[:256]} - {places[5]}
    assert changed == {above} | open_ones, "what the ports leave open is the shorter prefix's"


def test_a_generation_after_the_last_number_keeps_its_half_and_leaves_its_place() -> None:
    last = 2**32 - 1
    for step in (1, 2, 3):
        for before in (last - 1, last):
            then = after(before, step)
            assert 0 < then < 2**32
            assert (then ^ before) & 1 == step & 1
            if step > 1:
                assert place_of(then) != place_of(before)
    assert abi.C.DMM_LIVE_PLACES & (abi.C.DMM_LIVE_PLACES - 1) == 0
