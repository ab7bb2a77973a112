# SPDX-License-Identifier: Apache-2.0
"""Instances within each other are told of, and sockets of the lower one are served by a stack
all the same.
"""

from __future__ import annotations

import json

from sitefixtures import TAP, WAN
from talking import Talker, echo

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
