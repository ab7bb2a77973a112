# SPDX-License-Identifier: Apache-2.0
"""Whether the congestion controls that a policy names as plug-ins can be had on this host.

Each is loaded once, in a process of its own (kit/probe.py): to find out is to run it.
"""

from __future__ import annotations

from collections.abc import Iterable

from dmm_ebpf.errors import DmmError, PolicyError, PrivilegeError
from dmm_ebpf.kit import probe
from dmm_ebpf.kit.names import is_plugin
from dmm_ebpf.rd.policy.locate import describe
from dmm_ebpf.rd.policy.model import Policy


def check_plugins(policy: Policy, stacks: Iterable[str]) -> list[str]:
    """Raises PolicyError for one that cannot be loaded. Returns, in sentences, which ones this user may not read.

    stacks: names of user stacks.
    """
    unread = []
    configs = policy.user_stacks()
    for name in stacks:
        text = configs[name].congestion
        if not is_plugin(text):
            continue
        try:
            probe.check(text)
        except PrivilegeError as exc:
            unread.append(str(exc))
        except DmmError as exc:
            path = ("stacks", name, "congestion")
            why = f"{describe(path)}: {exc}"
            raise PolicyError(f"accept {policy.place(*path)}", why=why) from exc
    return unread
