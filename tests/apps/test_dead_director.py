# SPDX-License-Identifier: Apache-2.0
"""What listings say of flows and listeners while the Resource Director is dead, and after the
next one took over.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from sitefixtures import TAP, Site
from talking import PORT, Talker, echo

from dmm_ebpf.rd.director.rundir import ROOT
from lab import wait_for
from lab.routed import Routed
from lab.waiting import stop

OF_A_FILE = TAP.replace(
    '[[tables.shop.routes]]\nto = "default"\nstack = "wan"',
    '[tables.shop]\nroutes_from = "shop.csv"',
)


def _decided(routed: Routed, pid: int) -> dict[str, Any]:
    (flow,) = routed.flows(pid=pid)
    return {key: flow[key] for key in ("kind", "stack", "wanted", "why", "table", "rule", "route")}


def test_names_and_listeners_stay_without_a_director(wired: Site) -> None:
    routed = wired.attach_client(TAP)
    echo(wired.server, wired.server_cgroup)
    echo(wired.client, wired.client_cgroup)
    pid = Talker(wired.client, wired.client_cgroup, wired.server.ip4).process.pid
    decided, listeners = _decided(routed, pid), routed.ask("listeners")
    assert (decided["rule"], decided["route"]) == ("shop", "0.0.0.0/0")
    assert [one["rule"] for one in listeners] == ["shop"]
    routed.kill_director()
    assert _decided(routed, pid) == decided
    assert routed.ask("listeners") == listeners
    routed.restart()
    assert _decided(routed, pid) == decided
    assert routed.ask("listeners") == listeners


@pytest.mark.parametrize("policy", [TAP, OF_A_FILE], ids=["policy", "routes file"])
def test_names_given_by_an_earlier_policy_stay(wired: Site, policy: str) -> None:
    """A take-over is a new generation, too, so the second one is that of an earlier policy."""
    routes = wired.directory / "shop.csv"
    routes.write_text("default,tcp,,wan\n")
    routed = wired.attach_client(policy)
    echo(wired.server, wired.server_cgroup)
    pid = Talker(wired.client, wired.client_cgroup, wired.server.ip4).process.pid
    decided = _decided(routed, pid)
    assert (decided["rule"], decided["route"][:9]) == ("shop", "0.0.0.0/0")
    routed.apply(policy.replace('name = "shop"', 'name = "other"'))
    assert _decided(routed, pid) == decided
    for _ in range(2):
        routed.kill_director()
        assert _decided(routed, pid) == decided
        routed.restart()
        assert _decided(routed, pid) == decided
    if policy == OF_A_FILE:  # which routes had the numbers is not known any more
        routed.kill_director()
        routes.write_text("10.0.0.0/8,,,kernel\ndefault,tcp,,wan\n")
        routed.restart()
        assert _decided(routed, pid) == decided | {"route": "0 of generation 1"}


def test_status_counts_what_flows_lists_without_a_director(wired: Site) -> None:
    """Also connections from before the attach, and no connect() that failed."""
    echo(wired.server, wired.server_cgroup)
    before = Talker(wired.client, wired.client_cgroup, wired.server.ip4).process.pid
    routed = wired.attach_client(TAP)
    flow = Talker(wired.client, wired.client_cgroup, wired.server.ip4).process.pid
    script = (
        "import socket, sys; s = socket.socket();"
        f"s.connect_ex(({wired.server.ip4!r}, {PORT + 1})); print(s.fileno(), flush=True);"
        "sys.stdin.read()"
    )
    failed = wired.client_cgroup.spawn(
        ["/usr/bin/python3", "-c", script],
        host=wired.client,
        stdin=-1,
        stdout=-1,
    )
    assert failed.stdout is not None and failed.stdout.readline()
    decided = {pid: _decided(routed, pid) for pid in (before, flow)}
    assert decided[before]["why"] == "attach"

    def counted() -> tuple[int, dict[str, int]]:
        (status,) = routed.ask("status")
        return status["flows"], {s["name"]: s["flows"] for s in status["stacks"]}

    assert counted()[0] == len(routed.flows()) == 2
    routed.kill_director()
    assert {pid: _decided(routed, pid) for pid in (before, flow)} == decided
    assert counted() == (2, {"wan": 1})
    assert len(routed.flows()) == 2


def test_a_stack_that_died_or_stands_is_not_up_without_a_director(wired: Site) -> None:
    """Nobody clears its bits then."""
    routed = wired.attach_client(TAP)
    pid = routed.stack("wan")["pid"]
    routed.kill_director()
    assert routed.stack("wan")["state"] == "up"
    stop(pid)
    wait_for(lambda: routed.stack("wan")["state"] == "hung", 10, "it to be seen to stand")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: routed.stack("wan")["state"] == "down", 10, "it to be seen to have ended")


def test_status_tells_of_rules_that_wait_without_a_director(wired: Site) -> None:
    """Until their cgroup is made: that the kernel tells itself."""
    group = f"{wired.client_cgroup.relative}/later"
    routed = wired.attach_client(TAP.replace('"{cgroup}"', '"{cgroup}/later"'))
    (before,) = routed.ask("status")
    waiting = {"rule": "shop", "number": 1, "cgroup": group, "executable": None}
    assert before["pending"] == [waiting]
    routed.kill_director()
    same = ("pending", "rules", "routes")
    (status,) = routed.ask("status")
    assert {key: status[key] for key in same} == {key: before[key] for key in same}
    wired.client_cgroup.child("later")
    assert routed.ask("status")[0]["pending"] == []
    routed.restart()
    assert routed.ask("status")[0]["pending"] == []


@pytest.mark.parametrize("words", ["status", "stacks", "flows", "listeners"])
def test_listings_say_that_state_json_is_lost(wired: Site, words: str) -> None:
    routed = wired.attach_client(TAP)
    routed.kill_director()
    (ROOT / routed.instance / "state.json").unlink()
    done = routed.cli(words, "--instance", routed.instance, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"cannot tell of instance {routed.instance}: its state.json" in done.stderr
