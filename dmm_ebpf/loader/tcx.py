# SPDX-License-Identifier: Apache-2.0
"""The tc program at the ingress of a NIC by a tcx link (Linux 6.6), in front of every other program that is there.

A link is made in the network namespace that the caller is in, because that is where the kernel looks the ifindex up.
It is gone with its pin, or with its device.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from dmm_ebpf.loader import bpf, explain

_BEFORE_ALL = 1 << 3  # BPF_F_BEFORE, of no program in particular


def pin_path(folder: Path, ifindex: int) -> Path:
    """links/tcx-<ifindex>."""
    return folder / "links" / f"tcx-{ifindex}"


def attached(prog_fd: int, ifindex: int) -> bool:
    """Whether the program is there by tcx."""
    try:
        _, ids = bpf.prog_query(ifindex, bpf.AttachType.TCX_INGRESS)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):  # no tcx, no device
            return False
        raise
    return bpf.prog_info(prog_fd).id in ids


def attach(folder: Path, prog_fd: int, ifindex: int) -> bool:
    """Links and pins; if it is there already, nothing changes. folder: the instance's pins. False: this kernel has no
    tcx. Raises DmmError.
    """
    if attached(prog_fd, ifindex):
        return True
    path = pin_path(folder, ifindex)
    path.unlink(missing_ok=True)  # of a device that went away, or of a link that somebody has detached
    try:
        fd = bpf.link_create(prog_fd, ifindex, bpf.AttachType.TCX_INGRESS, _BEFORE_ALL)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise explain.refused(f"attach a tc program to device {ifindex}", error) from error
    try:
        bpf.obj_pin(fd, str(path))
    finally:
        os.close(fd)
    return True


def detach(folder: Path, ifindex: int) -> None:
    """Takes it off, from any network namespace, if it was there."""
    with suppress(FileNotFoundError):
        pin_path(folder, ifindex).unlink()
