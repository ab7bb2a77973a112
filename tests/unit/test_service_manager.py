# SPDX-License-Identifier: Apache-2.0
"""What a service manager sees of a Resource Director: sd_notify(3), and the order
on the processor.
"""

from __future__ import annotations

import os
import socket
import threading

import pytest

from dmm_ebpf.rd.director import urgency
from dmm_ebpf.rd.life import notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_service_manager_that_asks_is_told(tmp_path, monkeypatch, kind):
    path = str(tmp_path / "notify") if kind == "path" else f"@dmm-ebpf-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify.tell("READY=1", "STATUS=caf\u00e9")
        assert manager.recv(100) == "READY=1\nSTATUS=caf\u00e9".encode()


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("3000000", None, 3.0),
        ("3000000", "mine", 3.0),
        ("3000000", "1", None),  # it is of who started us
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_a_watchdog_is_fed_by_the_process_that_it_is_for(monkeypatch, microseconds, pid, seconds):
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "mine" else value)
    assert notify.watchdog_s() == seconds


@pytest.mark.parametrize("path", ["", "vsock:2:1", "/nowhere/notify"])
def test_where_nobody_listens_nothing_happens(monkeypatch, path):
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify.tell("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.tell("READY=1")


@pytest.mark.root
def test_what_is_urgent_is_real_time_for_as_long_as_it_takes_and_nothing_inherits_it():
    seen = {}

    def work():
        urgency.prefer()
        seen["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
        with urgency.at_once():
            seen["policy"] = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
            child = os.fork()
            if child == 0:
                is_plain = (
                    os.sched_getscheduler(0) == os.SCHED_OTHER
                    and os.getpriority(os.PRIO_PROCESS, 0) == 0
                )
                os._exit(0 if is_plain else 1)
            seen["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen["after"] = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == {"nice": -10, "policy": os.SCHED_RR, "child": 0, "after": os.SCHED_OTHER}
