# SPDX-License-Identifier: Apache-2.0
"""Packets through a stack process: both families, both directions, next hops that are there, fail,
move and change.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import time

import pytest
from hal_lab import Host, Pump, hosts, link, listen, wait_until
from stack_lab import Stack, stack_on

from dmm_ebpf.loader import bpf
from lab.netns import offloads_off

PEERS = [(socket.AF_INET, "10.9.1.2"), (socket.AF_INET6, "fd09:1::2")]


def transfer(source: socket.socket, sink: socket.socket, size: int) -> None:
    """size random bytes from one to the other, compared by hash, and the end of the stream."""
    chunk = os.urandom(1 << 20)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        left = size
        while left:
            part = chunk[:left]
            source.sendall(part)
            sent.update(part)
            left -= len(part)
        source.shutdown(socket.SHUT_WR)

    pump = Pump(send)
    sink.settimeout(30)
    while data := sink.recv(1 << 18):
        received.update(data)
    pump.finish()
    assert sent.digest() == received.digest()


def mac_of(host: Host, device: str = "eth0") -> str:
    return re.search(r"link/ether (\S+)", host.sh(f"ip link show {device}"))[1]


def echo(stack: Stack, server: socket.socket, address: str) -> None:
    with stack.connect((address, server.getsockname()[1])) as app:
        accepted, _ = server.accept()
        with accepted:
            app.sendall(b"x")
            assert accepted.recv(1) == b"x"


@pytest.mark.skipif(
    bpf.xsk_metadata() is not True,
    reason="this kernel's AF_XDP has no metadata of frames to be sent",
)
@pytest.mark.parametrize(("family", "peer"), PEERS)
@pytest.mark.parametrize("mtu", [1500, 3000])
@pytest.mark.parametrize("offloads", [False, True])
def test_af_xdp_leaves_checksums_to_what_takes_its_frames(family, peer, mtu, offloads):
    """Without offloads, the peer looks at each."""
    with hosts(2) as (a, b):
        link(a, b)
        for host in (a, b):
            host.sh(f"ip link set eth0 mtu {mtu}")
            if not offloads:
                host.ns.run_in(offloads_off, "eth0")
        with stack_on(a, port="af_xdp", leave_sums=True) as stack, listen(b, family) as server:
            assert stack.query("ping")["sums"] == {"0": True}
            with stack.connect((peer, server.getsockname()[1])) as app:
                accepted, _ = server.accept()
                transfer(app, accepted, 5_000_000)
                transfer(accepted, app, 5_000_000)
                accepted.close()
            stats = stack.query("stats")
            assert stats["nic_tx_bytes"] > 5_000_000
            assert stats["core_bad_csum"] == stats["core_malformed"] == 0
        names, values = (
            line.split() for line in b.sh("grep Tcp: /proc/self/net/snmp").splitlines()
        )
        assert int(values[names.index("InCsumErrors")]) == 0


@pytest.mark.parametrize("port", ["af_xdp", "tap"])
@pytest.mark.parametrize(("family", "peer"), PEERS)
def test_a_connection_carries_bytes_both_ways(family, peer, port):
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a, port=port) as stack, listen(b, family) as server:
            with stack.connect((peer, server.getsockname()[1])) as app:
                accepted, from_ = server.accept()
                assert from_[:2] == app.getsockname()[:2]
                assert app.getpeername()[0] == peer
                transfer(app, accepted, 20_000_000)
                transfer(accepted, app, 20_000_000)
                accepted.close()
            stats = stack.query("stats")
            assert stats["inner_rx_bytes"] > 20_000_000 < stats["nic_rx_bytes"]
            # Segmentation is left to the other side of the inner leg, and of the outer one
            # where that can.
            assert stats["inner_rx_bytes"] / stats["inner_rx_pkts"] > 3 * 1500
            if port == "af_xdp":
                assert stats["nic_rx_pkts"] > 10000 < stats["nic_tx_pkts"]
            assert stats["core_bad_csum"] == stats["core_malformed"] == stats["nic_tx_no_link"] == 0


@pytest.mark.parametrize(("family", "peer"), PEERS)
def test_a_listener_is_reached_through_the_stack(family, peer):
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(a, family) as server:
            with b.ns.socket(family, socket.SOCK_STREAM) as client:
                client.settimeout(10)
                client.connect((_left(peer), server.getsockname()[1]))
                accepted, from_ = server.accept()
                assert from_[:2] == client.getsockname()[:2]
                transfer(client, accepted, 10_000_000)
                transfer(accepted, client, 10_000_000)
                accepted.close()
            assert stack.query("stats")["core_passive_open"] == 1


def test_busy_polling_does_not_sleep_between_packets():
    """While requests follow each other the loop looks for the next; without busy polling each
    costs it a sleep.
    """
    slept = {}
    for busy_poll_us in (0, 1_000_000):
        with hosts(2) as (a, b):
            link(a, b)
            with (
                stack_on(a, options={"busy_poll_us": busy_poll_us}) as stack,
                listen(b, socket.AF_INET) as server,
                stack.connect((PEERS[0][1], server.getsockname()[1])) as app,
            ):
                accepted, _ = server.accept()
                before = stack.query("stats")["waits"]
                for _ in range(200):
                    app.sendall(b"x")
                    assert accepted.recv(1) == b"x"
                    accepted.sendall(b"y")
                    assert app.recv(1) == b"y"
                slept[busy_poll_us] = stack.query("stats")["waits"] - before
                accepted.close()
    assert slept[0] > 200
    assert slept[1_000_000] < 20


def _left(peer: str) -> str:
    return peer[:-1] + "1"


def test_many_queues_and_connections():
    with hosts(2) as (a, b):
        link(a, b, queues=4)
        with stack_on(a) as stack, listen(b) as server:
            assert stack.spec.nics[0].queues == 4
            apps = [stack.connect(("10.9.1.2", server.getsockname()[1])) for _ in range(40)]
            peers = {}
            for _ in apps:
                accepted, from_ = server.accept()
                peers[from_] = accepted
            pumps = [Pump(lambda s=s: transfer(s, peers[s.getsockname()], 300_000)) for s in apps]
            for pump in pumps:
                pump.finish()
            rows = stack.query("connections")
            assert {(r["laddr"], r["lport"]) for r in rows} >= set(peers)
            for sock in (*apps, *peers.values()):
                sock.close()


def test_refused_is_refused():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, pytest.raises(ConnectionRefusedError):
            stack.connect(("10.9.1.2", 1))


@pytest.mark.parametrize("absent", ["10.9.1.99", "fd09:1::99"])
def test_a_neighbour_that_does_not_answer_is_host_unreachable(absent):
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack:
            begin = time.monotonic()
            with pytest.raises(OSError, match="No route to host"):
                stack.connect((absent, 1))
            assert time.monotonic() - begin < 6
            # Asked for again, not remembered.
            b.sh(
                f"ip addr add {absent}/24 dev eth0"
                if "." in absent
                else f"ip addr add {absent}/64 dev eth0 nodad"
            )
            with pytest.raises(ConnectionRefusedError):
                stack.connect((absent, 1))


@pytest.mark.parametrize(
    ("family", "via", "far"), [(2, "10.9.1.2", "10.9.2.2"), (10, "fd09:1::2", "fd09:2::2")]
)
def test_through_a_gateway(family, via, far):
    with hosts(3) as (a, b, c):
        link(a, b, net=1)
        link(b, c, names=("eth1", "eth0"), net=2)
        b.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        version = "-4" if family == socket.AF_INET else "-6"
        a.sh(f"ip {version} route add default via {via}")
        c.sh(f"ip {version} route add default via {far[:-1]}1")
        with (
            stack_on(a) as stack,
            listen(c, family) as server,
            stack.connect((far, server.getsockname()[1])) as app,
        ):
            accepted, _ = server.accept()
            with accepted:
                transfer(app, accepted, 5_000_000)


def test_the_peers_address_on_the_link_changes_under_a_connection():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            app = stack.connect(("10.9.1.2", server.getsockname()[1]))
            accepted, _ = server.accept()
            new = "02:00:00:00:be:ef"
            b.sh(f"ip link set eth0 address {new}")
            a.sh(f"ip neigh replace 10.9.1.2 lladdr {new} dev eth0")
            transfer(app, accepted, 3_000_000)
            transfer(accepted, app, 3_000_000)
            app.close()
            accepted.close()


def test_a_route_that_changes_takes_its_connections_along():
    with hosts(3) as (a, b, c):
        link(a, b, net=1)
        link(a, b, names=("eth1", "eth1"), net=2)
        a.sh("ip route add 192.0.2.0/24 via 10.9.1.2")
        b.sh("ip addr add 192.0.2.1/32 dev lo")
        for host in (a, b):
            host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")
            host.sh("sysctl -qw net.ipv4.conf.eth1.rp_filter=0")
        assert c
        with stack_on(a) as stack, listen(b) as server:
            app = stack.connect(("192.0.2.1", server.getsockname()[1]))
            accepted, _ = server.accept()
            a.sh("ip route replace 192.0.2.0/24 via 10.9.2.2")

            def packets() -> int:
                return int(b.sh("cat", "/sys/class/net/eth1/statistics/rx_packets"))

            before = packets()

            def moved() -> bool:
                app.sendall(b"y" * 100)
                assert accepted.recv(100, socket.MSG_WAITALL) == b"y" * 100
                return packets() > before + 5

            wait_until(moved, what="the connection on the new route")
            app.close()
            accepted.close()


def test_a_forgotten_neighbour_is_found_again():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            echo(stack, server, "10.9.1.2")
            a.sh("ip neigh flush dev eth0")
            echo(stack, server, "10.9.1.2")
            a.sh(f"ip neigh replace 10.9.1.2 lladdr {mac_of(b)} dev eth0 nud stale")
            echo(stack, server, "10.9.1.2")


def test_no_packet_of_any_content_ends_the_process():
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            raw = b.ns.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.bind(("eth0", 0))
            target = bytes.fromhex(mac_of(a).replace(":", "")) + bytes.fromhex(
                mac_of(b).replace(":", "")
            )
            generator = random.Random(4)
            for i in range(3000):
                kind, proto_at = (b"\x08\x00", 9) if i % 2 else (b"\x86\xdd", 6)
                body = bytearray(generator.randbytes(generator.randrange(40, 400)))
                body[0] = (0x45, 0x60)[i % 2 == 0] if i % 3 else body[0]
                body[proto_at] = 6
                raw.send(target + kind + bytes(body))
            raw.close()
            wait_until(lambda: stack.query("stats")["nic_rx_pkts"] >= 2900)
            echo(stack, server, "10.9.1.2")
            assert stack.downs == []


def test_a_stale_neighbour_of_a_connection_in_use_is_looked_at():
    """The kernel sends what the app says to it, before the stack has it."""
    with hosts(2) as (a, b):
        link(a, b)
        with stack_on(a) as stack, listen(b) as server:
            app = stack.connect(("10.9.1.2", server.getsockname()[1]))
            accepted, _ = server.accept()
            a.sh(f"ip neigh replace 10.9.1.2 lladdr {mac_of(b)} dev eth0 nud stale")
            transfer(app, accepted, 1000)
            wait_until(
                lambda: "REACHABLE" in a.sh("ip neigh show 10.9.1.2"), 15, "a look at the neighbour"
            )
            transfer(accepted, app, 1000)
            app.close()
            accepted.close()
