# SPDX-License-Identifier: Apache-2.0
"""Who a process is, as /proc/PID/status tells it (proc_pid_status(5))."""

from __future__ import annotations

import re


def real_uid(status: bytes) -> int | None:
    """The real uid, which is what rules look at; None: the text has none."""
    return _first_id(b"Uid", status)


def real_gid(status: bytes) -> int | None:
    """Likewise of the process's own group."""
    return _first_id(b"Gid", status)


def _first_id(line: bytes, status: bytes) -> int | None:
    match = re.search(rb"^%b:\s*([0-9]+)" % line, status, re.MULTILINE)
    return int(match[1]) if match else None
