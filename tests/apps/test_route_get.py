# SPDX-License-Identifier: Apache-2.0
"""`route get` answers for the device by which the kernel would send the flow: not by
the policy alone.
"""

from __future__ import annotations

import pytest
from sitefixtures import TAP, Site
from talking import PORT, Talker, echo

from lab import wait_for


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


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_client_on_this_host_is_the_kernels(wired: Site, family: str) -> None:
    """One by the loopback as if there were no policy."""
    routed = wired.attach_client(TAP.replace('kind = "user"', 'kind = "user"\nfallback = "lan"'))
    near, far = getattr(wired.client, family), getattr(wired.server, family)
    brackets = f"[{{}}]:{PORT}" if family == "ip6" else f"{{}}:{PORT}"
    loopback = "::1" if family == "ip6" else "127.0.0.1"
    server = echo(wired.client, wired.client_cgroup)
    for client, stack, why, seen in (
        (far, "wan", None, ""),
        (near, "lan", "device", "peer"),
        (loopback, "kernel", "loopback", "socket"),
    ):
        words = ("route", "get", brackets.format(client), "--direction", "listen")
        asked = routed.ask(*words)
        assert (asked["stack"], asked["wanted"], asked["why"]) == (stack, "wan", why), client
        host = wired.server if client == far else wired.client
        talker = Talker(host, wired.server_cgroup, near if client == far else client)
        assert talker.says("send 1000") == "True"
        (flow,) = routed.flows(pid=server.pid)
        assert (flow["stack"], flow["wanted"], flow["why"]) == (stack, "wan", seen), client
        talker.process.kill()
        talker.process.wait()
        wait_for(lambda: not routed.flows(pid=server.pid), 10, "the flow to end")


def test_a_device_that_there_is_not_is_refused(wired: Site) -> None:
    """A rule may wait for it, by its name or by a pattern."""
    rule = '\n[[rules]]\ndirection = "forward"\nin_interface = "veth*"\ntable = "shop"\n'
    routed = wired.attach_client(TAP + rule)
    forward = ("route", "get", f"{wired.server.ip4}:80", "--direction", "forward")
    device = wired.client.nic.name
    assert routed.ask(*forward, "--in-interface", device)["wanted"] == "kernel"
    assert routed.ask(*forward, "--in-interface", "veth7")["wanted"] == "wan"
    words = (*forward, "--in-interface", "nope", "--instance", routed.instance)
    refused = routed.cli(*words, check=False)
    assert refused.returncode == 2
    assert "there is no device nope, and no rule waits for it" in refused.stderr


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
