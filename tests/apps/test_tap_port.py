# SPDX-License-Identifier: Apache-2.0
"""io = "tap": user stacks whose packets come by tc, on devices of any kind, several on one,
beside others' programs.
"""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sitefixtures import AUTO, TAP

from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf
from lab import curl_fetch, nginx, wait_for
from lab.build import bpf_object
from lab.routed import Routed

LISTEN = TAP.replace('table = "shop"\n', 'direction = "listen"\ntable = "shop"\n', 1)
TEN = 10
FIRST_PORT = 7100

# A tc program of somebody else's: it marks what it sees, and nft counts that.
FOREIGN = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
__attribute__((section("tc"), used)) int foreign(struct __sk_buff *skb)
{
	skb->mark = 77;
	return TC_ACT_OK;
}
char _license[] __attribute__((section("license"), used)) = "GPL";
"""


def many(count: int) -> str:
    """A policy with so many user stacks, each for a port of its own."""
    stacks = "".join(
        f'[stacks.s{i}]\nkind = "user"\nio = "tap"\nmemory = "16M"\n' for i in range(count)
    )
    routes = "".join(
        f'[[tables.t.routes]]\nto = "default"\nports = "{FIRST_PORT + i}"\nstack = "s{i}"\n'
        for i in range(count)
    )
    return f'{stacks}[[rules]]\ncgroup = "{{cgroup}}"\ntable = "t"\n{routes}'


def served(site, payload, port: int = 80, size: int = 1_000_000):
    path, sha256 = payload(size)
    server = nginx(
        site.server,
        path.parent,
        site.directory / f"nginx{port}",
        port=port,
        cgroup=site.server_cgroup,
    )
    return server.url(path.name), sha256


def fetch(site, url: str, sha256: str, cgroup=None) -> None:
    got = curl_fetch(site.client, url, cgroup=cgroup, timeout=30)
    assert got.sha256 == sha256, got.stderr


def left_on(host) -> str:
    """All that a tap stack makes on a host."""
    nics = " ".join(host.run(["ls", "/sys/class/net"]).stdout.split())
    script = (
        "ip rule; ip -6 rule; ip -br link; for d in $(ls /sys/class/net); do "
        "tc qdisc show dev $d; tc filter show dev $d ingress 2>/dev/null; done; "
        "cat /proc/sys/net/ipv4/tcp_fwmark_accept"
    )
    return f"{nics} {tcx(host)} {host.run(['sh', '-c', script]).stdout}"


def tcx(host) -> list[str]:
    """Names of the programs at the ingress of the host's NIC by tcx, in their order."""
    _, ids = host.call(
        lambda: bpf.prog_query(socket.if_nametoindex(host.nic.name), bpf.AttachType.TCX_INGRESS)
    )
    return [bpf.prog_name(one) for one in ids]


def carried(routed: Routed, stack: str = "wan") -> int:
    """Connections that the stack has opened, both ways."""
    counters = routed.stack(stack)["counters"]
    return counters["active_open"] + counters["passive_open"]


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_fetch_each_way(wired, payload, family):
    host = wired.server.ip4 if family == "ip4" else f"[{wired.server.ip6}]"
    url, sha256 = served(wired, payload)
    client = wired.attach_client(TAP)
    stack = client.stack("wan")
    assert (stack["state"], stack["port"]) == ("up", "tap")
    assert "xdp" not in wired.client.run(["ip", "link"]).stdout
    url = url.replace(wired.server.ip4, host)
    fetch(wired, url, sha256, wired.client_cgroup)
    assert carried(client) == 1
    server = wired.attach_server(LISTEN)
    url, sha256 = served(wired, payload, port=81)
    url = url.replace(wired.server.ip4, host)
    fetch(wired, url, sha256)
    assert carried(server) == 1
    fetch(wired, url, sha256, wired.client_cgroup)
    assert (carried(server), carried(client)) == (2, 2)


def test_segments_go_and_come_together(wired, payload):
    routed = wired.attach_server(LISTEN)
    url, sha256 = served(wired, payload, size=10_000_000)
    fetch(wired, url, sha256)
    stats = routed.ask_stack("wan")
    assert carried(routed) == 1
    assert stats["nic_tx_bytes"] > 3000 * stats["nic_tx_pkts"], (
        "each segment was a packet of its own"
    )
    assert stats["inner_rx_bytes"] > 3000 * stats["inner_rx_pkts"]


