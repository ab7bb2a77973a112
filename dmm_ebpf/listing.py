# SPDX-License-Identifier: Apache-2.0
"""Directories that others may take away while they are listed: what is gone lists as nothing."""

from __future__ import annotations

import os
from pathlib import Path


def entries(folder: Path) -> list[Path]:
    """The paths in a directory, sorted; none when it is not there (any more). Any of them may go
    before it is used.
    Raises OSError for all else: no permission, no directory.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder))  # noqa: PTH208 - one call, which fails as a whole
    except FileNotFoundError:
        return []


def folders(folder: Path) -> list[Path]:
    """Those entries() that are directories themselves."""
    return [path for path in entries(folder) if path.is_dir()]
