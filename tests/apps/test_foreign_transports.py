# SPDX-License-Identifier: Apache-2.0
"""Transports of a user's own in real stack processes: bytes arrive whole by a good one, a bad one
ends its own connections, and the process goes on.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sitefixtures import WAN, Site
from talking import PORT, Talker, echo

from dmm_ebpf.cli import plugins
from lab import curl_fetch, nginx
from lab.commandline import CLI
from lab.routed import Routed
from lab.sim import corelab
from lab.waiting import wait_for

MB = 1_000_000
FOLDER = corelab.HERE / "gbn"
AT = "	if ((pkt->flags & TH_SYN) || !(pkt->flags & TH_ACK))\n		return;\n"
Payload = Callable[[int], tuple[Path, str]]


def built(directory: Path, statement: str = "") -> str:
    """gbn, which runs a statement once it has sent 100 kB."""
    text = (FOLDER / "gbn.c").read_text(encoding="utf-8")
    assert text.count(AT) == 1
    source, output = directory / "gbn.c", directory / "gbn.so"
    source.write_text(
        text.replace(AT, f"{AT}	if (g->snd_una > 100000) {{ {statement}; }}\n"), encoding="utf-8"
    )
    folders = [f"-I{plugins.include()}/..", f"-I{FOLDER}"]
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", *folders, "-o", output, source], check=True)
    output.chmod(0o755)
    return f"c:{output}"


def policy(transport: str) -> str:
    return WAN.replace('transport = "tcp"', f'transport = "{transport}"')


def fetched(site: Site, url: str) -> tuple[int, str]:
    got = curl_fetch(site.client, url, cgroup=site.client_cgroup, timeout=60)
    return got.exit_code, got.sha256


def served(site: Site, folder: Path) -> Callable[[str], str]:
    return nginx(site.server, folder, site.directory / "nginx", cgroup=site.server_cgroup).url


def applied(routed: Routed, transport: str) -> subprocess.CompletedProcess[str]:
    return routed.apply(policy(transport), check=False)


def talker(site: Site) -> Talker:
    return Talker(site.client, site.client_cgroup, site.link.b.ip4)


def transports(routed: Routed) -> list[str]:
    return sorted(flow["transport"] for flow in routed.flows(sport=PORT, state="ESTABLISHED"))


def test_go_back_n_carries_a_payload_and_gives_way_to_tcp(site: Site, payload: Payload) -> None:
    site.wan(rate="50mbit", delay="5ms", loss="0.1%", seed=3)
    text = built(site.directory)
    routed = site.attach_server(policy(text))
    before = routed.stack("wan")
    path, sha256 = payload(4 * MB)
    url = served(site, path.parent)(path.name)
    assert fetched(site, url) == (0, sha256)
    stack = routed.stack("wan")
    assert stack["transport"] == text
    assert stack["transport_plugin"] == {"faults": 0, "connections": 0, "fault": ""}
    assert "plugin" not in stack
    resent = stack["counters"]["rto"]
    assert resent > 0, "which TCP does not need for a loss"
    echo(site.server, site.server_cgroup)
    peer = talker(site)
    assert transports(routed) == ["gbn"]
    done = applied(routed, "tcp")
    assert done.returncode == 0, done.stderr
    other = talker(site)
    assert transports(routed) == ["gbn", "tcp"]
    assert [each.says(f"send {MB}") for each in (peer, other)] == ["True"] * 2
    assert fetched(site, url) == (0, sha256)
    done = applied(routed, text)
    assert done.returncode == 0, done.stderr
    other = applied(routed, "c:/nowhere/other.so")
    assert "No such file or directory" in other.stderr
    assert routed.stack("wan")["pid"] == before["pid"]


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("*(volatile int *)8 = 1", "gbn.input was ended by SIGSEGV; it is not called any more"),
        ("for (volatile int i = 0;; i++)", "gbn.input did not return; it is not called any more"),
        ("g->phase = 77", "left a phase that there is not; its connection has ended"),
    ],
    ids=["crashes", "loops", "nonsense"],
)
def test_a_bad_one_ends_its_connection_and_not_the_process(
    site: Site, payload: Payload, statement: str, told: str
) -> None:
    """Its figures are asked for all the time, also while it holds the connections."""
    site.wire()
    routed = site.attach_server(policy(built(site.directory, statement)))
    before = routed.stack("wan")["pid"]
    path, sha256 = payload(4 * MB)
    small = path.with_name("small")
    small.write_bytes(path.read_bytes()[:1000])
    url = served(site, path.parent)
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            routed.stack("wan")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        code, _ = fetched(site, url(path.name))
    finally:
        over.set()
        asking.join()
    assert code in {18, 52, 56}, "curl's words for a connection that was reset"
    if "not called" in told:
        assert fetched(site, url(path.name)) == (0, sha256), "by TCP"
    else:
        assert fetched(site, url(small.name))[0] == 0, "by gbn, which only fails later"
    stack = routed.stack("wan")
    assert (stack["pid"], stack["restarts"]) == (before, 0)
    assert stack["transport_plugin"]["faults"] >= 1
    assert stack["transport_plugin"]["connections"] >= 1
    assert told in stack["transport_plugin"]["fault"]
    listed = subprocess.run(
        [*CLI, "stacks", "-i", routed.instance], capture_output=True, text=True, check=True
    )
    assert told in listed.stdout
    log = Path(f"/run/dmm-ebpf/{routed.instance}/stack-wan.log")
    wait_for(lambda: told in log.read_text(encoding="utf-8"), what="a sentence in the stack's log")


def python(directory: Path, statement: str = "") -> str:
    """The class of the page, which runs a statement once 100 kB have arrived."""
    page = FOLDER.parents[2] / "docs/develop/add-a-transport-in-python.md"
    (text,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    if statement:
        at = "        self.in_ack(end, seg)\n"
        assert text.count(at) == 1
        text = text.replace(at, f"        if end.head > 100_000:\n            {statement}\n{at}")
    path = directory / "gbn.py"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return f"python:{path}:GoBackN"


def test_one_in_python_carries_a_payload_of_a_stack_that_runs(site: Site, payload: Payload) -> None:
    """The process got its text when it ran already, and opens no file for it."""
    site.wire()
    routed = site.attach_server(policy("tcp"))
    before = routed.stack("wan")["pid"]
    path, sha256 = payload(2 * MB)
    url = served(site, path.parent)(path.name)
    assert fetched(site, url) == (0, sha256)
    text = python(site.directory)
    done = applied(routed, text)
    assert done.returncode == 0, done.stderr
    assert fetched(site, url) == (0, sha256)
    stack = routed.stack("wan")
    assert (stack["pid"], stack["transport"]) == (before, text)
    assert stack["transport_plugin"] == {"faults": 0, "connections": 0, "fault": ""}


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("1 // 0", "GoBackN.input raised ZeroDivisionError"),
        ("while True: pass", "GoBackN.input did not return within 250 ms"),
        ("open('/etc/passwd')", "GoBackN.input raised PermissionError"),
    ],
    ids=["raises", "loops", "opens"],
)
def test_a_bad_one_in_python_ends_its_connection_and_not_the_process(
    site: Site, payload: Payload, statement: str, told: str
) -> None:
    site.wire()
    routed = site.attach_server(policy(python(site.directory, statement)))
    before = routed.stack("wan")["pid"]
    path, _ = payload(4 * MB)
    code, _ = fetched(site, served(site, path.parent)(path.name))
    assert code in {18, 52, 56}, "curl's words for a connection that was reset"
    stack = routed.stack("wan")
    assert (stack["pid"], stack["restarts"]) == (before, 0)
    assert (stack["transport_plugin"]["faults"], stack["transport_plugin"]["connections"]) == (1, 1)
    assert told in stack["transport_plugin"]["fault"]
