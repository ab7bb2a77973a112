# SPDX-License-Identifier: Apache-2.0
"""A group that may ask a director, by real processes of a user who is not root: what it may see,
that it changes nothing, and that nobody else gets in.
"""

from __future__ import annotations

import json
import os
import pty
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dmm_ebpf.rd.api import wire
from dmm_ebpf.rd.api.clients import MAX_READERS
from dmm_ebpf.rd.director.rundir import ROOT
from dmm_ebpf.readers import name_of
from lab import Cgroup, Lab, wait_for
from lab.commandline import CLI
from lab.routed import Routed

pytestmark = pytest.mark.root

NOBODY, GROUP, GID = 65534, "games", 60  # base-passwd's, on every Debian
POLICY = """
[stacks.lan]
kind = "kernel"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "192.0.2.0/24"
stack = "lan"
"""
ASKING = [
    ("status",),
    ("flows",),
    ("stacks",),
    ("listeners",),
    ("paths",),
    ("policy", "show"),
    ("route", "get", "192.0.2.1:443"),
]


@pytest.fixture
def routed(lab: Lab, cgroup: Cgroup, tmp_path: Path) -> Iterator[Routed]:
    top = len(Path(tempfile.gettempdir()).parts)
    for folder in (tmp_path, *tmp_path.parents):
        if len(folder.parts) > top:
            folder.chmod(0o755)
    with Routed(lab.host("h"), cgroup, POLICY, tmp_path, options=("--group", GROUP)) as made:
        yield made


def _as_user(
    *words: str | Path, groups: Sequence[int] = (GID,), group: int = NOBODY
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CLI, *words],
        user=NOBODY,
        group=group,
        extra_groups=list(groups),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_a_member_asks_as_root_does(routed: Routed, words: tuple[str, ...]) -> None:
    asked = (*words, "--instance", routed.instance)
    for member in (_as_user(*asked, "--json"), _as_user(*asked, "--json", groups=(), group=GID)):
        assert (member.returncode, member.stderr) == (0, "")
        mine, roots = json.loads(member.stdout), routed.ask(*words)
        assert type(mine) is type(roots)
        if words != ("status",):  # which tells the time
            assert mine == roots
    others = _as_user(*asked, groups=(), group=NOBODY)
    assert others.returncode == 77
    assert "as a member of attach's --group" in others.stderr
    assert others.stdout == ""


@pytest.mark.parametrize("count", [255, 256, 300, 5000])
def test_a_member_of_many_groups_is_one(routed: Routed, count: int) -> None:
    groups = [*range(10_000, 10_000 + count), GID]
    words = ("status", "--instance", routed.instance)
    assert _as_user(*words, groups=groups).returncode == 0
    assert _as_user(*words, groups=groups[:-1]).returncode == 77
    assert "Traceback" not in routed.log.read_text()


def test_a_member_follows_what_may_be_followed(routed: Routed, make_cgroup, tmp_path: Path) -> None:
    with Routed(routed.host, make_cgroup(), POLICY, tmp_path) as roots:
        argv = [*CLI, "flows", "--follow", "--json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(
            argv, user=NOBODY, group=NOBODY, extra_groups=[GID], cwd="/", text=True, **pipes
        ) as following:
            try:
                assert following.stderr
                while roots.instance not in (said := following.stderr.readline()):
                    assert said, "it has ended"
                assert said.endswith("left out, as only others may ask\n")
                assert following.poll() is None
            finally:
                following.kill()
        alone = _as_user("flows", "--follow", "--instance", roots.instance)
        assert alone.returncode == 77


def test_a_member_who_names_no_instance_gets_those_that_may_be_asked(
    routed: Routed, make_cgroup, tmp_path: Path
) -> None:
    with Routed(routed.host, make_cgroup(), POLICY, tmp_path) as roots:
        done = _as_user("status", "--json")
        assert done.returncode == 0
        names = {one["instance"] for one in json.loads(done.stdout)}
        assert routed.instance in names and roots.instance not in names
        assert roots.instance in done.stderr and "left out" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_member_changes_nothing(routed: Routed) -> None:
    before = routed.ask("policy", "show")
    for words, what in (
        (("policy", "apply", routed.policy_file), "apply a policy"),
        (("detach",), "not root"),
        (("trace",), "only root may"),
    ):
        done = _as_user(*words, "--instance", routed.instance)
        assert done.returncode == 77
        assert what in done.stderr and len(done.stderr.splitlines()) == 1
    for method in ("policy_apply", "faults", "stop"):
        answer = json.loads(_sent(routed, wire.request(1, method, {"text": POLICY})))
        assert "only root may change something" in answer["error"]["why"]
    answer = json.loads(_sent(routed, wire.request(1, "nothing", {})))
    assert "knows no such request" in answer["error"]["why"]
    assert routed.ask("policy", "show") == before
    assert routed.ask("status")[0]["rd"] == "up"


