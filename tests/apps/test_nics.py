# SPDX-License-Identifier: Apache-2.0
"""A NIC that changes while a user stack serves it: its address, its MTU, its queues, its name,
its very being.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import threading

import pytest
from sitefixtures import XDP

from dmm_ebpf.rd.api.client import Client
from lab import curl_fetch, nginx, wait_for

WITHIN_S = 20.0
SIOCETHTOOL, ETHTOOL_SCHANNELS = 0x8946, 0x3D
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
PACKET_OUTGOING = 4


@pytest.fixture
def fetched(wired, payload):
    """A function that fetches a file through the stack "wan" of the client, which is attached."""
    return _fetched(wired, payload)


def _fetched(wired, payload, policy=XDP):
    path, sha256 = payload(1_000_000)
    server = nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    url = server.url(path.name)
    routed = wired.attach_client(policy)

    def fetch():
        before = _counted(routed)
        assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha256
        assert _counted(routed) > before, "the kernel's own stack carried it"

    fetch.routed = routed
    fetch()
    return fetch


def _counted(routed):
    """Packets that XDP has given to a stack."""
    with Client(routed.instance) as client:
        return client.call("status")["counters"]["xdp_flow"]


def _wan(routed):
    with Client(routed.instance) as client:
        return next(s for s in client.call("stacks") if s["name"] == "wan")


def _up(routed, not_pid=None):
    def up():
        stack = _wan(routed)
        return stack if stack["state"] == "up" and stack["pid"] != not_pid else None

    return wait_for(up, WITHIN_S, "the stack to be up")


@contextlib.contextmanager
def _frames(host):
    """IPv4 frames that come in at the host's NIC: a list of (source MAC, length), filled while
    the block runs.
    """
    frames, ended = [], threading.Event()
    sock = host.call(
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    )
    sock.bind((host.nic.name, ETH_P_ALL))
    sock.settimeout(0.05)

    def read():
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                data, (_, _, kind, *_) = sock.recvfrom(65536)
                if kind != PACKET_OUTGOING and data[12:14] == struct.pack("!H", ETH_P_IP):
                    frames.append((data[6:12].hex(":"), len(data)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield frames
    finally:
        ended.set()
        reader.join()
        sock.close()


def test_a_new_mac_is_used_at_once_and_after_a_restart(wired, fetched):
    nic = wired.client.nic.name
    for mac in ("02:dd:00:00:aa:01", "02:dd:00:00:aa:02"):
        wired.client.ip(f"link set {nic} address {mac}")
        with _frames(wired.server) as frames:
            fetched()
        assert {source for source, _ in frames} == {mac}
        pid = _wan(fetched.routed)["pid"]
        os.kill(pid, signal.SIGKILL)
        _up(fetched.routed, pid)
        with _frames(wired.server) as frames:
            fetched()
        assert {source for source, _ in frames} == {mac}, "after the restart"


SEND = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7200))
s.sendall(bytes(100_000))
s.shutdown(socket.SHUT_WR)
assert s.recv(1) == b""
"""


def test_a_smaller_mtu_is_followed_without_a_restart(wired, fetched, python):
    with wired.server.call(lambda: socket.create_server((wired.server.ip4, 7200))) as listening:
        reader = threading.Thread(target=_read_all, args=(listening,))
        reader.start()

        def longest():
            with _frames(wired.server) as frames:
                python(wired.client, wired.client_cgroup, SEND, wired.server.ip4)
            return max(length for _, length in frames)

        try:
            assert longest() == 1500 + 14
            wired.client.ip(f"link set {wired.client.nic.name} mtu 1300")
            # New connections are told; an open one finds out by its losses, as for any other
            # path (RFC 4821).
            wait_for(
                lambda: longest() == 1300 + 14, WITHIN_S, "no frame to be longer than the NIC takes"
            )
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            reader.join()
    assert _wan(fetched.routed)["restarts"] == 0


def _read_all(listening):
    """Reads what connections bring to its end, one after the other, until the socket
    is shut down.
    """
    with contextlib.suppress(OSError):
        while True:
            accepted, _ = listening.accept()
            with accepted:
                while accepted.recv(65536):
                    pass


