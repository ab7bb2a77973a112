# SPDX-License-Identifier: Apache-2.0
"""User stacks on devices without link header, as those of tunnels and VPNs are:
here TUN devices.
"""

from __future__ import annotations

import json
import sys

import pytest
from sitefixtures import AUTO, by
from talking import PORT, SEND, SINK, server
from tunlink import address, tun_link

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.api.client import Client

NETWORK = 30
BYTES = 3_000_000


@pytest.fixture(params=[True, False], ids=["uncut", "cut"])
def tunnel(site, request):
    """The client and the server have a TUN device each, and nothing else."""
    with tun_link((site.client, site.server), "tun0", network=NETWORK, offloads=request.param):
        yield site


def listen(tunnel):
    process = server(tunnel.server, tunnel.server_cgroup, SINK, str(PORT))
    tunnel.heard = lambda: process.stdout.readline().strip()
    return tunnel


@pytest.fixture
def sink(tunnel):
    return listen(tunnel)


def carried(routed) -> int:
    with Client(routed.instance) as client:
        return client.call("status")["counters"]["xdp_flow"]


def send(site, python, family: str, port: int = PORT) -> str:
    to = address(NETWORK, 2, family)
    return python(site.client, site.client_cgroup, SEND, to, str(port), str(BYTES), "30")


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_bytes_go_both_ways_and_by_the_stack(sink, python, family):
    routed = sink.attach_client(by("tap", "tun0"))
    sent, back = send(sink, python, family).split()
    assert sent == back
    assert sink.heard() == address(NETWORK, 1, family)
    assert carried(routed) > 0, "the kernel's own stack carried it"


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_listener_behind_it(tunnel, python, family):
    routed = tunnel.attach_server(by("tap", "tun0"))
    listen(tunnel)
    sent, back = send(tunnel, python, family).split()
    assert sent == back
    assert tunnel.heard() == address(NETWORK, 1, family)
    assert carried(routed) > 0, "the kernel's own stack carried it"


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_refusal_comes_back(tunnel, python, family):
    tunnel.attach_client(by("tap", "tun0"))
    assert send(tunnel, python, family, PORT + 1) == "ECONNREFUSED"


def test_the_default_route_leads_to_it(sink, python):
    sink.client.ip("route add default dev tun0")
    routed = sink.attach_client(AUTO)
    sent, back = send(sink, python, "ip4").split()
    assert sent == back
    with Client(routed.instance) as client:
        wan = next(s for s in client.call("stacks") if s["name"] == "wan")
    assert (wan["nics"], wan["port"]) == (["tun0"], "tap")
    assert "no Ethernet header" in wan["ports"][0]["why"]
    assert carried(routed) > 0


def test_af_xdp_is_refused_there(tunnel):
    with pytest.raises(DmmError, match="no Ethernet header"):
        tunnel.attach_client(by("af_xdp", "tun0"))


def test_the_listing_says_tap(tunnel):
    shown = tunnel.client.run(
        [sys.executable, "-m", "dmm_ebpf.cli.main", "hal", "--json", "tun0"]
    ).stdout
    (row,) = json.loads(shown)
    assert row["fit_for"]["port"] == "tap"


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_packets_that_a_driver_leaves_in_pages(site, python, family):
    """No header of what comes is where programs find it at once."""
    with tun_link(
        (site.client, site.server), "tap0", network=NETWORK, offloads=False, in_pages=True
    ):
        connecting = site.attach_client(by("tap", "tap0"))
        listening = site.attach_server(by("tap", "tap0"))
        listen(site)
        sent, back = send(site, python, family).split()
        assert sent == back
        assert carried(connecting) > 0 and carried(listening) > 0, "a kernel's own carried it"