def test_a_member_sends_nothing_long(routed: Routed) -> None:
    long = wire.request(1, "route_get", {"addr": "x" * (1 << 20)})
    assert _sent(routed, long) == "hung up"
    assert "longer than any question" in routed.log.read_text()


ONE = """
import json, os, socket, sys
from dmm_ebpf.rd.api import wire
os.setgroups([60]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
sock.connect(sys.argv[1])
connection = wire.Connection(sock)
try:
    sock.sendall(sys.stdin.buffer.read())
    answer = connection.receive()
except OSError:
    answer = None
print(json.dumps(answer) if answer else "hung up")
"""


def _sent(routed: Routed, frame: bytes) -> str:
    """What a member's process, with the group besides, is answered."""
    argv = [sys.executable, "-c", ONE, str(ROOT / routed.instance / "rd.sock")]
    done = subprocess.run(argv, input=frame, capture_output=True, check=True, timeout=60)
    return done.stdout.decode().strip()


def test_a_socket_that_is_open_to_all_answers_members_alone(routed: Routed) -> None:
    folder = ROOT / routed.instance
    for path in (folder, folder / "rd.sock"):
        path.chmod(0o777)
    stranger = _as_user("status", "--instance", routed.instance, groups=[61, 59])
    assert stranger.returncode == 77
    assert f"uid {NOBODY} asks, and only root and gid {GID} may" in stranger.stderr
    assert _as_user("status", "--instance", routed.instance).returncode == 0


@pytest.mark.timeout(120)
def test_members_cannot_take_roots_place(routed: Routed) -> None:
    """However many follow."""
    path = str(ROOT / routed.instance / "rd.sock")
    crowd = f"""
import os, resource, signal, socket, sys
from dmm_ebpf.rd.api import wire
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.setgroups([60]); os.setgid(65534); os.setuid(65534)
held = []
for _ in range({10 * MAX_READERS}):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect({path!r})
    connection = wire.Connection(sock)
    held.append(connection)
    sock.sendall(wire.request(1, "policy_show", {{}}))
    answer = connection.receive()
    if not answer["ok"]:
        print(answer["error"]["why"], flush=True)
        break
    sock.sendall(wire.request(2, "follow", {{}}))
signal.pause()
"""
    argv = [sys.executable, "-c", crowd]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = process.stdout.readline()
            assert said == f"{MAX_READERS} that are not root's are connected\n"
            assert routed.ask("status")[0]["rd"] == "up"
        finally:
            process.kill()
    wait_for(
        lambda: not _as_user("status", "--instance", routed.instance).returncode,
        20,
        "a member to be answered again",
    )


def test_top_runs_for_a_member(routed: Routed) -> None:
    pid, fd = pty.fork()
    if not pid:
        os.setgroups([GID])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.chdir("/")
        words = [*CLI, "top", "--instance", routed.instance]
        os.execve(CLI[0], words, os.environ | {"TERM": "xterm-256color"})
    shown, deadline = b"", time.monotonic() + 60
    while not re.search(rb"\d\d:\d\d:\d\d", shown) or b"lan" not in shown:  # it has looked
        assert time.monotonic() < deadline, shown[-2000:]
        shown += os.read(fd, 65536)
    os.write(fd, b"q")
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass  # the other side is closed (pty(7))
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_who_may_come_in_goes_by_the_last_attach(routed: Routed) -> None:
    folder = ROOT / routed.instance
    assert _way(folder) == (GID, 0o710)
    assert _way(folder / "rd.sock") == (GID, 0o660)
    assert _way(folder / "state.json") == (0, 0o600)
    (folder / "rd.sock").unlink()
    wait_for((folder / "rd.sock").exists, 20, "the socket to be made again")
    wait_for(
        lambda: not _as_user("status", "--instance", routed.instance).returncode,
        20,
        "a member to be answered again",
    )
    routed.kill_director()
    dead = _as_user("status", "--instance", routed.instance)
    assert dead.returncode == 77
    assert "is not running, and only root may read what it has pinned" in dead.stderr
    routed.options = ()
    routed.restart()
    assert _way(folder) == (0, 0o700)
    assert _way(folder / "rd.sock") == (0, 0o600)
    assert _as_user("status", "--instance", routed.instance).returncode == 77


def test_status_tells_who_may_ask(routed: Routed) -> None:
    told = _as_user("status", "--instance", routed.instance)
    assert f"  group     {name_of(GID)} may ask\n" in told.stdout
    routed.kill_director()
    routed.options = ()
    routed.restart()
    assert "may ask" not in routed.cli("status", "--instance", routed.instance).stdout


def _way(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_gid, stat.S_IMODE(found.st_mode)


def test_a_group_that_there_is_not_is_refused(lab: Lab, cgroup: Cgroup) -> None:
    argv = [*CLI, "attach", "--cgroup", str(cgroup.path), "--group", "no such"]
    done = lab.host("h").run([*argv, "--instance", "nogroup"], check=False)
    assert done.returncode == 2
    assert "there is no group 'no such'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (ROOT / "nogroup").exists()
