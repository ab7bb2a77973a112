# SPDX-License-Identifier: Apache-2.0
"""Policies: what is accepted becomes what, and what is refused gives one sentence
with the place.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from policy_parsing import ROUTE, U, parse, refusal

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile_rules import checks, count_checks
from dmm_ebpf.rd.policy.model import KernelStack, UserStack
from dmm_ebpf.rd.policy.values import IdRange, Prefix
from dmm_ebpf.rd.policy.warnings import warnings

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_accepted(path: Path) -> None:
    assert policy.load(path).rules


def test_the_example_of_wan_reads_as_written() -> None:
    got = policy.load(EXAMPLES / "wan.toml")
    wan = got.stacks["wan"]
    assert isinstance(wan, UserStack)
    assert (wan.congestion, wan.fallback, wan.sndbuf_bytes, wan.memory_bytes) == (
        "wan",
        "careful",
        16 << 20,
        None,
    )
    assert got.rules[0].cgroup == ("/shop.slice",)
    assert got.rules[0].direction == C.DMM_DIR_CONNECT
    assert got.rule_text(0) == "shop"
    table = got.tables["shop"]
    assert [route.text() for route in table] == [
        "203.0.113.0/24 tcp 443,8000-8100",
        "2001:db8:113::/48 tcp 443,8000-8100",
    ]
    assert got.routed_stacks() == ["wan"]
    assert set(got.stacks) == {"kernel", "wan", "careful"}
    assert got.text.startswith("# Long")


def test_kernel_stack_options() -> None:
    got = parse("""
