# SPDX-License-Identifier: Apache-2.0
"""The cgroup of a stack process where the kernel has the memory and pids controllers in cgroup
v2: its limits hold.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dmm_ebpf.hal import procgroup
from lab.cgroups import cgroup2_mount

LIMITS = procgroup.Limits(memory_bytes=64 << 20, processes=8)
BOMB = "import sys; sys.stdin.readline(); len(bytearray(200 << 20))"


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
