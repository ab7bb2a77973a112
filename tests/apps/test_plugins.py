# SPDX-License-Identifier: Apache-2.0
"""Congestion controls of a user's own in real stack processes: bytes arrive whole by good ones and
by bad ones, and what was wrong with these is told.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sitefixtures import WAN, Site

from dmm_ebpf.cli import plugins
from dmm_ebpf.errors import DmmError
from lab import curl_fetch, nginx
from lab.commandline import CLI
from lab.waiting import wait_for

MB = 1_000_000
CONTROL = """
class Steady:
    prr = True

    def init(self, cc, now_ns):
        self.acks = 0

    def on_ack(self, cc, s):
        self.acks += 1
        if BAD:
            STATEMENT
        if not cc.in_recovery:
            cc.cwnd_bytes += s.acked_bytes
"""
NATIVE = """
#include "cc.h"
static void on_ack(struct cc *cc, const struct cc_sample *s)
{
	if (++cc->priv[0] > LIMIT)
		STATEMENT;
	if (!cc->in_recovery)
		cc->cwnd_bytes += s->acked_bytes;
}
static const struct cc_ops ops = {.name = "steady", .prr = 1, .on_ack = on_ack};
CC_EXPORT(ops);
"""
Payload = Callable[[int], tuple[Path, str]]


def written(directory: Path, bad: str = "False", statement: str = "pass") -> str:
    path = directory / "steady.py"
    path.write_text(CONTROL.replace("BAD", bad).replace("STATEMENT", statement), encoding="utf-8")
    path.chmod(0o644)
    return f"python:{path}:Steady"


def built(directory: Path, limit: str = "UINT64_MAX - 1", statement: str = "return") -> str:
    source, output = directory / "steady.c", directory / "steady.so"
    source.write_text(
        NATIVE.replace("LIMIT", limit).replace("STATEMENT", statement), encoding="utf-8"
    )
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", f"-I{plugins.include()}", "-o", output, source],
        check=True,
    )
    output.chmod(0o755)
    return f"c:{output}"


def policy(congestion: str, *, io: str = "auto") -> str:
    return WAN.replace('congestion = "wan"', f'congestion = "{congestion}"\nio = "{io}"')


def stack_of(routed: Any) -> dict[str, Any]:
    return next(row for row in routed.ask("stacks") if row["name"] == "wan")


def fetch(site: Site, payload: Payload, *sizes: int) -> None:
    """Files of that many bytes, one after the other, from one server."""
    files = [payload(size) for size in sizes]
    server = nginx(
        site.server, files[0][0].parent, site.directory / "nginx", cgroup=site.server_cgroup
    )
    for path, sha256 in files:
        got = curl_fetch(site.client, server.url(path.name), cgroup=site.client_cgroup, timeout=100)
        assert (got.exit_code, got.stderr, got.sha256) == (0, "", sha256)


@pytest.mark.parametrize("make", [written, built], ids=["python", "c"])
def test_a_plugin_carries_a_payload_over_a_lossy_link(
    site: Site, payload: Payload, make: Callable[[Path], str]
) -> None:
    site.wan(rate="50mbit", delay="10ms", loss="0.1%", seed=3)
    text = make(site.directory)
    routed = site.attach_server(policy(text))
    fetch(site, payload, 10 * MB)
    stack = stack_of(routed)
    assert stack["congestion"] == text
    assert stack["plugin"] == {"faults": 0, "connections": 0, "fault": ""}
    assert stack["restarts"] == 0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda d: written(d, "self.acks > 50", "raise KeyError('x')"),
            "Steady.on_ack raised KeyError: 'x' (steady.py line 11); its connection goes on by cubic",
        ),
        (
            lambda d: written(d, "self.acks > 50", "cc.cwnd_bytes = float('nan')"),
            "set cwnd_bytes to nan",
        ),
        (
            lambda d: written(d, "self.acks > 50", "cc.cwnd_bytes = -3; return"),
            "set cwnd_bytes to -3",
        ),
        (
            lambda d: written(d, "self.acks > 50", "\n            while True: pass"),
            "Steady.on_ack did not return within 250 ms; it is not called any more, and connections go on by cubic",
        ),
        (
            lambda d: written(d, "self.acks > 50", "open('/etc/passwd')"),
            "Steady.on_ack raised PermissionError",
        ),
        (lambda d: built(d, "50", "*(volatile int *)0 = 1"), "steady.on_ack was ended by SIGSEGV"),
        (
            lambda d: built(d, "50", "for (volatile int i = 0;; i++)"),
            "steady.on_ack did not return",
        ),
    ],
    ids=["raises", "nan", "negative", "loops", "opens", "crashes", "loops-in-c"],
)
def test_a_bad_plugin_costs_no_byte(
    site: Site, payload: Payload, make: Callable[[Path], str], told: str
) -> None:
    site.wire()
    routed = site.attach_server(policy(make(site.directory)))
    before = stack_of(routed)["pid"]
    fetch(site, payload, 20 * MB, MB)
    stack = stack_of(routed)
    assert (stack["pid"], stack["restarts"]) == (before, 0)
    assert stack["plugin"]["faults"] >= 1
    assert told in stack["plugin"]["fault"]
    listed = subprocess.run(
        [*CLI, "stacks", "-i", routed.instance], capture_output=True, text=True, check=True
    )
    assert told in listed.stdout
    log = Path(f"/run/dmm-ebpf/{routed.instance}/stack-wan.log")
    wait_for(lambda: told in log.read_text(encoding="utf-8"), what="a sentence in the stack's log")


def test_the_next_process_has_the_plugin_too(site: Site, payload: Payload) -> None:
    site.wire()
    routed = site.attach_server(policy(written(site.directory)))
    os.kill(stack_of(routed)["pid"], signal.SIGKILL)
    wait_for(lambda: stack_of(routed)["restarts"] == 1 and stack_of(routed)["state"] == "up", 30)
    fetch(site, payload, MB)
    assert stack_of(routed)["plugin"] == {"faults": 0, "connections": 0, "fault": ""}


def test_a_plugin_that_cannot_be_loaded_refuses_the_policy(site: Site, tmp_path: Path) -> None:
    site.wire()
    with pytest.raises(DmmError) as caught:
        site.attach_server(policy("python:/nowhere/my_cc.py:Ledbat"))
    for part in (
        ".toml:5:",
        "gestion: cannot use",
        "python:/nowhere/my_cc.py:Ledbat",
        "No such file or directory",
    ):
        assert part in str(caught.value)


def test_policy_check_names_key_plugin_and_cause(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(policy("c:/nowhere/ledbat.so").replace("{cgroup}", "/x"), encoding="utf-8")
    done = subprocess.run(
        [*CLI, "policy", "check", "--json", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    message = json.loads(done.stdout)["error"]["message"]
    for part in (
        "p.toml:5",
        "stack wan, congestion",
        "c:/nowhere/ledbat.so",
        "No such file or directory",
    ):
        assert part in message
