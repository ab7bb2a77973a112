# SPDX-License-Identifier: Apache-2.0
"""Devices by what they are called besides (ip-link(8), altname): longer than a name may be, as
udev's can be.
"""

from __future__ import annotations

import json
import sys

import pytest
from gatewayfixtures import FROM_LAN, POLICY, Gateway
from sitefixtures import Site, by
from talking import Talker, echo

from dmm_ebpf.errors import DmmError
from lab import wait_for

WAN, LAN = "enxa-port-to-the-wan-0", "enxa-port-to-the-lan-1"


def test_a_stack_serves_the_device_and_follows_it(wired: Site):
    """Also when it is made anew without that name."""
    client, nic = wired.client, wired.client.nic.name
    client.ip(f"link property add dev {nic} altname {WAN}")
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", WAN))
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    assert talker.flow(routed)["stack"] == "wan"
    assert routed.stack("wan")["nics"] == [nic]
    client.ip(f"link del {nic}")
    wired.lab.remake(wired.link)
    assert talker.says("hello") == "hello"
    again = Talker(client, wired.client_cgroup, wired.server.ip4)
    assert again.flow(routed)["stack"] == "wan"


def test_a_name_that_no_device_has_is_refused(wired: Site):
    with pytest.raises(DmmError, match=f"use device {WAN}: there is no such device"):
        wired.attach_client(by("tap", WAN))


def test_hal_tells_of_it(wired: Site):
    client, nic = wired.client, wired.client.nic.name
    client.ip(*(f"link property add dev {nic} altname {name}" for name in (WAN, LAN)))
    words = [sys.executable, "-m", "dmm_ebpf.cli.main", "hal", "--json", WAN, nic]
    (row,) = json.loads(client.run(words).stdout)
    assert (row["name"], sorted(row["altnames"])) == (nic, sorted([WAN, LAN]))


def test_a_rule_holds_for_what_comes_in_by_it(gateway: Gateway) -> None:
    gate, rule = gateway.gate, FROM_LAN.replace("eth1", LAN)
    routed = gateway.attach(POLICY.format(io="tap", rule=rule))
    gateway.echo(gateway.server)
    before = Talker(gateway.inside, gateway.others, gateway.server.ip4)
    assert before.says("hello") == "hello"
    assert not routed.flows(kind="forwarded"), "no device has that name"
    gate.ip(f"link property add dev eth1 altname {LAN}")

    def opened() -> list[dict[str, object]]:
        Talker(gateway.inside, gateway.others, gateway.server.ip4)
        return routed.flows(kind="forwarded")

    flow = wait_for(opened, 30, "a flow to be carried")[0]
    assert (flow["stack"], flow["in_interface"]) == ("wan", "eth1")
    for name in (LAN, "eth1"):
        words = ("--direction", "forward", "--from", gateway.inside.ip4, "--in-interface", name)
        to = f"{gateway.server.ip4}:7300"
        answer = routed.cli("route", "get", to, *words, "-i", routed.instance, "--json").stdout
        assert json.loads(answer)["stack"] == "wan"
