# SPDX-License-Identifier: Apache-2.0
"""Where pins live, and that it is the same place from wherever a command is typed.

Pins are in the bpffs at /sys/fs/bpf of process 1's mount namespace, which initns.py reaches from
any other. A bpffs mounted in the namespace of an `ip netns exec` would be another file system, and
would take the hooks with it when that command ends. Nothing has to enter the namespace except to
mount bpffs where it is missing; a child does that.

Layout: <bpffs>/dmm-ebpf/<instance>/{maps,progs,links}/NAME.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dmm_ebpf.errors import KernelFeatureError, PrivilegeError, run_as_root
from dmm_ebpf.instancename import check_name
from dmm_ebpf.loader import bpf, initns

BPFFS = Path("/sys/fs/bpf")
TOP = "dmm-ebpf"
FOLDERS = ("links", "progs", "maps")  # the order in which they are taken away


def _path() -> Path:
    return initns.root() / BPFFS.relative_to("/")


def mounted() -> Path | None:
    """The bpffs as this process reaches it, or None if it is not mounted."""
    path = _path()
    try:
        return path if bpf.fs_magic(str(path)) == bpf.BPF_FS_MAGIC else None
    except PermissionError as error:
        raise PrivilegeError(
            "find the BPF file system", why=f"{path} may not be read", hint=run_as_root()
        ) from error
    except OSError:
        return None


def ensure() -> Path:
    """The bpffs as this process reaches it, mounted if it was not. It is never unmounted:
    others may use it by then.
    """
    path = mounted()
    if path is not None:
        return path
    what = f"mount bpffs on {BPFFS}"
    try:
        fd = initns.namespace_fd()
        try:
            bpf.mount_bpffs(fd, str(BPFFS))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PrivilegeError(
                what, why="mounting needs CAP_SYS_ADMIN", hint=run_as_root()
            ) from error
        raise KernelFeatureError(what, why=str(error.strerror)) from error
    return _path()


def top() -> Path | None:
    """The folder of all instances, or None if there is none."""
    root = mounted()
    try:
        return root / TOP if root is not None and (root / TOP).is_dir() else None
    except PermissionError as error:
        raise PrivilegeError(
            "look for instances", why=f"{root} may not be read", hint=run_as_root()
        ) from error


def instance_dir(instance: str) -> Path | None:
    """The folder of an instance's pins, or None if there is none."""
    check_name(instance)
    folder = top()
    path = folder / instance if folder is not None else None
    return path if path is not None and path.is_dir() else None