[stacks.x]
kind = "kernel"
congestion = "bbr"
dscp = "ef"
mark = "0x10/0xff"
pacing_rate = "80mbit"
priority = 6
""")
    stack = got.stacks["x"]
    assert isinstance(stack, KernelStack)
    assert (stack.congestion, stack.dscp, stack.pacing_rate_Bps, stack.priority) == (
        "bbr",
        46,
        10_000_000,
        6,
    )
    assert stack.options()["mark"] == "0x10/0xff"


@pytest.mark.parametrize(
    "text",
    ["python:my_cc:Ledbat", "python:/opt/cc/my_cc.py:Ledbat", "c:ledbat", "c:/opt/cc/ledbat.so"],
)
def test_a_plugin_may_be_named_though_it_is_not_there(text: str) -> None:
    stack = parse(f'{U}congestion = "{text}"\n').stacks["wan"]
    assert isinstance(stack, UserStack)
    assert stack.congestion == stack.options()["congestion"] == text


def test_empty_policy_is_a_policy() -> None:
    got = parse("")
    assert (got.rules, got.n_routes, list(got.stacks)) == ((), 0, ["kernel"])


def test_reject_is_there_when_named() -> None:
    got = parse('[[tables.t.routes]]\nto = "default"\nstack = "reject"\n')
    assert list(got.stacks) == ["kernel", "reject"]
    assert [route.prefix for route in got.tables["t"]] == [Prefix(4, 0, 0), Prefix(6, 0, 0)]


def test_what_refuses_is_there_when_named() -> None:
    route = '[[tables.t.routes]]\nto = "10.0.0.0/8"\nstack = "{}"\n'
    got = parse(route.format("prohibit") + '[[rules]]\nuid = 7\naction = "blackhole"\n')
    assert list(got.stacks) == ["kernel", "blackhole", "prohibit"]
    assert [got.stacks[name].options() for name in ("blackhole", "prohibit")] == [
        {"errno": "EINVAL"},
        {"errno": "EACCES"},
    ]
    (rule,) = got.rules
    assert (rule.table, rule.direction) == ("blackhole", C.DMM_DIR_CONNECT)
    assert rule.text() == "uid 7 connect blackhole"
    assert [route.where for route in got.tables["blackhole"]] == ["action blackhole"] * 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('action = "drop"', 'policy.toml:2: rule 1, action: "drop" is not an action of a rule'),
        ('action = "reject"\ntable = "t"', "policy.toml:3: rule 1, table: a rule that refuses"),
        ('action = "reject"\ndirection = "listen"', "opened by a client is not refused"),
        ('action = "reject"\ndirection = "forward"', "forwarded is not refused"),
        ('action = "prohibit"\n[tables.prohibit]\n', "has the name of an action"),
        ('choose = ["unreachable"]', '"unreachable" serves nothing that a program could choose'),
    ],
)
def test_actions_that_are_refused(text: str, why: str) -> None:
    assert why in refusal(f"[[rules]]\n{text}\n[tables.t]\n")


@pytest.mark.parametrize("name", ["reject", "blackhole", "unreachable", "prohibit"])
def test_what_refuses_cannot_be_defined_again(name: str) -> None:
    assert "cannot be redefined" in refusal(f'[stacks.{name}]\nkind = "reject"\n')


def test_conditions_are_lists_and_not_takes_away() -> None:
    rule = (
        '[[rules]]\nuid = [1000, "1001-1999"]\ncgroup = ["/a", "/b", "/a"]\nlocal_port = "80, 443"\n'
        'interface = "eth0"\nnot = [{ uid = 1500 }, { comm = ["x", "y"], mark = 1 }]\ntable = "t"\n'
    )
    (got,) = parse(ROUTE + rule).rules
    assert got.text() == (
        "cgroup /a,/b uid 1000,1001-1999 local_port 80,443 interface eth0 not uid 1500 "
        "not (comm x,y mark 0x1) connect"
    )
    assert got.every("uid") == (IdRange(1000, 1000), IdRange(1001, 1999), IdRange(1500, 1500))
    assert count_checks(got) == len(list(checks([got]))) == 2 * 2 + 1 + 2
    assert [one.skip for one in checks([got])] == [6, 5, 4, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("uid = []", "policy.toml:5: rule 1, uid: the list is empty"),
        ('uid = [1, "x y z"]', 'this host has no user "x y z"'),
        ("not = []", "rule 1, not: the list is empty"),
        ("not = {}", '"{}" is no table of conditions'),
        ("not = { table = 1 }", 'rule 1, not: unknown key "table"; known are cgroup, uid, gid'),
        ("not = [{ uid = 0 }, { uid = -1 }]", 'rule 1, not: uid: "-1" is not a user id'),
        ('interface = "a b"', '"a b" is not a network device'),
        ('interface = "eth0"\ndirection = "listen"', "a listener that is bound to a device"),
        ('not = { interface = "eth0" }\ndirection = "listen"', "a listener that is bound"),
        ("local_port = 0", "0 is not a port"),
        ('not = { uid = 0 }\ndirection = "forward"', "rule 1, not: with direction"),
        ('local_port = 1\ndirection = "forward"', "rule 1, local_port: with direction"),
    ],
)
def test_conditions_that_are_refused(rule: str, why: str) -> None:
    assert why in refusal(ROUTE + f'[[rules]]\n{rule}\ntable = "t"\n')


def test_all_lists_together_have_a_limit() -> None:
    many = ", ".join(f'"c{n}"' for n in range(120))
    rule = f'[[rules]]\ncomm = [{many}]\ntable = "t"\n'
    assert len(list(checks(parse(ROUTE + rule * 2).rules))) == C.DMM_MAX_CHECKS
    sentence = refusal(ROUTE + rule * 2 + '[[rules]]\ntable = "t"\n')
    assert "policy.toml:10: rule 3: the lists of the rules make more than 240 checks" in sentence
    wide = f'[[rules]]\ncomm = [{many}]\nmark = [1, 2, 3]\ntable = "t"\n'
    assert "more than 240 checks" in refusal(ROUTE + wide)
    ids = ", ".join(map(str, range(500)))
    assert count_checks(parse(ROUTE + f'[[rules]]\nuid = [{ids}]\ntable = "t"\n').rules[0]) == 1


def test_policy_is_frozen() -> None:
    got = policy.load(EXAMPLES / "wan.toml")
    with pytest.raises(FrozenInstanceError):
        got.stacks["wan"].fallback = "x"  # type: ignore[misc]


def test_contradiction_names_both_places() -> None:
    sentence = refusal(
        U
        + ROUTE
        + "ports = '80, 443-500'\n"
        + ROUTE.replace("kernel", "wan")
        + 'ports = "450-600"\n'
    )
    assert "policy.toml:7: table t sends 10.0.0.0/8 port 450-500 to wan here" in sentence
    assert "to kernel at policy.toml:3" in sentence


@pytest.mark.parametrize(
    "extra",
    [
        'ports = "450"\n',  # an exact port in a range
        'ports = "443-500"\nproto = "tcp"\n',  # the protocol named
        "",  # every port
    ],
)
def test_more_specific_is_no_contradiction(extra: str) -> None:
    assert (
        parse(U + ROUTE + "ports = '443-500'\n" + ROUTE.replace("kernel", "wan") + extra).n_routes
        == 2
    )


def test_contradiction_with_a_wide_range_behind_narrow_ones() -> None:
    route = ROUTE + 'ports = "{}"\n'
    text = (
        U
        + route.format("1-100")
        + route.format("2-3")
        + route.format("50-60").replace('"kernel"', '"wan"')
    )
    assert "port 50-60 to wan here, and to kernel at policy.toml:3" in refusal(text)


def test_first_toml_of_the_manual_is_accepted() -> None:
    manual = (EXAMPLES.parent / "policy.md").read_text()
    first = manual.split("```toml\n")[1].split("```")[0]
    assert parse(first).routed_stacks() == ["wan"]


def test_same_route_twice_is_no_contradiction() -> None:
    assert parse(ROUTE + ROUTE).n_routes == 2


def test_limits() -> None:
    stack = '[stacks.s{}]\nkind = "kernel"\n'
    assert len(parse("".join(stack.format(n) for n in range(63))).stacks) == 64
    assert "at most 63" in refusal("".join(stack.format(n) for n in range(64)))
    many = "".join(stack.format(n) for n in range(63)) + ROUTE.replace("kernel", "reject")
    assert "63 stacks" in refusal(many)
    rule = '[[rules]]\ntable = "t"\n'
    assert len(parse(ROUTE + 64 * rule).rules) == 64
    sentence = refusal(ROUTE + 65 * rule)
    assert "at most 64" in sentence
    assert f"policy.toml:{3 + 2 * 64 + 1}:" in sentence
    users = "".join(stack.format(n).replace("kernel", "user") for n in range(65))
    assert "at most 63" in refusal(users)
    few = "".join(f'[stacks.s{n}]\nkind = "user"\nprocesses = 13\n' for n in range(5))
    assert "5 user stacks have 65 processes together; a policy has at most 64" in refusal(few)


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (ROUTE + "port = 1\n").replace("\n", "\r\n").encode())
    with pytest.raises(PolicyError, match=r'windows\.toml:4: .*did you mean "ports"\?'):
        policy.load(path)


@pytest.mark.parametrize("old", ["af_packet", "tun"])
def test_an_old_name_of_a_port_goes_on_working_with_a_sentence(old: str) -> None:
    made = parse(U + f'io = "{old}"\n')
    (stack,) = made.user_stacks().values()
    assert stack.io == "tap"
    means = f'io = "{old}" is an old name and means io = "tap" now, which does the same'
    assert f"policy.toml:3: stack wan: {means}" in map(str, warnings(made))


def test_processes_were_called_instances() -> None:
    made = parse(U + "instances = 3\n")
    (stack,) = made.user_stacks().values()
    assert stack.processes == 3
    told = "stack wan: instances is an old name of the key processes, which does the same"
    assert f"policy.toml:3: {told}" in map(str, warnings(made))


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("uid = 1", 'rule 1: the key "table" is missing'),
        ('choose = "wan"', '"wan" is no list of stacks'),
        ("choose = []", '"[]" is no list of stacks'),
        ('choose = ["win"]', 'no stack is called "win"; did you mean "wan"?'),
        ('choose = ["reject"]', '"reject" serves nothing that a program could choose'),
        ('choose = ["wan"]\ndirection = "forward"\ntable = "t"', "no program that could choose"),
        ('direction = "forward"\ntable = "t"\ndscp = 3', "there is no socket"),
    ],
)
def test_what_programs_cannot_be_let_choose(rule: str, why: str) -> None:
    text = f'[stacks.wan]\nkind = "user"\n[[rules]]\n{rule}\n[tables.t]\n'
    assert why in refusal(text)


def test_a_stack_that_may_be_chosen_is_used() -> None:
    got = parse('[stacks.wan]\nkind = "user"\n[[rules]]\nuid = 7\nchoose = ["wan", "kernel"]\n')
    assert got.rules[0].table == "" and got.rule_text(0) == "1: uid 7 choose wan,kernel"
    assert got.routed_stacks() == ["wan", "kernel"]
    assert not list(warnings(got))
