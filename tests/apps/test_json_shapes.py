# SPDX-License-Identifier: Apache-2.0
"""docs/json.md says what --json prints: each command's real output has that page's keys and
types, and no other.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dmm_ebpf.rd.api.client import Client
from lab import nginx

PAGE = Path(__file__).resolve().parents[2] / "docs/json.md"
KEY = re.compile(r"\| (\w+) \| (\? )?([\w \[\]]+?) \| .*\|")
COULD_NOT_TELL = "could_not_tell"
Table = dict[str, tuple[bool, str]]
PLAIN: dict[str, Any] = {
    "text": lambda v: isinstance(v, str),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "map": lambda v: isinstance(v, dict),
}
BUSY = """
import socket, sys
listening = socket.create_server(("0.0.0.0", 7399))
open_ = socket.create_connection((sys.argv[1], 80))
print("ready", flush=True)
sys.stdin.read()
"""


def read_page() -> dict[str, Table]:
    """For each table its keys: whether it may be missing, and its type."""
    tables: dict[str, Table] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            table = tables[line[3:]] = {}
        elif (found := KEY.fullmatch(line)) and found[1] != "key":
            table[found[1]] = (bool(found[2]), found[3])
    return tables


TABLES = read_page()


def wrong_with(value: Any, kind: str, where: str) -> list[str]:
    """What is not as a type of the page says."""
    kinds = kind.split(" or ")
    if isinstance(value, dict) and set(value) == {COULD_NOT_TELL}:
        return []
    for one in kinds:
        if one in PLAIN and PLAIN[one](value):
            return []
        if one.endswith("[]") and isinstance(value, list):
            return [
                text
                for i, v in enumerate(value)
                for text in wrong_with(v, one[:-2], f"{where}[{i}]")
            ]
        if one in TABLES and isinstance(value, dict):
            return wrong_in(value, one, where)
    return [f"{where}: {value!r} is not {kind}"]


def wrong_in(row: dict[str, Any], table: str, where: str, *, more: bool = False) -> list[str]:
    keys = TABLES[table]
    wrong = [f"{where}: {key} is not on the page" for key in row if key not in keys and not more]
    wrong += [
        f"{where}: no {key}"
        for key, (optional, _) in keys.items()
        if key not in row and not optional
    ]
    for key, value in row.items():
        if key in keys:
            wrong += wrong_with(value, keys[key][1], f"{where}.{key}")
    return wrong


@pytest.fixture
def busy(wired, payload):
    """An instance with a flow and a listener."""
    path, _ = payload(1000)
    nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    routed = wired.attach_client()
    process = wired.client_cgroup.spawn(
        ["/usr/bin/python3", "-c", BUSY, wired.server.ip4],
        host=wired.client,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield routed
    process.stdin.close()
    process.wait()


def test_the_page_is_read():
    assert TABLES["flow"]["in_interface"] == (True, "text or null")
    assert len(TABLES["status"]) > 15


def test_every_answer_is_as_the_page_says(wired, busy):
    def said(*words: str, code: int = 0) -> Any:
        done = busy.cli(*words, "--json", check=False)
        assert done.returncode == code, done
        return json.loads(done.stdout)

    mine, file = ("-i", busy.instance), str(busy.policy_file)
    empty = wired.directory / "wrong.toml"
    empty.write_text("[stacks.a]\n[stacks.b]\n")
    answers = [
        ("status[]", said("status", *mine)),
        ("stack[]", said("stacks", *mine)),
        ("flow[]", said("flows", *mine)),
        ("listener[]", said("listeners", *mine)),
        ("route", said("route", "get", "192.0.2.1:80", *mine)),
        ("route", said("route", "get", "192.0.2.1:80", "--policy", file)),
        ("checked", said("policy", "check", file)),
        ("checked", said("policy", "check", str(empty), code=2)),
        ("error", said("policy", "apply", str(empty), *mine, code=2)["error"]),
        ("error", said("flows", "-i", "no-such", code=1)["error"]),
        ("applied", said("policy", "apply", file, *mine)),
        ("shown", said("policy", "show", *mine)),
        ("control[]", said("stacks", "--plugins")),
        ("simulation", said("sim", "cubic", "wan", "--duration", "2")),
        (
            "captured",
            said("capture", *mine, "-w", str(wired.directory / "f.pcapng"), "--seconds", "0.2"),
        ),
        ("device[]", said("hal", "--netns", wired.client.netns_path)),
    ]
    busy.kill_director()
    answers += [
        ("status[]", said("status", *mine)),
        ("flow[]", said("flows", *mine)),
        ("stack[]", said("stacks", *mine)),
    ]
    answers += [("detached[]", said("detach", *mine))]
    for kind, answer in answers:
        assert answer, f"{kind}: empty, and so nothing is tried"
        assert wrong_with(answer, kind, kind) == []


def test_events_are_as_the_page_says(wired, busy):
    with Client(busy.instance) as client, client.stream("follow") as events:
        busy.cli("policy", "apply", str(busy.policy_file), "-i", busy.instance)
        found = next(event for event in events if event["type"] == "policy")
        assert wrong_in(found, "event", "policy", more=True) == []
        argv = ["curl", "-s", f"http://{wired.server.ip4}/"]
        wired.client_cgroup.run(argv, host=wired.client, check=False)
        kinds = set()
        for event in events:
            kinds.add(event["type"])
            assert wrong_in(event, "event", event["type"], more=True) == []
            flow = {
                key: value for key, value in event.items() if key not in ("type", "time", "reason")
            }
            assert wrong_in(flow, "flow", event["type"]) == []
            if event["type"] == "close":
                assert event["reason"]
                break
        assert kinds >= {"connect", "established", "close"}
