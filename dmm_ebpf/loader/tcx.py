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
    try:
        _, ids = bpf.prog_query(ifindex, hook.value[1])
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):  # no tcx, no device
            return False
        raise
    return bpf.prog_info(prog_fd).id in ids


def attach(folder: Path, hook: Hook, prog_fd: int, ifindex: int) -> bool:
    """Links and pins; if it is there already, nothing changes. folder: the instance's pins. False:
    this kernel has no tcx. Raises DmmError.
    """
    if attached(hook, prog_fd, ifindex):
        return True
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
