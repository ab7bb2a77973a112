# SPDX-License-Identifier: Apache-2.0
"""The sentence for what a C adapter could not do (struct dmm_hal_error).

An errno is explained only together with the call that gave it, and only where that call gives it
for one cause; any other is shown in the C library's words.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from dmm_ebpf.errors import (
    ConflictError,
    DmmError,
    KernelFeatureError,
    PrivilegeError,
    run_as_root,
)
from dmm_ebpf.userstack._core import ffi, lib

_Cause = tuple[type[DmmError], str, str]  # kind, why, hint

_NO_TUN: _Cause = (
    KernelFeatureError,
    "/dev/net/tun is not there or has no driver (CONFIG_TUN)",
    "load it: modprobe tun (a unit's PrivateDevices= hides it)",
)
_NOT_ADMIN: _Cause = (PrivilegeError, "it needs CAP_NET_ADMIN", run_as_root())
_NOT_RAW: _Cause = (PrivilegeError, "it needs CAP_NET_RAW", run_as_root())

_CAUSES: Mapping[tuple[int, int], _Cause] = {
    (lib.DMM_HAL_TUN_OPEN, errno.ENOENT): _NO_TUN,
    (lib.DMM_HAL_TUN_OPEN, errno.ENODEV): _NO_TUN,
    (lib.DMM_HAL_TUN_OPEN, errno.ENXIO): _NO_TUN,
    (lib.DMM_HAL_TUN_MAKE, errno.EBUSY): (
        ConflictError,
        "a device of that name exists",
        "stop the program that made it, or take it away: ip link del",
    ),
    (lib.DMM_HAL_TUN_MAKE, errno.EPERM): _NOT_ADMIN,
    (lib.DMM_HAL_TUN_OFFLOAD, errno.EINVAL): (
        KernelFeatureError,
        "this kernel's TUN driver has no segmentation offload",
        "",
    ),
    (lib.DMM_HAL_MTU_SET, errno.EINVAL): (DmmError, "the device does not take that MTU", ""),
    (lib.DMM_HAL_MTU_CHECK, errno.ERANGE): (
        KernelFeatureError,
        f"the device's MTU is above {lib.DMM_XSK_MAX_MTU} bytes, which one frame does not hold",
        "lower the MTU or name another device",
    ),
    (lib.DMM_HAL_XSK_SOCKET, errno.EAFNOSUPPORT): (
        KernelFeatureError,
        "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
        "boot a kernel that is built with it",
    ),
    (lib.DMM_HAL_XSK_SOCKET, errno.EPERM): _NOT_RAW,
    (lib.DMM_HAL_XSK_UMEM, errno.ENOBUFS): (
        DmmError,
        "locked memory is limited (RLIMIT_MEMLOCK)",
        "raise it with 'ulimit -l'",
    ),
    (lib.DMM_HAL_XSK_BIND, errno.EBUSY): (
        ConflictError,
        "another AF_XDP socket is on that queue",
        "stop the program that opened it, or name another device",
    ),
    (lib.DMM_HAL_XSK_BIND, errno.EINVAL): (KernelFeatureError, "the device has no such queue", ""),
    (lib.DMM_HAL_XSK_BIND, errno.ENODEV): (DmmError, "the device is gone", ""),
    (lib.DMM_HAL_XSK_BIND, errno.ENOSPC): (
        KernelFeatureError,
        "the device has too few queues",
        "raise them with 'ethtool -L'",
    ),
    (lib.DMM_HAL_XSK_BIND, errno.EOPNOTSUPP): (
        KernelFeatureError,
        "the device's driver does not support it",
        "name another device",
    ),
    (lib.DMM_HAL_PACKET_SOCKET, errno.EAFNOSUPPORT): (
        KernelFeatureError,
        "this kernel has no packet sockets (CONFIG_PACKET)",
        "",
    ),
    (lib.DMM_HAL_PACKET_SOCKET, errno.EPERM): _NOT_RAW,
}


def hal_error(error: Any, device: str = "") -> DmmError:
    """The sentence for a struct dmm_hal_error; device: whose queue or frames it is about, if
    error does not say.
    """
    plain = (DmmError, os.strerror(error.code), "")
    kind, why, hint = _CAUSES.get((error.call, error.code), plain)
    what = ffi.string(error.what).decode("ascii", "replace")
    return kind(f"{what} of {device}" if device else what, why=why, hint=hint)
