# SPDX-License-Identifier: Apache-2.0
"""A stack process of one's own: the code of docs/develop/write-a-stack-process.md, and commands
that are none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
from talking import PORT, SEND, SINK, server

from dmm_ebpf.errors import DmmError
from dmm_ebpf.userstack import pidfile
from lab import curl_fetch, nginx
from lab.waiting import wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs/develop/write-a-stack-process.md"
BYTES = 300_000

POLICY = """
[stacks.twice]
kind = "user"
command = {command}
{more}

[[rules]]
cgroup = "{{cgroup}}"
table = "t"
{direction}

[[tables.t.routes]]
to = "default"
stack = "twice"
"""


FOLDER = Path(f"/run/dmm-own-process-test.{os.getpid()}")
PYTHON = FOLDER / "venv/bin/python"


def own_venv() -> None:
    """What sees the modules of ours, where root alone may write: a checkout is its developer's."""
    PYTHON.parent.mkdir(parents=True)
    PYTHON.symlink_to(Path(sys.executable).resolve())
    (FOLDER / "venv/lib").symlink_to(Path(sys.prefix) / "lib")
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", FOLDER / "venv")


@pytest.fixture
def twice():
    """The page's program, where root alone may write."""
    folder = FOLDER
    folder.mkdir(mode=0o755)
    own_venv()
    file = folder / "twice.py"
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    file.write_text(found[1], encoding="utf-8")
    yield file
    shutil.rmtree(folder)


def policy(*command: str | Path, more: str = "", direction: str = "") -> str:
    return POLICY.format(
        command=json.dumps([str(word) for word in command]), more=more, direction=direction
    )


def of(file: Path, **options: str) -> str:
    return policy(PYTHON, "-P", file, **options)


def test_a_payload_comes_whole_and_listings_tell(wired, twice, payload):
    path, sha = payload(10 * BYTES)  # so much that it still comes when the copy arrives
    url = nginx(wired.server, path.parent, wired.directory / "nginx").url(path.name)
    routed = wired.attach_client(of(twice))
    got = curl_fetch(wired.client, url, cgroup=wired.client_cgroup)
    assert got.sha256 == sha, got.stderr
    stack = routed.stack("twice")
    assert (stack["state"], stack["port"]) == ("up", "tap")
    told = routed.ask_stack("twice")
    assert told["copies"] >= 1  # of the request
    # Both sides have ended, so no flow is left.
    wait_for(lambda: not routed.ask_stack("twice")["connections"], 10, "the flow to be given up")
    assert wired.server.run(["nstat", "-az", "TcpExtTCPDSACKOldSent"]).stdout.split()[-2] != "0"


@pytest.mark.parametrize("processes", [1, 2])
def test_one_that_knows_the_contract_alone(wired, twice, payload, processes):
    """Nothing of dmm-ebpf is in it: what the page says is enough."""
    path, sha = payload(10 * BYTES)
    url = nginx(wired.server, path.parent, wired.directory / "nginx").url(path.name)
    file = twice.with_name("foreign_process.py")
    file.write_bytes(Path(__file__).with_name(file.name).read_bytes())
    routed = wired.attach_client(of(file, more=f"processes = {processes}"))
    for _ in range(3):
        got = curl_fetch(wired.client, url, cgroup=wired.client_cgroup)
        assert got.sha256 == sha, got.stderr
    stack = routed.stack("twice")
    assert (stack["state"], stack["restarts"], len(stack["processes"])) == ("up", 0, processes)
    if processes == 1:
        assert routed.ask_stack("twice")["packets"] > 10
    wait_for(lambda: not routed.ask_stack("twice")["connections"], 10, "the flows to be given up")


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_listener_is_served(wired, twice, python, family):
    direction = 'direction = "listen"'
    routed = wired.attach_server(of(twice, direction=direction))
    process = server(wired.server, wired.server_cgroup, SINK, str(PORT))
    to = getattr(wired.server, family)
    sent, back = python(
        wired.client, wired.client_cgroup, SEND, to, str(PORT), str(BYTES), "30"
    ).split()
    assert sent == back
    assert process.stdout.readline().strip() == getattr(wired.client, family)
    with_flow = routed.ask_stack("twice")
    assert with_flow["max_connections"] == 100_000


