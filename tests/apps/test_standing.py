# SPDX-License-Identifier: Apache-2.0
"""What others take away from an attached instance on the host comes back, or status tells what is missing."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from lab import wait_for
from lab.waiting import wait_pid_gone

from dmm_ebpf.hal.routes import RULE_PREF_BASE, TABLE_BASE
from dmm_ebpf.rd.client import Client

WITHIN_S = 10.0  # a second, and what a busy machine takes more

ECHO = """
import socket, sys
listening = socket.create_server(("", 7100))
print("ready", flush=True)
c, _ = listening.accept()
while data := c.recv(65536):
    c.sendall(data)
"""

TALK = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7100))
for line in sys.stdin:
    s.sendall(line.encode())
    print(s.recv(65536).decode(), end="", flush=True)
"""


def _missing(routed):
    with Client(routed.instance) as client:
        return client.call("status")["missing"]


def _shown(host, command):
    return host.run(["sh", "-c", command]).stdout


def test_what_is_taken_away_is_put_back_and_an_open_flow_goes_on(wired):
    routed = wired.attach_client()
    server = wired.server.popen(["/usr/bin/python3", "-c", ECHO], stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "ready\n"
    client = wired.client_cgroup.spawn(
        ["/usr/bin/python3", "-c", TALK, wired.server.ip4],
        host=wired.client,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def talk(word):
        client.stdin.write(f"{word}\n")
        client.stdin.flush()
        assert client.stdout.readline() == f"{word}\n"

    talk("hello")
    tun = routed.stack("wan")["tun"]
    k = int(tun.removeprefix("dmm-"))
    rule, table = RULE_PREF_BASE + k, TABLE_BASE + k
    ways = {
        f"ip rule del pref {rule}": f"ip rule show pref {rule}",
        f"ip -6 rule del pref {rule}": f"ip -6 rule show pref {rule}",
        f"ip route flush table {table}": f"ip route show table {table}",
        f"ip -6 route flush table {table}": f"ip -6 route show table {table}",
        f"ip link set {tun} down": f"ip route show table {table}",
        f"tc qdisc del dev {tun} clsact": f"tc filter show dev {tun} ingress",
        "echo 0 >/proc/sys/net/ipv4/tcp_fwmark_accept": "cat /proc/sys/net/ipv4/tcp_fwmark_accept",
        "echo 0 >/proc/sys/net/ipv6/fwmark_reflect": "cat /proc/sys/net/ipv6/fwmark_reflect",
        f"echo 1 >/proc/sys/net/ipv4/conf/{tun}/rp_filter": f"cat /proc/sys/net/ipv4/conf/{tun}/rp_filter",
    }
    for damage, look in ways.items():
        before = _shown(wired.client, look)
        assert before.strip(), look
        began = time.monotonic()
        wired.client.run(["sh", "-c", damage])
        wait_for(
            lambda b=before, c=look: _shown(wired.client, c) == b, WITHIN_S, f"what this took away: {damage}"
        )
        print(f"{time.monotonic() - began:.2f} s after {damage}")
        talk(damage)
    assert routed.flows(pid=client.pid)[0]["stack"] == "wan"
    wait_for(lambda: _missing(routed) == [], WITHIN_S, "nothing to be missing")
    assert "rp_filter" in routed.log.read_text()
    client.stdin.close()


def test_what_cannot_be_put_back_is_told_until_it_can(wired):
    routed = wired.attach_client()
    k = int(routed.stack("wan")["tun"].removeprefix("dmm-"))
    rule = RULE_PREF_BASE + k
    wired.client.ip(f"rule del pref {rule}", f"rule add pref {rule} from 192.0.2.1 table main")
    (told,) = wait_for(lambda: _missing(routed), WITHIN_S, "status to tell of the rule")
    assert told["what"] == "rules and routes of stack wan"
    assert f"rule {rule}" in told["why"]
    assert "not ours" in told["why"]
    shown = routed.cli("status", "--instance", routed.instance).stdout
    assert any("MISSING" in line and "rules and routes" in line for line in shown.splitlines()), shown
    wired.client.ip(f"rule del pref {rule}")
    wait_for(lambda: _missing(routed) == [], WITHIN_S, "the rule to come back")
    assert f"{0xDD + k:x}00000" in _shown(wired.client, f"ip rule show pref {rule}")


def test_the_cgroup_that_is_removed_is_told(site):
    routed = site.attach_client(None)
    group = site.client_cgroup.path
    group.rmdir()
    (told,) = wait_for(lambda: _missing(routed), WITHIN_S, "status to tell of the cgroup")
    assert told["what"] == f"cgroup {group}"
    group.mkdir()
    wait_for(lambda: "made anew" in _missing(routed)[0]["why"], WITHIN_S, "status to tell of the new one")


def _hooks(cgroup):
    shown = subprocess.run(
        ["bpftool", "-j", "cgroup", "show", str(cgroup.path)], check=True, capture_output=True, text=True
    ).stdout
    return sorted(program["name"] for program in json.loads(shown.strip() or "[]"))


def _detach_hook(pins, name):
    subprocess.run(["bpftool", "link", "detach", "pinned", str(pins / "links" / name)], check=True)


def test_hooks_and_pins_that_somebody_takes_away_come_back(wired):
    routed = wired.attach_client()
    pins = Path(f"/sys/fs/bpf/dmm-ebpf/{routed.instance}")
    hooks = _hooks(wired.client_cgroup)
    assert "dmm_connect4" in hooks
    whole = sorted(pins.rglob("*"))

    _detach_hook(pins, "connect4")
    wait_for(lambda: _hooks(wired.client_cgroup) == hooks, WITHIN_S, "the hook to come back")
    for gone in (pins / "links" / "connect4", pins):
        subprocess.run(["rm", "-r", str(gone)], check=True)
        assert _hooks(wired.client_cgroup) == hooks, "the director's descriptors hold the hooks"
        wait_for(lambda: sorted(pins.rglob("*")) == whole, WITHIN_S, f"{gone} to come back")
    _detach_hook(pins, "connect4")  # by the pin that was made anew
    wait_for(lambda: _hooks(wired.client_cgroup) == hooks, WITHIN_S, "the hook to come back again")
    wait_for(lambda: _missing(routed) == [], WITHIN_S, "nothing to be missing")

    log = routed.log.read_text()
    assert log.count("somebody detached connect4") == 1, log
    assert log.count("somebody removed links/connect4") == 1, log
    assert "it was put right" in log
    routed.cli("detach", "--instance", routed.instance)
    assert _hooks(wired.client_cgroup) == []
    assert not pins.exists()


def test_an_instance_whose_namespace_is_deleted_detaches(wired):
    routed = wired.attach_client()
    stack = routed.stack("wan")["pid"]
    subprocess.run(["ip", "netns", "del", wired.client.netns], check=True)
    assert wait_pid_gone(routed.process.pid, 30), routed.log.read_text()
    assert routed.process.wait() == 0
    assert wait_pid_gone(stack, 1)
    assert "network namespace" in routed.log.read_text()
    assert not Path(f"/run/dmm-ebpf/{routed.instance}").exists()
    assert not Path(f"/sys/fs/bpf/dmm-ebpf/{routed.instance}").exists()
