# SPDX-License-Identifier: Apache-2.0
"""Instances within each other are told of, and sockets of the lower one are served by a stack
all the same.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

from sitefixtures import TAP, WAN, Site
from talking import PORT, Talker, echo

from lab import Cgroup, wait_for
from lab.commandline import CLI
from lab.routed import Routed

LAN = WAN.replace('stack = "wan"', 'stack = "lan"')


def _nested(routed: Routed) -> list[dict]:
    (status,) = routed.ask("status")
    return status["nested"]


def test_an_instance_within_another_is_told_of(wired):
    child, beside = wired.client_cgroup.child("unit"), wired.client_cgroup.child("un")
    upper = wired.attach_client(LAN)
    assert _nested(upper) == [] and "within" not in upper.log.read_text()
    lower = wired.stack.enter_context(Routed(wired.client, child, TAP, wired.directory))
    other = wired.stack.enter_context(Routed(wired.server, beside, None, wired.directory))
    assert _nested(lower) == [
        {"instance": upper.instance, "cgroup": str(wired.client_cgroup.path), "above": True}
    ]
    assert _nested(upper) == [
        {"instance": lower.instance, "cgroup": str(child.path), "above": False}
    ]
    assert _nested(other) == []  # of another network namespace
    told = f"instance {upper.instance} is attached to {wired.client_cgroup.path}, around this one: both decide"
    assert told in lower.log.read_text()
    shown = upper.cli("status", "--instance", upper.instance).stdout
    assert (
        f"NESTED    instance {lower.instance} is attached to {child.path}, within this one" in shown
    )

    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, child, wired.server.ip4)
    assert talker.says("send 1000000") == "True"
    assert [one["stack"] for one in lower.flows(pid=talker.process.pid)] == ["wan"]
    _is_told_once(lower, upper, talker.process.pid)
    lower.detach()
    assert _nested(upper) == []


def _said(follower: Path, pid: int) -> list[tuple[str, str, str | None]]:
    """What a follower has said so far of a process's flows: type, why, carrier."""
    whole = follower.read_text().rpartition("\n")[0]
    events = [json.loads(line) for line in whole.splitlines()]
    return [
        (one["type"], one["why"], one.get("carrier")) for one in events if one.get("pid") == pid
    ]


def _heard(follower: Path, pid: int) -> list[tuple[str, str, str | None]]:
    """What a follower has said of a process's flows, once one is closed."""
    wait_for(lambda: any(what == "close" for what, _, _ in _said(follower, pid)), 20, "a close")
    return _said(follower, pid)


def _followed(stack: ExitStack, directory: Path, *words: str) -> Path:
    """The file of a follower, which ends with stack."""
    told = directory / f"follower{'-'.join(words)}.json"
    with told.open("w") as file:
        follower = subprocess.Popen([*CLI, "flows", "--follow", "--json", *words], stdout=file)
    stack.callback(follower.wait)
    stack.callback(follower.kill)
    return told


SHORT = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
"""


def _brief(wired: Site, cgroup: Cgroup) -> int:
    """The pid of a process that connected and is over."""
    brief = cgroup.spawn(
        ["/usr/bin/python3", "-c", SHORT, wired.server.ip4, str(PORT)], host=wired.client
    )
    brief.wait()
    return brief.pid


def _attend(followers: list[Path], wired: Site, cgroup: Cgroup) -> None:
    """Until each follower hears of new flows: nothing tells from when on it follows."""
    tried: list[int] = []

    def heard_by_all() -> bool:
        tried.append(_brief(wired, cgroup))
        return all(
            "established" in {what for pid in tried for what, _, _ in _said(one, pid)}
            for one in followers
        )

    wait_for(heard_by_all, 20, "followers")


def test_events_tell_who_carries_a_flow(wired):
    """Both have a user stack for it; also of a flow that is over before anybody has looked."""
    child = wired.client_cgroup.child("unit")
    upper = wired.attach_client(TAP)
    lower = wired.stack.enter_context(Routed(wired.client, child, TAP, wired.directory))
    echo(wired.server, wired.server_cgroup)
    both = {
        one.instance: _followed(wired.stack, wired.directory, "--instance", one.instance)
        for one in (upper, lower)
    }
    every = _followed(wired.stack, wired.directory)
    _attend([*both.values(), every], wired, child)
    talker = Talker(wired.client, child, wired.server.ip4)
    assert talker.says("send 1000000") == "True"
    (seen,) = upper.flows(pid=talker.process.pid)
    carrier = seen.get("carrier", upper.instance)
    _end(talker)
    brief = _brief(wired, child)
    for pid in (talker.process.pid, brief):
        for name, follower in both.items():
            told = ("", None) if name == carrier else ("nested", carrier)
            assert _heard(follower, pid) == [
                ("connect", "", None),
                ("established", *told),
                ("close", *told),
            ]
        assert [one for one in _heard(every, pid) if one[0] != "connect"] == [
            ("established", "", None),
            ("close", "", None),
        ]


def _end(talker: Talker) -> None:
    talker.process.kill()
    talker.process.wait()


def _all(routed: Routed, *words: str) -> list[dict]:
    """What a listing of every instance says of those of this test."""
    return json.loads(routed.cli(*words, "--json", check=False).stdout)


def _is_told_once(carrier: Routed, other: Routed, pid: int) -> None:
    (seen,) = other.flows(pid=pid)
    assert (seen["why"], seen["carrier"]) == ("nested", carrier.instance)
    (held,) = carrier.flows(pid=pid)
    assert (held["why"], held.get("carrier")) == ("", None)
    assert [one["instance"] for one in _all(other, "flows", "--pid", str(pid))] == [
        carrier.instance
    ]
    for routed, count in ((carrier, 1), (other, 0)):
        (status,) = routed.ask("status")
        assert status["flows"] == count
        assert status["rd"] == "dead" or sum(stack["flows"] for stack in status["stacks"]) == count
    shown = other.cli("flows", "--instance", other.instance).stdout
    assert f"nested, by instance {carrier.instance}" in shown


def test_a_socket_of_nested_instances_is_told_of_once(wired):
    """Both have a user stack for it, connecting and accepted; then neither has; then a
    director is dead.
    """
    child = wired.client_cgroup.child("unit")
    upper = wired.attach_client(TAP)
    lower = wired.stack.enter_context(Routed(wired.client, child, TAP, wired.directory))
    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, child, wired.server.ip4)
    assert talker.says("send 1000000") == "True"
    pid = talker.process.pid
    (carrier,) = {
        one["instance"]
        for one in upper.flows(pid=pid) + lower.flows(pid=pid)
        if one["stack"] == "wan"
    }
    first, second = (upper, lower) if carrier == upper.instance else (lower, upper)
    _is_told_once(first, second, pid)
    second.kill_director()
    _is_told_once(first, second, pid)
    second.restart()
    _end(talker)

    served = echo(wired.client, child)
    talker = Talker(wired.server, wired.server_cgroup, wired.client.ip4)
    assert talker.says("send 1000000") == "True"
    rows = [
        one for one in upper.flows(pid=served.pid) + lower.flows(pid=served.pid) if one["dport"]
    ]
    (carrier,) = {one["instance"] for one in rows if one["stack"] == "wan"}
    first, second = (upper, lower) if carrier == upper.instance else (lower, upper)
    _is_told_once(first, second, served.pid)
    _end(talker)

    for routed in (upper, lower):
        routed.apply(LAN)
    talker = Talker(wired.client, child, wired.server.ip4)
    _is_told_once(upper, lower, talker.process.pid)