def test_it_is_killed_and_comes_back(wired, twice, payload):
    path, sha = payload(BYTES)
    url = nginx(wired.server, path.parent, wired.directory / "nginx").url(path.name)
    routed = wired.attach_client(of(twice, more="processes = 2"))
    pids = {p["pid"] for p in routed.stack("twice")["processes"]}
    assert len(pids) == 2
    os.kill(min(pids), signal.SIGKILL)
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha
    back = lambda: {p["pid"] for p in routed.stack("twice")["processes"] if p["state"] == "up"}  # noqa: E731
    wait_for(lambda: len(back()) == 2 and back() != pids, 20, "the next process")
    assert curl_fetch(wired.client, url, cgroup=wired.client_cgroup).sha256 == sha


def test_a_director_that_dies_is_followed_by_one_that_adopts_it(wired, twice):
    routed = wired.attach_client(of(twice))
    pid = routed.stack("twice")["pid"]
    routed.kill_director()
    routed.restart()
    assert routed.stack("twice")["pid"] == pid


def test_detach_finds_it_without_a_state(wired, twice):
    routed = wired.attach_client(of(twice))
    pid = routed.stack("twice")["pid"]
    routed.kill_director()
    (Path("/run/dmm-ebpf") / routed.instance / "state.json").unlink()
    routed.cli("detach", "--instance", routed.instance)
    assert pidfile.start_time(pid) == 0


NONSENSE = """
import socket, sys
director = socket.socket(fileno=int(sys.argv[-4]))
while director.recv(4096):
    pass
director.sendall(b"[]")
"""


# Sends a datagram, and says what came back.
ASKS = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
print(s.recv(100).decode())
"""


def test_datagrams_are_the_kernels(wired, twice, python):
    """A program that knows TCP alone would let them go nowhere."""
    answering = wired.server.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with answering:
        answering.bind((wired.server.ip4, PORT))
        thread = threading.Thread(target=lambda: answering.sendto(b"y", answering.recvfrom(9)[1]))
        thread.start()
        routed = wired.attach_client(of(twice))
        assert python(wired.client, wired.client_cgroup, ASKS, wired.server.ip4, str(PORT)) == "y"
        thread.join()
    assert routed.flows(proto="udp") == []
    with pytest.raises(DmmError, match="a process of one's own carries TCP alone"):
        routed.apply(of(twice).replace('kind = "user"', 'kind = "user"\nudp = true'))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/nowhere/program",), "No such file"),
        (("/etc",), "is no program"),
        (("/etc/passwd",), "is no program"),
        (("/bin/true",), "its process ended"),
        (("/usr/bin/python3", "-c", NONSENSE), "is no answer"),
        (("/usr/bin/python3", "-P", "-c", "raise SystemExit('too tired')"), "too tired"),
    ],
)
def test_what_is_no_stack_process_is_told_in_a_sentence(wired, command, why):
    with pytest.raises(DmmError, match=why) as refused:
        wired.attach_client(policy(*command))
    assert "Traceback" not in str(refused.value)


def test_a_file_that_others_may_change_is_refused(wired, twice):
    twice.chmod(0o666)
    with pytest.raises(DmmError, match="may be written by others"):
        wired.attach_client(of(twice))


def test_another_command_for_a_stack_that_runs_is_refused(wired, twice):
    routed = wired.attach_client(of(twice))
    pid = routed.stack("twice")["pid"]
    with pytest.raises(DmmError, match="by another program"):
        routed.apply(policy(PYTHON, "-I", twice))
    assert routed.stack("twice")["pid"] == pid
