# SPDX-License-Identifier: Apache-2.0
"""io = "af_xdp" where a driver has no native XDP, and where a packet is longer than a page."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading

import pytest
from sitefixtures import XDP

from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf
from lab import curl_fetch, nginx
from lab.routed import Routed

IO = 'io = "af_xdp"\n'
LISTEN = XDP.replace('table = "shop"\n', 'direction = "listen"\ntable = "shop"\n', 1)
TWO = f"{IO}processes = 2\n"
BYTES = 20_000_000
LONGEST_FRAME_BYTES = 1514  # of a packet that nobody has merged, Ethernet header included
SOME_BYTES, EACH_WAY = 2_000_000, 14
PORT = 7300

# Sends so many bytes of a file to who connects, or to an address; the other direction is read
# to its end.
SEND = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
with open(sys.argv[3], "rb") as f:
    s.sendfile(f)
s.shutdown(socket.SHUT_WR)
assert s.recv(1) == b""
"""

# Counts the app's packets that come in by a device, and what comes from a group address.
COUNT = """
table netdev t {
	chain c {
		type filter hook ingress device DEVICE priority 0
		ether type ip tcp sport 80 counter
		ether saddr & 01:00:00:00:00:00 != 0 counter
	}
}
"""

needs_frags = pytest.mark.skipif(
    not bpf.xsk_frags(), reason="this kernel's AF_XDP takes a page at most"
)


def put_above(host, kind: str) -> str:
    """The host's addresses on a device above its NIC, which has no native XDP; its name."""
    nic, name = host.nic.name, f"{kind}0"
    lines = {
        "macvlan": [f"link add {name} link {nic} type macvlan mode bridge"],
        "bridge": [f"link add {name} type bridge", f"link set {nic} master {name}"],
    }[kind]
    host.sysctl("net.ipv4.conf.all.arp_ignore", 1)  # or the NIC answers for what is above it
    host.ip(
        *lines,
        f"address flush dev {nic}",
        f"link set {name} up",
        f"address add {host.ip4}/24 dev {name}",
        f"address add {host.ip6}/64 dev {name} nodad",
    )
    return name


def policy(text: str, device: str) -> str:
    return text.replace(IO, f'io = "af_xdp"\ndevices = ["{device}"]\n')


def fetch(site, url: str, sha256: str, cgroup=None) -> None:
    got = curl_fetch(site.client, url, cgroup=cgroup, timeout=60)
    assert got.sha256 == sha256, got.stderr


def serve(site, payload, where: str, port: int = 80, size: int = BYTES):
    """A file of noise by nginx on one of the hosts: URL and hash."""
    path, sha256 = payload(size)
    host = getattr(site, where)
    cgroup = getattr(site, f"{where}_cgroup")
    return nginx(host, path.parent, site.directory / f"nginx{port}", port=port, cgroup=cgroup).url(
        path.name
    ), sha256


def send(site, payload, size: int = BYTES) -> None:
    """A file from the client through its stack to a reader on the server, hashed there."""
    path, sha256 = payload(size)
    got = []

    def read(listening: socket.socket) -> None:
        conn, _ = listening.accept()
        with conn:
            digest = hashlib.sha256()
            while data := conn.recv(1 << 16):
                digest.update(data)
            got.append(digest.hexdigest())

    with site.server.call(lambda: socket.create_server((site.server.ip4, PORT))) as listening:
        listening.settimeout(60)
        reader = threading.Thread(target=read, args=(listening,))
        reader.start()
        done = site.client_cgroup.run(
            ["/usr/bin/python3", "-c", SEND, site.server.ip4, str(PORT), str(path)],
            host=site.client,
            timeout=60,
        )
        reader.join()
    assert done.returncode == 0, done.stderr
    assert got == [sha256]


def figures(routed: Routed, label: str = "wan") -> dict[str, int]:
    """Of a process, which lost nothing unseen."""
    found = routed.ask_stack(label)
    assert (found["core_bad_csum"], found["core_malformed"], found["nic_rx_ignored"]) == (0, 0, 0)
    return found


def mode(host, device: str) -> str:
    """Of the XDP program on a device."""
    said = host.run(["ip", "link", "show", device]).stdout
    return "generic" if "xdpgeneric" in said else "native" if "xdp" in said else "none"


@needs_frags
@pytest.mark.parametrize("offloads", [False, True])
@pytest.mark.parametrize("kind", ["macvlan", "bridge"])
def test_generic_mode_carries_both_ways(site, payload, kind, offloads):
    site.wire(offloads=offloads)
    upper = put_above(site.client, kind)
    routed = site.attach_client(policy(XDP, upper))
    assert mode(site.client, upper) == "generic"
    stack = routed.stack("wan")
    assert (stack["port"], stack["xdp"]) == ("af_xdp", {upper: "generic, copy"})
    fetch(site, *serve(site, payload, "server"), site.client_cgroup)
    send(site, payload)
    found = figures(routed)
    assert found["core_active_open"] == 2
    assert found["nic_rx_bytes"] > BYTES and found["nic_tx_bytes"] > BYTES
    whole = found["nic_rx_bytes"] > LONGEST_FRAME_BYTES * found["nic_rx_pkts"]
    assert whole == offloads, "merged packets come in one piece"


