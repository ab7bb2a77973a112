# SPDX-License-Identifier: Apache-2.0
"""BPF programs of others on a cgroup."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmm_ebpf.loader import bpf, bpffs
from dmm_ebpf.loader.bpf import AttachType, ProgType
from lab import Cgroup

ALLOW = bytes.fromhex("b700000001000000 9500000000000000")  # r0 = 1; exit
_KINDS = {
    "connect4": (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT),
    "cgroup_setsockopt": (ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT),
}


@contextmanager
def program_on(group: Cgroup, hook: str, *flags: str) -> Iterator[None]:
    """A program that allows everything, attached by BPF_PROG_ATTACH, as old tools do.

    hook: of _KINDS, as bpftool calls it. flags: of bpftool; none: nobody else may be there.
    """
    kind, attach_type = _KINDS[hook]
    pin = Path(f"{bpffs.ensure()}/{group.path.name.replace('.', '-')}")
    fd = bpf.prog_load("foreign", kind, ALLOW, attach_type=attach_type)
    try:
        bpf.obj_pin(fd, str(pin))
    finally:
        os.close(fd)

    def bpftool(verb: str, *more: str) -> None:
        words = ["bpftool", "cgroup", verb, str(group.path), hook, "pinned", str(pin), *more]
        subprocess.run(words, check=True)

    try:
        bpftool("attach", *flags)
        try:
            yield
        finally:
            bpftool("detach")
    finally:
        pin.unlink()
