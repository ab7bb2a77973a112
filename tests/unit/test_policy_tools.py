# SPDX-License-Identifier: Apache-2.0
"""`policy test`: what is expected of a policy; `policy diff`: in what two differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_lab import STATUS, Cli, one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_texts import policy_texts
from test_client import FakeRd, run_root  # noqa: F401 - run_root is a fixture

from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.director.generations import after
from dmm_ebpf.rd.director.rundir import RunDir, State
from dmm_ebpf.rd.policy import expect, parse
from dmm_ebpf.rd.policy.difference import difference
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.show.flowfilter import parse_endpoint

pytestmark = pytest.mark.usefixtures("run_root")

POLICY = """
[stacks.wan]
kind = "user"

[[rules]]
name = "shop"
cgroup = "/shop.slice"
direction = "connect"
table = "shop"

[[rules]]
uid = 33
direction = "listen"
table = "web"

[[rules]]
in_interface = "lan*"
from = "10.0.0.0/8"
direction = "forward"
table = "web"

[[tables.shop.routes]]
to = "203.0.113.0/24"
ports = "443, 8000-8100"
stack = "wan"

[[tables.web.routes]]
to = "default"
stack = "wan"
"""

HOLD = """\
# flows of the shop
203.0.113.7:443 from /shop.slice       -> wan
203.0.113.7:8080 from /shop.slice/till → wan     # below it
203.0.113.7:443 udp from /shop.slice   -> kernel # no UDP by wan
203.0.113.7:444 from /shop.slice       -> kernel
203.0.113.7:443                        -> kernel

[2001:db8::1]:80 listen uid 33         -> wan
198.51.100.9 forward source 10.1.1.1 in lan0 -> wan
198.51.100.9 forward source 192.0.2.1 in lan0 -> kernel
127.0.0.1:https from /shop.slice -> kernel
"""


def parsed(text: str) -> Policy:
    return parse.parse(text, source="p.toml", base=Path("/"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    file = tmp_path / "p.toml"
    file.write_text(POLICY, encoding="utf-8")
    file.with_suffix(".expect").write_text(HOLD, encoding="utf-8")
    return file


def test_expectations_that_hold(cli: Cli, files: Path) -> None:
    said = cli("policy", "test", str(files))
    assert (said.code, said.out) == (0, "ok: 9 of 9 hold\n")


def test_expectations_that_do_not_hold_are_told_with_what_decides(cli: Cli, files: Path) -> None:
    other = files.with_name("other")
    other.write_text(
        "203.0.113.7:443 from /shop.slice -> kernel\n\n203.0.113.7:443 -> wan\n"
        "198.51.100.9:80 listen uid 33 -> kernel\n203.0.113.7:443 udp from /shop.slice -> wan\n",
        encoding="utf-8",
    )
    said = cli("policy", "test", str(files), "--expect", str(other))
    lines = said.out.splitlines()
    assert said.code == 1
    assert [line.split(":")[1] for line in lines] == ["1", "3", "4", "5"]
    assert "the stack is wan; rule shop; route 203.0.113.0/24 port 443,8000-8100" in lines[0]
    assert "rule shop asks for cgroup too" in lines[1]
    assert "wan does not serve it: udp" in lines[3]
    assert "4 of 4 expectations do not hold" in said.err


def test_expectations_as_json(cli: Cli, files: Path) -> None:
    told = json.loads(cli("policy", "test", str(files), "--json").out)
    assert told["ok"] is True
    first = told["expectations"][0]
    assert (first["line"], first["expected"], first["stack"], first["ok"]) == (
        2,
        "wan",
        "wan",
        True,
    )
    assert first["rule"] == "shop"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("203.0.113.7:443", "not one arrow"),
        ("-> wan", "not one arrow"),
        ("203.0.113.7 -> wan -> wan", "not one arrow"),
        ("203.0.113.7 -> wam", 'no stack "wam"'),
        ("203.0.113.7 ->", 'no stack ""'),
        ("example.org:443 -> wan", "names are not looked up"),
        ("203.0.113.7:99999 -> wan", "99999"),
        ("203.0.113.7 banana -> wan", '"banana" is no word'),
        ("203.0.113.7 uid -> wan", 'nothing stands behind "uid"'),
        ("203.0.113.7 uid root -> wan", "is no number"),
        ("203.0.113.7 uid -1 -> wan", "not between"),
        ("203.0.113.7 tcp udp -> wan", "once more"),
        ("203.0.113.7 forward source ::1 -> wan", "one is IPv4"),
        ("203.0.113.7 comm sixteen-bytes-long -> wan", "is no process's"),
    ],
)
def test_lines_that_say_nothing(cli: Cli, files: Path, line: str, why: str) -> None:
    files.with_suffix(".expect").write_text(f"# one\n{line}\n", encoding="utf-8")
    said = cli("policy", "test", str(files))
    one_sentence(said, 2, why)
    assert "p.expect:2" in said.err


def test_all_wrong_lines_are_told_at_once(cli: Cli, files: Path) -> None:
    files.with_suffix(".expect").write_text("a -> wan\n" * 30, encoding="utf-8")
    said = cli("policy", "test", str(files))
    assert said.code == 2
    assert said.err.count("cannot accept") == expect.MAX_ERRORS


def test_files_that_expect_nothing(cli: Cli, files: Path) -> None:
    beside = files.with_suffix(".expect")
    beside.write_text("# nothing yet\n", encoding="utf-8")
    one_sentence(cli("policy", "test", str(files)), 2, "no line expects anything")
    beside.write_bytes(b"203.0.113.7 -> \xff\n")
    one_sentence(cli("policy", "test", str(files)), 2, "not UTF-8")
    beside.unlink()
    one_sentence(cli("policy", "test", str(files)), 2, "read expectations")


def test_more_expectations_than_are_taken_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expect, "MAX_LINES", 3)
    text = "203.0.113.7 -> kernel\n"
    assert len(expect.read(text * 3, parsed(POLICY), "e", parse_endpoint)) == 3
    with pytest.raises(PolicyError, match="more than 3"):
        expect.read(text * 4, parsed(POLICY), "e", parse_endpoint)


@given(st.text(max_size=80))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        expect.read(text, parsed(POLICY), "e", parse_endpoint)
    except PolicyError as refused:
        assert str(refused).startswith("cannot ")


def changes(old: str, new: str) -> list[str]:
    return [str(one) for one in difference(parsed(old), parsed(new))]


def test_what_is_written_otherwise_is_no_difference() -> None:
    other = POLICY.replace('"443, 8000-8100"', '["8000-8100", 443]').replace(
        '[stacks.wan]\nkind = "user"', '[stacks.wan]\nkind = "user"\ntransport = "tcp" # as ever'
    )
    assert changes(POLICY, other) == []


def test_differences_of_stacks_rules_and_routes() -> None:
    other = POLICY.replace('kind = "user"', 'kind = "user"\nbusy_poll_us = 50\nudp = true')
    other = other.replace('cgroup = "/shop.slice"', 'cgroup = "/till.slice"')
    other = other.replace('"203.0.113.0/24"', '"203.0.112.0/23"')
    found = changes(POLICY, other)
    assert [one[:7] for one in found] == [
        *("- stack", "+ stack"), *("- rule ", "+ rule "), *("- route", "+ route"),
    ]  # fmt: skip
    assert "busy_poll_us = 50" in found[1]
    assert "udp = true" in found[1], "as the policy has it"
    assert found[2] == "- rule 1, shop: cgroup /shop.slice connect -> table shop"
    assert found[5] == "+ route 203.0.112.0/23 port 443,8000-8100 -> wan (table shop)"
    assert [one[2:] for one in changes(other, POLICY)] == [
        found[at][2:] for at in (1, 0, 3, 2, 5, 4)
    ]


def test_an_action_is_a_difference_of_its_rule_alone() -> None:
    rule = '[[rules]]\nuid = {}\naction = "{}"\n'
    changes = difference(parsed(rule.format(7, "reject")), parsed(rule.format(7, "prohibit")))
    assert [(one.change, one.what, one.text) for one in changes] == [
        ("-", "rule", "1, uid 7 connect reject"),
        ("+", "rule", "1, uid 7 connect prohibit"),
    ]


def test_everything_and_nothing() -> None:
    assert all(one.startswith("+ ") for one in changes("", POLICY))
    assert len(changes("", POLICY)) == len(changes(POLICY, "")) == 1 + 3 + 3
    assert changes("", "") == []


@given(policy_texts())
@settings(max_examples=50)
def test_no_policy_differs_from_itself(text: str) -> None:
    assert changes(text, text) == []


def test_a_policy_against_the_one_in_force(cli: Cli, files: Path) -> None:
    in_force = {
        "instance": "default",
        "path": str(files),
        "text": POLICY,
        "generation": 3,
    }
    with FakeRd("default", {"policy_show": in_force, "status": STATUS}):
        same = cli("policy", "diff", str(files))
        files.write_text(POLICY.replace("8000", "8001"), encoding="utf-8")
        other = cli("policy", "diff", str(files))
        told = json.loads(cli("policy", "diff", str(files), "--json").out)
    assert (same.code, same.out) == (0, "")
    assert "no difference" in same.err
    assert other.code == 1
    assert [line[:7] for line in other.out.splitlines()] == ["- route", "+ route"]
    assert (told["equal"], told["more"]) == (False, 0)
    assert [one["change"] for one in told["changes"]] == ["-", "+"]


def test_a_policy_against_an_observer(cli: Cli, files: Path) -> None:
    nothing = {"instance": "default", "path": None, "text": None, "generation": 0}
    with FakeRd("default", {"policy_show": nothing}):
        said = cli("policy", "diff", str(files))
    assert said.code == 1
    assert all(line.startswith("+ ") for line in said.out.splitlines())


def test_a_routes_file_that_has_changed_since_is_no_equal_policy(cli: Cli, files: Path) -> None:
    table = files.with_name("routes.csv")
    table.write_text("192.0.2.0/24,,,wan\n", encoding="utf-8")
    text = POLICY + '[tables.far]\nroutes_from = "routes.csv"\n'
    files.write_text(text, encoding="utf-8")
    policy = parse.load(files)
    in_force = {"instance": "default", "path": str(files), "text": text, "generation": 3}
    with FakeRd("default", {"policy_show": in_force, "status": STATUS}):
        RunDir("default").save(State("default", 1, "/", 0, **after(policy, files, 3)))
        same = cli("policy", "diff", str(files))
        table.write_text("198.51.100.0/24,,,wan\n", encoding="utf-8")
        other = cli("policy", "diff", str(files))
        told = json.loads(cli("policy", "diff", str(files), "--json").out)
    assert (same.code, other.code, other.out) == (0, 1, "")
    assert "routes.csv has changed since its routes came in force" in other.err
    assert "no difference" not in other.err
    assert (told["equal"], told["changes"], told["changed_files"]) == (False, [], [str(table)])
