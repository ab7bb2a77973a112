# SPDX-License-Identifier: Apache-2.0
"""nft sets in the place of prefixes: how policies write them, what their elements mean beside
routes that are written, and how nft's JSON is read. tests/apps/test_nft_sets.py has nft itself.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_lpm import DEVICES, Reader
from policy_parsing import U, parse, refusal
from policy_texts import CGROUPS, NESTED, STACKS, queries, routes, toml

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.director import sets
from dmm_ebpf.rd.director.generations import Generations, text_of
from dmm_ebpf.rd.director.rundir import State
from dmm_ebpf.rd.director.sets import Reading
from dmm_ebpf.rd.policy import evaluate, model
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import Labels, compile_policy
from dmm_ebpf.rd.policy.difference import difference
from dmm_ebpf.rd.policy.evaluate import Query
from dmm_ebpf.rd.policy.explain import explain
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.named import MAX_NAMED
from dmm_ebpf.rd.policy.nftsets import SetName
from dmm_ebpf.rd.policy.values import parse_prefix
from dmm_ebpf.rd.policy.warnings import warnings

LOSSY = SetName("inet", "filter", "lossy")
RULE = '[[rules]]\ntable = "t"\n'
ROUTE = '[[tables.t.routes]]\nto = "nft:inet filter lossy"\nproto = "tcp"\nstack = "wan"\n'
TEXT = U + RULE + ROUTE


def prefixes(*texts: str):
    return tuple(prefix for text in texts for prefix in parse_prefix(text))


def stack_of(policy, address, port=0):
    verdict = evaluate.route_get(policy, Query(address, port))
    return verdict.wanted, verdict.route, verdict.element or None


# -- as they are written --


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nft:inet filter lossy", ("inet", "filter", "lossy")),
        ("nft:ip6 f-1 _a.b", ("ip6", "f-1", "_a.b")),
        ("nft:filter  lossy", ("ip", "filter", "lossy")),  # as nft(8): without a family it is ip
        ("nft:inet counter set", ("inet", "counter", "set")),  # nft's own words are names, too
        ("nft:ip lossy", ("ip", "ip", "lossy")),
    ],
)
def test_a_set_is_named_as_nft_names_it(text, name):
    got = parse(TEXT.replace("nft:inet filter lossy", text))
    assert got.sets == (name,)
    assert got.n_routes == 0


@pytest.mark.parametrize("text", ["nft:", "nft:lossy", "nft:inet a b c", "nft:tcp a b", "nft:a @b"])
def test_what_names_no_set_is_refused(text):
    sentence = refusal(TEXT.replace("nft:inet filter lossy", text))
    assert f'policy.toml:6: table t, route 1, to: "{text}" does not name an nft set' in sentence


def test_one_set_to_two_stacks_contradicts(tmp_path: Path):
    sentence = refusal(TEXT + ROUTE.replace("wan", "kernel"))
    assert "policy.toml:9: table t sends nft:inet filter lossy tcp every port to kernel" in sentence
    assert "to wan at policy.toml:5" in sentence
    parse(TEXT + ROUTE)  # the same twice
    parse(TEXT + ROUTE.replace('"tcp"', '"udp"').replace("wan", "kernel"))
    (tmp_path / "p.csv").write_text("nft:inet filter lossy,tcp,,kernel\n")
    sentence = refusal(TEXT + '[tables.t]\nroutes_from = "p.csv"\n', tmp_path)
    assert f"{tmp_path / 'p.csv'}:1: table t sends nft:inet filter lossy" in sentence


def test_more_sets_than_are_read_are_refused():
    many = [{"to": f"nft:inet filter s{n}", "stack": "kernel"} for n in range(MAX_NAMED + 1)]
    assert f"routes and rules name {MAX_NAMED + 1} nft sets and hostnames" in refusal(
        RULE + toml("tables.t.routes", many)
    )


def test_a_routes_file_names_sets(tmp_path: Path):
    (tmp_path / "p.csv").write_text("10.0.0.0/8,,,kernel\nnft:inet filter lossy,tcp,443,wan\n")
    got = parse(U + RULE + '[tables.t]\nroutes_from = "p.csv"\n', tmp_path)
    now = got.with_elements({LOSSY: prefixes("10.1.0.0/16")})
    assert stack_of(now, "10.1.0.1", 443) == ("wan", "nft:inet filter lossy tcp 443", "10.1.0.0/16")
    assert stack_of(now, "10.1.0.1", 80) == ("kernel", "10.0.0.0/8", None)
    assert now.beside.table("t")[0].where == f"{tmp_path / 'p.csv'}:2, element 10.1.0.0/16"


def test_a_table_with_a_set_alone_has_routes():
    assert [str(one) for one in warnings(parse(TEXT))] == []
    udp = [str(one) for one in warnings(parse(TEXT.replace('"tcp"', '"udp"')))]
    assert len(udp) == 1
    assert udp[0].startswith("policy.toml:5: table t: route nft:inet filter lossy udp leads to wan")


# -- what they have --


def test_elements_come_and_go_and_the_policy_is_the_same():
    written = parse(TEXT)
    assert stack_of(written, "192.0.2.1") == ("kernel", None, None)
    now = written.with_elements({LOSSY: prefixes("192.0.2.0/24", "2001:db8::/32")})
    assert now.n_routes == 2
    assert now.as_written is written
    assert stack_of(now, "192.0.2.1") == ("wan", "nft:inet filter lossy tcp", "192.0.2.0/24")
    assert stack_of(now, "2001:db8::1") == ("wan", "nft:inet filter lossy tcp", "2001:db8::/32")
    later = now.with_elements({LOSSY: prefixes("198.51.100.1")})
    assert later.as_written is written
    assert stack_of(later, "192.0.2.1") == ("kernel", None, None)
    assert stack_of(later, "198.51.100.1")[2] == "198.51.100.1/32"
    assert list(difference(now, later)) == []
    assert len(list(difference(parse(U), later))) == 2  # the rule, and the route as it is written
    assert later.with_elements({}).n_routes == 0


def test_what_is_written_comes_before_an_equal_element():
    own = '[[tables.t.routes]]\nto = "192.0.2.0/24"\nproto = "tcp"\nstack = "kernel"\n'
    other = ROUTE.replace("lossy", "other").replace("wan", "reject")
    now = parse(TEXT + own + other).with_elements(
        {
            LOSSY: prefixes("192.0.2.0/24", "192.0.2.7"),
            SetName("inet", "filter", "other"): prefixes("192.0.2.7", "192.0.2.8"),
        }
    )
    assert stack_of(now, "192.0.2.1")[0] == "kernel"
    assert stack_of(now, "192.0.2.7")[0] == "wan"  # of two sets the one that is named first
    assert stack_of(now, "192.0.2.8")[0] == "reject"


def test_the_number_of_a_route_stays_while_its_set_changes():
    """So that open flows of earlier generations are told right, and texts are kept once."""
    after = '[[tables.u.routes]]\nto = "10.0.0.0/8"\nstack = "kernel"\n[[rules]]\ntable = "u"\n'
    own = '[[tables.t.routes]]\nto = "192.0.2.0/24"\nstack = "kernel"\n'
    written = parse(TEXT + own + after)
    numbers = set()
    for elements in ((), ("198.51.100.0/24",), ("198.51.100.0/24", "203.0.113.0/24")):
        now = _compiled_in(written, {LOSSY: prefixes(*elements)})
        compiled = compile_policy(now, IdSpace(), CGROUPS.__getitem__)
        reader = Reader(compiled, CGROUPS)
        for address in ("192.0.2.1", "10.0.0.1", *(one[:-4] + "1" for one in elements)):
            found = reader.find(Query(address, cgroup="/"))
            numbers.add((found.route, compiled.route_text(found.route)))
    assert numbers == {
        (0, "192.0.2.0/24"),
        (1, "nft:inet filter lossy tcp"),
        (2, "10.0.0.0/8"),
    }
    assert Labels(written).route_text(1) == "nft:inet filter lossy tcp"
    texts = Generations(State("default", 1, "/", 0))
    texts.put(7, now, compiled.labels, None)
    assert texts.earlier({7}) == [text_of(written, None, 7)]


def test_explain_tells_which_element():
    now = parse(TEXT).with_elements({LOSSY: prefixes("192.0.2.0/24", "192.0.2.0/25")})
    query = Query("192.0.2.1")
    told = explain(now, query, evaluate.answer(now, query))
    assert told.answer.route == "nft:inet filter lossy tcp"
    assert told.answer.element == "192.0.2.0/25"
    assert [(r.where, r.outcome) for r in told.rules[0].routes] == [
        ("route 1 of table t, element 192.0.2.0/25", "decides"),
        ("route 1 of table t, element 192.0.2.0/24", "shorter prefix"),
    ]


def _compiled_in(written, elements):
    """With more elements than have room beside it."""
    with pytest.MonkeyPatch.context() as few:
        few.setattr(model, "MOST_BESIDE", -1)
        now = written.with_elements(elements)
    assert now.beside is None
    return now


SETS = [f"nft:inet filter s{n}" for n in range(3)]


@settings(max_examples=150)
@given(
    st.lists(routes(), max_size=6),
    st.lists(st.tuples(routes(), st.sampled_from(SETS)), min_size=1, max_size=6),
    st.lists(st.lists(st.sampled_from(NESTED), max_size=6), min_size=3, max_size=3),
    st.lists(queries(), min_size=10, max_size=20),
)
def test_compiled_is_evaluated_with_elements(own, named, contents, asked):
    accepted: list[dict[str, str]] = []
    for route in [*own, *({**route, "to": to} for route, to in named)]:
        text = STACKS + '[[rules]]\ntable = "t"\n' + toml("tables.t.routes", [*accepted, route])
        try:
            written = policy.parse(text, source="p.toml", base=Path("/"))
        except PolicyError:
            continue
        accepted.append(route)
    elements = {
        SetName("inet", "filter", f"s{n}"): tuple(dict.fromkeys(prefixes(*one)))
        for n, one in enumerate(contents)
    }
    now, ids = _compiled_in(written, elements), IdSpace()
    compiled = compile_policy(now, ids, CGROUPS.__getitem__, device_lookup=DEVICES.__getitem__)
    reader = Reader(compiled, CGROUPS)
    for query in asked:
        verdict, found = evaluate.route_get(now, query), reader.find(query)
        assert ids.stack_name(found.stack) == verdict.wanted
        assert (compiled.route_text(found.route) or None) == verdict.route


def test_a_change_that_could_not_be_read_is_not_forgotten(monkeypatch):
    """Whatever reading fails with."""
    name, wrong = SetName("inet", "filter", "lossy"), [KeyError("nft")]
    policy = parse(TEXT).with_elements({name: ()})
    applied, changed = [], asyncio.Event()

    async def _changing(work):
        await work(None)

    async def change_elements(_here, policy, contents, _told=None):
        applied.append(contents)
        instance.policy = policy.with_elements(contents)
        changed.set()

    def read_sets(names):
        if wrong:
            raise wrong.pop()
        return {one: Reading("followed", prefixes("192.0.2.0/24")) for one in names}

    async def story():
        followed = sets.Sets(instance)
        followed._readings = {name: Reading("followed")}
        followed._stale = {name}
        followed._news.set()
        running = asyncio.create_task(followed.run())
        try:
            async with asyncio.timeout(10):
                await changed.wait()
        finally:
            running.cancel()

    instance = SimpleNamespace(policy=policy, change=_changing)
    monkeypatch.setattr(sets, "_read_sets", read_sets)
    monkeypatch.setattr(sets.elementchange, "change", change_elements)
    monkeypatch.setattr(sets, "RETRY_S", 0.0)
    asyncio.run(story())
    assert applied == [{name: prefixes("192.0.2.0/24")}]


# -- who opens what is forwarded --

FORWARD = (
    U + '[[rules]]\nname = "lan"\ndirection = "forward"\nfrom = ["10.0.0.0/8", "nft:ip lan nets"]\n'
    'table = "t"\n[[rules]]\ndirection = "forward"\nfrom = "nft:ip lan nets"\ntable = "t"\n'
    '[[tables.t.routes]]\nto = "default"\nstack = "wan"\n'
)
NETS = SetName("ip", "lan", "nets")


def forwarded(policy, source):
    query = Query("203.0.113.1", 443, source=source, direction=C.DMM_DIR_FORWARD)
    return evaluate.route_get(policy, query)


def test_sources_of_rules_are_elements_too():
    written = parse(FORWARD)
    assert written.sets == (NETS,)
    assert forwarded(written, "192.168.1.1").rule == 0
    now = written.with_elements({NETS: prefixes("192.168.1.0/24", "192.168.2.0/24")})
    assert forwarded(now, "192.168.1.1").rule_text == "lan"
    assert now.rule_text(1) == "2: from nft:ip lan nets forward"
    compiled = compile_policy(now, IdSpace(), CGROUPS.__getitem__)
    assert [(one.rule, one.prefixlen) for one in compiled.forwards] == [
        (1, 104),
        (1, 120),
        (1, 120),
        (2, 120),
        (2, 120),
    ]
    assert list(difference(written, now)) == []
    query = Query("203.0.113.1", 443, source="192.168.3.1", direction=C.DMM_DIR_FORWARD)
    told = explain(now, query, evaluate.answer(now, query))
    assert told.rules[1].mismatches[0].wanted == "nft:ip lan nets"


def test_a_set_without_elements_is_no_source():
    """And not any."""
    now = parse(FORWARD).with_elements({NETS: ()})
    assert forwarded(now, "192.168.1.1").rule == 0
    assert [one.rule for one in compile_policy(now, IdSpace(), CGROUPS.__getitem__).forwards] == [1]


def test_more_sources_than_there_is_room_for_are_refused():
    many = prefixes(*(f"192.168.{n}.0/24" for n in range(C.DMM_MAX_FORWARDS)))
    now = parse(FORWARD).with_elements({NETS: many})
    with pytest.raises(
        PolicyError, match=r"policy.toml:8: rule 2: with what its sets have, .* 129"
    ):
        compile_policy(now, IdSpace(), CGROUPS.__getitem__)


def test_a_set_that_cannot_be_used_is_told_with_its_place():
    written = parse(TEXT)
    wrong = {LOSSY: Reading("refused", why="it is a map; name a set of addresses")}
    (error,) = sets.errors(written, wrong)
    assert str(error) == (
        "cannot accept policy.toml:6: table t, route 1, to: nft:inet filter lossy cannot be used: "
        "it is a map; name a set of addresses"
    )
    assert list(sets.errors(written, {LOSSY: Reading("missing")})) == []
