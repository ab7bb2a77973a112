# SPDX-License-Identifier: Apache-2.0
"""Urgent data between real programs keeps its meaning: mark, out-of-band byte, in line or not
(tcp(7), RFC 6093).
"""

from __future__ import annotations

import json
import subprocess

import pytest

COMMON = """
import array, fcntl, json, select, socket, sys

SIOCATMARK = 0x8905

def at_mark(s):
    answer = array.array("i", [0])
    fcntl.ioctl(s, SIOCATMARK, answer)
    return bool(answer[0])

def speak(s, urgent):
    s.sendall(b"a" * 40_000)
    s.send(urgent, socket.MSG_OOB)
    s.sendall(b"b" * 40_000)

def listen(s, inline):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    # Until it is known that urgent data comes, a read may go past the mark.
    assert select.select([], [], [s], 10)[2]
    got, mark, urgent = b"", None, b""
    while len(got) < 80_000 + inline:
        part = s.recv(65536)
        assert part, f"the stream ends after {len(got)} bytes"
        got += part
        if mark is None and at_mark(s):
            mark = len(got)
            urgent = s.recv(1, 0 if inline else socket.MSG_OOB)
            got += urgent if inline else b""
    return [mark, urgent.decode(), got.count(b"a"), got.count(b"b")]
"""

SERVER = f"""{COMMON}
server = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
s, _ = server.accept()
print(json.dumps(listen(s, inline=True)), flush=True)
speak(s, b"?")
s.recv(1)
"""

CLIENT = f"""{COMMON}
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
speak(s, b"!")
print(json.dumps(listen(s, inline=False)))
"""


@pytest.mark.parametrize("who", ["nobody", "client", "server", "both"])
def test_the_mark_and_the_byte_arrive_where_they_were_sent(wired, python, who):
    attached = []
    if who in ("client", "both"):
        attached.append(wired.attach_client())
    if who in ("server", "both"):
        attached.append(wired.attach_server())
    server = wired.server_cgroup.spawn(
        ["/usr/bin/python3", "-c", SERVER, "7300"],
        host=wired.server,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    said = python(wired.client, wired.client_cgroup, CLIENT, wired.server.ip4, "7300", timeout=20)
    assert json.loads(server.stdout.readline()) == [40_000, "!", 40_000, 40_000]
    assert json.loads(said) == [40_000, "?", 40_000, 40_000]
    server.wait(10)
    for routed in attached:
        answer = routed.ask("status")
        status = answer[0] if isinstance(answer, list) else answer
        assert status["counters"]["xdp_flow"] > 50, "the bytes did not go through the user stack"
