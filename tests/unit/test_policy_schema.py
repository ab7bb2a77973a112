# SPDX-License-Identifier: Apache-2.0
"""`policy schema`: it takes what the parser takes, and refuses what the parser refuses as far as
one value, or one table's keys, shows it.
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_lab import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_texts import policy_texts
from test_policy import EXAMPLES
from test_policy_refused import REFUSED

from dmm_ebpf.rd.policy import model, readers
from dmm_ebpf.rd.policy.rule import Rule
from dmm_ebpf.rd.policy.schema import schema
from dmm_ebpf.rd.policy.shape import shape_of, spelled
from dmm_ebpf.rd.policy.values import ValueRefusedError

ROOT = EXAMPLES.parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

# What the parser refuses and a schema takes: it needs two places to see,
TWO_PLACES = {
    "unknown stack",
    "unknown table",
    "unknown fallback",
    "fallback to itself",
    "fallback to a user stack",
    "a command by AF_XDP",
    "mptcp beside a user stack",
    "mptcp as a fallback",
    "mptcp as a candidate",
    "mptcp to be chosen",
    "mptcp by a mark",
    "UDP by a program that knows TCP alone",
    "an agreement that cookies cannot carry",
    "an agreement that a plug-in does not make",
    "one name twice",
}
# or is more than a form.
MORE_THAN_FORM = {
    "patterns without end",
    "more than all",
    "no loss at all",
    "buffer beyond a window",
    "mark outside mask",
    "rate too high",
    "host bits",
    "mapped prefix",
    "v6 host bits",
    "reversed ports",
    "overlapping ports",
    "port 65536",
    "uid",
    "user",
    "a long line",
}


def as_ecma(_validator: Any, pattern: str, value: object, _schema: object) -> Iterator[Any]:
    """A $ is the end, as everywhere but in Python."""
    if isinstance(value, str) and not re.search(re.sub(r"(?<!\\)\$", r"\\Z", pattern), value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": as_ecma})
WHOLE = Validator(schema())


def wrong(text: str) -> list[str]:
    return [error.message for error in WHOLE.iter_errors(tomllib.loads(text))]


def samples() -> Iterator[Any]:
    """The policies on the pages: TOML that has a policy's keys."""
    for page in PAGES:
        found = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, text in enumerate(found, 1):
            if set(tomllib.loads(text)) & set(model.TABLES):
                yield pytest.param(text, id=f"{page.name}-{number}")


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_taken(path: Path) -> None:
    assert wrong(path.read_text()) == []


@pytest.mark.parametrize("text", list(samples()))
def test_policies_of_the_pages_are_taken(text: str) -> None:
    assert wrong(text) == []


@given(policy_texts())
@settings(max_examples=50)
def test_what_the_parser_takes_is_taken(text: str) -> None:
    assert wrong(text) == []


