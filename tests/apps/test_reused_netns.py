# SPDX-License-Identifier: Apache-2.0
"""A network namespace whose inode the kernel had given to another one before, in which an
instance has died.
"""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from dying import OnXdp, kill

from dmm_ebpf.rd.director.rundir import RunDir


@pytest.mark.parametrize("first", ["the living one", "the dead one"])
def test_what_a_deleted_namespace_has_left_is_not_of_the_next_one_with_its_inode(
    lab, make_cgroup, instance, tmp_path, first
):
    """Whichever of the two instances is detached first."""
    tmp_path.chmod(0o755)
    gone, new, peer = (lab.host(name) for name in ("g", "n", "p"))
    for host in (gone, new):
        lab.wire(host, peer)
    dead, alive = (
        OnXdp(instance(), host, make_cgroup(), tmp_path / "policy.toml") for host in (gone, new)
    )
    dead.write(dead.policy)
    try:
        director, stack = dead.attached(), dead.stack_pid()
        director.end(signal.SIGKILL)
        kill(stack)
        subprocess.run(["ip", "netns", "del", gone.netns], check=True)
        state = json.loads(dead.state())
        # The kernel gives an inode again when it likes; here it has done so.
        state["netns_inode"] = new.netns_path.stat().st_ino
        (dead.run_dir / "state.json").write_text(json.dumps(state))

        director = alive.attached()
        numbers = [s.k for s in RunDir(alive.instance).load().stacks]
        if first == "the dead one":
            working = alive.traces()
            dead.detach()
            assert alive.traces() == working
        code, said = director.end(signal.SIGTERM)
        assert code == 0, said
        alive.assert_nothing_left("detach")
        assert numbers == [s["k"] for s in state["stacks"]], (
            "its number is free in the new namespace"
        )
    finally:
        dead.detach()
        alive.detach()
