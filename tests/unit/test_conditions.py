# SPDX-License-Identifier: Apache-2.0
"""Each condition of a rule is known wherever one is to be: a new one, too, or it is named here
(docs/develop/add-a-policy-key.md).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_lab import Cli
from policy_lpm import DEVICES
from policy_texts import CGROUPS, CONDITIONS, EXECUTABLES, FACTS, toml

from dmm_ebpf import abi
from dmm_ebpf.cli.tables import option_of
from dmm_ebpf.rd.director.sync import listener_table
from dmm_ebpf.rd.policy import expect
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.evaluate import Query, known_fact
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.rule import SOCKET_KEYS

ROOT = Path(__file__).resolve().parents[2]
ROUTED = """
[stacks.k]
kind = "kernel"
[[tables.t.routes]]
to = "default"
stack = "k"
"""
VALUES: dict[str, list[Any]] = {**CONDITIONS, "netns": ["blue", "red"]}
SAID: dict[str, Any] = {**{key: facts[-1] for key, facts in FACTS.items()}, "netns": "blue"}
KEYS = pytest.mark.parametrize("key", SOCKET_KEYS)
ASKABLE = pytest.mark.parametrize("key", [x for x in SOCKET_KEYS if option_of(x) != x])


def asking(key: str, value: object) -> str:
    return ROUTED + toml("rules", [{key: value, "table": "t"}])


def parsed(text: str) -> Policy:
    return policy.parse(text, source="p.toml", base=Path("/"))


@KEYS
def test_a_flow_has_it(key: str) -> None:
    """As the director is asked for it, and as the rule asks."""
    query = Query.from_params({"addr": "192.0.2.1", key: SAID[key]})
    assert getattr(query, key) == SAID[key]
    assert known_fact(Query("192.0.2.1"), key) is None
    assert known_fact(query, key) is not None


@KEYS
def test_listeners_are_told_apart_by_it(key: str) -> None:
    """One that nothing is known of matches no rule that asks for something."""
    found = []
    for value in VALUES[key]:
        compiled = compile_policy(
            parsed(asking(key, value)),
            IdSpace(),
            CGROUPS.__getitem__,
            device_lookup=DEVICES.__getitem__,
            executable_lookup=EXECUTABLES.__getitem__,
            netns_lookup={"blue": 7, "red": 8}.__getitem__,
        )
        blank = abi.new("dmm_listener"), abi.new("dmm_listener_key")
        found.append(
            listener_table(compiled.rules, blank[1], blank[0], lambda own, wanted: own == wanted)
        )
    assert (0, 0, 0) in found, f"sync.py does not compare {key}"


@KEYS
def test_expectations_say_it(key: str) -> None:
    """What `policy test` reads: the word is the key's with dashes, but a cgroup is `from`."""
    word = "from" if key == "cgroup" else key.replace("_", "-")
    line = f"192.0.2.1 {word} {SAID[key]} -> k"
    (found,) = expect.read(line, parsed(ROUTED), "e", lambda text, _: (text, None))
    assert getattr(found.query, key) == SAID[key]


@ASKABLE
@pytest.mark.parametrize("command", ["route get", "policy explain"])
def test_it_is_asked_for_by_an_option(cli: Cli, tmp_path: Path, key: str, command: str) -> None:
    file, value = tmp_path / "p.toml", VALUES[key][-1]
    file.write_text(asking(key, value))
    typed = re.sub(r"(?<=\d)[-,/].*", "", str(value))  # of a range its first
    words = [*command.split(), "192.0.2.1:80", "--policy", str(file), "--json"]
    said = cli(*words, option_of(key), typed).json
    assert (said.get("answer") or said)["wanted"] == "k", json.dumps(said)


@KEYS
def test_the_page_tells_of_it(key: str) -> None:
    page = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{key}` \| ", page, re.MULTILINE)
