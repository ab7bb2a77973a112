# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a policy at once, and what of a right one does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_lab import ANSWERS, Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_texts import policy_texts, queries
from test_client import FakeRd, run_root  # noqa: F401 - run_root is a fixture

from dmm_ebpf.errors import PolicyError, from_wire
from dmm_ebpf.rd.policy import evaluate
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy import warnings as policy_warnings

WRONG = """
[stacks.a]
kind = "user"
congestion = "nope"
io = "nope"
colour = 3

[stacks.b]
knd = "kernel"

[[rules]]
table = "t"
comm = "longer-than-comm-is"

[[rules]]
table = "u"

[[tables.t.routes]]
to = "10.0.0.0/8"
stack = "a"
[[tables.t.routes]]
to = "10.0.0.0/33"
stack = "c"
[tables.f]
routes_from = "routes.csv"
"""
WRONG_CSV = "10.0.0.0/8, tcp, 443, a\nnonsense\n10.0.0.0/9, tcp, 0, a\n10.0.0.0/10, tcp, 1, d\n"
# Every one of them, each once; b is refused, and so no route to it or fallback would be
# told of besides.
FOUND = [
    ("p.toml:4", "stack a, congestion"),
    ("p.toml:5", "stack a, io"),
    ("p.toml:6", "stack a: unknown key"),
    ("p.toml:8", "stack b: the key"),
    ("p.toml:13", "rule 1, comm"),
    ("p.toml:16", 'no table is called "u"'),
    ("p.toml:22", "table t, route 2, to"),
    ("routes.csv:2", "columns, not 4"),
    ("routes.csv:3", "0 is not a port"),
    ("routes.csv:4", 'no stack is called "d"'),
]


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    (tmp_path / "p.toml").write_text(WRONG)
    (tmp_path / "routes.csv").write_text(WRONG_CSV)
    return tmp_path / "p.toml"


