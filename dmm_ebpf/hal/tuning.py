# SPDX-License-Identifier: Apache-2.0
"""Kernel settings: read, written, and those of the devices of stack processes, which
disappear with them.

A setting is named by its path below /proc/sys with slashes (device names may hold dots).
/proc/sys/net shows the namespace of the thread that opens it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dmm_ebpf.errors import DmmError, KernelFeatureError, PrivilegeError

_ROOT = Path("/proc/sys")


def device_settings(device: str) -> dict[str, str]:
    """What a device of a stack process needs: no IPv6 of the host's on it, which would only
    speak to the stack.
    """
    return {f"net/ipv6/conf/{device}/disable_ipv6": "1"}


def read(key: str) -> str:
    """The setting's value. KernelFeatureError when this kernel has none of that name."""
    try:
        return (_ROOT / key).read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise KernelFeatureError(
            f"read {key.replace('/', '.')}", why="this kernel has no such setting"
        ) from error


def write(key: str, value: str) -> None:
    """Sets it. KernelFeatureError when there is none, PrivilegeError when it may not be
    written, else DmmError.
    """
    try:
        (_ROOT / key).write_text(value, encoding="ascii")
    except FileNotFoundError as error:
        raise KernelFeatureError(
            f"set {key.replace('/', '.')}", why="this kernel has no such setting"
        ) from error
    except OSError as error:
        what, why = f"set {key.replace('/', '.')} to {value}", os.strerror(error.errno or 0)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PrivilegeError(what, why=why, hint="/proc/sys must be writable") from error
        raise DmmError(what, why=why) from error


def prepare_device(device: str) -> None:
    """device_settings() on it; IPv6 settings are left out where the kernel runs without IPv6."""
    for key in unprepared(device):
        write(key, device_settings(device)[key])


def unprepared(device: str) -> list[str]:
    """Those of device_settings() that do not stand as they should."""
    wanted = device_settings(device).items()
    there = ((k, v) for k, v in wanted if not k.startswith("net/ipv6/") or (_ROOT / k).exists())
    return [key for key, value in there if read(key) != value]
