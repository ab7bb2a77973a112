# SPDX-License-Identifier: Apache-2.0
"""Why the kernel refused a map, a program or a link, found by trying: never by its version.

Asked only after a refusal, so that a kernel that has everything is asked nothing. A trial has three
outcomes: yes, no, could not tell; only "no" becomes the cause. Without privileges the kernel
refuses every trial, so those come first.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError, PrivilegeError, run_as_root
from dmm_ebpf.loader import bpf
from dmm_ebpf.loader.bpf import MapType, ProgType

NEEDED = "Linux 6.1 and later have it"
# "unknown func bpf_loop#181" and "invalid func unknown#181" before Linux 6.14
_NO_HELPER = re.compile(r"(?:unknown func|invalid func|cannot use helper) \w+#(\d+)")
# CAP_SYS_ADMIN stands for both.
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_BPF = 12, 21, 39


def capabilities() -> int:
    """The calling thread's effective capabilities as a bit set; 0 where /proc does not tell."""
    try:
        lines = (
            Path("/proc/thread-self/status")
            .read_text(encoding="ascii", errors="replace")
            .splitlines()
        )
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)


def _missing() -> str:
    """The capabilities for bpf(2) that this thread lacks, as text."""
    have = capabilities()
    if have >> _CAP_SYS_ADMIN & 1:
        return ""
    needed = {"CAP_BPF": _CAP_BPF, "CAP_NET_ADMIN": _CAP_NET_ADMIN}
    return " and ".join(name for name, bit in needed.items() if not have >> bit & 1)


def not_permitted(what: str) -> DmmError:
    """The sentence for EPERM from bpf(2)."""
    missing = _missing()
    if missing:
        return PrivilegeError(what, why=f"it needs {missing}", hint=run_as_root())
    return PrivilegeError(
        what,
        why="bpf(2) is not permitted, although this process has the capabilities",
        hint="run it outside containers; look for a security module or kernel lockdown that forbids it",
    )


def refused(what: str, error: OSError) -> DmmError:
    """The sentence for an errno of bpf(2) that has no better one."""
    if error.errno == errno.EPERM:
        return not_permitted(what)
    if error.errno == errno.ENOSYS:
        return KernelFeatureError(what, why="this kernel has no bpf(2)", hint=NEEDED)
    if error.errno == errno.EMFILE:
        return DmmError(what, why=str(error.strerror), hint="let it open more: ulimit -n 4096")
    return DmmError(what, why=str(error.strerror))


def map_refused(what: str, kind: MapType, error: OSError) -> DmmError:
    """Why a map could not be made."""
    if error.errno == errno.EINVAL and not _missing() and bpf.has_map_type(kind) is False:
        return KernelFeatureError(
            what, why=f"this kernel has no BPF maps of type {kind.name.lower()}", hint=NEEDED
        )
    return refused(what, error)


def link_refused(what: str, error: OSError) -> DmmError:
    """Why a program could not be linked."""
    if error.errno == errno.EINVAL and bpf.has_links() is False:
        return KernelFeatureError(what, why="this kernel has no BPF links", hint=NEEDED)
    if error.errno == errno.E2BIG:
        return ConflictError(
            what,
            why="64 programs are attached there, the kernel's limit",
            hint="one instance can serve all below it, by rules for each cgroup",
        )
    return refused(what, error)


def program_lacks(kind: ProgType, log: str) -> str:
    """What a program that the verifier refused needs and this kernel has not, as text; empty:
    nothing, or unknown.

    log: the verifier's, which names a helper that it does not know or does not allow there
    by its number.
    """
    helper = _NO_HELPER.search(log)
    if helper:
        named = bpf.helper_name(int(helper[1]))
        return f"this kernel has no {named} for programs of type {kind.name.lower()}"
    if not log.strip() and not _missing() and bpf.has_prog_type(kind) is False:
        return f"this kernel has no BPF programs of type {kind.name.lower()}"
    return ""
