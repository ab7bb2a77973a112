# SPDX-License-Identifier: Apache-2.0
"""tools/soak kills: a fleet whose parts are killed at random, and that what it should find is
found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lab import Lab
from lab.programs import start_server
from lab.steady import Pace, Sender
from soak import kills

ROOT = Path(__file__).resolve().parents[2]
ECHO = "import socketserver as s; s.ThreadingTCPServer(('', 7), type('E', (s.BaseRequestHandler,),"
ECHO += " {'handle': lambda e: e.request.send(e.request.recv(1))})).serve_forever()"
# It turns over the last bit of each message.
WRONG_ECHO = f"""
import socketserver

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv({kills.MESSAGE_BYTES}, 0x100):
            self.request.sendall(data[:-1] + bytes([data[-1] ^ 1]))

socketserver.ThreadingTCPServer(("", 7), Echo).serve_forever()
"""


@pytest.mark.timeout(600)
def test_twenty_seconds_of_kills_lose_no_flow_and_no_decision(no_leaks) -> None:
    words = [sys.executable, "-m", "soak", "kills", "--seconds", "20", "--seed", "1", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["found"] == []
    assert all(result["killed"][kind] > 0 for kind in kills.KINDS)
    assert result["kept"] == 3 * kills.KEPT_FLOWS
    assert result["served"][f"{kills.USER_PORT} wan"] > 0
    assert set(result["pushes"]) <= {"0", "1", "75"}


def _new_flows(lab: Lab, tmp_path: Path, allowed: dict[str, dict[str, str]]) -> kills.Summary:
    """What new flows on a host that nobody routes are said to be."""
    host = lab.host("h")
    start_server(host, ["/usr/bin/python3", "-c", ECHO], 7, tmp_path / "echo.log")
    words = [sys.executable, "-m", "soak.newflows", "127.0.0.1", json.dumps(allowed)]
    process = host.popen(words, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    told = json.loads(process.communicate(timeout=100)[0])
    return kills.Summary(
        1, 1.0, Counter(), served=told["served"], failed=told["failed"], found=told["wrong"]
    )


def test_a_flow_that_nobody_decided_about_is_found(lab: Lab, tmp_path: Path) -> None:
    summary = _new_flows(lab, tmp_path, {"7": {"lan": "cubic"}})
    assert summary.served == {"7 ": 1}
    assert summary.found[0].startswith("port 7: nobody decided about it (E")


def test_a_flow_that_gets_another_byte_is_found(lab: Lab, tmp_path: Path) -> None:
    host, log = lab.host("h"), tmp_path / "echo.log"
    start_server(host, ["/usr/bin/python3", "-c", WRONG_ECHO], 7, log)
    told = Sender("ask", host, ("127.0.0.1", 7), Pace(2, 3, kills.MESSAGE_BYTES, 0.01)).result()
    assert told.failed == {0: "bytes", 1: "bytes"}
    assert not told.message_s


def test_a_run_in_which_nothing_was_killed_proves_nothing() -> None:
    summary = kills.Summary(1, 1.0)
    summary.failed.update({f"{kills.KERNEL_PORT} ECONNRESET": 1, f"{kills.USER_PORT} EPIPE": 1})
    kills.judge(summary)
    for kind in kills.KINDS:
        assert f"no {kind} was killed: nothing is proven" in summary.found
    assert f"1 new flows to port {kills.KERNEL_PORT} failed: ECONNRESET" in summary.found
    assert not any("EPIPE" in one for one in summary.found)
