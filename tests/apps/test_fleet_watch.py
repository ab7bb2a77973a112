# SPDX-License-Identifier: Apache-2.0
"""A roll-out that is watched: canaries whose paths get worse by the push halt it, others go on.

The push gives the canary's connections a DSCP, and the router does badly by that: it loses, or
resets, a share of the packets that bear it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from fleetsite import Fleet, standing
from jsonpage import wrong_with

from lab import Host, wait_for

pytestmark = pytest.mark.root

WATCH_S = "4"
TAKES, GIVES = 5001, 5002
POLICY = """
[stacks.lan]
kind = "kernel"
dscp = "{dscp}"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "default"
stack = "lan"
"""
GOOD, LOSES, RESETS = "af11", "af12", "af13"
# Takes what comes on one port; gives a little on the other, at its pace, and closes first.
SERVER = """
import socket, sys, threading
SO_MAX_PACING_RATE = 47
takes, gives = (socket.create_server(("", int(port)), backlog=64) for port in sys.argv[1:])
gives.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 1_000_000)
gives.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)  # so that there is a pace
print("ready", flush=True)
def take(sock):
    while sock.recv(1 << 16):
        pass
def give(sock):
    sock.sendall(bytes(20_000))
    sock.close()
def serve(listener, how):
    while True:
        threading.Thread(target=how, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=serve, args=(takes, take), daemon=True).start()
serve(gives, give)
"""
# Flows that last for three seconds each, six at a time, and connections that come and go; the pace
# is the sockets'.
CLIENT = """
import socket, sys, threading
SO_MAX_PACING_RATE = 47
address, takes, gives = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def bulk():
    while True:
        try:
            with socket.create_connection((address, takes), 30) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
                sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 1_000_000)
                sock.sendall(bytes(3_000_000))
        except OSError:
            pass
for _ in range(6):
    threading.Thread(target=bulk, daemon=True).start()
while True:
    try:
        with socket.create_connection((address, gives), 30) as sock:
            while sock.recv(1 << 16):
                pass
    except OSError:
        pass
"""


@pytest.fixture
def site(lab, make_cgroup, tmp_path, monkeypatch) -> Iterator[Fleet]:
    with standing(lab, make_cgroup, tmp_path, monkeypatch, ("a", "b")) as made:
        made.serve(members=1)
        canary = made.follow(0, "role=canary")
        made.follow(1)
        made.await_listed(2)
        router: Host = lab.hosts["router"]
        ports = (str(TAKES), str(GIVES))
        served = router.popen(
            ["/usr/bin/python3", "-c", SERVER, *ports], stdout=subprocess.PIPE, text=True
        )
        assert served.stdout is not None
        assert served.stdout.readline().strip() == "ready"
        rules = f"ip dscp {LOSES} numgen random mod 10 == 0 drop;"
        rules += (
            f" ip dscp {RESETS} tcp flags syn numgen random mod 3 == 0 reject with tcp reset; }};"
        )
        chain = "chain in { type filter hook input priority 0; "
        router.run(["nft", f"table ip t {{ {chain} {rules} }}"])
        words = ["/usr/bin/python3", "-c", CLIENT, router.ip4, *ports]
        canary.cgroup.spawn(words, host=canary.host, stderr=subprocess.DEVNULL)
        yield made


def _push(site: Fleet, dscp: str, *words: str, code: int = 0):
    options = ("--canary", "role=canary", "--watch", WATCH_S, *words)
    return site.push(POLICY.replace("{dscp}", dscp), *options, code=code)


@pytest.mark.timeout(300)
def test_worse_paths_halt_a_push_and_good_ones_do_not(site: Fleet) -> None:
    done = _push(site, GOOD)
    assert (done["push"], done["state"], done["done"], done["silent"]) == (
        1,
        "everywhere",
        True,
        [],
    )
    assert wrong_with(done, "rolled", "rolled") == []

    done = _push(site, LOSES, code=1)
    assert (done["push"], done["state"], done["done"]) == (2, "halted", False)
    assert "a, instance" in done["why"]
    assert "segments are sent again for each MB" in done["why"]
    rows = site.rows()
    assert (rows["a"]["push"], rows["b"]["push"]) == (2, 1), "no other host was told"
    gone = site.etcd.ctl("get", "--prefix", "--keys-only", "/dmm/want/watch")
    assert not gone.strip(), "nobody is asked to count any more"
    wait_for(
        lambda: not site.etcd.ctl("get", "--prefix", "--keys-only", "/dmm/paths/").strip(),
        20,
        "the host to stop counting",
    )
    assert site.controller("rollback")["done"]

    done = _push(site, RESETS, code=1)
    assert "of connect() calls fail" in done["why"]
    assert site.controller("push", "--resume")["done"], "it is the operator who says so"
    assert {row["push"] for row in site.rows().values()} == {done["push"]}


def test_hosts_without_traffic_are_named(site: Fleet) -> None:
    done = site.push(POLICY.replace("{dscp}", GOOD), "--canary", "host=b", "--watch", WATCH_S)
    assert done["done"]
    assert [one.partition(",")[0] for one in done["silent"]] == ["b"]


def test_a_watch_without_steps_is_refused(site: Fleet) -> None:
    error = site.push(POLICY.replace("{dscp}", GOOD), "--watch", WATCH_S, code=2)["error"]
    assert "--watch is for steps" in error["message"]
