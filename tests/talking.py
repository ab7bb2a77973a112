# SPDX-License-Identifier: Apache-2.0
"""Servers that send back what comes, and programs that talk to them: unmodified Python,
in a cgroup.
"""

from __future__ import annotations

import subprocess
from typing import Any

from lab import Cgroup, Host

PORT = 7300

# Says whom it takes each client for, then gives every byte back that comes until the client's
# end of it.
ECHO = """
import socket, sys, threading
listening = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
print("ready", flush=True)
def serve(c, peer):
    try:
        c.sendall((peer.removeprefix("::ffff:") + "\\n").encode())
        while data := c.recv(65536):
            c.sendall(data)
        c.shutdown(socket.SHUT_WR)
    except OSError:
        pass
while True:
    c, address = listening.accept()
    threading.Thread(target=serve, args=(c, address[0]), daemon=True).start()
"""

# Binds to a device, if one is named, connects, and says whom the peer takes it for. Then "send N"
# sends that much and says whether the same came back; of any other line it says what came back. An
# error's name ends it.
TALK = """
import errno, os, socket, sys, threading
try:
    family, *_, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)[0]
    s = socket.socket(family)
    s.settimeout(20)
    if sys.argv[3]:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[3].encode())
    s.connect(address)
    file = s.makefile("rb")
    print(file.readline().decode().strip(), flush=True)
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "send":
            data = os.urandom(int(number))
            sender = threading.Thread(target=s.sendall, args=(data,))
            sender.start()
            came = file.read(len(data))
            sender.join()
            print(came == data, flush=True)
        else:
            s.sendall(line.encode())
            print(file.readline().decode().strip(), flush=True)
except OSError as error:
    print(errno.errorcode.get(error.errno, str(error)), flush=True)
"""

# Connects to port 80, and asks for the page when a line comes: says how the answer begins, "HTTP".
BROWSE = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80))
print("connected", flush=True)
sys.stdin.readline()
s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
print(s.recv(4, socket.MSG_WAITALL).decode())
"""

# Connects, sends a file in a thread, reads to the end, and prints the hash of what came.
SEND_AND_READ = """
import hashlib, socket, sys, threading
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def send():
    with open(sys.argv[3], "rb") as f:
        c.sendfile(f)
    c.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send)
t.start()
digest = hashlib.sha256()
while data := c.recv(1 << 16):
    digest.update(data)
t.join()
print(digest.hexdigest())
"""

# Sends back what comes, once all has come; tells each client's address.
SINK = """
import socket, sys, threading
listening = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=16)
print("ready", flush=True)
def serve(c):
    data = bytearray()
    while part := c.recv(1 << 20):
        data += part
    c.sendall(data)
    c.close()
while True:
    c, address = listening.accept()
    print(address[0].removeprefix("::ffff:"), flush=True)
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""

# Sends so many bytes, with that timeout, and tells the digests of what was sent and of what came
# back; or an error's name.
SEND = """
import errno, hashlib, os, socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[4]))
except OSError as error:
    sys.exit(print(errno.errorcode.get(error.errno, str(error))))
data = os.urandom(int(sys.argv[3]))
s.sendall(data)
s.shutdown(socket.SHUT_WR)
back = hashlib.sha256()
while part := s.recv(1 << 20):
    back.update(part)
print(hashlib.sha256(data).hexdigest(), back.hexdigest())
"""


# Connects and waits; what ends that is its last line: "closed", or an error's name.
HOLD = """
import errno, socket, sys
s = socket.create_connection((sys.argv[1], 80))
print("connected", flush=True)
try:
    s.recv(1)
    print("closed")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def program(host: Host, cgroup: Cgroup, script: str, *args: str) -> subprocess.Popen[str]:
    """A Python program whose input and output are the test's."""
    started: subprocess.Popen[str] = cgroup.spawn(
        ["/usr/bin/python3", "-c", script, *args],
        host=host,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return started


def browser(host: Host, cgroup: Cgroup, address: str) -> subprocess.Popen[str]:
    """BROWSE, connected."""
    started = program(host, cgroup, BROWSE, address)
    assert started.stdout is not None and started.stdout.readline() == "connected\n"
    return started


def holder(host: Host, cgroup: Cgroup, address: str) -> subprocess.Popen[str]:
    """HOLD, connected."""
    started = program(host, cgroup, HOLD, address)
    assert started.stdout is not None and started.stdout.readline() == "connected\n"
    return started


def server(host: Host, cgroup: Cgroup, script: str, *args: str) -> subprocess.Popen[str]:
    """One that says when it is ready."""
    started = program(host, cgroup, script, *args)
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


def echo(host: Host, cgroup: Cgroup, port: int = PORT) -> subprocess.Popen[str]:
    """The echo server at a port of a host, by both families."""
    return server(host, cgroup, ECHO, str(port))


class Talker:
    """A program with a connection to an echo server, which calls it peer. wait: until
    that is known.
    """

    def __init__(
        self,
        host: Host,
        cgroup: Cgroup,
        address: str,
        port: int = PORT,
        *,
        device: str = "",
        wait: bool = True,
    ) -> None:
        self.process = program(host, cgroup, TALK, address, str(port), device)
        self.peer = self.answer() if wait else ""

    def answer(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def says(self, word: str) -> str:
        """Its answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.answer()

    def flow(self, routed: Any) -> dict[str, Any]:
        """The one row that `dmm-ebpf flows` has of it. The failure says whether there was a
        connection at all: what the program says then is an error's name.
        """
        rows = routed.ask("flows")
        mine = [row for row in rows if row["pid"] == self.process.pid]
        ended, log = self.process.poll(), routed.log.read_text()[-3000:]
        said = f'it called it "{self.peer}", exit code {ended}; all flows: {rows}; the log: {log}'
        assert len(mine) == 1, f"{len(mine)} flows of pid {self.process.pid}; {said}"
        return dict(mine[0])
