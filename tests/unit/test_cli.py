# SPDX-License-Identifier: Apache-2.0
"""The command line: what is printed, where, and with which exit code, for every
answer. See test_cli_commands.py.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_lab import (
    ANSWERS,
    FLOW,
    FLOW6,
    LISTENER,
    STACK,
    STATUS,
    Cli,
    one_sentence,
)
from test_client import FakeRd, deaf, run_root  # noqa: F401 - run_root is a fixture

from dmm_ebpf import __version__
from dmm_ebpf.errors import ConflictError
from dmm_ebpf.loader.cgroup import find_cgroup2
from dmm_ebpf.rd.api import client, pulse
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.places import finding as places
from dmm_ebpf.rd.places.finding import Person, Place
from dmm_ebpf.records.flow import Flow
from dmm_ebpf.records.status import Status

pytestmark = pytest.mark.usefixtures("run_root")

# -- answers --


def test_flows_json_is_what_the_rd_said(cli: Cli) -> None:
    with FakeRd("default", ANSWERS):
        assert cli("flows", "--json").json == [FLOW, FLOW6]


def test_flows_table_has_every_column_when_piped(cli: Cli) -> None:
    with FakeRd("default", ANSWERS):
        said = cli("flows")
    title, first, second = said.out.splitlines()
    assert title.split()[:5] == ["STATE", "LOCAL", "DIR", "PEER", "STACK"]
    for text in (
        "ESTAB",
        "192.0.2.1:40000",
        "out",
        "203.0.113.7:443",
        "wan",
        "1.2M",
        "999",
        "105ms",
        "1m02s",
    ):
        assert text in first.split()
    assert "[2001:db8::7]:80" in second
    assert "\x1b" not in said.out


@pytest.mark.parametrize(
    ("transport", "after"), [("tcp", ["TABLE", "shop"]), ("gbn", ["TRANSPORT", "gbn"])]
)
def test_a_transport_that_is_not_tcp_has_a_column(
    cli: Cli, transport: str, after: list[str]
) -> None:
    with FakeRd("default", ANSWERS | {"flows": [FLOW | {"transport": transport}, FLOW6]}):
        title, first, second = cli("flows").out.splitlines()
    assert [title.split()[5], first.split()[5]] == after
    assert second[title.index(after[0]) :].split()[0] == ("-" if transport == "gbn" else "shop")


def test_flows_iec(cli: Cli) -> None:
    with FakeRd("default", ANSWERS):
        assert "1.2Mi" in cli("flows", "--iec").out


@pytest.mark.parametrize(
    ("options", "cookies"),
    [
        (["--stack", "wan"], [77]),
        (["--stack", "reject"], []),
        (["--stack", "wan", "--stack", "kernel"], [77, 78]),
        (["--comm", "ngin*"], [78]),
        (["--comm", "ngin"], []),
        (["--pid", "7"], [78]),
        (["--cgroup", "/shop.slice"], [77]),
        (["--cgroup", "/"], [77, 78]),
        (["--cgroup", "/docker"], [78]),
        (["--cgroup", "/docker/0/"], [78]),
        (["--container", "web"], [78]),
        (["--unit", "shop.slice"], [77]),
        (["--dst", "203.0.113.0/24"], [77]),
        (["--dst", "203.0.113.7:443"], [77]),
        (["--dst", "[2001:db8::]:80"], []),
        (["--dst", "[2001:db8::/32]:80"], [78]),
        (["--dst", "2001:db8::7"], [78]),
        (["--dst", ":443"], [77]),
        (["--state", "established"], [77, 78]),
        (["--state", "Fin-Wait-1"], []),
    ],
)
def test_flows_filters(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: list[str], cookies: list[int]
) -> None:
    monkeypatch.setattr(places, "of_container", lambda name: Place(name, "/docker/0", None))
    monkeypatch.setattr(places, "of_unit", lambda name, pending: Place(name, f"/{name}", None))
    flows = [FLOW, FLOW6 | {"cgroup": "/docker/0/inner"}]
    with FakeRd("default", ANSWERS | {"flows": flows}):
        assert [flow["cookie"] for flow in cli("flows", "--json", *options).json] == cookies


@pytest.mark.parametrize("how", [[], ["--follow"]])
@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--stack", "wann", 'no instance has a stack of that name; did you mean "wan"?'),
        (
            "--stack",
            "x",
            "no instance has a stack of that name; there are blackhole, kernel, prohibit, reject, unreachable, wan",
        ),
        ("--cgroup", "/dock", "there is no such cgroup, and no rule waits for it"),
        ("--pid", "4194305", "there is no such process"),
    ],
)
def test_a_filter_by_what_is_not_there_is_refused(
    cli: Cli, how: list[str], option: str, name: str, told: str
) -> None:
    with FakeRd("default", ANSWERS | {"status": STATUS | {"pending": []}}):
        one_sentence(cli("flows", *how, option, name), 2, told)
        said = cli("flows", *how, "--stack", "kernel", option, name, "--json")
    assert (said.code, said.json["error"]["kind"]) == (2, "UsageError")


def test_a_filter_by_what_is_waited_for_finds_nothing(cli: Cli) -> None:
    pending = [{"rule": "1", "number": 1, "cgroup": "/nowhere.slice/unit"}]
    with FakeRd("default", ANSWERS | {"status": STATUS | {"pending": pending}}):
        for path in ("/nowhere.slice/unit/below", "/nowhere.slice"):
            assert cli("flows", "--json", "--cgroup", path).json == []
    assert cli("flows", "--json", "--stack", "any").json == []  # nobody is there to know


def test_a_listing_covers_every_instance(cli: Cli) -> None:
    red = ANSWERS | {"flows": [FLOW | {"instance": "red"}]}
    with FakeRd("default", ANSWERS), FakeRd("red", red):
        assert [flow["instance"] for flow in cli("flows", "-j").json] == [
            "default",
            "default",
            "red",
        ]
        assert [flow["instance"] for flow in cli("flows", "-j", "-i", "red").json] == ["red"]
        assert cli("flows").out.splitlines()[0].startswith("INSTANCE")
        assert len(cli("listeners", "-j").json) == 2


def test_a_listing_tells_of_every_instance_that_cannot_be_asked(cli: Cli) -> None:
    broken = [ConflictError("count", why=f"{colour} is in the way") for colour in ("blue", "red")]
    with (
        FakeRd("blue", ANSWERS | {"stacks": broken[0]}),
        FakeRd("default", ANSWERS),
        FakeRd("red", ANSWERS | {"stacks": broken[1]}),
    ):
        said = cli("stacks", "--json")
    assert (said.code, [row["instance"] for row in said.json]) == (broken[0].exit_code, ["default"])
    for colour in ("blue", "red"):
        assert said.err.count(f"{colour} is in the way") == 1


def test_no_instance_is_an_empty_listing(cli: Cli) -> None:
    for listing in ("flows", "listeners", "stacks", "status"):
        said = cli(listing, "--json")
        assert (said.code, said.json) == (0, [])
        assert "no instance is attached" in said.err


def test_status(cli: Cli) -> None:
    with FakeRd("default", ANSWERS):
        said = cli("status")
        assert cli("status", "--json").json == [STATUS | {"rd": "up"}]
    for text in (
        "running, pid 31337, up 3m20s",
        "generation 3",
        "2 open, 1 listener\n",
        "connect 5",
        "af_xdp",
    ):
        assert text in said.out
    assert "events_lost" not in said.out


def test_stacks_and_listeners(cli: Cli) -> None:
    with FakeRd("default", ANSWERS):
        assert cli("stacks").out.splitlines()[1].split()[:4] == ["wan", "user", "up", "1"]
        assert cli("stacks", "--json").json == [STACK]
        assert cli("listeners").out.splitlines()[1].split()[:3] == ["tcp", "[::]:80", "shop"]


def test_a_stack_that_does_not_serve_says_why(cli: Cli) -> None:
    down = STACK | {"state": "down", "reason": "eth0 has no AF_XDP\x1b"}
    with FakeRd("default", {"stacks": [STACK, down]}):
        assert cli("stacks").out.splitlines()[3:] == ["wan is down: eth0 has no AF_XDP?"]
    first = {
        "process": 0,
        "state": "up",
        "connections": 7,
        "pid": 41,
        "device": "dmm-0",
        "restarts": 0,
    }
    second = {
        "process": 1,
        "state": "down",
        "connections": None,
        "pid": None,
        "device": "dmm-1",
        "restarts": 2,
    }
    half = STACK | {
        "reason": "1 of 2 processes down, wan@1: exit code 1",
        "processes": [first, second],
    }
    with FakeRd("default", {"stacks": [half]}):
        told = cli("stacks").out.splitlines()[3:]
    assert [line.split() for line in told[:-1]] == [
        ["STACK", "PROCESS", "STATE", "CONNECTIONS", "PID", "DEVICE", "RESTARTS"],
        ["wan", "0", "up", "7", "41", "dmm-0", "0"],
        ["wan", "1", "down", "-", "-", "dmm-1", "2"],
    ]
    assert told[-1] == "wan is up: 1 of 2 processes down, wan@1: exit code 1"


def test_a_full_stack_says_of_what(cli: Cli) -> None:
    used = {
        "in_use": 4,
        "max_connections": 4,
        "memory_bytes": 200 << 20,
        "memory_limit_bytes": 256 << 20,
    }
    full = STACK | used | {"full": ["connections", "memory"]}
    with FakeRd("default", {"stacks": [full, STACK | {"name": "b"}]}):
        told = cli("stacks").out.splitlines()
    assert [line.split()[:5] for line in told[:3]] == [
        ["STACK", "KIND", "STATE", "FULL", "FLOWS"],
        ["wan", "user", "up", "connections,memory", "1"],
        ["b", "user", "up", "-", "1"],
    ]
    why = "4 of 4 connections, 200Mi of 256Mi of memory"
    assert told[3:] == [f"wan is full ({why}): new flows go to kernel"]
    part = [
        {"process": 0, "state": "up", "full": ["frames"]},
        {"process": 1, "state": "up", "full": []},
    ]
    with FakeRd("default", {"stacks": [STACK | {"full": [], "processes": part}]}):
        told = cli("stacks").out.splitlines()
    assert [line.split()[:4] for line in told[3:]] == [
        ["STACK", "PROCESS", "STATE", "FULL"],
        ["wan", "0", "up", "frames"],
        ["wan", "1", "up", "-"],
    ]


def test_commands_may_be_abbreviated(cli: Cli) -> None:
    with FakeRd("default", ANSWERS):
        assert cli("fl", "-j").json == [FLOW, FLOW6]
        assert cli("ro", "g", "203.0.113.7", "-j").json["stack"] == "wan"
    one_sentence(cli("st"), 2, "'st' may mean status or stacks")


def test_route_get_asks_what_was_typed(cli: Cli) -> None:
    with FakeRd("default", ANSWERS) as rd:
        said = cli(
            *(
                "route",
                "get",
                "[2001:db8::7]:443",
                "--cgroup",
                "/shop.slice",
                "--uid",
                "root",
                "--comm",
                "curl",
            ),
            *("--mark", "0x10", "--direction", "listen", "--proto", "tcp", "--json"),
        )
        assert {key: said.json[key] for key in ("stack", "table", "rule", "route")} == {
            "stack": "wan",
            "table": "shop",
            "rule": "1",
            "route": "203.0.113.0/24",
        }
        assert rd.asked == [
            (
                "route_get",
                {
                    "addr": "2001:db8::7",
                    "port": 443,
                    "proto": "tcp",
                    "cgroup": "/shop.slice",
                    "uid": 0,
                    "gid": None,
                    "comm": "curl",
                    "executable": None,
                    "mark": 16,
                    "direction": "listen",
                    "dscp": None,
                    "choice": None,
                    "local_port": None,
                    "interface": None,
                },
            )
        ]


def test_a_cgroup_may_be_named_by_its_place_in_the_file_system(cli: Cli) -> None:
    with FakeRd("default", ANSWERS) as rd:
        for path in (find_cgroup2(), find_cgroup2() / "no-such-group", "//a/../b", "///"):
            said = cli("route", "get", "203.0.113.7", "--cgroup", str(path))
            assert "by no route that names ports" in said.out
        assert [params["cgroup"] for _, params in rd.asked] == ["/", "/no-such-group", "/b", "/"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--container", "web"], {"cgroup": "/docker/0", "uid": None, "comm": None}),
        (["--unit", "shop.slice"], {"cgroup": "/shop.slice", "uid": None, "comm": None}),
        (["--pid", "7"], {"cgroup": "/", "uid": 33, "gid": 34, "comm": "nginx"}),
        (["--pid", "7", "--uid", "0", "--comm", "x"], {"cgroup": "/", "uid": 0, "comm": "x"}),
    ],
)
def test_route_get_asks_for_a_place(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(places, "of_container", lambda name: Place(name, "/docker/0", None))
    monkeypatch.setattr(places, "of_unit", lambda name, pending: Place(name, f"/{name}", None))
    monkeypatch.setattr(places, "of_pid", lambda pid: Place(str(pid), "/", None))
    monkeypatch.setattr(places, "person", lambda _pid: Person(33, 34, "nginx"))
    with FakeRd("default", ANSWERS) as rd:
        assert cli("route", "get", "203.0.113.7:443", "--json", *options).code == 0
        asked = rd.asked[-1][1]
    assert {key: asked[key] for key in expected} == expected


@pytest.mark.parametrize("option", [("--from", "192.0.2.1"), ("--in-interface", "lan0")])
@pytest.mark.parametrize("direction", ["connect", "listen"])
def test_route_get_ignores_no_option_of_forwarded_flows(
    cli: Cli, option: tuple[str, str], direction: str
) -> None:
    said = cli("route", "get", "203.0.113.7", "--direction", direction, *option)
    assert said.code == 2
    assert f"{option[0]} is of flows that the host forwards" in said.err
    assert "--direction forward" in said.err


def test_route_get_tells_the_transport_that_would_serve(cli: Cli) -> None:
    with FakeRd("default", {"route_get": ANSWERS["route_get"] | {"transport": "c:gbn"}}):
        assert "    transport c:gbn" in cli("route", "get", "203.0.113.7:443").out.splitlines()


def test_route_get_asks_for_reasons_where_they_are_wanted(cli: Cli) -> None:
    with FakeRd("default", ANSWERS) as rd:
        assert cli("route", "get", "10.0.0.1:80").code == 0
        assert cli("route", "get", "10.0.0.1:80", "--why").code == 0
    asked = [params for method, params in rd.asked if method == "route_get"]
    assert "reasons" not in asked[0]
    assert asked[1]["reasons"] is True
    alone = cli("route", "get", "10.0.0.1:80", "--why", "--policy", "p.toml")
    one_sentence(alone, 2, "only an instance knows")


def test_route_get_for_people(cli: Cli) -> None:
    down = ANSWERS["route_get"] | {"stack": "kernel", "why": "down", "assumed": {"cgroup": "/shop"}}
    down["unasked"] = [{"rule": "a", "needs": ["uid", "comm"]}]
    with FakeRd("default", {"route_get": down}):
        said = cli("route", "get", "203.0.113.7:443")
    assert said.out.splitlines() == [
        "203.0.113.7 proto tcp port 443 stack kernel (fallback: wan is down) table shop",
        "    rule 1",
        "    route 203.0.113.0/24",
        "    for a process in /shop itself; --cgroup names another cgroup",
        "    rule a comes before, and may match: it asks for --uid and --comm",
    ]


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("udp", "stack kernel (wan carries no such datagrams) table"),
        ("group", "stack kernel (wan carries no datagrams to many) table"),
        ("loopback", "stack kernel (wan carries nothing that stays on this host) table"),
        ("device", "stack kernel (wan does not serve lo, by which it leaves) table"),
        ("outside", "stack kernel (it is outside /shop, to which the instance is attached) table"),
    ],
)
def test_route_get_says_why_another_stack_serves(cli: Cli, why: str, text: str) -> None:
    answer = ANSWERS["route_get"] | {
        "stack": "kernel",
        "why": why,
        "attached": "/shop",
        "device": "lo",
    }
    with FakeRd("default", {"route_get": answer}):
        said = cli("route", "get", "203.0.113.7:443")
    assert text in said.out
    assert "down" not in said.out


def test_an_address_that_may_hide_a_port_is_told(cli: Cli) -> None:
    with FakeRd("default", ANSWERS):
        said = cli("route", "get", "::1:80")
        assert (
            said.err
            == "dmm-ebpf: ::1:80 is an address without a port; for port 80 write [::1]:80\n"
        )
        for plain in ("[::1]:80", "2001:db8::1", "192.0.2.1:80", "::1"):
            assert cli("route", "get", plain).err == ""


def test_a_port_may_be_named_by_its_service(cli: Cli) -> None:
    with FakeRd("default", ANSWERS) as rd:
        for text, proto, port in (
            ("203.0.113.7:https", "tcp", 443),
            ("[2001:db8::7]:tftp", "udp", 69),
        ):
            assert cli("route", "get", text, "--proto", proto).code == 0
            assert rd.asked[-1][1]["port"] == port
        assert cli("flows", "--dst", ":https", "--json").json == [FLOW]
    one_sentence(cli("route", "get", "203.0.113.7:tftp"), 2, "nor a tcp service in /etc/services")


@pytest.mark.parametrize(("names", "chosen"), [(["default", "red"], "default"), (["red"], "red")])
def test_a_question_goes_to_default_or_to_the_only_one(
    cli: Cli, names: list[str], chosen: str
) -> None:
    route = ANSWERS["route_get"]
    servers = [FakeRd(name, ANSWERS | {"route_get": {"instance": name, **route}}) for name in names]
    for server in servers:
        server.__enter__()
    try:
        assert cli("route", "get", "203.0.113.7", "--json").json["instance"] == chosen
        assert cli("policy", "show").out == "[stacks.wan]\n"
    finally:
        for server in servers:
            server.__exit__()


def test_a_question_with_several_to_choose_from(cli: Cli) -> None:
    with FakeRd("red", ANSWERS), FakeRd("blue", ANSWERS):
        one_sentence(
            cli("route", "get", "203.0.113.7"), 2, "there are blue, red; name one with --instance"
        )


def test_a_question_with_nobody_to_ask(cli: Cli) -> None:
    one_sentence(cli("route", "get", "203.0.113.7"), 1, "no instance is attached")


def test_policy_show_of_an_observer(cli: Cli) -> None:
    shown = {"instance": "default", "path": None, "text": None, "generation": 0}
    with FakeRd("default", {"policy_show": shown, "status": STATUS}):
        said = cli("policy", "show")
    assert (said.code, said.out) == (0, "")
    assert "it only observes" in said.err


def test_policy_apply_sends_the_text_and_where_it_lies(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("# é\n", encoding="utf-8")
    with FakeRd("default", ANSWERS) as rd:
        said = cli("policy", "apply", str(file))
        assert rd.asked == [("policy_apply", {"path": str(file), "text": "# é\n"})]
    assert said.out == "applied to instance default: generation 4, 1 rule, 2 routes, 1 stack\n"


def test_follow_prints_events_as_they_come(cli: Cli) -> None:
    events = [
        FLOW | {"type": "established", "time": 1700000000.25},
        {
            "type": "stack",
            "time": 1700000001.0,
            "instance": "default",
            "name": "wan",
            "state": "down",
        },
        FLOW | {"type": "close", "time": 1700000002.0, "comm": "a\x1b[31mb", "reason": "fin"},
    ]
    with FakeRd("default", {"follow": events, "stacks": [STACK]}, hang_up=True):
        as_json = cli("flows", "--follow", "--json", "-i", "default")
        as_text = cli("flows", "--follow", "-i", "default")
        only = cli("flows", "--follow", "-i", "default", "--json", "--stack", "wan")
    *lines, last = (json.loads(line) for line in as_json.out.splitlines())
    assert lines == events
    assert "closed the connection" in last["error"]["why"]
    *lines, _ = (json.loads(line) for line in only.out.splitlines())
    assert [line["type"] for line in lines] == ["established", "close"]
    first, second, third = as_text.out.splitlines()
    assert "established curl/4242 192.0.2.1:40000 > 203.0.113.7:443 stack wan" in first
    assert second.endswith("name wan state down")
    assert "a?[31mb/4242" in third
    assert third.endswith("sent 1.2M received 999 reason fin")
    assert as_json.code == 1
    assert "closed the connection" in as_json.err


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"dmm-ebpf {__version__}\n"


# -- an RD that is dead --


def test_flows_of_a_dead_rd_come_from_its_pins(cli: Cli, service: SimpleNamespace) -> None:
    (client.socket_path("default").parent).mkdir()
    service.offline_flows = lambda _name: [Flow.from_map(FLOW)]
    service.offline_status = lambda _name: Status.from_map(STATUS | {"pid": None})
    said = cli("flows", "--json")
    assert said.json == [FLOW]
    assert "its Resource Director is not running; shown from what it left pinned" in said.err
    assert cli("status", "--json").json[0]["rd"] == "dead"
    assert cli("stacks", "--json").json == [STACK]
    assert "director  dead" in cli("status").out


def test_what_an_rd_that_stands_still_has_pinned_is_listed(
    cli: Cli, service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LOOK_S", 0.05)
    monkeypatch.setattr(pulse, "STILL_S", 0.2)
    service.offline_flows = lambda _name: [Flow.from_map(FLOW)]
    service.offline_status = lambda _name: Status.from_map(STATUS | {"pid": None})
    with deaf("default") as pid:
        os.kill(pid, signal.SIGSTOP)
        flows, as_json, status, route = (
            cli(*words)
            for words in (
                ("flows", "--json"),
                ("status", "--json"),
                ("status",),
                ("route", "get", "192.0.2.1:80"),
            )
        )
    silent = f"its Resource Director does not answer: its process {pid} is stopped"
    assert (flows.code, flows.json) == (0, [FLOW])
    assert f"{silent}; shown from what it left pinned" in flows.err
    assert (as_json.code, as_json.json[0]["rd"]) == (0, "silent")
    assert "director  does not answer" in status.out
    assert route.code == 75
    assert f"{silent}; kill -CONT {pid} lets it go on" in route.err


@pytest.mark.parametrize("command", ["status", "flows", "stacks", "listeners"])
def test_an_instance_that_is_starting_is_left_out(
    cli: Cli, service: SimpleNamespace, command: str
) -> None:
    def half(name: str) -> None:
        raise ConflictError(f"take over instance {name}", why="it is half attached")

    service.offline_flows = service.offline_status = half
    starting = RunDir("starting")
    starting.claim()
    with FakeRd("default", ANSWERS):
        said = cli(command, "--json")
        named = cli(command, "--json", "-i", "starting")
    starting.remove()
    assert {row["instance"] for row in said.json} == {"default"}
    assert (said.code, said.err) == (
        0,
        "dmm-ebpf: instance starting: its Resource Director is starting or ending; left out\n",
    )
    assert named.code == named.json["error"]["exit_code"] == 1
    assert "its Resource Director is starting or ending; ask again in a moment" in named.err


def test_one_unreadable_instance_does_not_hide_the_others(cli: Cli) -> None:
    (client.socket_path("dead").parent).mkdir()
    with FakeRd("default", ANSWERS):
        said = cli("listeners", "--json")
    assert said.json == [LISTENER]
    # What it has left pinned is for root to read; for another user it is one of root's instances.
    root = (1, "cannot ask instance dead for listeners")
    code, why = root if os.geteuid() == 0 else (0, "left out, as only others may ask: dead")
    assert said.code == code
    assert why in said.err
