# SPDX-License-Identifier: Apache-2.0
"""A peer that has not got the app's bytes: the app hears of it as from the kernel, and not of
one that is slow.
"""

from __future__ import annotations

import json
import subprocess
from hashlib import sha256

import pytest

from dmm_ebpf.hal import stackdevice
from lab.build import program_path
from lab.programs import start_server

BYTES = 300_000

SERVE = """
import socket, signal, sys, hashlib
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if sys.argv[3] != "0":
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(sys.argv[3]))
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen()
print("ready", flush=True)
c, _ = s.accept()
pace = float(sys.argv[5])  # in seconds: it reads no more until its clock has struck again
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
signal.setitimer(signal.ITIMER_REAL, pace, pace)
total = hashlib.sha256()
while data := c.recv(10000):
    total.update(data)
    if pace:
        signal.sigwait([signal.SIGALRM])
    if sys.argv[4] == "echo":
        c.sendall(data)
print(total.hexdigest(), flush=True)
"""

CLIENT = """
import array, errno, fcntl, json, select, socket, struct, sys, time
what = json.loads(sys.argv[3])
SO_TIMESTAMPING = 37
s = socket.socket()
if user := what.get("user_timeout"):
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user)
s.connect((sys.argv[1], int(sys.argv[2])))

def say(word):
    print(word, flush=True)
    assert sys.stdin.readline() == "go\\n"

def left():
    word = array.array("i", [0])
    fcntl.ioctl(s, 0x5411, word)  # SIOCOUTQ
    return word[0]

def acknowledged(data):
    # Returns when the kernel says that all of it is acknowledged (SOF_TIMESTAMPING_TX_ACK).
    s.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 1 << 9 | 1 << 4 | 1 << 11)
    s.sendall(data)
    told = select.poll()
    told.register(s, 0)  # POLLERR: something is in the error queue
    assert told.poll(20_000)
    s.recvmsg(1, 1000, socket.MSG_ERRQUEUE)
    s.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 0)

acknowledged(b"a" * 100)
assert left() == 0
say("acknowledged")
began = time.monotonic()
s.sendall(b"b" * what["bytes"])
say(str(left()))
if what.get("linger"):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2))
    s.close()
    print(time.monotonic() - began, flush=True)
    sys.exit()
if what.get("finish"):
    s.shutdown(socket.SHUT_WR)
s.settimeout(60)
try:
    end = "eof" if s.recv(1) == b"" else "data"
except OSError as error:
    end = errno.errorcode.get(error.errno, str(error))
print(json.dumps([end, time.monotonic() - began]), flush=True)
"""

DROP = "add table inet t; add chain inet t in { type filter hook input priority 0; policy drop; }"


class Talk:
    """The script above at the client, its peer at the server."""

    def __init__(self, wired, port, *, rcvbuf=0, serve="sink", pause=0, **what):
        self.wired = wired
        address = wired.server.ip4
        words = [
            "/usr/bin/python3",
            "-c",
            SERVE,
            address,
            str(port),
            str(rcvbuf),
            serve,
            str(pause),
        ]
        pipes = {"stdout": subprocess.PIPE, "text": True}
        self.server = wired.server_cgroup.spawn(words, host=wired.server, **pipes)
        assert self.server.stdout.readline() == "ready\n"
        words = ["/usr/bin/python3", "-c", CLIENT, address, str(port), json.dumps(what)]
        self.client = wired.client_cgroup.spawn(
            words, host=wired.client, stdin=subprocess.PIPE, **pipes
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self.client, self.server):
            process.kill()
            process.wait()

    def line(self):
        return self.client.stdout.readline().rstrip("\n")

    def go(self):
        self.client.stdin.write("go\n")
        self.client.stdin.flush()

    def vanish(self):
        """What comes to the peer from now on is dropped there."""
        self.wired.server.run(["nft", DROP])

    def appear(self):
        self.wired.server.run(["nft", "delete table inet t"])

    def timed_out(self, *, unacknowledged=False):
        """The peer vanishes: the seconds after which the app hears of it."""
        assert self.line() == "acknowledged"
        self.vanish()
        self.go()
        left = int(self.line())
        assert left > 0 or not unacknowledged
        self.go()
        end, seconds = json.loads(self.line())
        assert end == "ETIMEDOUT"
        return seconds


@pytest.fixture(params=["kernel", "stack"])
def carried(request, wired):
    if request.param == "stack":
        wired.attach_client()
    return wired


