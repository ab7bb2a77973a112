# SPDX-License-Identifier: Apache-2.0
"""A stack that runs takes another congestion control by `policy apply`, a plug-in too: new
connections have it, open ones keep theirs, and the process is the same.
"""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from sitefixtures import WAN, Site
from talking import Talker, echo

from lab import curl_fetch, nginx
from lab.commandline import CLI
from lab.routed import Routed
from lab.waiting import wait_for

MB = 1_000_000
CONTROL = """
IMPORT

class NAME:
    prr = True
    abi = ABI

    def init(self, cc, now_ns):
        self.acks = 0

    def on_ack(self, cc, s):
        self.acks += 1
        if BAD:
            raise ValueError("no more")
        if not cc.in_recovery:
            cc.cwnd_bytes += s.acked_bytes
"""


def written(
    site: Site, name: str, *, bad: str = "False", abi: int = 1, imports: str = "import math"
) -> str:
    """A plug-in of a file of its own."""
    path = site.directory / f"{name.lower()}.py"
    text = CONTROL.replace("NAME", name).replace("BAD", bad).replace("ABI", str(abi))
    path.write_text(text.replace("IMPORT", imports) + "# filling\n" * 200, encoding="utf-8")
    path.chmod(0o644)
    return f"python:{path}:{name}"


def policy(congestion: str) -> str:
    return WAN.replace('congestion = "wan"', f'congestion = "{congestion}"')


def applied(routed: Routed, congestion: str) -> subprocess.CompletedProcess[str]:
    return routed.apply(policy(congestion), check=False)


def controls(routed: Routed) -> list[str]:
    return sorted(flow["congestion"] for flow in routed.flows(stack="wan"))


def talker(wired: Site) -> Talker:
    return Talker(wired.client, wired.client_cgroup, wired.link.b.ip4)


def ended(server: subprocess.Popen[str], peer: Talker, routed: Routed) -> None:
    """The server goes first, so that no connection of the stack's is in TIME-WAIT afterwards."""
    server.kill()
    wait_for(lambda: not routed.flows(stack="wan", state="ESTABLISHED"), 20, "the server's FIN")
    peer.process.kill()
    wait_for(lambda: not routed.ask_stack("wan")["connections"], 20, "the connection to end")


def stack_of(routed: Routed) -> dict[str, Any]:
    return routed.stack("wan")


@pytest.fixture
def routed(wired: Site) -> Routed:
    return wired.attach_client(policy("cubic"))


def test_new_connections_have_it_and_old_ones_keep_theirs(wired: Site, routed: Routed) -> None:
    echo(wired.server, wired.server_cgroup)
    before = stack_of(routed)["pid"]
    peers = [talker(wired)]
    for name, wanted in (
        ("First", ["First", "cubic"]),
        ("Second", ["First", "Second", "cubic"]),
        ("cubic", ["First", "Second", "cubic", "cubic"]),
    ):
        done = applied(routed, name if name == "cubic" else written(wired, name))
        assert done.returncode == 0, done.stderr
        peers.append(talker(wired))
        assert controls(routed) == wanted
    assert [peer.says(f"send {MB}") for peer in peers] == ["True"] * 4
    stack = stack_of(routed)
    assert (stack["pid"], stack["restarts"]) == (before, 0)
    assert stack["plugin"] == {"faults": 0, "connections": 0, "fault": ""}


def test_one_that_raises_costs_no_byte(
    wired: Site, routed: Routed, payload: Any, tmp_path: Any
) -> None:
    path, sha = payload(20 * MB)
    url = nginx(wired.client, path.parent, tmp_path / "nginx", cgroup=wired.client_cgroup).url(
        path.name
    )
    assert applied(routed, written(wired, "Bad", bad="self.acks > 50")).returncode == 0
    got = curl_fetch(wired.server, url, cgroup=wired.server_cgroup, timeout=100)
    assert got.sha256 == sha, got.stderr
    plugin = stack_of(routed)["plugin"]
    assert plugin["faults"] >= 1
    assert "Bad.on_ack raised ValueError: no more (bad.py line 14)" in plugin["fault"]


def test_one_that_cannot_be_had_leaves_everything_as_it_was(wired: Site, routed: Routed) -> None:
    echo(wired.server, wired.server_cgroup)
    peers = []
    missing = "import statistics"
    for text, why in (
        (written(wired, "Old", abi=99), "it was written for ABI 99, and this is ABI 1"),
        (written(wired, "Far", imports=missing), "a process that runs can open no file"),
        (written(wired, "Broken", imports="raise OSError(5)"), "its module raised OSError: 5"),
        (built(wired), "a process that runs can load no shared object"),
    ):
        done = applied(routed, text)
        assert done.returncode and why in done.stderr
        peers.append(talker(wired))
        assert controls(routed) == ["cubic"] * len(peers)
    assert all(peer.says(f"send {MB}") == "True" for peer in peers)
    assert stack_of(routed)["restarts"] == 0


def test_it_can_be_changed_again_and_again(wired: Site, routed: Routed) -> None:
    """Threads were made ahead, and only a few: those of plug-ins that nobody has are used again."""
    for number in range(8):
        server = echo(wired.server, wired.server_cgroup)
        done = applied(routed, written(wired, f"Control{number}"))
        assert done.returncode == 0, done.stderr
        peer = talker(wired)
        assert peer.says(f"send {MB}") == "True"
        assert controls(routed) == [f"Control{number}"]
        ended(server, peer, routed)
    # While connections have them, there is an end to it.
    echo(wired.server, wired.server_cgroup)
    peers = []
    for number in range(4):
        done = applied(routed, written(wired, f"Kept{number}"))
        peers.append(talker(wired))
        if done.returncode:
            break
    assert "connections still have 3 that the stack was given before" in done.stderr
    assert all(peer.says(f"send {MB}") == "True" for peer in peers)


def built(site: Site) -> str:
    source, output = site.directory / "steady.c", site.directory / "steady.so"
    source.write_text(
        '#include "cc.h"\n'
        "static void on_ack(struct cc *cc, const struct cc_sample *s)"
        "{ cc->cwnd_bytes += s->acked_bytes; }\n"
        'static const struct cc_ops ops = {.name = "steady", .prr = 1, .on_ack = on_ack};\n'
        "CC_EXPORT(ops);\n",
        encoding="utf-8",
    )
    said = subprocess.run([*CLI, "stacks", "--include"], capture_output=True, text=True, check=True)
    include = f"-I{said.stdout.strip()}"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", include, "-o", output, source], check=True)
    output.chmod(0o755)
    return f"c:{output}"
