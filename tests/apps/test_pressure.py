# SPDX-License-Identifier: Apache-2.0
"""A peer that does not read makes the sender wait, and what lies between the two
meanwhile is bounded.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab import wait_for

PORT = 7400
READ_FIRST, ALL = 24_000_000, 400_000_000
# By the stack processes: twice what goes in their shortest round on a busy machine
HELD_MOST = 16_000_000

# Reads so much, stands still until somebody lets it go on, and tells the digest of all that came.
READER = """
import hashlib, os, signal, socket, sys
listening = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
c, _ = listening.accept()
digest, left = hashlib.sha256(), int(sys.argv[2])
while left:
    data = c.recv(min(left, 1 << 16))
    left -= len(data)
    digest.update(data)
os.kill(os.getpid(), signal.SIGSTOP)
while data := c.recv(1 << 16):
    digest.update(data)
print(digest.hexdigest(), flush=True)
"""

# Sends until nothing goes for two seconds, and tells how much went; then, told so, that much again;
# and the digest.
SENDER = """
import hashlib, os, select, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
s.setblocking(False)
block, digest, sent, most = os.urandom(1 << 20), hashlib.sha256(), 0, int(sys.argv[3])
def send():
    global sent
    at = sent % len(block)
    n = s.send(block[at:at + (1 << 16)])
    digest.update(block[at:at + n])
    sent += n
while sent < most and select.select([], [s], [], 2)[1]:
    send()
print(sent, flush=True)
sys.stdin.readline()
s.setblocking(True)
end = sent + (8 << 20)
while sent < end:
    send()
s.shutdown(socket.SHUT_WR)
print(digest.hexdigest(), flush=True)
"""


def _stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _queued(host):
    """Bytes in the queues of the host's one connection, as the kernel tells it: not yet read,
    not yet acknowledged.
    """
    return sum(map(int, host.run(["ss", "-tnH", "state", "established"]).stdout.split()[:2]))


def _in_no_queue(site):
    """Bytes that a sender got rid of, that its peer has not read and that no socket has. All
    arrives in the end.
    """
    program = ["/usr/bin/python3", "-c"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [READER, str(PORT), str(READ_FIRST)]
    reader = site.server_cgroup.spawn([*program, *words], host=site.server, **pipes)
    assert reader.stdout.readline() == "ready\n"
    words = [SENDER, site.server.ip4, str(PORT), str(ALL)]
    sender = site.client_cgroup.spawn([*program, *words], host=site.client, **pipes)
    try:
        sent = int(sender.stdout.readline())
        wait_for(lambda: _stopped(reader.pid), 60, "the reader to stand still")
        queued = _queued(site.client) + _queued(site.server)
        os.kill(reader.pid, signal.SIGCONT)
        digests = [p.communicate("\n", timeout=120)[0].strip() for p in (sender, reader)]
        assert digests[0] == digests[1] != ""
    finally:
        for p in (sender, reader):
            p.kill()
            p.wait()
    return sent - READ_FIRST - queued


@pytest.mark.parametrize("routed", ["client", "server", "both"])
def test_a_reader_that_stops_stops_the_sender(wired, routed):
    assert abs(_in_no_queue(wired)) < 100_000  # without us there is no other place
    if routed != "server":
        wired.attach_client()
    if routed != "client":
        wired.attach_server()
    assert _in_no_queue(wired) < HELD_MOST
