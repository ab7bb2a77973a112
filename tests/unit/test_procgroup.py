# SPDX-License-Identifier: Apache-2.0
"""What the kernel's counts of a cgroup say of a process that it has killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmm_ebpf.hal import procgroup


def _events(group: Path, oom: int, oom_kill: int) -> None:
    """As memory.events is, of Linux 6.1."""
    (group / "memory.events").write_text(
        f"low 0\nhigh 0\nmax 4711\noom {oom}\noom_kill {oom_kill}\noom_group_kill 0\n",
        encoding="ascii",
    )


@pytest.mark.parametrize(
    ("oom", "oom_kill", "limit", "why"),
    [
        (1, 1, "104857600\n", ""),
        (2, 2, "104857600\n", "out of the 100 MiB of its cgroup"),
        (2, 2, "max\n", "its cgroup was out of memory"),
        (1, 2, "104857600\n", "the host was out of memory"),
        (2, 1, "104857600\n", ""),
    ],
)
def test_what_memory_a_process_was_killed_for(
    tmp_path: Path, oom: int, oom_kill: int, limit: str, why: str
) -> None:
    (tmp_path / "memory.max").write_text(limit, encoding="ascii")
    _events(tmp_path, 1, 1)
    before = procgroup.kills(tmp_path)
    assert before == procgroup.Kills(killed=1, at_limit=1)
    _events(tmp_path, oom, oom_kill)
    assert procgroup.want_of_memory(tmp_path, before) == why


def test_a_group_without_the_controller_tells_nothing(tmp_path: Path) -> None:
    assert procgroup.kills(tmp_path) == procgroup.Kills()
    assert procgroup.want_of_memory(tmp_path, procgroup.Kills()) == ""
