# SPDX-License-Identifier: Apache-2.0
"""`policy explain`: each rule and route that was looked at, and why; it ends where `route get`
does.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_lab import STATUS, Cli, one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonpage import wrong_with
from policy_texts import policy_texts, queries
from test_client import FakeRd, run_root  # noqa: F401 - run_root is a fixture
from test_policy import EXAMPLES
from typer.testing import CliRunner

from dmm_ebpf.abi import C
from dmm_ebpf.cli.app import app
from dmm_ebpf.rd.policy import evaluate, parse
from dmm_ebpf.rd.policy import explain as explaining
from dmm_ebpf.rd.policy.evaluate import Query
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.records.policy import Explained, Mismatch

POLICY = """
[stacks.wan]
kind = "user"
[stacks.lan]
kind = "kernel"

[[rules]]
name = "shop"
cgroup = "/shop.slice"
uid = "33-40"
mark = "0x10/0xf0"
direction = "connect"
table = "shop"

[[rules]]
comm = "curl"
choose = ["wan"]

[[rules]]
direction = "listen"
table = "none"

[[rules]]
direction = "forward"
from = ["10.0.0.0/8", "2001:db8::/32"]
in_interface = "lan*"
table = "shop"

[[rules]]
name = "all"
table = "main"

[[rules]]
table = "shop"