def test_a_device_with_a_large_mtu(site, payload):
    site.wire(mtu=9000)
    client = site.attach_client(AUTO)
    stack = client.stack("wan")
    assert (stack["port"], stack["state"]) == ("tap", "up")
    assert stack["ports"][0]["why"] == "driver veth has no AF_XDP zero-copy"
    url, sha256 = served(site, payload, size=3_000_000)
    fetch(site, url, sha256, site.client_cgroup)
    assert carried(client) == 1


def test_ten_stacks_on_one_nic_at_once(wired, payload):
    urls = [served(wired, payload, FIRST_PORT + i) for i in range(TEN)]
    routed = wired.attach_client(many(TEN))
    with ThreadPoolExecutor(TEN) as pool:
        for done in [pool.submit(fetch, wired, *each, wired.client_cgroup) for each in urls]:
            done.result()
    stacks = [s for s in routed.ask("stacks") if s["kind"] == "user"]
    assert len(stacks) == TEN
    assert {s["name"]: s["counters"]["active_open"] for s in stacks} == {
        f"s{i}": 1 for i in range(TEN)
    }
    assert {tuple(s["nics"]) for s in stacks} == {(wired.client.nic.name,)}


def test_several_processes_of_a_stack(wired, payload):
    url, sha256 = served(wired, payload, size=10_000)
    routed = wired.attach_client(TAP.replace('io = "tap"\n', 'io = "tap"\nprocesses = 2\n'))
    for _ in range(16):
        fetch(wired, url, sha256, wired.client_cgroup)
    carriers = [p["connections"] for p in routed.stack("wan")["processes"]]
    assert carried(routed) == 16
    assert len(carriers) == 2 and all(carriers), carriers


@pytest.mark.parametrize("kind", ["bridge", "macvlan", "vxlan"])
def test_devices_without_native_xdp(wired, payload, kind):
    near, far = wired.client, wired.server
    for host, number in ((near, 1), (far, 2)):
        dev = host.nic.name
        if kind == "bridge":
            host.ip("link add top0 type bridge", f"link set {dev} master top0")
        elif kind == "macvlan":
            host.ip(f"link add top0 link {dev} type macvlan mode bridge")
        else:
            peer = far if host is near else near
            host.ip(f"link add top0 type vxlan id 9 dev {dev} remote {peer.ip4} dstport 4789")
        host.ip(f"addr add 192.0.2.{number}/24 dev top0", "link set top0 up")
    url, sha256 = served(wired, payload)
    url = url.replace(far.ip4, "192.0.2.2")
    devices = 'kind = "user"\ndevices = ["top0"]\n'
    routed = wired.attach_client(AUTO.replace('kind = "user"\n', devices))
    stack = routed.stack("wan")
    assert stack["ports"] == [
        {"nic": "top0", "port": "tap", "why": f"driver {kind} has no native XDP"}
    ]
    fetch(wired, url, sha256, near_cgroup := wired.client_cgroup)
    assert near_cgroup and carried(routed) == 1


def test_a_shaper_on_the_nic_holds(wired, payload):
    dev = wired.server.nic.name
    mbit = 50
    wired.server.run(
        [
            "tc",
            "qdisc",
            "add",
            "dev",
            dev,
            "root",
            "tbf",
            "rate",
            f"{mbit}mbit",
            "burst",
            "32k",
            "limit",
            "256k",
        ]
    )
    routed = wired.attach_server(LISTEN)
    url, sha256 = served(wired, payload, size=12_500_000)
    began = time.monotonic()
    fetch(wired, url, sha256)
    mbps = 100 / (time.monotonic() - began)
    assert carried(routed) == 1
    assert mbps <= mbit, "it went around the qdisc"
    sent = json.loads(
        wired.server.run(["tc", "-s", "-j", "qdisc", "show", "dev", dev, "root"]).stdout
    )
    assert sent[0]["bytes"] > 12_500_000


