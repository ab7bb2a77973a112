# SPDX-License-Identifier: Apache-2.0
"""What the machine's processors have done, of which all hosts of a laboratory share the same."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """CPU seconds of the whole machine so far, softirqs included (proc(5): /proc/stat)."""
    fields = [
        int(x)
        for x in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    ]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS
