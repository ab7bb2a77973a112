# SPDX-License-Identifier: Apache-2.0
"""`policy apply --dry-run`: refuses what applying would refuse, tells what would change, and asks
the director nothing but what is in force.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_lab import STATUS, Cli, one_sentence
from jsonpage import wrong_with
from test_client import FakeRd, run_root  # noqa: F401 - run_root is a fixture

from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.rd.director import hostcheck, routeget
from dmm_ebpf.rd.director.groups import NOWHERE
from dmm_ebpf.rd.policy import parse
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.usual import LINUX

pytestmark = pytest.mark.usefixtures("run_root", "groups_of_tests")

OLD = """
[stacks.wan]
kind = "user"

[[rules]]
cgroup = "/shop.slice"
table = "t"

[[tables.t.routes]]
to = "203.0.113.0/24"
stack = "wan"
"""
NEW = OLD.replace("203.0.113.0/24", "203.0.112.0/23").replace("shop", "till")


@pytest.fixture
def groups_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is /shop.slice and no other cgroup, and the network namespace red."""

    def netns(name: str) -> int:
        if name != "red":
            raise DmmError(f"find {name}", why="there is no namespace of that name")
        return 7

    known = {"/shop.slice": (11, 1)}
    monkeypatch.setattr(hostcheck, "lookup", lambda path: known.get(path, (NOWHERE, 1)))
    monkeypatch.setattr(routeget, "netns_cookie", netns)


def in_force(text: str | None, path: str | None = None) -> FakeRd:
    shown = {"instance": "default", "path": path, "text": text, "generation": 3}
    return FakeRd("default", {"policy_show": shown, "status": STATUS | {"pid": os.getpid()}})


def tried(cli: Cli, file: Path, text: str, *words: str) -> Any:
    file.write_text(text, encoding="utf-8")
    return cli("policy", "apply", str(file), "--dry-run", *words)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "p.toml"


def test_it_tells_what_would_change_and_changes_nothing(cli: Cli, file: Path) -> None:
    with in_force(OLD) as rd:
        said = tried(cli, file, NEW)
        assert {method for method, _ in rd.asked} == {"status", "policy_show", "routes"}
    *changes, last = said.out.splitlines()
    assert said.code == 0
    assert [line[:7] for line in changes] == ["- rule ", "+ rule ", "- route", "+ route"]
    assert last == ("would be applied to instance default: 4 differences; 1 rule, 1 route, 1 stack")
    assert "waits for the cgroup /till.slice, which does not exist" in said.err
    assert "not checked: whether the processes of wan can start" in said.err


def test_a_policy_that_is_in_force(cli: Cli, file: Path) -> None:
    with in_force(OLD):
        said = tried(cli, file, OLD + "# a comment more\n")
    assert (said.code, said.out.split(";")[0]) == (
        0,
        "would be applied to instance default: no difference",
    )
    assert "waits" not in said.err


def test_as_json(cli: Cli, file: Path) -> None:
    with in_force(OLD):
        told = json.loads(tried(cli, file, NEW, "--json").out)
        same = json.loads(tried(cli, file, OLD, "--json").out)
    assert wrong_with(told, "tried", "tried") == wrong_with(same, "tried", "tried") == []
    assert (told["equal"], len(told["changes"]), same["equal"]) == (False, 4, True)
    assert told["pending"] == [
        {
            "rule": "1: cgroup /till.slice",
            "number": 1,
            "cgroup": "/till.slice",
            "executable": None,
        }
    ]
    assert (told["rules"], told["routes"], told["stacks"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("203.0.113.0/24", "203.0.113.7/24", "host bits"),
        ('cgroup = "/shop.slice"', 'netns = "blue"', "no namespace of that name"),
        ('kind = "user"', 'kind = "kernel"\ncongestion = "vegas9"', '"vegas9" is not loaded'),
        ('kind = "user"', 'kind = "user"\ncongestion = "c:/nowhere/x.so"', "/nowhere/x.so"),
        ('kind = "user"', 'kind = "user"\ncommand = ["/nowhere/x"]', "/nowhere/x"),
        ("[[rules]]", '[hosts]\nedge = "role=edge"\n[[rules]]\nhosts = "edge"', "labels"),
    ],
)
def test_what_applying_would_refuse(cli: Cli, file: Path, old: str, new: str, why: str) -> None:
    with in_force(OLD):
        one_sentence(tried(cli, file, OLD.replace(old, new)), 2, why)
        as_json = tried(cli, file, OLD.replace(old, new), "--json")
    assert (as_json.code, as_json.json["error"]["kind"]) == (2, "PolicyError")


def test_an_observer_and_no_instance(cli: Cli, file: Path) -> None:
    one_sentence(tried(cli, file, OLD), 1, "there is no such instance")
    with in_force(None):
        said = tried(cli, file, OLD)
    assert all(line.startswith("+ ") for line in said.out.splitlines()[:-1])


def test_routes_of_a_file_that_both_read_are_not_compared(
    cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    routes = file.with_name("r.csv")
    routes.write_text("203.0.113.0/24,,,kernel\n", encoding="utf-8")
    text = '[[rules]]\ntable = "t"\n[tables.t]\nroutes_from = "r.csv"\n'
    with in_force(text, str(file)):
        said = tried(cli, Path(file.name), text)
    assert f"not checked: whether the routes in {routes} have changed" in said.err
    assert "processes" not in said.err


def test_a_policy_in_force_that_cannot_be_read_again(cli: Cli, file: Path) -> None:
    text = '[tables.t]\nroutes_from = "gone.csv"\n'
    with in_force(text, str(file)):
        one_sentence(tried(cli, file, OLD), 1, "cannot read the policy in force")
        one_sentence(cli("policy", "diff", str(file)), 1, "gone.csv")


def test_what_the_director_asks_before_it_applies() -> None:
    facts = hostcheck.HostFacts(("cubic",), LINUX)
    policy = parse.parse(OLD, source="p", base=Path("/"))
    ids = IdSpace()
    assert hostcheck.pending(policy, facts.compile(policy, ids)) == []
    assert list(hostcheck.served(policy)) == ["wan"]
    assert ids.stack("wan") == 1
    with pytest.raises(PolicyError, match="is not loaded"):
        text = '[stacks.a]\nkind = "kernel"\ncongestion = "bbr"\n'
        facts.compile(parse.parse(text, source="p", base=Path("/")), ids)
