# SPDX-License-Identifier: Apache-2.0
"""What an instance may be called: its name is a directory below /run and one in bpffs, which
takes no dots.
"""

from __future__ import annotations

import re

from dmm_ebpf.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def is_name(text: str) -> bool:
    """Whether an instance can be called so."""
    return _NAME.fullmatch(text) is not None


def check_name(instance: str) -> str:
    """instance, if an instance can be called so; UsageError if not."""
    if not is_name(instance):
        raise UsageError(
            f"use the instance name {instance!r}",
            why="a name is 1 to 32 of A-Z a-z 0-9 _ - and begins with a letter or digit",
        )
    return instance
