# SPDX-License-Identifier: Apache-2.0
"""Where `dmm-ebpf top` looks: every Resource Director (RD) of the host, or one.

An RD that cannot be asked becomes a note in the snapshot, never an error: top goes on
with the others,
and finds it again when it is back. What a dead one has left pinned is shown meanwhile: its
hooks work on.
"""

from __future__ import annotations

import time
from typing import Protocol

from dmm_ebpf.errors import DmmError, NotAttachedError
from dmm_ebpf.rd.api import client
from dmm_ebpf.records.flow import Flow
from dmm_ebpf.records.stack import StackRow
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
        flows: list[Flow] = []
        stacks: list[StackRow] = []
        notes = []
        for name in names:
            if self._closed:
                break
            rd = self._clients.setdefault(name, client.Client(name, timeout_s=TIMEOUT_S))
            try:
                # Both or none: a stack's totals must not come from half an answer.
                answers = rd.stacks(), list(rd.flows())
            except NotAttachedError as error:
                if (
                    isinstance(error, client.NotServingError)
                    or not client.socket_path(name).parent.is_dir()
                ):
                    notes.append(f"{name}: {error.why}")
                    continue
                try:
                    answers = _left_by(name)
                except DmmError as worse:
                    notes.append(f"{name}: {error.why}; {worse.why}")
                    continue
                notes.append(f"{name}: {error.why}; shown from what it left pinned")
            except DmmError as error:
                notes.append(f"{name}: {error.why}")
                continue
            stacks += answers[0]
            # What another instance carries that one lists, too.
            flows += [flow for flow in answers[1] if self._instance or not flow.carrier]
        return Snapshot(time.monotonic(), flows, stacks, names, notes)

    def close(self) -> None:
        """Hang up on every RD."""
        self._closed = True
        for rd in list(self._clients.values()):
            rd.abort()


def _left_by(name: str) -> tuple[list[StackRow], list[Flow]]:
    """Stacks and flows of an instance whose RD is dead. Raises DmmError."""
    from dmm_ebpf.rd.life import attaching as service

    return service.offline_status(name).stacks, service.offline_flows(name)
