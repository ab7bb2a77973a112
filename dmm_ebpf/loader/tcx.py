# SPDX-License-Identifier: Apache-2.0
"""The tc programs at ingress and egress of a NIC, and at the ingress of other devices, by tcx links
(Linux 6.6), in front of every other that is there.

A link is made in the network namespace that the caller is in, because that is where the kernel
looks the ifindex up. It is gone with its pin, or with its device.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from enum import Enum
from pathlib import Path

from dmm_ebpf.loader import bpf, explain

_BEFORE_ALL = 1 << 3  # BPF_F_BEFORE, of no program in particular
_OURS = frozenset({"dmm_tcin", "dmm_tcout", "dmm_tcfrom"})  # of every instance


class Hook(Enum):
    """Where a program is: the end of its pin's name, and the kernel's type."""

    IN = ("in", bpf.AttachType.TCX_INGRESS)
    OUT = ("out", bpf.AttachType.TCX_EGRESS)
    FROM = ("from", bpf.AttachType.TCX_INGRESS)


NIC = (Hook.IN, Hook.OUT)
INSIDE = (Hook.FROM,)


def pin_path(folder: Path, hook: Hook, ifindex: int) -> Path:
    """links/tcx-<ifindex>-in, -out or -from."""
    return folder / "links" / f"tcx-{ifindex}-{hook.value[0]}"


def attached(hook: Hook, prog_fd: int, ifindex: int) -> bool:
    """Whether the program is there by tcx."""
    return bpf.prog_info(prog_fd).id in _ids(hook, ifindex)


def overtaken(hook: Hook, prog_fd: int, ifindex: int) -> bool:
    """Whether it is there, behind a program of another's: what that lets pass, or ends, ours never
    sees (any result but TCX_NEXT ends the search).
    """
    ids, own = _ids(hook, ifindex), bpf.prog_info(prog_fd).id
    if own not in ids:
        return False
    return any(bpf.prog_name(one) not in _OURS for one in ids[: ids.index(own)])


def is_first(hook: Hook, prog_fd: int, ifindex: int) -> bool:
    """Whether it is there, and none of others' comes before it."""
    return attached(hook, prog_fd, ifindex) and not overtaken(hook, prog_fd, ifindex)


def overtaken_at(prog_fds: tuple[int, int], ifindex: int) -> str:
    """Of a NIC's two programs the hook, as tc(8) calls it, where that is so; empty: nowhere."""
    hooks = zip(("ingress", "egress"), NIC, prog_fds, strict=True)
    return next((name for name, hook, fd in hooks if overtaken(hook, fd, ifindex)), "")


def _ids(hook: Hook, ifindex: int) -> list[int]:
    """Of the programs there, in the order in which they run."""
    try:
        return bpf.prog_query(ifindex, hook.value[1])[1]
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):  # no tcx, no device
            return []
        raise


def attach(folder: Path, hook: Hook, prog_fd: int, ifindex: int) -> bool:
    """Links and pins; if it is there already, it stays, or moves to the front. folder: the
    instance's pins. False: this kernel has no tcx. Raises DmmError.
    """
    if attached(hook, prog_fd, ifindex):
        if not overtaken(hook, prog_fd, ifindex):
            return True
        detach(folder, ifindex, (hook,))  # a link keeps its place
    path = pin_path(folder, hook, ifindex)
    path.unlink(
        missing_ok=True
    )  # of a device that went away, or of a link that somebody has detached
    try:
        fd = bpf.link_create(prog_fd, ifindex, hook.value[1], _BEFORE_ALL)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise explain.refused(f"attach a tc program to device {ifindex}", error) from error
    try:
        bpf.obj_pin(fd, str(path))
    finally:
        os.close(fd)
    return True


def detach(folder: Path, ifindex: int, hooks: tuple[Hook, ...] = NIC) -> None:
    """Takes them off, from any network namespace, where they were: at once, which the end of a
    pin alone would not.
    """
    for hook in hooks:
        path = pin_path(folder, hook, ifindex)
        with suppress(FileNotFoundError):
            fd = bpf.obj_get(str(path))
            try:
                with suppress(OSError):  # its device went away first
                    bpf.link_detach(fd)
            finally:
                os.close(fd)
            path.unlink()
