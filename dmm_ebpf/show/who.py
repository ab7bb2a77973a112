# SPDX-License-Identifier: Apache-2.0
"""Whose a flow is, as tables, filters and the TUI write it."""

from __future__ import annotations

from dmm_ebpf.records.flow import Flow
from dmm_ebpf.show import units


def who(flow: Flow) -> str:
    """The process; of what the host only forwards, the device by which it came in."""
    if flow.kind == "forwarded":
        return f"by {units.clean(flow.in_interface or 'a device that is gone')}"
    return units.process(flow.comm, flow.pid)
