# SPDX-License-Identifier: Apache-2.0
"""What a start has no use for, and would take a tenth of its time, or more, to import."""

from __future__ import annotations

HEAVY = (
    "pydantic",
    "pyroute2",
    "textual",
    "rich",
    "bcc",
    "dns",
    "cffi",
    "pycparser",
    "watchfiles",
    "_ssl",
    "importlib.metadata",
    *(f"dmm_ebpf.records.{part}" for part in ("event", "flow", "policy", "stack", "status")),
)
