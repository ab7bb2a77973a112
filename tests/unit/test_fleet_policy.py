# SPDX-License-Identifier: Apache-2.0
"""A fleet's policy without etcd: addresses, what stands in etcd, one policy for many hosts, and
what is kept on disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from dmm_ebpf.central import hosts, layout, place
from dmm_ebpf.central.client import Change, Item
from dmm_ebpf.central.layout import Bundle, LayoutError, Push, Rollout
from dmm_ebpf.cli.fleets import _COLUMNS
from dmm_ebpf.errors import PolicyError, UsageError
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import compile_policy
from dmm_ebpf.rd.policy.evaluate import Query, route_get
from dmm_ebpf.rd.policy.hosts import parse_labels, parse_selector
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.values import ValueRefusedError
from dmm_ebpf.rd.sources.compose import compose
from dmm_ebpf.rd.sources.follower import follower
from dmm_ebpf.rd.sources.lastgood import Kept, LastGood
from dmm_ebpf.rd.sources.publish import _identity

FLEET = """
[hosts]
edge = "role=edge"
frankfurt = "site=fra*|ams"

[stacks.lan]
kind = "kernel"
[stacks.far]
kind = "kernel"
dscp = "af21"

[[rules]]
name = "edges"
hosts = ["edge", "frankfurt"]
table = "edge"

[[rules]]
name = "rest"
comm = "curl"
table = "all"

