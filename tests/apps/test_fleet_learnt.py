# SPDX-License-Identifier: Apache-2.0
"""What a host has learnt of paths, told to another one by a real etcd."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from fleetsite import Fleet, await_state, standing
from test_adaptive import BYTES, DOWNLOAD, PORT, SERVE

from lab import wait_for

pytestmark = pytest.mark.root

WITHIN_S = 120  # an instance tells and hears each 20 s
POLICY = """
[stacks.plain]
kind = "kernel"
congestion = "reno"
[stacks.lan]
kind = "kernel"
congestion = "cubic"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "default"
stack = "auto"
candidates = ["plain", "lan"]
share = true
"""


@pytest.fixture
def site(lab, make_cgroup, tmp_path, monkeypatch):
    with standing(lab, make_cgroup, tmp_path, monkeypatch) as made:
        made.serve(members=1, options=["--max-request-bytes", "8388608"])
        yield made


def _started(site: Fleet, argv: list[str], cgroup: Any, host: Any) -> Any:
    process = cgroup.spawn(
        argv, host=host, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    site.stack.callback(process.wait)
    site.stack.callback(process.kill)
    assert process.stdout.readline().strip() == "ready"
    return process


def _row(following: Any) -> dict[str, Any]:
    return next(row for row in following.ask("paths") if row["prefix"] == "default")


def _knows(row: dict[str, Any]) -> bool:
    return all(one["rate_Bps"] for one in row["candidates"])


def test_a_host_without_flows_knows_what_another_has_seen(site: Fleet, make_cgroup) -> None:
    first, second = site.follow(0), site.follow(1)
    site.await_listed(2)
    site.push(POLICY)
    await_state(second, "applied", push=1)
    peer = site.hosts[2]
    python = ["/usr/bin/python3", "-u", "-c"]
    _started(site, [*python, SERVE, str(PORT)], make_cgroup(), peer)
    argv = [*python, DOWNLOAD, peer.ip4, str(PORT), str(BYTES)]
    client = _started(site, argv, first.cgroup, site.hosts[0])
    wait_for(lambda: _knows(_row(first)), WITHIN_S, "both candidates to have been tried")
    client.kill()
    assert _row(first)["hosts"] == []

    told_by = [f"a/{first.instance}"]
    wait_for(lambda: _row(second)["hosts"] == told_by, WITHIN_S, "what the other host has seen")
    row = _row(second)
    assert _knows(row)
    assert [one["samples"] for one in row["candidates"]] == [0.0, 0.0]
    asked = ("route", "get", f"{peer.ip4}:{PORT}", "--cgroup", str(second.cgroup.path))
    said = second.cli(*asked, "--why", "-i", second.instance).stdout
    assert f"with what is told by {told_by[0]}" in said
    assert told_by[0] in second.cli("paths", "-i", second.instance).stdout
    assert _row(first)["hosts"] == [], "what it told itself does not come back"

    # What nobody can have learnt is left out, and told once
    value = json.loads(site.etcd.ctl("get", "--print-value-only", f"/dmm/learnt/{told_by[0]}"))
    (routes,) = value["routes"].values()
    routes[0][3]["lan"][11] = 1e15
    wrong = {
        "x": json.dumps(value | {"format": 99}),
        "y": json.dumps(value),
        "z": "[" * 4000,
        "n": json.dumps(value).replace("1000000000000000.0", "NaN"),
    }
    for name, text in wrong.items():
        site.etcd.put(f"/dmm/learnt/evil/{name}", text)
    reasons = {
        "x": "it is of format 99",
        "y": "no path can have",
        "z": "it is not JSON",
        "n": "no path can have",
    }
    for name, why in reasons.items():
        line = f"what evil/{name} tells of paths is left out: "

        def logged(line: str = line, why: str = why) -> bool:
            return any(line in one and why in one for one in second.log.read_text().splitlines())

        wait_for(logged, WITHIN_S, f"{name} to be left out")
    assert _row(second)["hosts"] == told_by

    # Who does not want it any more, and who is gone, tells nothing
    first.close()
    wait_for(lambda: _row(second)["hosts"] == [], WITHIN_S, "a host that is gone to be forgotten")
    site.push(POLICY.replace("share = true\n", ""))
    await_state(second, "applied", push=2)
    assert _row(second)["stack"] == "auto:throughput:plain,lan"
    keys = lambda: site.etcd.ctl("get", "--prefix", "--keys-only", "/dmm/learnt/b/").strip()  # noqa: E731
    wait_for(lambda: keys() == "", WITHIN_S, "what it told to be gone")
