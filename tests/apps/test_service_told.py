# SPDX-License-Identifier: Apache-2.0
"""What a Resource Director tells a service manager while it serves (sd_notify(3)): that it lives,
as often as it is asked to, when it reads its policy again, and what it refuses.
"""

from __future__ import annotations

import signal
import socket
import time

import pytest

from dmm_ebpf.closing import Closing
from lab.waiting import patient, stop

POLICY = """
[[rules]]
cgroup = "{cgroup}"
table = "t"

[[tables.t.routes]]
to = "default"
stack = "kernel"
"""
WITHIN_S = 20.0
ALIVE_S = 3  # the watchdog's time


class Manager(Closing):
    """A service manager's socket, and all that came in by it, one assignment an entry."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.told = []

    def close(self):
        self._socket.close()

    def hears(self, start, within_s=WITHIN_S):
        """Takes in what comes until an assignment begins with start, which it returns; None: there
        was none in time.
        """
        until = time.monotonic() + patient(within_s)
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                lines = self._socket.recv(65536).decode().split("\n")
            except TimeoutError:
                break
            self.told += lines
            found = next((line for line in lines if line.startswith(start)), None)
            if found is not None:
                return found
        return None


@pytest.fixture
def manager(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(ALIVE_S * 1_000_000))
    with Manager(tmp_path / "notify") as made:
        yield made


def test_a_service_manager_is_told_of_life_reloads_and_refusals(wired, manager):
    routed = wired.attach_client(POLICY)
    attached = f"STATUS=instance {routed.instance} is attached to {wired.client_cgroup.path}"
    assert manager.hears("READY=1")
    assert attached in manager.told
    for _ in range(3):
        assert manager.hears("WATCHDOG=1")

    for _ in range(2):
        manager.told.clear()
        before_us = time.monotonic_ns() // 1000
        routed.process.send_signal(signal.SIGHUP)
        assert manager.hears("READY=1")
        told = [one for one in manager.told if one[:8] not in ("WATCHDOG", "STATUS=i")]
        assert [one.partition("=")[0] for one in told] == ["RELOADING", "MONOTONIC_USEC", "READY"]
        assert before_us <= int(told[1].partition("=")[2]) <= time.monotonic_ns() // 1000

    manager.told.clear()
    routed.write_policy("[[rules]\n")
    routed.process.send_signal(signal.SIGHUP)
    assert manager.hears("READY=1")
    refused = next(one for one in manager.told if one.startswith("STATUS="))
    assert refused.startswith(f"{attached}; policy refused: cannot ")
    assert routed.ask("status")[0]["policy_refused"]["reason"].split("\n")[0] in refused

    routed.write_policy(POLICY)
    assert manager.hears("STATUS=") == attached


def test_one_that_stands_still_does_not_say_that_it_lives(wired, manager):
    routed = wired.attach_client(POLICY)
    assert manager.hears("WATCHDOG=1")
    stop(routed.process.pid)
    while manager.hears("WATCHDOG=1", within_s=0.05):
        pass  # those that were on the way
    assert manager.hears("", within_s=ALIVE_S) is None
    routed.process.send_signal(signal.SIGCONT)
    assert manager.hears("WATCHDOG=1")
