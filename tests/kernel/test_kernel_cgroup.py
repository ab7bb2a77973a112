# SPDX-License-Identifier: Apache-2.0
"""The cgroup of a stack process where the kernel has the memory and pids controllers in cgroup
v2: its limits hold.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from standin import SERVES

from dmm_ebpf.hal import procgroup
from dmm_ebpf.userstack.supervisor import StackSpec, StackSupervisor
from lab.cgroups import cgroup2_mount

LIMITS = procgroup.Limits(memory_bytes=64 << 20, processes=8)
BOMB = "import sys; sys.stdin.readline(); len(bytearray(200 << 20))"
# Takes what it has no room for when it is told.
GREEDY = f"""
import signal
def take(*_):
    len(bytearray(1 << 30))
signal.signal(signal.SIGUSR1, take)
{SERVES}"""


@pytest.fixture
def handed_down():
    """The root of the hierarchy, which hands both controllers down, as systemd has it."""
    root = cgroup2_mount()
    if not {"memory", "pids"} <= set((root / "cgroup.controllers").read_text().split()):
        assert "DMM_GUEST_KERNEL" not in os.environ
        pytest.skip("cgroup v2 has no memory controller here")
    control = root / "cgroup.subtree_control"
    before = set(control.read_text().split())
    control.write_text("+memory +pids")
    yield root
    control.write_text(
        " ".join(f"-{name}" for name in ("memory", "pids") if name not in before) or "+pids"
    )


def test_a_process_that_takes_too_much_ends_alone(handed_down):
    path = procgroup.path_of(handed_down, f"t{os.getpid()}", "wan")
    procgroup.make(path, LIMITS)
    try:
        assert procgroup.granted(path) == procgroup.Granted(LIMITS.memory_bytes, LIMITS.processes)
        with subprocess.Popen([sys.executable, "-c", BOMB], stdin=subprocess.PIPE) as bomb:
            procgroup.take(path, bomb.pid)
            bomb.communicate(b"\n")
        assert bomb.returncode == -9
    finally:
        assert procgroup.remove(path)
    assert not path.parent.exists()


def test_a_stack_process_that_takes_too_much_is_said_to_have(handed_down, tmp_path):
    path = procgroup.path_of(handed_down, f"t{os.getpid()}", "wan")
    limits: list[int] = []

    async def life() -> list[str]:
        told: list[str] = []
        down, up = asyncio.Event(), asyncio.Event()

        def gone(reason: str) -> None:
            told.append(reason)
            down.set()

        spec = StackSpec(
            *("i", "wan", 3, 5, "dmm-5", [], -1, tmp_path, -1),
            memory_bytes=1 << 20,
            max_connections=1,
            command=(sys.executable, "-c", GREEDY),
            cgroup=str(path),
        )
        limits.append(spec.memory_limit_bytes >> 20)
        stack = StackSupervisor(spec, on_up=lambda _: up.set(), on_down=gone)
        await stack.start()
        try:
            for number in (signal.SIGUSR1, signal.SIGKILL):
                down.clear()
                up.clear()
                os.kill(stack.pid, number)
                async with asyncio.timeout(60):
                    await down.wait()
                    await up.wait()
        finally:
            await stack.stop()
        return told

    killed = "killed by SIGKILL"
    assert asyncio.run(life()) == [
        f"{killed}: out of the {limits[0]} MiB of its cgroup",
        killed,
    ]
