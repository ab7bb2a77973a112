# SPDX-License-Identifier: Apache-2.0
"""The file that a process executes, as a program in the kernel sees it: inode number and device
number of its file system (i_ino, s_dev).

stat(2) does not always tell these: btrfs and overlayfs make up device numbers, to tell apart what
the kernel keeps in one file system. What an open file has is told by its fdinfo (proc(5)), and the
device number of its mount by mountinfo.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple

_MINOR_BITS = 20  # of a device number in the kernel, include/linux/kdev_t.h
_MAX_LINKS = 40  # MAXSYMLINKS, include/linux/namei.h
_OF_PROCESS = re.compile(r"/proc/(\d+)/")
_MAX_SCRIPT_LINE = 256  # BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h


class ExeFile(NamedTuple):
    """A file: device (major << 20 | minor), and inode number."""

    device: int
    inode: int


def identify(path: str | Path) -> ExeFile | None:
    """What is executed by that path now; None: no file is there, or none that may be looked at.
    One below /proc/PID/root is that process's, which may have other mounts.
    """
    of = _OF_PROCESS.match(str(path))
    with suppress(OSError):
        return _identify(path, of[1] if of else "self")
    return None


def of_process(pid: int) -> ExeFile | None:
    """What a process executes, also if nothing has that path any more; None: it has ended, or is a
    thread of the kernel's.
    """
    with suppress(OSError):
        return _identify(f"/proc/{pid}/exe", str(pid))
    return None


def _identify(path: str | Path, mounts_of: str) -> ExeFile | None:
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        said = os.fstat(file)
        if not stat.S_ISREG(said.st_mode):
            return None
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/self/fdinfo/{file}").read_text().splitlines()
        )
        device = _device(int(fields["mnt_id"]), said.st_dev, mounts_of)
        # Linux 5.14 and later tell it
        return ExeFile(device, int(fields.get("ino", said.st_ino)))
    finally:
        os.close(file)


@functools.lru_cache(maxsize=256)
def _device(mount: int, st_dev: int, mounts_of: str) -> int:
    """The device number of the file system that is mounted there; st_dev: what stat says, for a
    mount that is not listed, and so that another one of that number is not taken for it.
    """
    for line in Path(f"/proc/{mounts_of}/mountinfo").read_bytes().splitlines():
        number, _, device, _ = line.split(b" ", 3)
        if int(number) == mount:
            major, minor = map(int, device.split(b":"))
            return major << _MINOR_BITS | minor
    return os.major(st_dev) << _MINOR_BITS | os.minor(st_dev)


def way(path: str) -> Iterator[tuple[Path, bytes]]:
    """The entries of directories that lead to a file, symbolic links followed, from the root down:
    (directory, name). Whoever makes, removes or replaces one may change which file the path is.
    """
    at, links = Path("/"), 0
    left = list(reversed(PurePath(path).parts[1:]))
    while left:
        name = left.pop()
        if name == "..":
            at = at.parent
            continue
        yield at, os.fsencode(name)
        try:
            target = PurePath((at / name).readlink())
        except OSError:  # no link, or not there
            at /= name
            continue
        links += 1
        if links > _MAX_LINKS:
            return
        if target.is_absolute():
            at = Path("/")
        left += reversed([part for part in target.parts if part != "/"])


def interpreter(path: str) -> str | None:
    """What the kernel executes in place of a script (`#!`); None: it is none, or cannot be read."""
    with suppress(OSError, UnicodeDecodeError), Path(path).open("rb") as file:
        line = file.readline(_MAX_SCRIPT_LINE)
        words = line[2:].decode().split()
        return words[0] if line.startswith(b"#!") and words else None
    return None
