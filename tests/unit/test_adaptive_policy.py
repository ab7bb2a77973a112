# SPDX-License-Identifier: Apache-2.0
"""Adaptive routes as a policy writes them: what they become, and the sentence for each that is
wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from policy_lpm import nodes

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import expect, schema
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.warnings import warnings

TEXT = """
[stacks.wan]
kind = "user"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "192.0.2.0/24"
stack = "wan"
[[tables.t.routes]]
to = "0.0.0.0/0"
stack = "auto"
candidates = ["kernel", "wan"]
"""
NAME = "auto:throughput:kernel,wan"


def parse(text: str) -> Policy:
    return policies.parse(text, source="p.toml", base=Path("/"))


def test_what_an_adaptive_route_becomes() -> None:
    policy = parse(TEXT)
    assert policy.autos[NAME].candidates == ("kernel", "wan")
    assert policy.routed_stacks() == ["wan", "kernel"]
    assert not list(warnings(policy))
    ids = IdSpace()
    compiled = compile_policy(policy, ids, lambda _: (1, 1))
    stacks = {stack & 0xFF for _, stack in nodes(compiled).said()}
    assert stacks == {ids.stack("wan"), ids.stack(NAME) | C.DMM_STACK_ADAPTIVE}
    assert compiled.is_adaptive
    assert ids.stack(NAME) not in compiled.stacks  # so no program finds a stack there
    assert not compile_policy(parse(""), ids, lambda _: (1, 1)).is_adaptive


def test_who_serves_is_not_the_policys_to_say() -> None:
    policy = parse(TEXT)
    assert route_get(policy, Query("10.0.0.1")).stack == NAME
    assert route_get(policy, Query("10.0.0.1", direction=C.DMM_DIR_LISTEN)).stack == NAME
    begun = route_get(policy, Query("10.0.0.1", 53, 17, direction=C.DMM_DIR_LISTEN))
    assert (begun.stack, begun.why) == (NAME, None)
    lines = "10.0.0.1:80 -> auto\n192.0.2.1:80 -> wan\n10.0.0.1:80 -> wan\n"
    endpoint = lambda text, _: (text.split(":")[0], int(text.split(":")[1]))  # noqa: E731
    found = expect.held(policy, expect.read(lines, policy, "e.txt", endpoint))
    assert [one.ok for one in found] == [True, True, False]


def test_a_stack_may_be_called_auto() -> None:
    policy = parse('[stacks.auto]\nkind = "kernel"\n' + TEXT.replace("candidates", "#"))
    assert not policy.autos
    assert route_get(policy, Query("10.0.0.1")).stack == "auto"


@pytest.mark.parametrize(
    ("written", "instead", "sentence"),
    [
        ('["kernel", "wan"]', '["kernel"]', "there is one candidate"),
        ('["kernel", "wan"]', '["wan", "wan"]', "there is one candidate"),
        ('["kernel", "wan"]', '["kernel", "wam"]', 'no stack is called "wam"; did you mean "wan"'),
        ('["kernel", "wan"]', '["kernel", "reject"]', '"reject" serves nothing'),
        ('["kernel", "wan"]', "[]", "is no list of stacks"),
        ('candidates = ["kernel", "wan"]', "", 'the key "candidates" is missing'),
        ('stack = "auto"', 'stack = "wan"', 'candidates, goal and share are for "auto"'),
        ("candidates", 'goal = "speed"\ncandidates', '"speed" is not a goal'),
        ("candidates", "goal = nan\ncandidates", '"nan" is not a goal'),
    ],
)
def test_what_is_wrong_is_one_sentence(written: str, instead: str, sentence: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(TEXT.replace(written, instead))
    assert sentence in str(refused.value)
    assert "table t, route 2" in str(refused.value)


FROM_FILE = """
[stacks.wan]
kind = "user"
[[rules]]
table = "t"
[tables.t]
routes_from = "p.csv"
candidates = ["kernel", "wan"]
goal = "latency"
[[tables.t.routes]]
to = "10.0.0.0/8"
stack = "auto"
[[tables.t.routes]]
to = "10.1.0.0/16"
stack = "auto"
candidates = ["wan", "kernel"]
"""


def _with_file(text: str, lines: str, folder: Path) -> Policy:
    (folder / "p.csv").write_text(lines, encoding="utf-8")
    return policies.parse(text, source="p.toml", base=folder)


def test_routes_of_a_file_are_adaptive_where_the_table_says_among_whom(tmp_path: Path) -> None:
    plain = "".join(f"192.0.{n}.0/24,tcp,443,auto\n" for n in range(200))  # those that C reads
    lines = f"203.0.113.0/24,,,auto\n198.51.100.0/24,,,wan\n{plain}"
    policy = _with_file(FROM_FILE, lines, tmp_path)
    name = "auto:latency:kernel,wan"
    assert {one: auto.goal for one, auto in policy.autos.items()} == {
        name: "latency",
        "auto:throughput:wan,kernel": "throughput",
    }
    for address, stack in (
        ("203.0.113.1", name),
        ("198.51.100.1", "wan"),
        ("192.0.199.9", name),
        ("10.9.0.1", name),
        ("10.1.0.1", "auto:throughput:wan,kernel"),
    ):
        assert route_get(policy, Query(address, 443)).stack == stack


@pytest.mark.parametrize(
    ("written", "instead", "sentence"),
    [
        ('candidates = ["kernel", "wan"]\ngoal = "latency"\n', "", "p.csv:1: no stack is called"),
        ('candidates = ["kernel", "wan"]\ngoal', "goal", 'the key "candidates" is missing'),
        ('["kernel", "wan"]', '["kernel"]', "there is one candidate"),
        ('"latency"', '"speed"', '"speed" is not a goal'),
        ("[stacks.wan]", '[stacks.auto]\nkind = "kernel"\n[stacks.wan]', "rename the stack"),
    ],
)
def test_what_is_wrong_with_a_table_s_candidates_is_one_sentence(
    tmp_path: Path, written: str, instead: str, sentence: str
) -> None:
    with pytest.raises(PolicyError) as refused:
        _with_file(FROM_FILE.replace(written, instead), "203.0.113.0/24,,,auto\n", tmp_path)
    told = [refused.value, *refused.value.others]
    assert sentence in " / ".join(map(str, told))


def test_the_schema_knows_the_keys() -> None:
    check = Draft202012Validator(schema.schema())
    route = {"to": "default", "stack": "auto", "candidates": ["kernel", "wan"]}

    def valid(**more: object) -> bool:
        tables = {"t": {"routes": [route | more]}}
        return bool(check.is_valid({"tables": tables}))

    assert valid()
    assert valid(goal="latency")
    assert not valid(goal="speed")
    assert not valid(candidates=[])
