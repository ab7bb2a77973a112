# SPDX-License-Identifier: Apache-2.0
"""Gives kernel settings back that an instance has changed (hal/tuning.py), unless another one needs them."""

from __future__ import annotations

from dmm_ebpf.hal import tuning
from dmm_ebpf.rd import rundir
from dmm_ebpf.rd.rundir import State


def restore_sysctls(state: State) -> list[str]:
    """Give sysctls their values back, unless another instance in the namespace still counts on ours."""
    removed = []
    with rundir.host_lock():
        for path, before in list(state.sysctls.items()):
            shared = any(
                st.netns_inode == state.netns_inode and st.instance != state.instance and path in st.sysctls
                for st in rundir.all_states()
            )
            if not shared and tuning.read(path) != before:
                tuning.write(path, before)
                removed.append(f"sysctl {path.replace('/', '.')} back to {before}")
            del state.sysctls[path]
    return removed
