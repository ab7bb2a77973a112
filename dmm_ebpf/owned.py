# SPDX-License-Identifier: Apache-2.0
"""Whose a file is that is run with our rights: root's or ours, and nobody else can change
or replace it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def real_path(path: Path) -> Path:
    """The file that its links lead to. Raises OSError, also for links that lead to each other."""
    return Path(os.path.realpath(path, strict=True))


def check_owner(path: Path, refusal: Callable[[str, str], Exception]) -> None:
    """path is there. Raises refusal(why, hint) if the file, or a folder that leads to it or to a
    link to it, may be another's.
    """
    real = real_path(path)
    for one in dict.fromkeys((real, *real.parents, *path.parents)):
        found = one.stat()
        if found.st_uid not in {0, os.geteuid()}:
            why = f"{one} belongs to uid {found.st_uid}, who could change what it does"
            raise refusal(why, "chown it to root")
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & _OTHERS_WRITE and not sticky:
            raise refusal(f"{one} may be written by others than its owner", f"run chmod go-w {one}")