def test_programs_of_others_stay_and_go_on_seeing_what_is_not_ours(wired, payload):
    host, dev = wired.client, wired.client.nic.name
    built = bpf_object(FOREIGN, wired.directory / "foreign.o")
    host.run(["tc", "qdisc", "add", "dev", dev, "clsact"])
    host.run(
        [
            "tc",
            "filter",
            "add",
            "dev",
            dev,
            "ingress",
            "pref",
            "7",
            "bpf",
            "da",
            "obj",
            built,
            "sec",
            "tc",
        ]
    )
    host.run(
        [
            "nft",
            "add table inet t; add chain inet t in { type filter hook input priority 0; };"
            "add rule inet t in tcp sport 80 meta mark 77 counter",
        ]
    )

    def seen() -> int:
        shown = json.loads(host.run(["nft", "-j", "list", "chain", "inet", "t", "in"]).stdout)
        (rule,) = (item["rule"] for item in shown["nftables"] if "rule" in item)
        return next(e["counter"]["packets"] for e in rule["expr"] if "counter" in e)

    before = left_on(host)
    url, sha256 = served(wired, payload)
    routed = wired.attach_client(TAP)
    fetch(wired, url, sha256, wired.client_cgroup)
    assert carried(routed) == 1
    by_stack = seen()
    assert by_stack > 10, "what comes to the app did not go past their program"
    fetch(wired, url, sha256)  # by the kernel
    assert seen() > by_stack + 10
    routed.close()
    assert left_on(host) == before
    fetch(wired, url, sha256)


@pytest.mark.parametrize("director", ["alive", "killed"])
def test_detach_leaves_nothing(wired, payload, director):
    url, sha256 = served(wired, payload)
    wait_for(
        lambda: "tentative" not in wired.client.run(["ip", "-6", "addr"]).stdout, 10, "addresses"
    )
    before = left_on(wired.client)
    routed = wired.attach_client(TAP)
    fetch(wired, url, sha256, wired.client_cgroup)
    assert tcx(wired.client) == ["dmm_tcin"]
    if director == "killed":
        routed.kill_director()
    routed.close()
    assert left_on(wired.client) == before


def test_one_of_two_stacks_goes_and_the_other_one_goes_on(wired, payload):
    urls = [served(wired, payload, FIRST_PORT + i) for i in range(2)]
    routed = wired.attach_client(many(2))
    routed.apply(many(1))
    wait_for(
        lambda: len([s for s in routed.ask("stacks") if s["kind"] == "user"]) == 1, 10, "s1 to go"
    )
    fetch(wired, *urls[0], wired.client_cgroup)
    assert carried(routed, "s0") == 1
    assert tcx(wired.client) == ["dmm_tcin"]


def test_a_killed_process_is_replaced_and_new_flows_go_on(wired, payload):
    url, sha256 = served(wired, payload)
    routed = wired.attach_client(TAP)
    fetch(wired, url, sha256, wired.client_cgroup)
    pid = routed.stack("wan")["pid"]
    wired.client.run(["kill", "-9", str(pid)])
    fetch(wired, url, sha256, wired.client_cgroup)  # whoever serves it
    wait_for(lambda: routed.stack("wan")["pid"] not in (pid, None), 10, "another process")
    fetch(wired, url, sha256, wired.client_cgroup)
    assert carried(routed) >= 1


def test_a_program_that_was_taken_off_is_put_back(wired, payload):
    url, sha256 = served(wired, payload)
    routed = wired.attach_client(TAP)
    index = wired.client.call(lambda: socket.if_nametoindex(wired.client.nic.name))
    pin = f"/sys/fs/bpf/dmm-ebpf/{routed.instance}/links/tcx-{index}-in"
    wired.client.run(["bpftool", "link", "detach", "pinned", pin])
    wait_for(lambda: tcx(wired.client) == ["dmm_tcin"], 5, "the tc program")
    fetch(wired, url, sha256, wired.client_cgroup)
    assert carried(routed) == 1


def test_a_new_director_takes_it_over(wired, payload):
    url, sha256 = served(wired, payload)
    routed = wired.attach_client(TAP)
    pid = routed.stack("wan")["pid"]
    routed.kill_director()
    routed.restart()
    stack = routed.stack("wan")
    assert (stack["pid"], stack["port"]) == (pid, "tap")
    fetch(wired, url, sha256, wired.client_cgroup)
    assert carried(routed) == 1


def test_a_stack_that_runs_without_af_xdp_sockets_gets_none(wired):
    routed = wired.attach_client(TAP)
    with pytest.raises(DmmError, match="it runs without AF_XDP sockets there"):
        routed.apply(TAP.replace('"tap"', '"af_xdp"'))
    assert routed.stack("wan")["state"] == "up"
    routed.apply(AUTO)
    assert routed.stack("wan")["ports"][0]["why"] == "driver veth has no AF_XDP zero-copy"
