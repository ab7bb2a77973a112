# SPDX-License-Identifier: Apache-2.0
"""Where `dmm-ebpf top` looks: every Resource Director (RD) of the host, or one.

An RD that cannot be asked becomes a note in the snapshot, never an error: top goes on
with the others,
and finds it again when it is back. What a dead one has left pinned is shown meanwhile: its
hooks work on.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Protocol

from dmm_ebpf.errors import DmmError, NotAttachedError
from dmm_ebpf.rd.api import client
from dmm_ebpf.tui.model import Snapshot

TIMEOUT_S = 15.0  # a hundred thousand flows take a third of it


class Source(Protocol):
    """What top needs to know of the world."""

    def poll(self) -> Snapshot:
        """Look now. Called in a thread, one call at a time."""

    def close(self) -> None:
        """Make a poll in progress return soon. Called from another thread; poll is
        not called again.
        """


class RdSource:
    """The RD of one instance, or of all that there are at each look (None)."""

    def __init__(self, instance: str | None) -> None:
        self._instance = instance
        self._clients: dict[str, client.Client] = {}
        self._closed = False

    def poll(self) -> Snapshot:
        """Ask every RD for its flows and stacks."""
        names = client.instances() if self._instance is None else [self._instance]
        for gone in set(self._clients) - set(names):
            self._clients.pop(gone).close()
        flows: list[dict[str, Any]] = []
        stacks: list[dict[str, Any]] = []
        notes = []
        for name in names:
            if self._closed:
                break
            rd = self._clients.setdefault(name, client.Client(name, timeout_s=TIMEOUT_S))
            try:
                # Both or none: a stack's totals must not come from half an answer.
                answers = rd.call("stacks"), rd.call("flows")
            except NotAttachedError as exc:
                if (
                    isinstance(exc, client.NotServingError)
                    or not client.socket_path(name).parent.is_dir()
                ):
                    notes.append(f"{name}: {exc.why}")
                    continue
                try:
                    answers = _left_by(name)
                except DmmError as worse:
                    notes.append(f"{name}: {exc.why}; {worse.why}")
                    continue
                notes.append(f"{name}: {exc.why}; shown from what it left pinned")
            except DmmError as exc:
                notes.append(f"{name}: {exc.why}")
                continue
            for known, answer in zip((stacks, flows), answers, strict=True):
                known.extend(
                    {**row, "instance": row.get("instance", name)}
                    for row in answer
                    if self._instance or not row.get("carrier")  # which lists it, too
                )
        return Snapshot(time.monotonic(), flows, stacks, names, notes)

    def close(self) -> None:
        """Hang up on every RD."""
        self._closed = True
        for rd in list(self._clients.values()):
            rd.abort()


def _left_by(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Stacks and flows of an instance whose RD is dead. Raises DmmError."""
    from dmm_ebpf.rd.life import attaching as service

    status = service.offline_status(name)
    flows = list(service.offline_flows(name))
    counts = Counter(str(flow["stack"]) for flow in flows)
    return [{**stack, "flows": counts[str(stack["name"])]} for stack in status["stacks"]], flows
