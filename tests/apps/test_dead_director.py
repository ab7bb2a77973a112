# SPDX-License-Identifier: Apache-2.0
"""What listings say of flows and listeners while the Resource Director is dead, and after the
next one took over.
"""

from __future__ import annotations

from typing import Any

from sitefixtures import TAP, Site
from talking import Talker, echo

from lab.routed import Routed


def _decided(routed: Routed, pid: int) -> dict[str, Any]:
    (flow,) = routed.flows(pid=pid)
    return {key: flow[key] for key in ("stack", "wanted", "table", "rule", "route")}


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