@pytest.mark.parametrize("count", [20, 6000])
def test_user_timeout_tells_of_a_peer_that_vanished(carried, count):
    with Talk(carried, 7310, user_timeout=2000, bytes=count) as talk:
        assert 2 <= talk.timed_out(unacknowledged=True) < 6


def test_few_retries_tell_of_a_peer_that_vanished(carried):
    carried.client.sysctl("net.ipv4.tcp_retries2", 3)
    with Talk(carried, 7311, bytes=20) as talk:
        assert 2 <= talk.timed_out() < 12


def impatient(site, kind, keys):
    """The client attached, with a policy that sends all to a stack of that kind with these keys."""
    stack = 'kind = "user"\nio = "af_xdp"\n' if kind == "user" else 'kind = "kernel"\n'
    rest = '[[rules]]\ncgroup = "{cgroup}"\ntable = "t"\n[[tables.t.routes]]\nto = "default"\nstack = "s"\n'
    site.attach_client(f"[stacks.s]\n{stack}{keys}{rest}")


@pytest.mark.parametrize("kind", ["kernel", "user"])
def test_the_policys_user_timeout_tells_of_a_peer_that_vanished(wired, kind):
    impatient(wired, kind, "user_timeout_ms = 2000\n")
    with Talk(wired, 7317, bytes=6000) as talk:
        assert 2 <= talk.timed_out() < 6


@pytest.mark.parametrize("kind", ["kernel", "user"])
@pytest.mark.parametrize("own", [False, True])
def test_the_policys_keep_alive_tells_of_a_silent_peer_that_vanished(wired, kind, own):
    """By the count of probes, or by a user time-out of the program's own, which stays."""
    ends = "user_timeout_ms = 60000" if own else "keepalive_probes = 2"
    impatient(wired, kind, f"keepalive_time_s = 1\nkeepalive_intvl_s = 1\n{ends}\n")
    with Talk(wired, 7318, bytes=0, **({"user_timeout": 3000} if own else {})) as talk:
        assert 2 <= talk.timed_out() < 8


def test_bytes_show_as_unacknowledged_until_the_peer_has_them(carried):
    with Talk(carried, 7312, bytes=20) as talk:
        assert talk.line() == "acknowledged"
        talk.vanish()
        talk.go()
        assert talk.line() == "20"
        talk.appear()
        talk.go()


def test_lingering_waits_for_the_peer(carried):
    with Talk(carried, 7313, bytes=20, linger=True) as talk:
        assert talk.line() == "acknowledged"
        talk.vanish()
        talk.go()
        assert talk.line() == "20"
        talk.go()
        assert 1.9 <= float(talk.line()) < 10


def outlast(site, port, **how):
    """All arrives, though it takes much longer than the app's user time-out."""
    with Talk(site, port, bytes=BYTES, user_timeout=2000, finish=True, **how) as talk:
        assert talk.line() == "acknowledged"
        talk.go()
        talk.line()
        talk.go()
        end, seconds = json.loads(talk.line())
        assert end == "eof"
        assert seconds > 5
        assert talk.server.stdout.readline() == sha256(b"a" * 100 + b"b" * BYTES).hexdigest() + "\n"


@pytest.mark.parametrize("by", ["kernel", "stack"])
def test_a_slow_path_is_not_taken_for_dead(site, by):
    site.wan(rate="320kbit", delay="20ms", queue="40000B")
    if by == "stack":
        site.attach_client()
    outlast(site, 7314)


def test_a_slow_reader_is_not_taken_for_dead(wired):
    """Nor would it be by the kernel alone, but for its user time-out, which counts probes
    that were answered.
    """
    wired.attach_client()
    outlast(wired, 7315, rcvbuf=40000, pause=0.2)


def packets(host, device):
    """Both ways."""
    (link,) = json.loads(host.run(["ip", "-j", "-s", "link", "show", "dev", device]).stdout)
    return sum(link["stats64"][way]["packets"] for way in ("rx", "tx"))


def test_a_request_and_its_answer_are_two_packets_to_the_stack(wired):
    (process,) = wired.attach_client().stack("wan")["processes"]
    device = stackdevice.inner(process["device"], 0)
    words = [program_path("pingpong"), "serve", wired.server.ip4, "7316"]
    start_server(wired.server, words, 7316, wired.directory / "pingpong.log")
    before = packets(wired.client, device)
    words = [program_path("pingpong"), "rr", wired.server.ip4, "7316", "1", "1"]
    exchanges = int(wired.client_cgroup.run(words, host=wired.client).stdout.split()[0])
    assert exchanges > 100
    assert packets(wired.client, device) - before < 2.1 * exchanges + 20