def test_all_that_is_wrong_is_told_at_once(wrong: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.load(wrong)
    errors = caught.value.all()
    assert len(errors) == len(FOUND)
    for error, (place, text) in zip(errors, FOUND, strict=True):
        assert error.what.endswith(place)
        assert text in error.why
    told = from_wire(caught.value.to_wire())
    assert isinstance(told, PolicyError)
    assert [str(one) for one in told.all()] == [str(one) for one in errors]


def test_no_more_errors_are_looked_for_than_are_read() -> None:
    many = "".join(f"[stacks.s{i}]\n" for i in range(60))
    with pytest.raises(PolicyError) as caught:
        policy.parse(many, source="p.toml", base=Path("/"))
    assert len(caught.value.all()) == policy.MAX_ERRORS
    assert caught.value.enough


OUT_OF_ORDER = """
[[rules]]
table = "t"
uid = "no-such-user-here"
[[tables.t.routes]]
to = "10.0.0/8"
stack = "wan"
[stacks.wan]
kind = "user"
congestion = "vegas"
"""


def test_errors_are_told_line_by_line(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.parse(OUT_OF_ORDER, source="p.toml", base=tmp_path)
    places = [error.what for error in caught.value.all()]
    assert places == ["accept p.toml:4", "accept p.toml:6", "accept p.toml:10"]
    assert not caught.value.enough


def test_errors_of_other_files_come_behind_those_of_the_policy(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("no prefix,,,kernel\n" * 11)
    text = '[tables.t]\nroutes_from = "b.csv"\n[stacks.s]\n'
    with pytest.raises(PolicyError) as caught:
        policy.parse(text, source="p.toml", base=tmp_path)
    places = [error.what.rpartition("/")[2] for error in caught.value.all()]
    assert places == ["accept p.toml:3", *(f"b.csv:{line}" for line in range(1, 12))]


@pytest.mark.usefixtures("run_root")
def test_check_and_apply_say_the_same(cli: Cli, wrong: Path) -> None:
    with FakeRd("default", ANSWERS) as rd:
        checked, applied = cli("policy", "check", str(wrong)), cli("policy", "apply", str(wrong))
        assert rd.asked == []
    assert checked.code == applied.code == 2
    assert checked.err == applied.err
    assert len(checked.err.splitlines()) == len(FOUND)
    assert (checked.out, applied.out) == ("", "")
    as_json = cli("policy", "check", "--json", str(wrong))
    assert as_json.code == 2
    assert as_json.json["ok"] is False
    assert as_json.json["error"] == as_json.json["errors"][0]
    said = [f"dmm-ebpf: {one['message']}" for one in as_json.json["errors"]]
    assert said == checked.err.splitlines()


DULL = """
[stacks.a]
kind = "kernel"
[stacks.w]
kind = "user"
[stacks.idle]
kind = "kernel"
[[rules]]
table = "t"
cgroup = "/shop.slice"
[[rules]]
table = "t"
cgroup = "/shop.slice/web"
comm = "nginx*"
[[tables.t.routes]]
to = "default"
proto = "udp"
stack = "w"
[[tables.t.routes]]
to = "10.0.0.0/8"
ports = "80-81"
stack = "a"
[[tables.t.routes]]
to = "10.0.0.0/8"
ports = "80, 81"
stack = "a"
[[tables.u.routes]]
to = "default"
stack = "kernel"
"""
WARNED = [
    (6, "stack idle is used by no route"),
    (11, "is never reached: rule 1: cgroup /shop.slice comes before it"),
    (14, "is compared letter by letter"),
    (15, "leads to w, which carries TCP alone"),
    (19, "route 10.0.0.0/8 port 80-81 is never reached"),
    (27, "table u is looked up by no rule"),
]


@pytest.mark.usefixtures("run_root")
def test_what_does_nothing_is_warned_of(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(DULL)
    with FakeRd("default", ANSWERS):
        checked, applied = cli("policy", "check", str(file)), cli("policy", "apply", str(file))
        applied_json = cli("policy", "apply", "--json", str(file)).json
    assert (checked.code, checked.out) == (0, "ok: 2 rules, 6 routes, 3 stacks\n")
    assert checked.err == applied.err
    lines = checked.err.splitlines()
    assert len(lines) == len(WARNED)
    for line, (number, text) in zip(lines, WARNED, strict=True):
        assert line.startswith(f"dmm-ebpf: warning: {file}:{number}: ")
        assert text in line
    as_json = cli("policy", "check", "--json", str(file)).json
    assert (as_json["ok"], as_json["errors"], as_json["more_warnings"]) == (True, [], 0)
    assert [
        f"dmm-ebpf: warning: {one['place']}: {one['text']}" for one in as_json["warnings"]
    ] == lines
    assert (applied_json["warnings"], applied_json["more_warnings"]) == (as_json["warnings"], 0)


RULES = (
    '[[tables.t.routes]]\nto = "default"\nstack = "kernel"\n'
    '[[rules]]\n{}\ntable = "t"\n[[rules]]\n{}\ntable = "t"\n'
)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("", ["it has no rules"]),
        ('[[rules]]\ntable = "t"\n[tables.t]\n', ["table t has no routes"]),
        ('[[rules]]\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "kernel"\n', []),
        (
            '[stacks.s]\nkind = "user"\nuser_timeout_ms = 5000\nkeepalive_probes = 3\n'
            '[[rules]]\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "s"\n',
            ["keepalive_probes does nothing"],
        ),
        *(
            (
                f'[stacks.s]\nkind = "user"\ntransport = "{transport}"\nsyn_cookies = "always"\n'
                'negotiate = "allow"\nlatency = "low"\n'
                '[[rules]]\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "s"\n',
                warned,
            )
            for transport, warned in (
                ("tcp", []),
                ("c:/x.so", ['"always" does nothing', '"allow" does', '"low" does nothing']),
            )
        ),
        (
            RULES.format('comm = ["a", "b*"]', 'uid = [7, 9]\nnot = { executable = "/c*" }'),
            ["is compared letter by letter", "is a path"],
        ),
        (RULES.format('cgroup = "/a/*"', 'cgroup = "/a/b*/c"'), ["is never reached"]),
        (RULES.format('cgroup = "/a/b*"', 'cgroup = ["/a/bc", "/a/b*/[a]"]'), ["is never reached"]),
        (RULES.format('cgroup = "/a/b*"', 'cgroup = "/a/[b]c"'), []),
        (RULES.format("uid = [1, 2]", "uid = 1"), ["is never reached: rule 1: uid 1,2"]),
        (RULES.format("uid = [1, 2]", "uid = [2, 3]"), []),
        (RULES.format("uid = 1\nnot = { mark = 1 }", "uid = 1"), []),
        (
            RULES.format(
                "uid = 1\nnot = { mark = 1 }", "uid = 1\nnot = [{ mark = 1 }, { mark = 2 }]"
            ),
            ["is never reached"],
        ),
        (RULES.format("uid = 1", "uid = 2\nnot = { uid = [2, 3] }"), ["matches nothing"]),
    ],
)
def test_little_policies(text: str, warned: list[str]) -> None:
    found = list(policy_warnings.warnings(policy.parse(text, source="p.toml", base=Path("/"))))
    assert len(found) == len(warned)
    assert all(part in one.text for part, one in zip(warned, found, strict=True))


@settings(max_examples=150)
@given(
    policy_texts(min_rules=2),
    st.lists(queries(), min_size=20, max_size=40),
)
def test_what_is_never_reached_decides_nothing(
    text: str,
    asked: list[evaluate.Query],
) -> None:
    parsed = policy.parse(text, source="p.toml", base=Path("/"))
    never = {
        one.text.partition(" is never reached")[0]: one.place
        for one in policy_warnings.warnings(parsed)
    }
    for query in asked:
        verdict = evaluate.route_get(parsed, query)
        assert f"rule {verdict.rule_text}" not in never
        if verdict.route is None or verdict.table is None:
            continue
        table = parsed.tables[verdict.table]
        family, addr = evaluate.parse_address(query.addr)
        best = evaluate.find_route(table, family, addr, query.proto, query.port)
        assert best is not None
        place = parsed.place("tables", table.name, "routes", table.origin[best])
        assert never.get(f"table {table.name}: route {table[best].text()}") != place


HOST = """\
[stacks.wan]
kind = "user"
devices = ["no-such-nic"]

[stacks.far]
kind = "kernel"
congestion = "no-such-cc"

[[rules]]
netns = ["no-such-netns", "nor-this"]
table = "t"

[[tables.t.routes]]
to = "default"
stack = "wan"
"""
WAITS = """\
[[rules]]
cgroup = ["/no-such.slice", "/", "/*/no-such-*.scope"]
not = { interface = "no-such-nic" }
table = "t"

[[rules]]
direction = "forward"
in_interface = ["no-such-lan", "lo", "veth*"]
table = "t"

[[tables.t.routes]]
to = "10.0.0.0/8"
stack = "kernel"
"""


def test_what_this_host_would_refuse_is_told_at_once_where_it_is_asked(
    cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "p.toml"
    file.write_text(HOST)
    assert cli("policy", "check", str(file)).code == 0
    told = cli("policy", "check", "--host", str(file), "--json")
    assert (told.code, told.json["ok"]) == (2, False)
    found = [error["what"] + ": " + error["why"] for error in told.json["errors"]]
    for place, why in (
        (10, "the network namespace no-such-netns cannot be used"),
        (10, "the network namespace nor-this cannot be used"),
        (7, '"no-such-cc" is not loaded'),
        (3, "stack wan, devices: this host cannot use device no-such-nic: there is no such"),
    ):
        assert any(f"p.toml:{place}:" in one and why in one for one in found), (place, why, found)
    assert len(found) == 4


def test_what_rules_wait_for_on_this_host_is_warned_of(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(WAITS)
    assert cli("policy", "check", str(file), "--json").json["warnings"] == []
    told = cli("policy", "check", "--host", str(file), "--json")
    assert told.code == 0 and told.json["ok"]
    assert [
        (one["place"].rsplit(":", 1)[1], one["text"].split(": ", 2)[-1])
        for one in told.json["warnings"]
    ] == [
        ("1", "the cgroup /no-such.slice does not exist on this host, and is waited for"),
        ("1", "no cgroup of this host matches /*/no-such-*.scope, and one is waited for"),
        ("1", "the device no-such-nic does not exist on this host, and is waited for"),
        ("6", "the device no-such-lan does not exist on this host, and is waited for"),
    ]
