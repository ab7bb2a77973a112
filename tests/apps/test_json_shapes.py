# SPDX-License-Identifier: Apache-2.0
"""docs/json.md says what --json prints: each command's real output has that page's keys and
types, and no other; and as they were before, key by key (json_shapes.json).

A change that is meant is written down by UPDATE=1.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonpage import TABLES, wrong_in, wrong_with

from dmm_ebpf.rd.api.client import Client
from lab import nginx

SHAPES = Path(__file__).with_name("json_shapes.json")
BUSY = """
import socket, sys
listening = socket.create_server(("0.0.0.0", 7399))
open_ = socket.create_connection((sys.argv[1], 80))
print("ready", flush=True)
sys.stdin.read()
"""


def merged(one: Any, other: Any) -> Any:
    """A shape that has what both have."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: merged(one.get(key), other.get(key)) for key in {**one, **other}}
    return one if other is None else other


def shape(value: Any, kind: str) -> Any:
    """The keys of value, all the way down, without those that are data (map) and without what
    may be there or not; None: no keys.
    """
    if isinstance(value, list):
        found: Any = None
        for one in value:
            found = merged(found, shape(one, kind.removesuffix("[]")))
        return found
    if isinstance(value, dict) and kind in TABLES:
        return {
            key: shape(one, found[1].split(" or ")[0])
            for key, one in value.items()
            if (found := TABLES[kind].get(key)) and not (kind == "flow" and found[0])
        }
    return None


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
        ("routes_changed", said("route", "add", "192.0.2.0/24", "stack", "lan", *mine)),
        ("route_row[]", said("route", "show", *mine)),
        ("route", said("route", "get", "192.0.2.1:80", *mine)),
        ("checked", said("policy", "check", file)),
        ("checked", said("policy", "check", str(empty), code=2)),
        ("error", said("policy", "apply", str(empty), *mine, code=2)["error"]),
        ("error", said("flows", "-i", "no-such", code=1)["error"]),
        ("explained", said("policy", "explain", "192.0.2.1:80", *mine)),
        ("explained", said("policy", "explain", "192.0.2.1:80", "--policy", file)),
        ("tried", said("policy", "apply", "--dry-run", file, *mine)),
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
    _hold([[kind, shape(answer, kind)] for kind, answer in answers])


def _hold(shapes: list[Any]) -> None:
    """Against what was written down; the order of keys counts."""
    text = json.dumps(shapes, indent=1)
    if os.environ.get("UPDATE"):
        SHAPES.write_text(text + "\n")
    assert SHAPES.read_text() == text + "\n"


def test_events_are_as_the_page_says(wired, busy):
    with Client(busy.instance) as client, client.stream("follow") as events:
        busy.apply()
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
