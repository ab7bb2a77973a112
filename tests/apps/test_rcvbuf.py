# SPDX-License-Identifier: Apache-2.0
"""What SO_RCVBUF of a program bounds where a user stack carries its flow: what the program's kernel
holds for it. The peer may have more on the way, and so is not held up by a small buffer on a far
path, but no more than the stack allows.
"""

from __future__ import annotations

import subprocess

from talking import program, server

PORT = 7350
RCVBUF = 20_000
FIRST_WINDOW = 256 * 1024  # tcp_window.c, FIRST_BYTES
SECONDS = 3

# Sends for as long as something goes within a second, tells how much went, and waits.
SERVE = """
import select, socket, sys
listening = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
c, _ = listening.accept()
c.setblocking(False)
sent = 0
try:
    while select.select([], [c], [], 1)[1]:
        sent += c.send(bytes(1 << 16))
    print(sent, flush=True)
    sys.stdin.readline()
except OSError:
    pass
"""
READ = """
import socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(sys.argv[3]))
s.connect((sys.argv[1], int(sys.argv[2])))
print("connected", flush=True)
if sys.argv[4] == "0":
    sys.stdin.readline()
end, got = time.monotonic() + float(sys.argv[4]), 0
while time.monotonic() < end:
    got += len(s.recv(1 << 16))
print(got, flush=True)
"""


def _stop(*processes: subprocess.Popen[str]) -> None:
    for one in processes:
        one.kill()
        one.wait()


def _unread(site) -> int:
    """Bytes that a peer got rid of towards a program that reads none, less what waits in the
    peer's own kernel.
    """
    serving = server(site.server, site.server_cgroup, SERVE, str(PORT))
    reading = program(
        site.client, site.client_cgroup, READ, site.server.ip4, str(PORT), str(RCVBUF), "0"
    )
    try:
        sent = int(serving.stdout.readline())
        queued = site.server.run(["ss", "-tnH", "state", "established"]).stdout.split()[1]
        return sent - int(queued)
    finally:
        _stop(reading, serving)


def _read(site) -> int:
    """Bytes that come in SECONDS to a program that reads all."""
    serving = server(site.server, site.server_cgroup, SERVE, str(PORT))
    words = (site.server.ip4, str(PORT), str(RCVBUF), str(SECONDS))
    reading = program(site.client, site.client_cgroup, READ, *words)
    try:
        assert reading.stdout.readline() == "connected\n"
        return int(reading.stdout.readline())
    finally:
        _stop(reading, serving)


def test_a_program_that_does_not_read_holds_its_peer_up(wired):
    by_kernel = _unread(wired)
    wired.attach_client()
    by_stack = _unread(wired)
    assert by_kernel <= 4 * RCVBUF
    assert by_stack <= FIRST_WINDOW + 4 * RCVBUF


def test_a_small_buffer_does_not_hold_a_far_peer_up(site):
    site.wan(rate="100mbit", delay="20ms", queue="500000B")
    by_kernel = _read(site)
    site.attach_client()
    by_stack = _read(site)
    assert by_kernel < SECONDS * 2_000_000  # a buffer in each round trip
    assert by_stack > 2 * by_kernel
