# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, by proc(5)'s mountinfo. Paths may be any bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    """root: what of its file system is seen at point."""

    root: str
    point: Path


def mounts(kind: str, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """The mounts of file systems of that kind, in the order in which they were made; none where
    it cannot be read.
    """
    try:
        lines = mountinfo.read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        fields, _, tail = line.partition(b" - ")
        if tail.split(b" ", 1)[0] == kind.encode():
            root, point = fields.split(b" ")[3:5]
            found.append(Mount(_unescape(root), Path(_unescape(point))))
    return found


def _unescape(name: bytes) -> str:
    """Space, tab, newline and backslash are octal there."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), name))