@pytest.mark.parametrize("processes", [1, 2])
def test_a_nic_that_is_deleted_is_told_and_served_again(wired, payload, processes):
    """No flow is open, so process 0 makes room for one that opens AF_XDP sockets on the device
    that is there then.
    """
    fetched = _fetched(
        wired, payload, XDP.replace("[stacks.lan]", f"processes = {processes}\n[stacks.lan]")
    )
    routed, nic = fetched.routed, wired.client.nic.name
    first = _wan(routed)["pid"]

    def missing():
        with Client(routed.instance) as client:
            return [(m["what"], m["why"]) for m in client.call("status")["missing"]]

    wired.client.ip(f"link del {nic}")
    wait_for(
        lambda: (f"device {nic} of stack wan", "it is gone") in missing(),
        WITHIN_S,
        "status to tell",
    )
    assert _wan(routed)["pid"] == first
    wired.lab.remake(wired.link, queues=2)
    back = _up(routed, first)
    wait_for(
        lambda: (
            [(p["state"], p["restarts"]) for p in _wan(routed)["processes"]]
            == [("up", 1), ("up", 0)][:processes]
        ),
        WITHIN_S,
        "all processes",
    )
    assert back["nics"] == [nic]
    wait_for(lambda: [p["port"] for p in _wan(routed)["ports"]] == ["af_xdp"], WITHIN_S, "AF_XDP")
    fetched()
    wait_for(lambda: missing() == [], WITHIN_S, "nothing to be missing")
    with Client(routed.instance) as client:
        (shown,) = client.call("status")["nics"]
    assert (shown["ifindex"], shown["mode"]) == (
        wired.client.call(socket.if_nametoindex, nic),
        "native",
    )


def test_a_nic_with_another_name_goes_on_being_served(wired, fetched):
    routed, nic = fetched.routed, wired.client.nic.name
    pid = _wan(routed)["pid"]
    wired.client.ip(
        f"link set {nic} down",
        f"link set {nic} name uplink0",
        "link set uplink0 up",
        f"route add default via {wired.server.ip4} dev uplink0",
    )
    wait_for(lambda: _wan(routed)["nics"] == ["uplink0"], WITHIN_S, "the new name to be shown")
    fetched()
    assert _wan(routed)["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    _up(routed, pid)
    fetched()


# Over twelve connections, for each line read: noise there and back, compared.
ECHOES = """
import os, socket, sys
conns = [socket.create_connection((sys.argv[1], 7300)) for _ in range(12)]
for line in sys.stdin:
    for conn in conns:
        noise, got = os.urandom(100_000), b""
        conn.sendall(noise)
        while len(got) < len(noise):
            got += conn.recv(65536) or sys.exit("closed")
        assert got == noise
    print("same", flush=True)
"""


def _echo(conn):
    with conn, contextlib.suppress(OSError):
        while data := conn.recv(65536):
            conn.sendall(data)


def _echo_all(listening):
    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=_echo, args=(listening.accept()[0],), daemon=True).start()


def _received(host, device):
    """Packets that the kernel gave to a TAP device."""
    return json.loads(host.run(["ip", "-j", "-s", "link", "show", device]).stdout)[0]["stats64"][
        "tx"
    ]["packets"]


def test_open_flows_follow_the_number_of_queues(site):
    """What comes by a queue that has no AF_XDP socket comes by tc, and a socket has its queue
    when it is back.
    """
    site.wire(queues=4)
    for host in (site.client, site.server):
        host.call(_set_channels, host.nic.name, 2)
    routed = site.attach_client(XDP)
    before = _wan(routed)
    device = f"{before['device']}.0.out"
    with site.server.call(lambda: socket.create_server((site.server.ip4, 7300))) as listening:
        threading.Thread(target=_echo_all, args=(listening,), daemon=True).start()
        client = site.client.popen(
            site.client_cgroup.argv(["/usr/bin/python3", "-c", ECHOES, site.server.ip4]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            for count, by_tc in ((2, False), (4, True), (2, False), (3, True), (4, True)):
                # A veth with XDP has at least as many as the other end sends by.
                for host in (site.client, site.server) if by_tc else (site.server, site.client):
                    host.call(_set_channels, host.nic.name, count)
                packets = _received(site.client, device)
                client.stdin.write("\n")
                client.stdin.flush()
                assert client.stdout.readline() == "same\n"
                assert (_received(site.client, device) > packets) == by_tc, count
        finally:
            client.stdin.close()
            assert client.wait(WITHIN_S) == 0
            client.stdout.close()
    site.server.call(_set_channels, site.server.nic.name, 1)
    with pytest.raises(
        OSError, match="Invalid argument"
    ):  # the kernel's: AF_XDP sockets are on the second
        site.client.call(_set_channels, site.client.nic.name, 1)
    after = _wan(routed)
    assert (after["pid"], after["restarts"]) == (before["pid"], 0)
    assert routed.ask_stack("wan")["core_active_open"] == 12
    assert routed.ask("status")[0]["counters"]["xdp_no_socket"] == 0


def _set_channels(name, count):
    """struct ethtool_channels: command, four maxima, and rx, tx, other, combined."""
    buffer = ctypes.create_string_buffer(
        struct.pack("=9I", ETHTOOL_SCHANNELS, 0, 0, 0, 0, count, count, 0, 0)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(
            sock, SIOCETHTOOL, struct.pack("@16sP16x", name.encode(), ctypes.addressof(buffer))
        )
