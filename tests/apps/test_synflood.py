# SPDX-License-Identifier: Apache-2.0
"""A flood of SYNs with forged addresses at nginx behind a user stack: clients that exist go
on being served.
"""

from __future__ import annotations

import subprocess

import pytest

from lab import curl_fetch, nginx, wait_for

FETCHES = 20
HALF_OPEN_MAX = 1024  # the stack's default
MOST_SYNS = 400_000

# Frames of SYNs from addresses behind the client's host, some with timestamps, until stdin ends or
# all are sent.
FLOOD = """
import ipaddress, os, random, select, socket, struct, sys
device, mac, server, port, most = sys.argv[1], bytes.fromhex(sys.argv[2]), *sys.argv[3:6]
to = ipaddress.ip_address(server)
v6 = to.version == 6
forged = ipaddress.ip_network("2001:db8:bad::/48" if v6 else "198.18.0.0/15")
options = [bytes.fromhex("020405b4"), bytes.fromhex("020405b40402080a00000001000000000103030a")]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((device, 0))
rng = random.Random(1)

def csum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~((total >> 16) + total) & 0xFFFF

for number in range(int(most)):
    src = forged[rng.randrange(1, 1 << 17)].packed
    tail = options[number & 1]
    head = [rng.randrange(1024, 65536), int(port), rng.getrandbits(32), 0, (5 + len(tail) // 4) << 4, 2, 64240, 0, 0]
    pseudo = src + to.packed + struct.pack("!IHH", 20 + len(tail), 0, 6)
    head[7] = csum(pseudo + struct.pack("!HHIIBBHHH", *head) + tail)
    tcp = struct.pack("!HHIIBBHHH", *head) + tail
    if v6:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + src + to.packed
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + src + to.packed
        ip = ip[:10] + struct.pack("!H", csum(ip)) + ip[12:]
    try:
        wire.send(mac + bytes(6) + (b"\\x86\\xdd" if v6 else b"\\x08\\x00") + ip + tcp)
    except OSError:
        pass
    if number % 64 == 0 and select.select([0], [], [], 0.002)[0]:
        break
print(number + 1)
"""


# Accepts one connection on port 80, frees the port, and echoes.
KEPT_SERVER = """
import socket
listener = socket.create_server(("", 80))
print("ready", flush=True)
kept, _ = listener.accept()
listener.close()
print("alone", flush=True)
while data := kept.recv(100):
    kept.sendall(data)
"""

KEPT_CLIENT = """
import socket, sys
kept = socket.create_connection((sys.argv[1], 80))
for line in sys.stdin:
    kept.sendall(line.encode())
    print(kept.recv(100).decode(), end="", flush=True)
"""


@pytest.fixture
def kept(wired):
    """A connection of the kernel's to the same port, older than dmm-ebpf and nginx; says
    what comes back.
    """
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    python = ["/usr/bin/python3", "-c"]
    server = wired.server.popen([*python, KEPT_SERVER], **options)
    assert server.stdout.readline() == "ready\n"
    client = wired.client.popen([*python, KEPT_CLIENT, wired.server.ip4], **options)
    assert server.stdout.readline() == "alone\n"

    def say(line: str) -> str:
        client.stdin.write(line)
        client.stdin.flush()
        return str(client.stdout.readline())

    return say


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_clients_are_served_during_a_syn_flood(wired, payload, kept, ipv6):
    path, sha256 = payload(300_000)
    # So that the stack finds a way back to the forged addresses. Nobody answers from there.
    wired.server.ip(f"route add 198.18.0.0/15 via {wired.client.ip4}")
    wired.server.ip(f"route add 2001:db8:bad::/48 via {wired.client.ip6}")
    routed = wired.attach_server()
    server = nginx(wired.server, path.parent, wired.directory / "nginx", cgroup=wired.server_cgroup)
    url = server.url(path.name, ipv6=ipv6)
    assert curl_fetch(wired.client, url).sha256 == sha256
    assert routed.ask_stack("wan")["core_syn_cookies_sent"] == 0
    flood = _flood(wired, ipv6)
    wait_for(
        lambda: routed.ask_stack("wan")["core_syn_cookies_sent"] > 100,
        20,
        "the stack to send cookies",
    )
    for _ in range(FETCHES):
        got = curl_fetch(wired.client, url, timeout=20)
        assert (got.exit_code, got.stderr, got.sha256) == (0, "", sha256)
        assert kept("still here\n") == "still here\n"
    counted = routed.stack("wan")["counters"]
    now = routed.ask_stack("wan")["connections"]
    routed.apply(routed.policy_file.read_text().replace('transport = "tcp"', 'syn_cookies = "off"'))
    wait_for(
        lambda: routed.ask_stack("wan")["core_half_open_dropped"] > 0, 20, "the oldest to make room"
    )
    assert flood.poll() is None, "the flood ended before the last fetch"
    assert curl_fetch(wired.client, url).sha256 == sha256
    assert int(flood.communicate("enough\n", 20)[0]) > HALF_OPEN_MAX
    assert counted["half_open_dropped"] == 0
    assert counted["syn_cookies_valid"] > 0
    assert now <= HALF_OPEN_MAX + FETCHES + 1, (
        "more forged SYNs made connections than may be half open"
    )
    status = routed.ask("status")
    status = status[0] if isinstance(status, list) else status
    assert status["counters"]["xdp_cookie"] >= counted["syn_cookies_valid"]


def _flood(wired, ipv6):
    address = wired.server.ip6 if ipv6 else wired.server.ip4
    words = [
        wired.client.nic.name,
        wired.server.nic.mac.replace(":", ""),
        address,
        "80",
        str(MOST_SYNS),
    ]
    return wired.client.popen(
        ["/usr/bin/python3", "-c", FLOOD, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
