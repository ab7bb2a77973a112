# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf run --user`: the command is that user's in all that the kernel knows, and routed as
that user's; and where what a command leaves running goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest

from lab.commandline import CLI

USER = "www-data"
POLICY = f"""
[[rules]]
uid = "{USER}"
table = "t"
[[tables.t.routes]]
to = "default"
stack = "reject"
"""
WHO = """
import errno, json, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    os.setuid(0)
    back = True
except OSError:
    back = False
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": sorted(os.getgroups()), "back": back,
    "caps": [int(status[key], 16) for key in ("CapPrm", "CapEff", "CapInh", "CapAmb")],
    "env": {key: os.environ.get(key) for key in ("HOME", "USER", "LOGNAME", "SHELL", "KEPT")},
    "connect": errno.errorcode[socket.socket().connect_ex(("127.0.0.1", 9))],
}))
"""


def run(site, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = ["env", "KEPT=yes", *CLI, "run", *words]
    return site.client_cgroup.run(argv, host=site.client, check=check)


@pytest.fixture
def policy(site) -> str:
    file = site.directory / "user.toml"
    file.write_text(POLICY)
    return str(file)


@pytest.mark.parametrize("by_number", [False, True])
def test_a_command_runs_as_the_user(site, policy, by_number):
    entry = pwd.getpwnam(USER)
    name = str(entry.pw_uid) if by_number else USER
    told = json.loads(
        run(site, "--policy", policy, "--user", name, "--", "python3", "-c", WHO).stdout
    )
    assert told == {
        "uid": [entry.pw_uid] * 3,
        "gid": [entry.pw_gid] * 3,
        "groups": sorted(os.getgrouplist(USER, entry.pw_gid)),
        "back": False,
        "caps": [0, 0, 0, 0],
        "env": {
            "HOME": entry.pw_dir,
            "USER": USER,
            "LOGNAME": USER,
            "SHELL": entry.pw_shell,
            "KEPT": "yes",
        },
        "connect": "EPERM",  # by the rule for its uid
    }


def test_without_a_user_it_is_roots(site, policy):
    told = json.loads(run(site, "--policy", policy, "--", "python3", "-c", WHO).stdout)
    assert (told["uid"], told["connect"]) == ([0, 0, 0], "ECONNREFUSED")


def test_who_cannot_run_it_is_told(site):
    done = run(site, "--user", "no-such-user", "--", "true", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no user 'no-such-user' on this host" in done.stderr
    secret = site.directory / "secret"
    secret.write_text("#!/bin/sh\n")
    secret.chmod(0o700)
    done = run(site, "--user", USER, "--", str(secret), check=False)
    assert done.returncode == 126
    assert f"uid {pwd.getpwnam(USER).pw_uid} may not execute it" in done.stderr


def test_what_is_left_running_stays_with_who_called(site):
    done = run(site, "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    pid = int(done.stdout)
    try:
        assert (
            Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1]
            == f"0::{site.client_cgroup.relative}"
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
