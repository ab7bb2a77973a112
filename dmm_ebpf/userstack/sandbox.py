# SPDX-License-Identifier: Apache-2.0
"""What a stack process gives up before it reads its first packet.

First, while it has one thread: all capabilities including the bounding set, its user and groups,
the right to gain privileges by execve(2), core dumps, being traced, and with Landlock, where the
kernel has it, every file. Then, when
all its threads are there: every system call that a packet loop does not need. It keeps what it has
open: TAP devices, AF_XDP or packet sockets, its control socket, its log. Limits keep a bug from
eating the host.

The user is the process's own: a number above every range that is given to people, services and
containers, and that no other live process of its pid namespace has, since it is made of the pid. So
one stack process can neither signal nor trace another, whatever else should fail.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from dmm_ebpf.errors import DmmError, PrivilegeError
from dmm_ebpf.userstack._core import ffi, lib
from dmm_ebpf.userstack.pidfile import uid_of

MAX_PROCESSES = 8  # threads, and what the kernel counts as such; it has two, and one of a plug-in

_ALONE_S = 5.0
_MAX_DESCRIPTORS = 1024
_SPARE_BYTES = (
    2 << 30
)  # address space for code, stacks, thread arenas and UMEM mappings, besides payload


@dataclass(frozen=True)
class Confinement:
    """How far it went. uid is the process's; landlock the kernel's version, 0: it has none."""

    uid: int
    # False: the user namespace does not know the number; no capability is left all the same
    own_user: bool
    landlock: int


def limit_resources(memory_bytes: int) -> None:
    """RLIMITs: no core file, no file growth but the log's, few descriptors, address space for
    payload and some.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    limit = memory_bytes * 2 + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _checked(ret: int, error: object) -> int:
    if ret < 0:
        raise PrivilegeError(
            ffi.string(error.what).decode(),  # type: ignore[attr-defined]
            why=os.strerror(error.code),  # type: ignore[attr-defined]
        )
    return ret


def _be_alone() -> None:
    """Waits for threads that have been joined: the kernel ends them a little later. Raises
    DmmError when one stays.
    """
    deadline = time.monotonic() + _ALONE_S
    while (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        if time.monotonic() > deadline:
            raise DmmError(
                "give up all privileges", why=f"the process has {threads} threads already"
            )
        time.sleep(0.001)


def drop_privileges() -> Confinement:
    """For good; while the process has one thread. Raises DmmError when anything cannot be given up;
    the process must then end.
    """
    _be_alone()
    error = ffi.new("struct dmm_hal_error *")
    uid = uid_of(os.getpid())
    own_user = bool(_checked(lib.dmm_privileges_drop(uid, uid, error), error))
    if own_user:
        # For a user that others have too it would count theirs.
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    return Confinement(os.getuid(), own_user, _checked(lib.dmm_landlock_apply(error), error))


def seal() -> None:
    """The last step, for all threads: the system calls that are left. Raises
    PrivilegeError as above.
    """
    error = ffi.new("struct dmm_hal_error *")
    _checked(lib.dmm_seccomp_apply(error), error)
