# SPDX-License-Identifier: Apache-2.0
"""What tests of top have: flows, stacks, and a source of ours that is asked for them."""

from __future__ import annotations

from typing import Any

from dmm_ebpf.records.flow import Flow
from dmm_ebpf.records.stack import StackRow
from dmm_ebpf.tui.model import Snapshot


def flow(cookie: int, **fields: Any) -> Flow:
    """A flow as the Resource Director describes it."""
    said = {
        "instance": "default",
        "kind": "socket",
        "proto": "tcp",
        "src": "192.0.2.1",
        "sport": 40000 + cookie,
        "dst": f"203.0.113.{cookie}",
        "dport": 443,
        "direction": "connect",
        "stack": "kernel",
        "wanted": "kernel",
        "why": "",
        "generation": 1,
        "table": "shop",
        "rule": "1",
        "route": "203.0.113.0/24",
        "state": "ESTABLISHED",
        "pid": 1000 + cookie,
        "comm": f"app{cookie}",
        "uid": 0,
        "cgroup": "/shop.slice",
        "bytes_sent": 0,
        "bytes_received": 0,
        "srtt_us": 1000 * cookie,
        "retransmits": 0,
        "cookie": cookie,
        "age_s": 60.0,
    } | fields
    return Flow.from_map(said)


STACKS = [
    StackRow("default", "kernel", 0, "kernel", "up"),
    StackRow("default", "wan", 1, "user", "down"),
]


class ScriptedSource:
    """Gives the snapshots it was made with, the last one for ever; an exception is raised."""

    def __init__(self, *looks: Snapshot | Exception) -> None:
        self.looks = list(looks)
        self.polled = 0
        self.closed = False

    def poll(self) -> Snapshot:
        look = self.looks[min(self.polled, len(self.looks) - 1)]
        self.polled += 1
        if isinstance(look, Exception):
            raise look
        return look

    def close(self) -> None:
        self.closed = True


def snapshot(time_s: float, *flows: Flow, **fields: Any) -> Snapshot:
    """A look at one instance."""
    return Snapshot(
        time_s, list(flows), fields.get("stacks", STACKS), ["default"], fields.get("notes", [])
    )
