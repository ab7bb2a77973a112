# SPDX-License-Identifier: Apache-2.0
"""What others take away from an attached instance on the host comes back, or status tells
what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from foreign import ALLOW
from sitefixtures import TAP
from talking import Talker, echo

from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import bpf, bpffs, tcx
from dmm_ebpf.rd.api.client import Client
from dmm_ebpf.rd.director.rundir import RunDir
from lab import wait_for
from lab.waiting import wait_pid_gone

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


def _programs(ifname, hook):
    """Names of those that are at a NIC by tcx."""
    _, ids = bpf.prog_query(socket.if_nametoindex(ifname), hook.value[1])
    return [bpf.prog_name(i) for i in ids]


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
    device = f"{routed.stack('wan')['device']}.0.in"
    settings = f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6"
    nic = wired.client.nic.name
    pins = bpffs.instance_dir(routed.instance) / "links"
    shown = {
        f"ip link set {device} down": f"ip -br link show dev {device} up",
        f"tc qdisc del dev {device} clsact": f"tc filter show dev {device} ingress",
        f"echo 0 >{settings}": f"cat {settings}",
    }
    ways = {damage: partial(_shown, wired.client, look) for damage, look in shown.items()}
    for hook in tcx.NIC:
        (pin,) = pins.glob(f"tcx-*-{hook.value[0]}")
        ways[f"bpftool link detach pinned {pin}"] = partial(wired.client.call, _programs, nic, hook)
    for damage, look in ways.items():
        before = look()
        assert before, damage
        began = time.monotonic()
        wired.client.run(["sh", "-c", damage])
        wait_for(lambda b=before, c=look: c() == b, WITHIN_S, f"what this took away: {damage}")
        print(f"{time.monotonic() - began:.2f} s after {damage}")
        talk(damage)
    assert routed.flows(pid=client.pid)[0]["stack"] == "wan"
    wait_for(lambda: _missing(routed) == [], WITHIN_S, "nothing to be missing")
    assert "disable_ipv6" in routed.log.read_text()
    client.stdin.close()


LET_PASS = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = TCX_PASS; exit
BEFORE_ALL = 1 << 3  # BPF_F_BEFORE


def test_a_program_that_somebody_puts_before_ours_is_overtaken(wired):
    """What it lets pass ours would never see: the inner leg of open flows would get to the wire."""
    nic, hook = wired.client.nic.name, tcx.Hook.OUT
    index = wired.client.call(socket.if_nametoindex, nic)
    echo(wired.server, wired.server_cgroup)
    routed = wired.attach_client(TAP)
    talker = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
    fd = bpf.prog_load("somebodys", bpf.ProgType.SCHED_CLS, LET_PASS)
    try:
        link = wired.client.call(bpf.link_create, fd, index, hook.value[1], BEFORE_ALL)
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("this kernel has no tcx")
        raise
    finally:
        os.close(fd)
    try:
        assert talker.says("send 1000000") == "True"
        assert wired.client.call(_programs, nic, hook) == ["dmm_tcout", "somebodys"]
        again = Talker(wired.client, wired.client_cgroup, wired.server.ip4)
        assert again.flow(routed)["stack"] == talker.flow(routed)["stack"] == "wan"
    finally:
        os.close(link)
    assert talker.says("send 1000000") == "True"


def test_what_is_followed_is_not_told_of_as_missing(wired):
    nic = wired.client.nic.name
    routed = wired.attach_client(TAP)
    wired.client.ip(f"link set {nic} mtu 1400")
    wait_for(lambda: "its MTU is 1400 now" in routed.log.read_text(), WITHIN_S, "the log to say so")
    assert "its MTU is 1400 now; it was put right" in routed.log.read_text()


def _hooks(cgroup):
    shown = subprocess.run(
        ["bpftool", "-j", "cgroup", "show", str(cgroup.path)],
        check=True,
        capture_output=True,
        text=True,
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
    wait_for(lambda: sorted(pins.rglob("*")) == whole, WITHIN_S, "its pin to come back")
    for gone in (pins / "links" / "connect4", pins):
        subprocess.run(["rm", "-r", str(gone)], check=False)  # the director puts back meanwhile
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


MOST = 64  # BPF_CGROUP_MAX_PROGS


def _fill(cgroup, number):
    """Links of so many programs of others at connect(), until they are closed."""
    connect4 = bpf.AttachType.CGROUP_INET4_CONNECT
    with contextlib.ExitStack() as stack:
        group = os.open(cgroup.path, os.O_RDONLY)
        stack.callback(os.close, group)
        links = []
        for _ in range(number):
            prog = bpf.prog_load(
                "foreign", bpf.ProgType.CGROUP_SOCK_ADDR, ALLOW, attach_type=connect4
            )
            stack.callback(os.close, prog)
            links.append(bpf.link_create(prog, group, connect4))
        return links


def test_a_hook_whose_place_somebody_took_is_missing_with_the_reason(wired):
    """And comes back as soon as there is room; the log says it once."""
    full = "64 programs are attached there, the kernel's limit; one instance can serve all"
    links = _fill(wired.client_cgroup, MOST)
    with pytest.raises(DmmError, match=full):
        wired.attach_client(TAP)
    os.close(links.pop())
    routed = wired.attach_client(TAP)
    pins = Path(f"/sys/fs/bpf/dmm-ebpf/{routed.instance}")
    os.kill(routed.process.pid, signal.SIGSTOP)
    try:
        _detach_hook(pins, "connect4")
        links += _fill(wired.client_cgroup, 1)
    finally:
        os.kill(routed.process.pid, signal.SIGCONT)

    def told():
        return [one["why"] for one in _missing(routed) if full in one["why"]]

    (why,) = wait_for(told, WITHIN_S, "status to say why")
    assert why.startswith("somebody detached connect4; cannot attach connect4"), why
    for link in links:
        os.close(link)
    wait_for(lambda: _missing(routed) == [], WITHIN_S, "nothing to be missing")
    assert "dmm_connect4" in _hooks(wired.client_cgroup)
    # Of each of two sentences: that it cannot be, and that it stays missing
    assert routed.log.read_text().count("cannot attach connect4") <= 3


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


def test_a_run_directory_that_somebody_removes_is_made_anew(wired):
    routed = wired.attach_client()
    folder = RunDir(routed.instance).path
    policy = routed.ask("policy", "show")
    for gone in (folder, folder / "rd.sock"):
        shutil.rmtree(folder) if gone == folder else gone.unlink()
        wait_for((folder / "rd.sock").exists, WITHIN_S, f"{gone} to come back")
        (status,) = routed.ask("status")
        assert (status["rd"], status["pid"]) == ("up", routed.process.pid)
        assert routed.ask("policy", "show") == policy
    assert folder.stat().st_mode & 0o777 == 0o700
    assert RunDir(routed.instance).holder() == routed.process.pid
    assert RunDir(routed.instance).is_locked()
    wait_for(lambda: _missing(routed), WITHIN_S, "what nobody can put back to be told of")
    (missing,) = _missing(routed)
    assert (
        missing["what"] == "control sockets of stack processes" and "that of wan" in missing["why"]
    )

    stack = routed.stack("wan")["pid"]
    routed.kill_director()
    routed.restart()
    assert wait_pid_gone(stack, WITHIN_S), "what cannot be asked is not taken over"
    wait_for(lambda: _missing(routed) == [], WITHIN_S, "nothing to be missing")
    routed.cli("detach", "--instance", routed.instance)
    assert not folder.exists() and not Path(f"/sys/fs/bpf/dmm-ebpf/{routed.instance}").exists()


def test_an_instance_whose_run_directory_was_removed_is_not_taken_for_none(wired):
    routed = wired.attach_client()
    other = wired.attach_server(None)
    named = ("--instance", routed.instance)
    routed.kill_director()
    shutil.rmtree(RunDir(routed.instance).path)
    told = f"/run/dmm-ebpf/{routed.instance} is gone, though its programs are attached"
    for words in (
        ("status",),
        ("status", *named),
        ("flows",),
        ("stacks", *named),
        ("policy", "show", *named),
    ):
        done = routed.cli(*words, check=False)
        assert done.returncode == 1, (words, done)
        assert told in done.stderr, words
        assert f"dmm-ebpf detach --instance {routed.instance}" in done.stderr
    assert f"instance {other.instance}\n" in routed.cli("status", check=False).stdout
    routed.cli("detach", *named)
    assert not Path(f"/sys/fs/bpf/dmm-ebpf/{routed.instance}").exists()