[tables.none]
[[tables.shop.routes]]
to = "203.0.113.0/24"
ports = "443, 8000-8100"
stack = "wan"
[[tables.main.routes]]
to = "default"
stack = "kernel"
[[tables.main.routes]]
to = "203.0.113.0/24"
stack = "lan"
[[tables.main.routes]]
to = "203.0.113.0/24"
ports = "440-450"
proto = "tcp"
stack = "wan"
[[tables.main.routes]]
to = "203.0.113.0/24"
ports = "440-450"
stack = "lan"
[[tables.main.routes]]
to = "203.0.113.0/24"
ports = "440-450"
proto = "tcp"
stack = "wan"
[[tables.main.routes]]
to = "203.0.113.7"
ports = "80"
stack = "lan"
[[tables.main.routes]]
to = "203.0.113.7"
proto = "udp"
stack = "lan"
"""


def parsed(text: str) -> Policy:
    return parse.parse(text, source="p.toml", base=Path("/"))


def explained(query: Query, text: str = POLICY) -> Explained:
    policy = parsed(text)
    answer = evaluate.route_get(policy, query).answer()
    return explaining.explain(policy, query, answer)


def outcomes(told: Explained) -> list[tuple[str, str]]:
    return [(rule.rule.split(":")[0], rule.outcome) for rule in told.rules]


def test_every_rule_and_route_says_why() -> None:
    told = explained(Query("203.0.113.7", 443, cgroup="/shop.slice/till", uid=41, comm="curl"))
    assert outcomes(told) == [
        ("shop", "no match"),
        ("2", "no table"),
        ("3", "no match"),
        ("4", "no match"),
        ("all", "decides"),
    ]
    assert told.left == 1
    assert told.rules[0].mismatches == [
        Mismatch("uid", "33-40", "41"),
        Mismatch("mark", "0x10/0xf0", None),
    ]
    assert told.rules[2].mismatches == [Mismatch("direction", "listen", "connect")]
    decides = told.rules[-1]
    assert decides.table == "main"
    assert [(one.route, one.outcome) for one in decides.routes] == [
        ("203.0.113.0/24 tcp 440-450", "decides"),
        ("203.0.113.0/24 tcp 440-450", "same"),
        ("203.0.113.0/24 port 440-450", "any protocol"),
        ("203.0.113.0/24", "wider ports"),
        ("0.0.0.0/0", "shorter prefix"),
        ("203.0.113.7/32 port 80", "ports"),
        ("203.0.113.7/32 udp", "protocol"),
    ]
    assert decides.routes[0].where == "route 3 of table main"


def test_a_rule_whose_table_has_no_route_is_passed_over() -> None:
    told = explained(Query("203.0.113.7", 444, cgroup="/shop.slice", uid=33, mark=0x1F))
    assert told.rules[0].outcome == "no route"
    assert [one.outcome for one in told.rules[0].routes] == ["ports"]
    assert told.rules[-1].outcome == "decides"


def test_a_listener_ends_with_its_first_rule() -> None:
    told = explained(Query("203.0.113.7", 443, direction=C.DMM_DIR_LISTEN, comm="nginx"))
    assert outcomes(told)[-1] == ("3", "no route")
    assert told.answer.stack == "kernel"


def test_what_is_forwarded() -> None:
    query = Query(
        "203.0.113.7", 443, direction=C.DMM_DIR_FORWARD, source="10.1.1.1", in_interface="lan7"
    )
    assert outcomes(explained(query))[-1] == ("4", "decides")
    told = explained(replace(query, source="192.0.2.1", in_interface=None))
    assert told.rules[3].mismatches == [
        Mismatch("source", "10.0.0.0/8 or 2001:db8::/32", "192.0.2.1"),
        Mismatch("in_interface", "lan*", None),
    ]


def test_a_choice() -> None:
    taken = explained(Query("203.0.113.7", 443, comm="curl", choice="wan"))
    assert outcomes(taken) == [("shop", "no choice"), ("2", "decides")]
    assert (taken.answer.choice, taken.left) == ("taken", 4)
    refused = explained(Query("203.0.113.7", 443, comm="wget", choice="wan"))
    assert refused.answer.choice == "refused" and outcomes(refused)[-1] == ("all", "decides")


def test_a_rule_for_hosts_without_labels() -> None:
    text = POLICY.replace(
        "[[rules]]\nname", '[hosts]\ne = "role=edge"\n[[rules]]\nhosts = "e"\nname', 1
    )
    assert outcomes(explained(Query("203.0.113.7"), text))[0] == ("shop", "no labels")


def test_routes_beyond_are_counted() -> None:
    routes = "".join(
        f'[[tables.t.routes]]\nto = "10.0.0.0/8"\nports = {port}\nstack = "kernel"\n'
        for port in range(1, 200)
    )
    told = explained(Query("10.1.1.1", 77), f'{routes}[[rules]]\ntable = "t"\n')
    (rule,) = told.rules
    assert (len(rule.routes), rule.more) == (explaining.MAX_ROUTES, 199 - explaining.MAX_ROUTES)
    assert (rule.routes[0].route, rule.routes[0].outcome) == ("10.0.0.0/8 port 77", "decides")


CHOICES = st.sampled_from([None, None, "u", "k"])


@given(policy_texts(), queries(), CHOICES, st.booleans())
@settings(max_examples=300)
def test_it_ends_where_route_get_does(
    text: str, query: Query, choice: str | None, lets: bool
) -> None:
    text += '[[rules]]\nuid = "1000-2000"\nchoose = ["u"]\n' if lets else ""
    policy = parsed(text)
    query = replace(query, choice=choice)
    verdict = evaluate.route_get(policy, query)
    told = explaining.explain(policy, query, verdict.answer())
    decided = [rule for rule in told.rules if rule.outcome == "decides"]
    assert [rule.number for rule in told.rules] == list(range(1, len(told.rules) + 1))
    assert told.left == len(policy.rules) - len(told.rules)
    assert len(decided) <= 1 and all(rule is told.rules[-1] for rule in decided)
    route = decided[0].routes[0] if decided and decided[0].routes else None
    assert (route and route.route) == verdict.route
    if route:
        assert (route.stack, decided[0].table) == (verdict.wanted, verdict.table)
    if verdict.rule:
        assert told.rules[-1].number == verdict.rule
    else:
        assert not told.left
    for rule in told.rules:
        assert bool(rule.mismatches) == (rule.outcome == "no match")
        assert evaluate.rule_matches(policy.rules[rule.number - 1], query) or rule.outcome in (
            "no match",
            "no choice",
        )


# -- the command --


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(POLICY, encoding="utf-8")
    return path


pytestmark = pytest.mark.usefixtures("run_root")


def test_by_a_file_no_instance_is_asked(cli: Cli, file: Path) -> None:
    said = cli("policy", "explain", "203.0.113.7:443", "--uid", "41", "--policy", str(file))
    lines = said.out.splitlines()
    assert (said.code, said.err) == (0, "")
    assert lines[0] == "rule shop"
    assert lines[1] == (
        "    does not match: it asks for cgroup /shop.slice, and none was said (--cgroup); "
        "uid is 41, and it asks for 33-40; "
        "it asks for mark 0x10/0xf0, and none was said (--mark)"
    )
    assert (
        "        0.0.0.0/0 -> kernel: a longer prefix comes first (route 1 of table main)" in lines
    )
    assert "1 rule more not looked at" in lines
    assert "203.0.113.7 proto tcp port 443 stack wan table main" in lines


def test_the_manual_shows_what_is_printed(cli: Cli) -> None:
    manual = (EXAMPLES.parent / "policy.md").read_text(encoding="utf-8")
    (shown,) = [block for block in manual.split("```") if block.startswith("\nrule backups")]
    kernel = str(EXAMPLES / "kernel.toml")
    said = cli("policy", "explain", "10.20.3.4:5433", "--policy", kernel)
    assert said.out.strip() == shown.strip()


def test_as_json(cli: Cli, file: Path) -> None:
    told = cli("policy", "explain", "203.0.113.7:443", "--json", "--policy", str(file)).json
    assert wrong_with(told, "explained", "explained") == []
    assert (
        told["answer"] == cli("route", "get", "203.0.113.7:443", "-j", "--policy", str(file)).json
    )
    assert told["rules"][-1]["routes"][0]["outcome"] == "decides"


def instance(text: str, answer: dict[str, Any], path: str | None = None) -> FakeRd:
    shown = {"instance": "default", "path": path, "text": text, "generation": 3}
    status = STATUS | {"pid": os.getpid()}
    return FakeRd("default", {"policy_show": shown, "route_get": answer, "status": status})


def answer_of(query: Query, text: str = POLICY, **more: Any) -> dict[str, Any]:
    answer = evaluate.route_get(parsed(text), query).answer("default", "/", {"cgroup": "/"})
    plain = answer.to_map() | {"unasked": []}
    return plain | more


def test_of_an_instance_with_what_it_assumes_and_who_serves(cli: Cli) -> None:
    text = POLICY.replace('uid = "33-40"\nmark = "0x10/0xf0"\n', "")
    answer = answer_of(Query("203.0.113.7", 443), text, stack="lan", why="down")
    with instance(text, answer):
        said = cli("policy", "explain", "203.0.113.7:443")
    assert (said.code, said.err) == (0, "")
    assert "cgroup is /, and it asks for /shop.slice" in said.out
    assert "stack lan (fallback: wan is down)" in said.out


def test_outside_of_an_instance_no_rule_is_looked_at(cli: Cli) -> None:
    answer = answer_of(Query("203.0.113.7", 443), "", why="outside")
    with instance(POLICY, answer):
        said = cli("policy", "explain", "203.0.113.7:443", "--cgroup", "/")
    assert said.code == 0
    assert "rule shop" not in said.out and "outside /" in said.out


def test_an_instance_whose_routes_file_has_changed_since(cli: Cli, tmp_path: Path) -> None:
    routes = tmp_path / "r.csv"
    routes.write_text("203.0.113.0/24,,,kernel\n", encoding="utf-8")
    text = '[[rules]]\ntable = "t"\n[tables.t]\nroutes_from = "r.csv"\n'
    answer = answer_of(Query("203.0.113.7", 443), "", route="203.0.112.0/23", rule_number=1)
    with instance(text, answer, str(tmp_path / "p.toml")):
        said = cli("policy", "explain", "203.0.113.7:443")
    one_sentence(said, 1, "the files of its policy say another now")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["203.0.113.7", "--policy", "x", "--instance", "y"], "exclude each other"),
        (["203.0.113.7", "--policy", "/nonexistent.toml"], "there is no such file"),
        (["example.org:443"], "names are not looked up"),
        (["203.0.113.7", "--from", "10.0.0.1"], "add --direction forward"),
    ],
)
def test_what_cannot_be_asked(cli: Cli, words: list[str], why: str) -> None:
    one_sentence(cli("policy", "explain", *words), 2, why)


def test_a_chosen_stack_that_is_not_there(cli: Cli, file: Path) -> None:
    words = ("policy", "explain", "203.0.113.7", "--policy", str(file), "--choice", "wann")
    one_sentence(cli(*words), 2, 'no stack "wann"')


def test_it_takes_the_facts_that_route_get_takes() -> None:
    def options(*words: str) -> set[str]:
        said = CliRunner().invoke(app, [*words, "--help"]).output
        return {word for word in said.split() if word.startswith("--")}

    # which explains nothing unless it is asked why
    assert options("policy", "explain") >= options("route", "get") - {"--why"}
