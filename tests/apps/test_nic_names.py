# SPDX-License-Identifier: Apache-2.0
"""A NIC that has lost the name by which its stack chose it, and what is found by that later."""

from __future__ import annotations

import pytest
from sitefixtures import Site, by
from talking import Talker, echo

from lab import wait_for

OTHER = "another0"


def rename(site: Site, old: str, new: str) -> None:
    """A device is down for that, and so loses its routes."""
    client = site.client
    client.ip(f"link set {old} down", f"link set {old} name {new}", f"link set {new} up")
    client.ip(f"route add default via {site.server.ip4} dev {new}")


def make_anew(site: Site, word: str) -> None:
    """The client's NIC is another device now, of another name; word: its altname, as before."""
    client, server = site.client, site.server
    client.ip(f"link del {client.nic.name}")
    far = server.nic.name
    client.ip(f"link add {OTHER} type veth peer name {far} netns {server.netns}")
    server.ip(f"addr add {server.ip4}/24 dev {far}", f"link set {far} up")
    client.ip(f"addr add {client.ip4}/24 dev {OTHER}", f"link set {OTHER} up")
    client.ip(f"link property add dev {OTHER} altname {word}")


@pytest.mark.parametrize("named", [False, True])
def test_a_nic_that_was_renamed_and_deleted_comes_back_by_its_first_name(wired: Site, named: bool):
    nic = wired.client.nic.name
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", *[nic] * named))
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    rename(wired, nic, OTHER)
    assert talker.says("renamed") == "renamed"
    wired.client.ip(f"link del {OTHER}")
    wired.lab.remake(wired.link)
    assert talker.says("back") == "back"
    again = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    assert again.flow(routed)["stack"] == "wan"
    assert routed.stack("wan")["nics"] == [nic]


def test_a_nic_is_found_by_the_altname_that_the_policy_has(wired: Site):
    client, nic, word = wired.client, wired.client.nic.name, "the-way-out-0"
    client.ip(f"link property add dev {nic} altname {word}")
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", word))
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    make_anew(wired, word)
    assert talker.says("back") == "back"
    assert routed.stack("wan")["nics"] == [OTHER]


@pytest.mark.parametrize("named", [False, True])
def test_a_nic_that_was_renamed_while_nobody_looked_is_taken_over(wired: Site, named: bool):
    nic = wired.client.nic.name
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", *[nic] * named))
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    routed.kill_director()
    rename(wired, nic, OTHER)
    assert talker.says("renamed") == "renamed"
    meanwhile = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    assert meanwhile.flow(routed)["stack"] == "wan"
    routed.restart()
    assert talker.says("taken over") == "taken over"
    again = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    assert again.flow(routed)["stack"] == "wan"
    assert routed.stack("wan")["nics"] == [OTHER]


def test_a_take_over_keeps_the_nic_whatever_the_default_route_is_now(wired: Site):
    """Its processes have no device for another."""
    client, nic = wired.client, wired.client.nic.name
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap"))
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    routed.kill_director()
    client.ip(f"link add {OTHER} type veth peer name far0", "link set far0 up")
    client.ip(f"link set {OTHER} up", "addr add 192.0.2.1/24 dev another0")
    for family, via in (("-4", "192.0.2.2"), ("-6", "fe80::1")):
        client.run(["ip", family, "route", "flush", "default"])
        client.run(["ip", family, "route", "add", "default", "via", via, "dev", OTHER])
    routed.restart()
    assert routed.stack("wan")["nics"] == [nic]
    assert talker.says("taken over") == "taken over"
    again = Talker(client, wired.client_cgroup, wired.server.ip4)
    assert again.flow(routed)["stack"] == "wan"
    wait_for(lambda: not routed.ask("status")[0]["missing"], 10, "nothing to be missing")


def test_a_nic_that_was_made_anew_while_nobody_looked_is_found_by_its_altname(wired: Site):
    client, nic, word = wired.client, wired.client.nic.name, "the-way-out-0"
    client.ip(f"link property add dev {nic} altname {word}")
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(by("tap", word))
    talker = Talker(client, wired.client_cgroup, wired.server.ip4)
    routed.kill_director()
    make_anew(wired, word)
    routed.restart()
    assert talker.says("back") == "back"
    assert routed.stack("wan")["nics"] == [OTHER]
    again = Talker(client, wired.client_cgroup, wired.server.ip4)
    assert again.flow(routed)["stack"] == "wan"
