# SPDX-License-Identifier: Apache-2.0
"""A NIC's MTU that grows and shrinks under open flows of a user stack: they go on, whatever
port the policy names.
"""

from __future__ import annotations

import os
import signal

import pytest
from sitefixtures import AUTO, TAP, XDP
from talking import Talker, echo
from test_auto_port import BACK_WITHIN_S, WITHIN_S, Stream, ZeroCopy

GROWN = "its MTU is 9000 now, and the AF_XDP sockets were opened for 1500"


def to(site, mtu: int) -> None:
    """Of both ends of the wire; the client's first, whose XDP program bounds what the
    other may have.
    """
    for host in (site.client, site.server):
        host.ip(f"link set {host.nic.name} mtu {mtu}")


@pytest.mark.parametrize("policy", [TAP, XDP, AUTO], ids=["tap", "af_xdp", "auto"])
def test_open_flows_go_on(wired, policy):
    routed = wired.attach_client(policy, ZeroCopy)
    stream = Stream(wired)
    stream.goes_on()
    first = routed.stack("wan")["pid"]
    wired.client.ip(f"link set {wired.client.nic.name} mtu 9000")
    if policy != TAP:
        routed.wait_for_port("tap", GROWN, WITHIN_S)
    to(wired, 9000)
    stream.goes_on()
    to(wired, 1500)
    if policy != TAP:
        routed.wait_for_port("af_xdp", "", BACK_WITHIN_S)
    stream.goes_on()
    stream.end()
    stack = routed.stack("wan")
    assert (stack["pid"], stack["restarts"]) == (first, 0)


@pytest.mark.parametrize("policy", [TAP, XDP], ids=["tap", "af_xdp"])
def test_less_than_a_path_is_believed_to_have(wired, policy):
    """A router's word counts down to 552, as in Linux, but a device's always."""
    routed = wired.attach_client(policy)
    echo(wired.server, wired.server_cgroup)
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    for mtu in (1500, 300, 100):
        to(wired, mtu)
        assert talker.says("send 20000") == "True"
    assert talker.flow(routed)["stack"] == "wan"


def test_a_process_that_starts_has_sockets_for_the_mtu_of_then(wired):
    routed = wired.attach_client(XDP, ZeroCopy)
    wired.client.ip(f"link set {wired.client.nic.name} mtu 3000")
    routed.wait_for_port("tap", GROWN.replace("9000", "3000"), WITHIN_S)
    os.kill(routed.stack("wan")["pid"], signal.SIGKILL)
    routed.wait_for_port("af_xdp", "", BACK_WITHIN_S)
    Stream(wired).end()