@needs_frags
def test_generic_mode_has_listeners_and_several_processes(site, payload):
    site.wire(offloads=True)
    upper = put_above(site.client, "macvlan")
    routed = site.attach_client(policy(LISTEN, upper).replace(IO, TWO))
    url, sha256 = serve(site, payload, "client", size=300_000)
    for host in (site.client.ip4, f"[{site.client.ip6}]") * 8:
        got = curl_fetch(site.server, url.replace(site.client.ip4, host), timeout=60)
        assert got.sha256 == sha256, got.stderr
    stack = routed.stack("wan")
    assert stack["counters"]["passive_open"] == 16
    assert all(routed.ask_stack(name)["core_passive_open"] for name in ("wan", "wan@1"))


@needs_frags
def test_others_see_whole_frames_in_generic_mode(site, payload):
    """A tc program behind XDP sees the Ethernet header, and the app's packets come from
    no group address.
    """
    site.wire(offloads=True)
    upper = put_above(site.client, "macvlan")
    routed = site.attach_client(policy(XDP, upper))
    site.client.run(["nft", "-f", "-"], input=COUNT.replace("DEVICE", upper))
    fetch(site, *serve(site, payload, "server"), site.client_cgroup)
    assert figures(routed)["core_active_open"] == 1
    said = site.client.run(["nft", "-j", "list", "table", "netdev", "t"]).stdout
    seen, group = (
        rule["rule"]["expr"][-1]["counter"]["packets"]
        for rule in json.loads(said)["nftables"]
        if "rule" in rule
    )
    assert seen > 10 and group == 0


def bad_checksums(host) -> int:
    """That its TCP has received."""
    names, values = (
        line.split()
        for line in host.run(["grep", "Tcp:", "/proc/self/net/snmp"]).stdout.splitlines()
    )
    return int(values[names.index("InCsumErrors")])


@pytest.mark.parametrize("mtu", [1500, pytest.param(9000, marks=needs_frags)])
@pytest.mark.parametrize("offloads", [False, True])
def test_checksums_are_right_and_hal_tells_who_fills_them_in(site, payload, offloads, mtu):
    """Without offloads the peer gets what a wire would have, and looks at the checksum."""
    site.wire(offloads=offloads, mtu=mtu)
    routed = site.attach_client(XDP)
    assert routed.stack("wan")["xdp"] == {site.client.nic.name: "native, copy"}
    fetch(site, *serve(site, payload, "server"), site.client_cgroup)
    send(site, payload)
    assert figures(routed)["nic_tx_bytes"] > BYTES
    assert (bad_checksums(site.server), bad_checksums(site.client)) == (0, 0)
    (row,) = (one for one in json.loads(hal(site)) if one["name"] == site.client.nic.name)
    assert row["af_xdp"]["metadata"] == bpf.xsk_metadata()
    if row["af_xdp"]["mode"] == "copy":
        assert row["af_xdp"]["sums"] is False


def hal(site) -> str:
    return str(site.client.run([sys.executable, "-m", "dmm_ebpf.cli.main", "hal", "--json"]).stdout)


@needs_frags
@pytest.mark.parametrize("processes", [1, 2])
def test_packets_longer_than_a_page(site, payload, processes):
    site.wire(mtu=9000, offloads=True)
    nic = site.client.nic.name
    routed = site.attach_client(XDP.replace(IO, f"{IO}processes = {processes}\n"))
    assert mode(site.client, nic) == "native"
    assert routed.stack("wan")["xdp"] == {nic: "native, copy"}
    served = serve(site, payload, "server", size=SOME_BYTES)
    for _ in range(EACH_WAY):  # so many that either process has some
        fetch(site, *served, site.client_cgroup)
        send(site, payload, SOME_BYTES)
    found = [figures(routed, name) for name in ("wan", "wan@1")[:processes]]
    assert all(f["core_active_open"] for f in found)
    assert sum(f["core_active_open"] for f in found) == 2 * EACH_WAY
    assert found[0]["nic_tx_bytes"] > 3000 * found[0]["nic_tx_pkts"]
    assert found[0]["nic_rx_bytes"] > 3000 * found[0]["nic_rx_pkts"]


@pytest.mark.skipif(bpf.xsk_frags(), reason="this kernel's AF_XDP takes packets of several pages")
@pytest.mark.parametrize(("kind", "mtu"), [("macvlan", 1500), ("", 9000)])
def test_what_an_older_kernel_cannot_is_said(site, kind, mtu):
    site.wire(mtu=mtu)
    device = put_above(site.client, kind) if kind else site.client.nic.name
    with pytest.raises(DmmError, match=r"takes no packet of more than a page.*Linux 6\.6"):
        site.attach_client(policy(XDP, device))
    assert mode(site.client, device) == "none"
