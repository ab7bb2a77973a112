# SPDX-License-Identifier: Apache-2.0
"""`route get` answers for the device by which the kernel would send the flow: not by
the policy alone.
"""

from __future__ import annotations

import pytest
from sitefixtures import TAP, Site
from talking import Talker, echo


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_what_stays_on_this_host_is_the_kernels(wired: Site, family: str) -> None:
    routed = wired.attach_client(TAP)
    near, far = getattr(wired.client, family), getattr(wired.server, family)
    brackets = "[{}]:80" if family == "ip6" else "{}:80"

    asked = routed.ask("route", "get", brackets.format(far))
    assert (asked["stack"], asked["wanted"], asked["why"]) == ("wan", "wan", None)
    asked = routed.ask("route", "get", brackets.format(near))
    assert (asked["stack"], asked["wanted"], asked["why"]) == ("kernel", "wan", "device")
    assert asked["device"] == "lo"
    shown = routed.cli("route", "get", near, "--instance", routed.instance).stdout
    assert "stack kernel (wan does not serve lo, by which it leaves)" in shown

    echo(wired.client, wired.server_cgroup)
    talker = Talker(wired.client, wired.client_cgroup, near)
    assert talker.says("send 1000") == "True"
    assert (talker.flow(routed)["stack"], talker.flow(routed)["why"]) == ("kernel", "device")


def test_what_a_mark_sends_elsewhere_is_the_kernels(wired: Site) -> None:
    routed = wired.attach_client(TAP)
    far, index = wired.server.ip4, "4711"
    wired.client.run(["ip", "link", "add", "other", "type", "ifb"])
    wired.client.run(["ip", "link", "set", "other", "up"])
    wired.client.run(["ip", "route", "add", "default", "dev", "other", "table", index])
    wired.client.run(["ip", "rule", "add", "fwmark", "7", "table", index])
    assert routed.ask("route", "get", f"{far}:80")["why"] is None
    asked = routed.ask("route", "get", f"{far}:80", "--mark", "7")
    assert (asked["stack"], asked["why"], asked["device"]) == ("kernel", "device", "other")
