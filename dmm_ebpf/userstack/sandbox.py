# SPDX-License-Identifier: Apache-2.0
"""What a stack process gives up before it reads its first packet.

All capabilities including the bounding set, its user and groups, the right to gain privileges by execve(2),
core dumps and being traced. It keeps what it has open: TUN device, AF_XDP sockets, the map of flows,
netlink sockets, its control socket. Limits keep a bug from eating the host.
"""

from __future__ import annotations

import os
import pwd
import resource

from dmm_ebpf.errors import PrivilegeError
from dmm_ebpf.userstack._core import ffi, lib

_NOBODY = 65534
_MAX_DESCRIPTORS = 1024
_SPARE_BYTES = 2 << 30  # address space for code, stacks, thread arenas and UMEM mappings, besides payload


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return _NOBODY, _NOBODY
    return entry.pw_uid, entry.pw_gid


def limit_resources(memory_bytes: int) -> None:
    """RLIMITs: no core file, no file growth but the log's, few descriptors, address space for payload and
    some.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    limit = memory_bytes * 2 + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def drop_privileges() -> bool:
    """For good; while the process has one thread. False: no capability is left, but the user ids could not
    be changed.

    Raises PrivilegeError when anything else cannot be given up; the process must then end.
    """
    error = ffi.new("struct dmm_hal_error *")
    uid, gid = _nobody()
    ret = lib.dmm_privileges_drop(uid, gid, error)
    if ret < 0:
        raise PrivilegeError(ffi.string(error.what).decode(), why=os.strerror(error.code))
    return bool(ret)
