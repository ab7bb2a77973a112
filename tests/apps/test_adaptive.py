# SPDX-License-Identifier: Apache-2.0
"""Adaptive routes at work: an unmodified program downloads over a path whose loss changes, and the
route ends with the better candidate; what is learnt is listed, and outlives the director.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from dmm_ebpf.rd.director.rundir import ROOT
from lab import wait_for

PORT = 7400
POLICY = """
[stacks.wan]
kind = "user"
congestion = "wan"

[stacks.plain]
kind = "kernel"
congestion = "reno"

[[rules]]
cgroup = "{cgroup}"
table = "t"

[[tables.t.routes]]
to = "default"
stack = "auto"
candidates = ["plain", "wan"]
goal = "throughput"
"""
# Gives each client as many bytes as it asks for.
SERVE = """
import socket, sys, threading
listening = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
print("ready", flush=True)
def serve(c):
    try:
        c.sendall(bytes(int(c.recv(32))))
    except OSError:
        pass
    c.close()
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""
# Four at a time, one download after the other, until its standard input ends.
DOWNLOAD = """
import socket, sys, threading
def download():
    while True:
        try:
            with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as c:
                c.sendall(sys.argv[3].encode())
                while c.recv(1 << 20):
                    pass
        except OSError:
            pass
for _ in range(4):
    threading.Thread(target=download, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
BYTES = 150_000


@pytest.fixture
def downloads(site) -> Any:
    """A path of 20 ms, and a program that downloads over it, by an adaptive route."""
    site.wan(rate="100mbit", delay="10ms")
    server = ["/usr/bin/python3", "-u", "-c", SERVE, str(PORT)]
    started(site, site.server, site.server_cgroup, server)
    routed = site.attach_client(POLICY)
    client = ["/usr/bin/python3", "-u", "-c", DOWNLOAD, site.server.ip4, str(PORT), str(BYTES)]
    started(site, site.client, site.client_cgroup, client)
    return routed


def started(site, host, cgroup, argv: list[str]) -> None:
    """Runs until the test ends, and is there when it says so."""
    process = cgroup.spawn(
        argv, host=host, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    site.stack.callback(process.wait)
    site.stack.callback(process.kill)
    assert process.stdout.readline().strip() == "ready"


def root(routed) -> dict[str, Any]:
    """What is known of all peers."""
    return next(row for row in routed.ask("paths") if row["prefix"] == "default")


def chosen_within(routed, stack: str, seconds: float) -> dict[str, Any]:
    """The row, once that stack serves."""

    def found() -> dict[str, Any] | None:
        row = root(routed)
        return row if row["chosen"] == stack else None

    return wait_for(found, seconds, f"{stack} to serve") or {}


def test_the_better_candidate_serves_when_the_path_changes(site, downloads):
    """Reno collapses under loss, and the stack made for such paths hardly does."""
    known: Callable[[], bool] = lambda: all(  # noqa: E731
        one["rate_Bps"] for one in root(downloads)["candidates"]
    )
    wait_for(known, 120, "both candidates to have been tried")
    before = root(downloads)["changes"]
    site.link.set(loss="4%")
    row = chosen_within(downloads, "wan", 120)
    assert row["changes"] - before <= 2
    plain, wan = row["candidates"]
    assert wan["score"] > plain["score"]
    assert plain["loss"] is not None
    # It is the /24 of the peer, or all peers, that decides for it; both say so.
    asked = ("route", "get", f"{site.server.ip4}:{PORT}")
    told = downloads.ask(*asked)
    assert told["path"]["chosen"] == told["wanted"] == "wan"
    words = downloads.cli(*asked, "-i", downloads.instance).stdout
    assert "by throughput" in words and "wan" in words
    picture = downloads.cli("paths", "--picture", "-i", downloads.instance).stdout
    assert "█" in picture and "* wan" in picture
    # New flows do go there.
    carried = lambda: any(one["stack"] == "wan" for one in downloads.flows())  # noqa: E731
    wait_for(carried, 60, "a flow of the stack's")


def test_what_clients_open_is_learnt_from_and_decided(site):
    """The host that is routed is the server: it sends what others ask for."""
    site.wan(rate="100mbit", delay="10ms")
    routed = site.attach_server(POLICY)
    server = ["/usr/bin/python3", "-u", "-c", SERVE, str(PORT)]
    started(site, site.server, site.server_cgroup, server)
    client = ["/usr/bin/python3", "-u", "-c", DOWNLOAD, site.server.ip4, str(PORT), str(BYTES)]
    started(site, site.client, site.client_cgroup, client)
    wait_for(
        lambda: all(one["rate_Bps"] for one in root(routed)["candidates"]),
        120,
        "both candidates to have been tried",
    )
    site.link.set(loss="4%")
    row = chosen_within(routed, "wan", 120)
    plain, wan = row["candidates"]
    assert wan["score"] > plain["score"]
    asked = ("route", "get", f"{site.client.ip4}:{PORT}", "--direction", "listen")
    told = routed.ask(*asked)
    assert (told["path"]["chosen"], told["wanted"], told["why"]) == ("wan", "wan", None)

    reasons = routed.cli(*asked, "--why", "-i", routed.instance).stdout
    for text in ("times as good, and beyond chance", "is tried by", " decides", "default", "* wan"):
        assert text in reasons
    assert [one["prefix"] for one in routed.ask(*asked, "--why")["paths"]][-1] == "default"

    def carried() -> bool:
        return any(one["stack"] == "wan" for one in routed.flows(direction="listen"))

    wait_for(carried, 60, "a client's flow to be the stack's")


def test_what_is_learnt_outlives_the_director(site, downloads):
    wait_for(lambda: any(one["rate_Bps"] for one in root(downloads)["candidates"]), 120, "a figure")
    kept = (ROOT / downloads.instance / "paths.json").exists
    wait_for(kept, 120, "what is known to be kept")
    downloads.kill_director()
    assert json.loads((ROOT / downloads.instance / "paths.json").read_text())
    downloads.restart()
    assert any(one["rate_Bps"] for one in root(downloads)["candidates"])


def test_other_candidates_and_goals_begin_anew(site, downloads):
    """And nothing of a policy that was in force is left in the map."""
    wait_for(lambda: all(one["rate_Bps"] for one in root(downloads)["candidates"]), 120, "figures")
    site.link.set(loss="4%")
    chosen_within(downloads, "wan", 120)
    downloads.apply(POLICY.replace('["plain", "wan"]', '["plain", "kernel"]'))
    assert root(downloads)["chosen"] == "plain"
    assert {one["stack"] for one in root(downloads)["candidates"]} == {"plain", "kernel"}
    downloads.apply(POLICY.replace("throughput", "latency"))
    assert root(downloads)["goal"] == "latency"
    downloads.apply(POLICY)
    assert root(downloads)["goal"] == "throughput"
