# SPDX-License-Identifier: Apache-2.0
"""What another policy may not change of a user stack while it runs."""

from __future__ import annotations

from dmm_ebpf.errors import ConflictError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.rd.director.onestack import Stack
from dmm_ebpf.rd.director.ports import AF_XDP
from dmm_ebpf.rd.policy.model import UserStack


def refuse_change(s: Stack, config: UserStack) -> None:
    """Raises ConflictError if config asks for what the stack's processes cannot do any more, and
    UsageError for a device that is not there.
    """
    if config.io == AF_XDP != s.config.io:
        _refuse_without_sockets(s)
    if config.devices != s.config.devices:
        _refuse_other_devices(s, config)
    if config.command != s.config.command:
        raise ConflictError(
            f"serve stack {s.name} by another program",
            why="its processes run, and have open flows",
            hint="give the stack that is to be served so another name",
        )


def _refuse_without_sockets(s: Stack) -> None:
    without = [n.name for n in s.nics if not n.xsk]
    if without:
        raise ConflictError(
            f"serve stack {s.name} on {', '.join(without)} by {AF_XDP}",
            why="it runs without AF_XDP sockets there, and a process that runs can open none",
            hint="give the stack that is to be served so another name",
        )


def _refuse_other_devices(s: Stack, config: UserStack) -> None:
    wanted = {n.ifindex: n.name for n in hal_nic.serving_nics(list(config.devices) or None)}
    if wanted.keys() != {n.ifindex for n in s.nics}:
        raise ConflictError(
            f"serve stack {s.name} on {', '.join(wanted.values()) or 'no device'}",
            why=f"it runs on {', '.join(n.name for n in s.nics)}, and its flows are bound to that",
            hint="give the stack that is to be on other devices another name",
        )
