# SPDX-License-Identifier: Apache-2.0
"""Instances within each other are told of, and sockets of the lower one are served by a stack all the same."""

from __future__ import annotations

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
    assert _nested(upper) == [{"instance": lower.instance, "cgroup": str(child.path), "above": False}]
    assert _nested(other) == []  # of another network namespace
    told = (
        f"instance {upper.instance} is attached to {wired.client_cgroup.path}, around this one: both decide"
    )
    assert told in lower.log.read_text()
    shown = upper.cli("status", "--instance", upper.instance).stdout
    assert f"NESTED    instance {lower.instance} is attached to {child.path}, within this one" in shown

    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, child, wired.server.ip4)
    assert talker.says("send 1000000") == "True"
    assert [one["stack"] for one in lower.flows(pid=talker.process.pid)] == ["wan"]
    lower.detach()
    assert _nested(upper) == []