@pytest.mark.parametrize(
    ("name", "text"), [case[:2] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused(name: str, text: str) -> None:
    try:
        found = wrong(text)
    except (ValueError, RecursionError):  # it is not TOML
        return
    assert bool(found) != (name in TWO_PLACES | MORE_THAN_FORM), found


def test_every_exception_is_tried() -> None:
    assert {case[0] for case in REFUSED} >= TWO_PLACES | MORE_THAN_FORM


RECORDS = (*model.STACK_RECORDS.values(), Rule, model.RouteRecord)
FIELDS = [
    pytest.param(one.metadata["read"], id=f"{kind.__name__}-{one.name}")
    for kind in RECORDS
    for one in fields(kind)
    if one.name != "kind"
]
ODD = [
    "10.0.0.0/08", "10.0.0.0/008", "::/0", "::1.2.3.4", "2001:db8::/032", "00443", " 1 - 9 ,  7", "\t5", "0X1f / 0xFF",
    "EF", "Af11", " 1.5 GiBiT ", "10mBpS", "16m", " 5 % ", "0.0001%", "1000-1999", "root", "/a//b/", "/", "/...",
    "ünïcode", "a" * 15, "é" * 7, "veth*", "..a", "tun", "any", "", "python:/x/y.py:Z", "c:/a b.so", "c:x", "/x\n",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([*ODD, *map(str.swapcase, ODD)]),
    st.text(max_size=12),
    st.from_regex(r"[0-9a-fA-Fx:./%,\- ]{0,12}", fullmatch=True),
    st.integers(-2, 70),
    st.integers(),
    st.booleans(),
    st.floats(),
)
NESTED = st.one_of(
    VALUES,
    st.lists(VALUES, max_size=3),
    st.dictionaries(st.sampled_from(["budget", "residual", "parity", "x"]), VALUES, max_size=3),
)


@pytest.mark.parametrize("read", FIELDS)
@given(st.lists(NESTED, max_size=40))
@settings(max_examples=15)
def test_no_value_that_is_read_is_refused(read: Any, values: list[Any]) -> None:
    taken = Validator(shape_of(read))
    for value in [*values, *ODD, *([one] for one in ODD)]:
        try:
            read(value)
        except ValueRefusedError:
            continue
        assert taken.is_valid(value), value


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ('[hosts]\nedge = "role=edge, site=fra|ams*"\n', True),
        ('[hosts]\nedge = "role"\n', False),
        ('[hosts]\n"a b" = "role=edge"\n', False),
        ('[labels]\nrole = "edge"\n', True),
        ("[labels]\nrole = 1\n", False),
        ('[[rules]]\nchoose = ["kernel"]\n', True),
        ('[tables.t]\nroutes_from = ""\n', False),
        ('[stacks.a]\nkind = "user"\nio = "tun"\ninstances = 2\n', True),
        ('[stacks.a]\nkind = "kernel"\ncongestion = "CUBIC"\n', False),
        ("[[rules]]\ntable = 't'\n" * 65, False),
    ],
)
def test_forms(text: str, ok: bool) -> None:
    assert (wrong(text) == []) is ok


def test_it_says_defaults_and_old_names() -> None:
    keys = schema()["properties"]["stacks"]["additionalProperties"]["properties"]
    assert (keys["processes"]["default"], keys["udp"]["default"]) == (1, False)
    assert keys["fallback"]["default"] == "kernel" and "default" not in keys["sndbuf"]
    assert keys["instances"]["deprecated"] is True
    assert keys["processes"]["description"] == "A number of processes, 1 to 16"
    for key in keys.keys() - {"kind", "congestion"}:
        assert keys[key]["description"], key
    assert all(one["description"] for one in keys["congestion"]["anyOf"])
    records = model.STACK_RECORDS.values()
    assert set(keys) == {
        "instances",
        *itertools.chain.from_iterable(record.keys() for record in records),
    }


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        ('kind = "user"\ncongestoin = "wan"', "'congestoin' was unexpected"),
        ('kind = "kernel"\nio = "tap"', "'io' was unexpected"),
        ('kind = "reject"\nmark = 1', "'mark' was unexpected"),
        ('kind = "user"\ncongestion = "vegas"', "'vegas' is not valid under any"),
        ('kind = "user"\nprocesses = 17', "17 is greater than the maximum of 16"),
        ('kind = "lwip"', "'lwip' is not one of"),
        ("udp = true", "'kind' is a required property"),
    ],
)
def test_what_is_wrong_with_a_stack_is_said_once(stack: str, said: str) -> None:
    (message,) = wrong(f"[stacks.a]\n{stack}\n")
    assert said in message


def test_plugins_of_installed_packages_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[stacks.a]\nkind = "user"\ncongestion = "ledbat"\n'
    assert wrong(text)
    monkeypatch.setattr(readers, "offered_names", lambda _seam: ["ledbat"])
    assert Validator(schema()).is_valid(tomllib.loads(text))


def test_patterns_have_no_flags_and_no_backslash_digits() -> None:
    """What other engines than Python's read in another way."""

    def patterns(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("pattern"), str):
                yield part["pattern"]
            part = list(part.values())
        if isinstance(part, list):
            for one in part:
                yield from patterns(one)

    found = set(patterns(schema()))
    assert len(found) > 15
    assert not [one for one in found if re.search(r"\\[dwbAZ0]|\(\?[a-zP<]", one)]
    assert spelled("a", most=3) == {"type": "string", "pattern": "^(?:a)$", "maxLength": 3}


def test_the_command_prints_it(cli: Cli) -> None:
    said = cli("policy", "schema")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out) == json.loads(cli("policy", "schema", "--json").out) == schema()
    assert said.out.startswith('{\n  "$schema"')