[[tables.edge.routes]]
to = "10.0.0.0/8"
stack = "far"
[[tables.all.routes]]
to = "default"
stack = "lan"
"""
ROLLOUT = Rollout(7, "d7", 6, "d6", "rolling", ["role=canary", "site=fra"], 1)


# -- addresses --


def test_an_address_names_endpoints_and_a_prefix() -> None:
    made = place.parse("etcd://10.0.0.1,host2:2380,[2001:db8::1]:99/a/dmm/?user=me")
    assert made.endpoints == (
        "http://10.0.0.1:2379",
        "http://host2:2380",
        "http://[2001:db8::1]:99",
    )
    assert (made.prefix, made.user, made.tls) == ("/a/dmm", "me", False)
    assert str(made) == "etcd://10.0.0.1:2379,host2:2380,[2001:db8::1]:99/a/dmm"
    assert place.parse("etcds://h/p?ca=/etc/ca.pem").tls


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("etcd://h", "no prefix"),
        ("etcd://h/", "no prefix"),
        ("etcd:///p", "not a host"),
        ("etcd://h:x/p", "not a host and a port"),
        ("etcd://h:70000/p", "no port 70000"),
        ("etcd://h/p q", "other characters"),
        ("etcd://h/p?ca=/x", "for TLS"),
        ("etcds://h/p?cert=/x", "go together"),
        ("etcd://h/p?colour=red", 'no option "colour"'),
        ("etcd://h/p?user=", "user is empty"),
        ("etcd://h/p?password_file=/x", "no user"),
        ("etcd://" + ",".join("h" * 17) + "/p", "17 endpoints"),
        ("http://h/p", "begins with neither"),
        ("etcd://", "it names no host"),
    ],
)
def test_an_address_that_is_none(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        place.parse(text)


@pytest.mark.parametrize("text", ["etcd://me:geheim@h/p", "etcd://h/p?user=me&password=geheim"])
def test_a_password_in_an_address_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match="for every user to read") as refused:
        place.parse(text)
    assert "geheim" not in str(refused.value)


def test_a_password_comes_from_a_file_or_the_environment(tmp_path, monkeypatch) -> None:
    file = tmp_path / "password"
    file.write_text("geheim\n")
    assert place.parse(f"etcd://h/p?user=me&password_file={file}").load_password() == "geheim"
    asked = place.parse("etcd://h/p?user=me")
    monkeypatch.delenv(place.PASSWORD_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=place.PASSWORD_VARIABLE):
        asked.load_password()
    monkeypatch.setenv(place.PASSWORD_VARIABLE, "anders")
    assert asked.load_password() == "anders"
    file.unlink()
    with pytest.raises(UsageError, match="no such file"):
        place.parse(f"etcd://h/p?user=me&password_file={file}").load_password()


# -- hosts --


def test_selectors_choose_by_label() -> None:
    chosen = parse_selector("role=edge, site=fra*|ams")
    assert chosen.holds({"role": "edge", "site": "fra2"})
    assert chosen.holds({"role": "edge", "site": "ams", "more": "x"})
    assert not chosen.holds({"role": "edge", "site": "lon"})
    assert not chosen.holds({"role": "edge"})


@pytest.mark.parametrize("text", ["", "role", "role=", "=x", "a=b,", "a=b c", 7, "x" * 2000])
def test_selectors_that_are_none(text: object) -> None:
    with pytest.raises(ValueRefusedError, match="selects no hosts"):
        parse_selector(text)


def test_labels_that_are_none() -> None:
    for bad in ([], {"a b": "c"}, {"a": 1}, {"a": ""}, {str(n): "x" for n in range(99)}):
        with pytest.raises(ValueRefusedError):
            parse_labels(bad)


def test_a_follower_has_its_name_as_a_label() -> None:
    somewhere = place.parse("etcd://h/p")
    assert follower(somewhere, "web1", ["role=edge"]).labels == {"host": "web1", "role": "edge"}
    assert follower(somewhere, None, []).host
    for host, labels in (("a/b", []), ("a", ["x=1", "x=2"]), ("a", ["host=b"]), ("a", ["x"])):
        with pytest.raises(UsageError, match="label this host"):
            follower(somewhere, host, labels)


def parsed(text: str, tmp_path) -> policies.Policy:
    return policies.parse(text, source="fleet.toml", base=tmp_path)


def test_rules_are_for_the_hosts_that_they_select(tmp_path) -> None:
    whole = parsed(FLEET, tmp_path)
    assert [rule.name for rule in whole.rules] == ["edges", "rest"]
    edge = parsed(FLEET + '[labels]\nrole = "edge"\n', tmp_path)
    assert [rule.name for rule in edge.rules] == ["edges", "rest"]
    other = parsed(FLEET + '[labels]\nrole = "db"\n', tmp_path)
    assert [rule.name for rule in other.rules] == ["rest"]
    assert list(other.tables) == ["all"], "no stack is started for a table that nobody looks up"
    line = FLEET.splitlines().index('name = "rest"')
    assert other.place("rules", 0) == f"fleet.toml:{line}", "of the rule as it was written"


def test_a_table_that_another_rule_looks_up_stays(tmp_path) -> None:
    text = FLEET.replace('table = "all"', 'table = "edge"') + '[labels]\nrole = "db"\n'
    assert "edge" in parsed(text, tmp_path).tables


def test_a_fleets_policy_is_not_applied_without_labels(tmp_path) -> None:
    def lookup(_: str) -> tuple[int, int]:
        return 1, 1

    with pytest.raises(PolicyError, match=r"fleet.toml:14: rule 1, hosts: .* labels"):
        compile_policy(parsed(FLEET, tmp_path), IdSpace(), lookup)
    compile_policy(parsed(FLEET + '[labels]\nrole = "edge"\n', tmp_path), IdSpace(), lookup)


def test_a_question_without_labels_is_not_answered_in_silence(tmp_path) -> None:
    verdict = route_get(parsed(FLEET, tmp_path), Query("10.1.1.1", comm="curl"))
    assert (verdict.stack, verdict.unasked) == ("lan", (("edges", ("hosts",)),))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('edge = "role=edge"', 'edge = "role"', 'hosts, edge: "role" selects no hosts'),
        ('edge = "role=edge"', "edge = 7", "selects no hosts"),
        ('hosts = ["edge", "frankfurt"]', 'hosts = "edges"', 'did you mean "edge"'),
        ('hosts = ["edge", "frankfurt"]', "hosts = []", "names no hosts"),
        ('table = "edge"', 'table = "edge"\nhots = "edge"', "unknown key"),
        ("[hosts]", '[labels]\n"a b" = "c"\n[hosts]', "cannot name a label"),
    ],
)
def test_what_is_wrong_with_hosts_is_said(old: str, new: str, why: str, tmp_path) -> None:
    assert old in FLEET
    with pytest.raises(PolicyError, match=why.replace("[", r"\[")):
        parsed(FLEET.replace(old, new, 1), tmp_path)


# -- what stands in etcd --


def test_a_step_is_for_the_hosts_that_it_selects() -> None:
    canary, fra, rest = {"role": "canary"}, {"site": "fra"}, {"host": "x"}
    assert [ROLLOUT.of(one)[0] for one in (canary, fra, rest)] == [7, 6, 6]
    second = replace(ROLLOUT, reached=2, state="halted")
    assert [second.of(one) for one in (canary, fra, rest)] == [(7, "d7"), (7, "d7"), (6, "d6")]
    assert replace(ROLLOUT, state="everywhere").of(rest) == (7, "d7")


def test_a_rollout_is_read_as_it_was_written() -> None:
    assert Rollout.read("k", layout.write(ROLLOUT)) == ROLLOUT


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no JSON object"),
        (b"\xff", "not JSON"),
        (b'{"format": 2}', "of format 2, and this dmm-ebpf reads 1; use one version"),
        (b"{}", "of format null"),
        (b'{"format": 1}', "does not say all"),
        (b" " * (2 << 20), "2048 KiB, and may have 256"),
        (layout.write(replace(ROLLOUT, push=0)), "out of bounds"),
        (layout.write(replace(ROLLOUT, reached=-1)), "does not have"),
        (layout.write(replace(ROLLOUT, reached=9)), "does not have"),
        (layout.write(replace(ROLLOUT, push="7")), 'its push is "7"'),
        (layout.write(replace(ROLLOUT, push=True)), "its push is true"),
        (layout.write(replace(ROLLOUT, at=None)), "its at is null"),
        (layout.write(replace(ROLLOUT, state="odd")), "no known form"),
        (layout.write(replace(ROLLOUT, steps=[1])), "no known form"),
        (layout.write(replace(ROLLOUT, steps=["x"])), "selects no hosts"),
        (layout.write(replace(ROLLOUT, steps=["a=b"] * 99)), "out of bounds"),
    ],
)
def test_a_rollout_that_is_none(value: bytes, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        Rollout.read("want/rollout", value)


def test_a_bundle_comes_back_whole_or_not_at_all() -> None:
    bundle = Bundle(FLEET, {"far.csv": "10.0.0.0/8,,,far\n" * 100_000})
    parts = bundle.parts()
    assert Bundle.of_parts("k", parts, bundle.digest()) == bundle
    for bad in ([b"x"], parts[:-1], [parts[0][:-9]], []):
        with pytest.raises(LayoutError, match="not what was pushed"):
            Bundle.of_parts("k", bad, bundle.digest())


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "policy.toml", "x" * 65])
def test_a_bundle_writes_only_beside_its_policy(name: str) -> None:
    bundle = Bundle(FLEET, {name: ""})
    with pytest.raises(LayoutError, match="names that cannot be"):
        Bundle.of_parts("k", bundle.parts(), bundle.digest())


def test_a_push_of_too_many_parts() -> None:
    with pytest.raises(LayoutError, match="9999 parts"):
        Push.read("k", layout.write(Push(1, "d", 9999, "me", 1.0)))


def item(key: str, value: object) -> Item:
    return Item(key, value if isinstance(value, bytes) else json.dumps(value).encode(), 9)


def test_what_hosts_say_is_a_strangers_word() -> None:
    report = {"format": 1, "state": "applied", "push": 3, "labels": {"a": "b", "c": 1}}
    rows = hosts.rows(
        [
            item("hosts/b/x", report),
            item("hosts/a/x", b"garbage"),
            item("hosts/c/x", {"format": 1, "push": "7", "since": "x", "stacks": 4, "state": []}),
            item("twice/b/x/1", {"format": 1, "who": "m b, pid 7"}),
        ]
    )
    assert [(row.host, row.state, row.push) for row in rows] == [
        ("a", "unreadable", 0),
        ("b", "applied", 3),
        ("b", "twice", 0),
        ("c", "unreadable", 0),
    ]
    assert "not JSON" in rows[0].why
    assert rows[1].labels == {"a": "b"}


@pytest.mark.parametrize(
    "odd", ["1e999", "-1e999", "NaN", "1" + "0" * 400, "-7", "true", "[]", '"x"', "1e300"]
)
def test_no_number_of_a_stranger_is_more_than_a_number(odd: str) -> None:
    said = f'{{"format": 1, "state": "applied", "push": {odd}, "newest": {odd}, "since": {odd}}}'
    row = hosts.row(item("hosts/a/x", said.encode()))
    assert (row.state, row.push, row.newest, row.since) == ("applied", 0, 0, 0.0)


@pytest.mark.parametrize("odd", ["Infinity", "NaN", "-1.5", "1e300"])
def test_a_time_that_no_clock_shows(odd: str) -> None:
    said = layout.write(replace(ROLLOUT, at=1.5)).replace(b"1.5", odd.encode())
    with pytest.raises(LayoutError, match="its at is"):
        Rollout.read("want/rollout", said)


def test_what_a_host_calls_itself_is_plain_on_a_terminal() -> None:
    report = {"format": 1, "labels": {"a": "b\x1b[31m", "\x1b]0;x\x07": "c"}, "version": "\x1b[2J"}
    row = hosts.row(item("hosts/\x1b[1m/\x07", report))
    assert all(column.cell(row).isprintable() for column in _COLUMNS)


def test_hosts_come_and_go() -> None:
    known = hosts.Hosts([item("hosts/a/x", {"format": 1, "state": "waiting"})])
    made = known.change(Change("hosts/b/x", item("hosts/b/x", {"format": 1, "state": "held"})))
    assert made is not None and made.state == "held"
    assert known.change(Change("hosts/a/x", None)) is None
    assert [row.host for row in known.rows()] == ["b"]


def test_hosts_made_of_one_disk_image_are_told_apart(tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("8d3d2dd0-6f0c-4f6e-9c1c-0d0c0b0a0908\n")
    second.write_text("1b4e28ba-2fa1-11d2-883f-0016d3cca427\n")
    ids = [_identity(one).partition(" ")[0] for one in (first, first, second)]
    assert ids[0] == ids[1] != ids[2]
    assert _identity(tmp_path / "none")


# -- composed --


def test_a_host_gets_the_push_single_routes_and_its_labels(tmp_path) -> None:
    routes = [item("want/routes/all/dc2", b"# to dc2\n192.0.2.0/24, tcp, 443, far\n\n::/0,,,lan\n")]
    one = compose(Bundle(FLEET), routes, {"host": "web1", "role": "edge"})
    policy = parsed(one.text, tmp_path)
    assert one.routes == 2
    assert one.text.startswith(FLEET), "lines keep their numbers"
    assert route_get(policy, Query("192.0.2.9", comm="curl", port=443)).stack == "far"
    assert dict(policy.labels or {}) == {"host": "web1", "role": "edge"}
    assert one.digest != compose(Bundle(FLEET), [], {"host": "web1", "role": "edge"}).digest


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("want/routes/all", b"", "not called TABLE/NAME"),
        ("want/routes/a/b/c", b"", "not called TABLE/NAME"),
        ("want/routes/all/x", b"\xff", "not ASCII"),
        ("want/routes/all/x", b"10.0.0.0/8,lan", "line 1: expected to,proto,ports,stack"),
        ("want/routes/all/x", b'\n"x,,,', "line 2: it is not comma separated"),
        ("want/routes/all/x", b"a\x07,,,b", "line 1: expected"),
        ("want/routes/all/x", b"#" * (2 << 20), "2048 KiB, and may have 1024"),
    ],
)
def test_single_routes_that_are_none(key: str, value: bytes, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        compose(Bundle(FLEET), [item(key, value)], {"host": "a"})


def test_a_route_cannot_say_more_than_a_route(tmp_path) -> None:
    evil = b'10.0.0.0/8,,,"far""\nstack = ""lan"\n'
    with pytest.raises(LayoutError):
        compose(Bundle(FLEET), [item("want/routes/all/x", evil)], {"host": "a"})
    quoted = item("want/routes/all/x", b'10.0.0.0/8,,,"a""]x"\n')
    with pytest.raises(PolicyError, match="stack"):
        parsed(compose(Bundle(FLEET), [quoted], {"host": "a"}).text, tmp_path)


# -- kept --


def test_the_last_good_policy_is_kept_for_the_next_boot(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    last = LastGood("default", "etcd://h/p")
    assert last.policy is None
    one = compose(Bundle(FLEET, {"far.csv": "10.0.0.0/8,,,far\n"}), [], {"host": "a"})
    file = last.write(one)
    assert LastGood("default", "etcd://h/p").policy is None, "it is not good yet"
    last.keep(Kept("etcd://h/p", push=3, composed=one.digest, newest=4, newest_digest="d"))
    again = LastGood("default", "etcd://h/p")
    assert (again.policy, again.kept.push, again.kept.newest) == (file, 3, 4)
    assert file.read_text() == one.text
    assert (file.parent / "far.csv").is_file()
    assert last.folder.stat().st_mode & 0o777 == 0o700
    two = compose(Bundle(FLEET), [], {"host": "b"})
    again.drop(two.digest)
    again.write(two)
    again.drop(two.digest)
    again.drop(one.digest)
    assert file.is_file(), "what is kept is not dropped"
    again.write(two)
    again.keep(replace(again.kept, composed=two.digest))
    assert not file.exists()
    assert LastGood("default", "etcd://other/p").policy is None, "another fleet's"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"place": 1}', '{"place": "etcd://h/p", "composed": "../../etc"}']
)
def test_a_record_that_is_broken_is_as_none(text: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "last.json").write_text(text)
    assert LastGood("default", "etcd://h/p").kept == Kept("etcd://h/p")


def test_a_record_with_more_in_it_is_as_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    (tmp_path / "default").mkdir()
    said = asdict(Kept("etcd://h/p", push=1)) | {"more": 1}
    (tmp_path / "default" / "last.json").write_text(json.dumps(said))
    assert LastGood("default", "etcd://h/p").kept.push == 0
