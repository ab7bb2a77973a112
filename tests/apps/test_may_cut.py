# SPDX-License-Identifier: Apache-2.0
"""DF of what the peer gets is as the app has asked: who lets routers make fragments of its
packets (IP_MTU_DISCOVER, net.ipv4.ip_no_pmtu_disc) gets through where ICMP does not.
"""

from __future__ import annotations

import pytest
from sitefixtures import by

from lab.programs import start_server

PORT = 7330
DONT, WANT, DO, PROBE = range(4)

# For both: opened() gives the connection, whoever opens it.
OPENED = """
import socket, sys
role, address, port, *values = sys.argv[1:]
def opened(s):
    if role == "client":
        s.connect((address, int(port)))
        return s
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, int(port)))
    s.listen()
    return s.accept()[0]
"""

# The app: sets the option before each 20,000 bytes, if it is not "-"; prints what the peer
# then says that it saw.
APP = f"""{OPENED}
s = socket.socket()
if values[0] != "-":
    s.setsockopt(socket.IPPROTO_IP, 10, int(values[0]))  # IP_MTU_DISCOVER
s = opened(s)
for value in values:
    if value != "-":
        s.setsockopt(socket.IPPROTO_IP, 10, int(value))
    s.sendall(bytes(20000))
    print(s.recv(100).decode(), flush=True)
"""

# The peer: how DF was set in what brought each 20,000 bytes.
PEER = f"""{OPENED}
seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
seen.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
seen.setblocking(False)
s = opened(socket.socket())

def ways():
    found = set()
    while True:
        try:
            data, (_, _, kind, *_) = seen.recvfrom(100)
        except BlockingIOError:
            return found
        brings = int.from_bytes(data[2:4], "big") > 20 + (data[32] >> 4) * 4
        is_ours = data[9] == 6 and data[22:24] == s.getsockname()[1].to_bytes(2, "big")
        if kind != 4 and is_ours and brings:
            found.add("DF" if data[6] & 0x40 else "may be cut")

while True:
    left = 20000
    while left:
        part = s.recv(left)
        if not part:
            sys.exit()
        left -= len(part)
    s.sendall(" and ".join(sorted(ways())).encode())
"""


def _says(wired, who: str, *values: str) -> list[str]:
    app_host, peer_host = wired.client, wired.server
    app_group, other = wired.client_cgroup, "server"
    if who == "server":
        app_host, peer_host = peer_host, app_host
        app_group, other = wired.server_cgroup, "client"
    python, address = ["/usr/bin/python3", "-c"], wired.server.ip4
    app = [*python, APP, who, address, str(PORT), *values]
    peer = [*python, PEER, other, address, str(PORT)]
    log = wired.directory / "says.log"
    if who == "client":
        start_server(peer_host, peer, PORT, log)
        return str(app_group.run(app, host=app_host).stdout).splitlines()
    log.unlink(missing_ok=True)
    server = start_server(app_host, app, PORT, log, cgroup=app_group)
    peer_host.run(peer)
    assert server.process.wait(10) == 0
    return log.read_text().splitlines()


@pytest.mark.parametrize("io", ["tap", "af_xdp"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_packets_may_be_cut_if_the_app_lets_them(wired, io, who):
    wired.attach_client(by(io)) if who == "client" else wired.attach_server(by(io))
    values = [DONT, WANT, PROBE, DO, DONT]
    assert _says(wired, who, *map(str, values)) == [
        "may be cut", "DF", "may be cut", "DF", "may be cut"
    ]  # fmt: skip


def test_a_host_without_path_mtu_discovery_lets_them_be_cut(wired):
    wired.client.sysctl("net.ipv4.ip_no_pmtu_disc", 1)
    wired.attach_client()
    assert _says(wired, "client", "-") == ["may be cut"]
