# SPDX-License-Identifier: Apache-2.0
"""io = "auto" follows what the device has, while flows run: between AF_XDP and tap, and back.

No driver of a laboratory has zero-copy, so the Resource Director here is told that veth's has;
everything else is as it
is: AF_XDP sockets, which copy, qdiscs, programs of others, hooks.
"""

from __future__ import annotations

import socket
import time

import pytest
from autoport import BACK_WITHIN_S, CHUNK, PORT, WITHIN_S, Stream, ZeroCopy, xdp_on
from sitefixtures import AUTO, XDP

from lab import wait_for
from lab.build import bpf_object
from lab.routed import Routed

# A tc program of somebody else's.
OTHERS = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
__attribute__((section("tc"), used)) int others(struct __sk_buff *skb) { return TC_ACT_OK; }
char _license[] __attribute__((section("license"), used)) = "GPL";
"""


def pkts(routed: Routed, name: str = "nic_tx_pkts") -> int:
    return routed.ask_stack("wan")[name]


def shape(host, on: bool) -> None:
    words = f"qdisc add dev {host.nic.name} root tbf rate 400mbit burst 64kb latency 100ms"
    host.run(["tc", *(words if on else f"qdisc del dev {host.nic.name} root").split()])


def qdisc_bytes(host) -> int:
    shown = host.run(["tc", "-s", "qdisc", "show", "dev", host.nic.name, "root"]).stdout
    return int(shown.split("Sent ")[1].split()[0])


def test_a_qdisc_that_comes_and_goes_moves_open_flows_to_and_fro(wired):
    routed = wired.attach_client(AUTO, ZeroCopy)
    client = wired.client
    assert routed.port()["port"] == "af_xdp" and "nothing is in the way" in routed.port()["why"]
    assert xdp_on(client)
    pid = routed.stack("wan")["pid"]
    stream = Stream(wired)
    stream.goes_on()
    assert pkts(routed) > 100
    shape(client, True)
    routed.wait_for_port("tap", "qdisc tbf would be gone around", WITHIN_S)
    wait_for(lambda: not xdp_on(client), WITHIN_S, "native XDP to go")
    before = qdisc_bytes(client)
    stream.goes_on(50 * CHUNK)
    assert qdisc_bytes(client) - before > 40 * CHUNK, "the flow still goes around the qdisc"
    shape(client, False)
    routed.wait_for_port("tap", "af_xdp in 5 s", WITHIN_S)
    stream.goes_on()
    routed.wait_for_port("af_xdp", "nothing is in the way", BACK_WITHIN_S)
    assert xdp_on(client)
    stream.goes_on(50 * CHUNK)
    stream.end()
    stack = routed.stack("wan")
    assert (stack["pid"], stack["restarts"]) == (pid, 0)
    assert stack["counters"]["active_open"] == 1, "the kernel carried it"
    assert f"on {client.nic.name} by tap: qdisc tbf" in routed.log.read_text()


def _hook(site, on: bool) -> None:
    nic = site.client.nic.name
    chain = f'add chain netdev t c {{ type filter hook ingress device "{nic}" priority 0; }}'
    site.client.run(["nft", f"add table netdev t; {chain}" if on else "delete table netdev t"])


def _filter(site, on: bool) -> None:
    dev = site.client.nic.name
    if on:
        built = bpf_object(OTHERS, site.directory / "others.o")
        site.client.run(["tc", "qdisc", "add", "dev", dev, "clsact"])
        words = f"filter add dev {dev} egress bpf da obj {built} sec tc"
        site.client.run(["tc", *words.split()])
    else:
        site.client.run(["tc", "qdisc", "del", "dev", dev, "clsact"])


def _mtu(site, on: bool) -> None:
    site.client.ip(f"link set {site.client.nic.name} mtu {3000 if on else 1500}")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_hook, "nft hook t c would be gone around"),
        (_filter, "egress bpf others.o:[tc] would be gone around"),
        (_mtu, "its MTU is 3000 now, and the AF_XDP sockets were opened for 1500"),
    ],
)
def test_whatever_is_in_the_way_is_followed(wired, change, why):
    routed = wired.attach_client(AUTO, ZeroCopy)
    stream = Stream(wired)
    stream.goes_on()
    change(wired, True)
    began = time.monotonic()
    routed.wait_for_port("tap", why, WITHIN_S)
    took = time.monotonic() - began
    stream.goes_on()
    change(wired, False)
    routed.wait_for_port("af_xdp", "nothing is in the way", BACK_WITHIN_S)
    stream.goes_on()
    stream.end()
    assert routed.stack("wan")["restarts"] == 0
    assert took < WITHIN_S


def test_each_device_has_its_port(wired):
    client, nic = wired.client, wired.client.nic.name
    client.ip("link add br0 type bridge", "link set br0 up", "addr add 198.51.100.1/24 dev br0")
    policy = AUTO.replace('io = "auto"\n', f'io = "auto"\ndevices = ["{nic}", "br0"]\n')
    routed = wired.attach_client(policy, ZeroCopy)
    stack = routed.stack("wan")
    assert stack["port"] == "af_xdp,tap"
    assert [(p["nic"], p["port"]) for p in stack["ports"]] == [(nic, "af_xdp"), ("br0", "tap")]
    assert stack["ports"][1]["why"] == "driver bridge has no native XDP"
    table = routed.cli("stacks", "--instance", routed.instance).stdout
    assert f"wan on {nic} by af_xdp: driver veth has zero-copy" in table
    assert "wan on br0 by tap: driver bridge has no native XDP" in table
    stream = Stream(wired)
    stream.goes_on()
    stream.end()


def test_a_second_stack_gets_tap_where_the_queues_are_anothers(wired):
    stacks = "".join(f'[stacks.{name}]\nkind = "user"\n' for name in ("one", "two"))
    routes = "".join(
        f'[[tables.t.routes]]\nto = "default"\nports = "{port}"\nstack = "{name}"\n'
        for port, name in ((1, "one"), (PORT, "two"))
    )
    routed = wired.attach_client(
        f'{stacks}[[rules]]\ncgroup = "{{cgroup}}"\ntable = "t"\n{routes}', ZeroCopy
    )
    (one,), (two,) = (routed.stack(name)["ports"] for name in ("one", "two"))
    assert (one["port"], two["port"], two["why"]) == ("af_xdp", "tap", "stack one holds its queues")
    stream = Stream(wired)
    stream.goes_on()
    stream.end()
    assert routed.stack("two")["counters"]["active_open"] == 1


def test_another_io_for_a_stack_that_runs_is_followed(wired):
    routed = wired.attach_client(AUTO, ZeroCopy)
    stream = Stream(wired)
    for io in ("tap", "af_xdp", "auto"):
        routed.apply(AUTO.replace('"auto"', f'"{io}"'))
        port = "tap" if io == "tap" else "af_xdp"
        assert routed.port()["port"] == port
        assert xdp_on(wired.client) == (port == "af_xdp")
        stream.goes_on()
    stream.end()
    assert routed.stack("wan")["restarts"] == 0


@pytest.mark.parametrize("killed", ["process", "director"])
def test_what_is_killed_comes_back_with_the_port_that_fits(wired, killed):
    routed = wired.attach_client(AUTO, ZeroCopy)
    pid = routed.stack("wan")["pid"]
    shape(wired.client, True)
    routed.wait_for_port("tap", "qdisc tbf", WITHIN_S)
    if killed == "director":
        routed.kill_director()
        shape(wired.client, False)
        routed.restart()
    else:
        wired.client.run(["kill", "-9", str(pid)])
        wait_for(lambda: routed.stack("wan")["pid"] not in (pid, None), 20, "another process")
        assert routed.port()["port"] == "tap"
        shape(wired.client, False)
    routed.wait_for_port("af_xdp", "nothing is in the way", BACK_WITHIN_S)
    stream = Stream(wired)
    stream.goes_on()
    before = pkts(routed, "nic_rx_pkts")
    stream.goes_on()
    assert pkts(routed, "nic_rx_pkts") > before
    stream.end()


@pytest.mark.parametrize("policy", [pytest.param(XDP, id="af_xdp"), pytest.param(AUTO, id="auto")])
def test_our_xdp_program_that_was_taken_off_is_put_back_without_a_restart(wired, policy):
    routed = wired.attach_client(policy, ZeroCopy)
    stream = Stream(wired)
    stream.goes_on()
    index = wired.client.call(socket.if_nametoindex, wired.client.nic.name)
    pin = f"/sys/fs/bpf/dmm-ebpf/{routed.instance}/links/xdp-{index}"
    wired.client.run(["bpftool", "link", "detach", "pinned", pin])
    assert not xdp_on(wired.client)
    wait_for(lambda: xdp_on(wired.client), WITHIN_S, "the XDP program to be back")
    stream.goes_on()
    stream.end()
    assert routed.stack("wan")["restarts"] == 0
