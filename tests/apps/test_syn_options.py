# SPDX-License-Identifier: Apache-2.0
"""Connections that ask in their SYN for what no user stack carries are the kernel's, whole
and said so.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from sitefixtures import TAP, XDP, Site
from talking import program, server

from lab.routed import Routed

PORT = 7310
ROUNDS = 2  # the second Fast Open has the first one's cookie
SIZE = 300_000

# Each defines make(): a socket of that family, and open(s): connects it and sends what
# is given first.
PLAIN = """
import hashlib, json, os, socket, struct, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
def make():
    return socket.socket(family)
def open_to(s, first):
    s.connect((address, port))
    s.sendall(first)
def listening(s):
    s.setsockopt(socket.IPPROTO_TCP, 27, 1)  # TCP_SAVE_SYN
def seen(c):
    return ""
def syn(c):
    return c.getsockopt(socket.IPPROTO_TCP, 28, 500)  # TCP_SAVED_SYN
"""
# struct tcp_md5sig, of linux/tcp.h: for every peer of the family.
MD5 = """
def make():
    s = socket.socket(family)
    peer = struct.pack("=HH4s120x" if family == socket.AF_INET else "=HHI16s104x", family, 0,
                       *((bytes(4),) if family == socket.AF_INET else (0, bytes(16))))
    s.setsockopt(socket.IPPROTO_TCP, 32, peer + struct.pack("=BBHi80s", 1, 0, 6, 0, b"secret"))  # TCP_MD5SIG_EXT
    return s
def seen(c):
    return "19" if b"\\x13\\x12" in syn(c)[40:] else "nothing"
"""
FAST_OPEN = """
def open_to(s, first):
    assert s.sendto(first, 0x20000000, (address, port)) == len(first)  # MSG_FASTOPEN
def listening(s):
    s.setsockopt(socket.IPPROTO_TCP, 23, 16)  # TCP_FASTOPEN
def seen(c):
    options = c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 16)[5]
    return "data in the SYN" if options & 32 else "none"  # TCPI_OPT_SYN_DATA
"""
MPTCP = """
def make():
    return socket.socket(family, socket.SOCK_STREAM, 262)
def listening(s):
    pass
def seen(c):
    try:
        c.getsockopt(284, 1, 200)  # SOL_MPTCP, MPTCP_INFO
    except OSError:
        return "none"
    return "mptcp"
"""
IP_OPTIONS = """
def make():
    s = socket.socket(family)
    s.setsockopt(socket.IPPROTO_IP, 4, bytes((1, 1, 1, 0)))
    return s
def seen(c):
    return f"{syn(c)[0]:x}"
"""
DESTINATION_OPTIONS = """
def make():
    s = socket.socket(family)
    s.setsockopt(socket.IPPROTO_IPV6, 59, bytes((0, 0, 1, 4, 0, 0, 0, 0)))  # IPV6_DSTOPTS: PadN
    return s
def seen(c):
    return str(syn(c)[6])
"""

SERVE = """
s = make()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((address, port))
listening(s)
s.listen()
print("ready", flush=True)
while True:
    c, _ = s.accept()
    told = seen(c)
    data = bytearray()
    while len(data) < int(sys.argv[3]):
        data += c.recv(65536)
    c.sendall(json.dumps([told, hashlib.sha256(data).hexdigest()]).encode())
    c.recv(1)
"""
TALK = """
for line in sys.stdin:
    s = make()
    data = os.urandom(int(sys.argv[3]))
    open_to(s, data[:500])
    s.settimeout(20)
    s.sendall(data[500:])
    told, digest = json.loads(s.recv(1000))
    print(json.dumps([told, digest == hashlib.sha256(data).hexdigest()]), flush=True)
    sys.stdin.readline()
    s.close()
"""

# What it does, by which families, what the peer must see of it the second time, and the reason as
# a listener's flow
# has it: what stands in front of TCP is not told to anybody behind it.
CASES: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "md5": (MD5, ("ip4", "ip6"), "19", "option"),
    "fast_open": (FAST_OPEN, ("ip4", "ip6"), "data in the SYN", "option"),
    "mptcp": (MPTCP, ("ip4", "ip6"), "mptcp", "option"),
    "ip_options": (IP_OPTIONS, ("ip4",), "46", "peer"),
    "destination_options": (DESTINATION_OPTIONS, ("ip6",), "60", "peer"),
}
EVERY = [(case, family) for case, told in CASES.items() for family in told[1]]


def _talks(talker: subprocess.Popen[str], line: str) -> Any:
    assert talker.stdin is not None and talker.stdout is not None
    talker.stdin.write(line + "\n")
    talker.stdin.flush()
    return json.loads(talker.stdout.readline()) if line == "open" else None


@pytest.mark.parametrize("side", ["client", "server", "server by XDP"])
def test_the_kernel_serves_it_and_says_why(wired: Site, side: str) -> None:
    for host in (wired.client, wired.server):
        host.sysctl("net.ipv4.tcp_fastopen", 3)
    routed = (
        wired.attach_client(TAP)
        if side == "client"
        else wired.attach_server(XDP if "XDP" in side else TAP)
    )
    for port, (case, family) in enumerate(EVERY, PORT):
        _is_the_kernels(wired, routed, side, case, getattr(wired.server, family), port)


def _is_the_kernels(
    wired: Site, routed: Routed, side: str, case: str, address: str, port: int
) -> None:
    """One case, at a port of its own."""
    script, _, wanted, why_of_listener = CASES[case]
    arguments = (address, str(port), str(SIZE))
    before = _counted(routed)
    serving = server(wired.server, wired.server_cgroup, PLAIN + script + SERVE, *arguments)
    talking = program(wired.client, wired.client_cgroup, PLAIN + script + TALK, *arguments)
    for _ in range(ROUNDS):
        told, same = _talks(talking, "open")
        (flow,) = routed.flows(
            pid=(talking if side == "client" else serving).pid, state="ESTABLISHED"
        )
        assert same, case
        assert (flow["stack"], flow["wanted"]) == ("kernel", "wan"), case
        _talks(talking, "close")
    assert told == wanted
    assert flow["why"] == ("option" if side == "client" else why_of_listener), case
    counted = 0 if flow["why"] == "peer" and case == "destination_options" else ROUNDS
    assert _counted(routed) - before >= counted, case
    for process in (serving, talking):
        process.kill()
        process.wait()


def _counted(routed: Routed) -> int:
    (status,) = routed.ask("status")
    return int(status["counters"]["syn_option"])
