# SPDX-License-Identifier: Apache-2.0
"""Rules by the file that a process executes, which is put in place, replaced and removed under an
attached instance, as by a package manager.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dmm_ebpf.rd.api.client import Client
from lab import wait_for

WITHIN_S = 30.0
PYTHON = Path("/usr/bin/python3").resolve()
POLICY = """
[[rules]]
name = "tool"
executable = "{}"
action = "prohibit"
"""
TRY = """
import socket
with socket.socket() as s:
    s.settimeout(0.1)
    try:
        print(s.connect_ex(("198.51.100.9", 9)))
    except TimeoutError:
        print(0)
"""
AGAIN = f"""
import sys
print("ready", flush=True)
for _ in sys.stdin:
    exec({TRY!r})
    sys.stdout.flush()
"""
LISTEN = """
import socket, sys
s = socket.create_server(("0.0.0.0", 7100))
print("ready", flush=True)
sys.stdin.read()
"""
SERVED = """
[[rules]]
executable = "{}"
direction = "listen"
table = "t"
[[tables.t.routes]]
to = "default"
stack = "kernel"
"""


def _errno(site, program):
    process = site.client_cgroup.spawn(
        [program, "-c", TRY], host=site.client, stdout=subprocess.PIPE, text=True
    )
    return int(process.communicate(timeout=WITHIN_S)[0])


def _started(site, program, source):
    """A process that has said that it is ready."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = site.client_cgroup.spawn([program, "-c", source], host=site.client, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def _pending(routed):
    with Client(routed.instance) as client:
        return client.call("status")["pending"]


@pytest.fixture
def home(tmp_path):
    """A folder with another version of a program, beside where it belongs."""
    shutil.copy(PYTHON, tmp_path / "next")
    return tmp_path


def test_a_file_that_comes_changes_and_goes_is_followed(site, home):
    path = home / "opt/bin/tool"
    routed = site.attach_client(None)
    said = routed.apply(POLICY.format(path))
    assert f"rule tool: waits for the file {path}, which does not exist" in said.stderr
    waiting = {"rule": "tool", "number": 1, "cgroup": None, "executable": str(path)}
    assert _pending(routed) == [waiting]
    assert f"waits for the file {path}" in routed.cli("status", "-i", routed.instance).stdout

    path.parent.mkdir(parents=True)
    shutil.copy(PYTHON, path)
    wait_for(lambda: not _pending(routed), WITHIN_S, "the rule to find the file")
    assert _errno(site, path) == 13
    assert _errno(site, PYTHON) != 13
    old = _started(site, path, AGAIN)
    (home / "next").rename(path)
    wait_for(lambda: _errno(site, path) == 13, WITHIN_S, "the rule to follow the file")
    old.stdin.write("\n")
    old.stdin.flush()
    assert int(old.stdout.readline()) != 13
    for words, stack in (
        (("--executable", str(path)), "prohibit"),
        (("--executable", str(PYTHON)), "kernel"),
        (("--pid", str(old.pid)), "kernel"),
    ):
        assert routed.ask("route", "get", "198.51.100.9:9", *words)["stack"] == stack

    routed.kill_director()
    path.unlink()
    assert routed.ask("status")[0]["pending"] == [waiting]
    routed.restart()
    wait_for(lambda: _pending(routed) == [waiting], WITHIN_S, "the rule to wait again")


def test_a_listener_from_before_the_attach_is_known_by_it(site, home):
    program = home / "next"
    _started(site, program, LISTEN)
    for named, table in ((program, "t"), (PYTHON, None)):
        routed = site.attach_client(SERVED.format(named))
        (row,) = [one for one in routed.ask("listeners") if one["port"] == 7100]
        assert row["table"] == table
        routed.close()
