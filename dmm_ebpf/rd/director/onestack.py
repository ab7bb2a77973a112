# SPDX-License-Identifier: Apache-2.0
"""One user stack of an instance as stacks.py keeps it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

from dmm_ebpf.errors import DmmError
from dmm_ebpf.rd.director.nics import Serving
from dmm_ebpf.rd.director.phase import DRAINING, Phase
from dmm_ebpf.rd.director.ports import AF_XDP, Ports
from dmm_ebpf.rd.director.processes import Process
from dmm_ebpf.rd.policy.model import UserStack
from dmm_ebpf.userstack.spec import NicSpec


@dataclass
class Stack(Serving):
    """Its processes, its NICs, and what the policy says of it."""

    name: str
    stack_id: int
    config: UserStack
    ports: Ports
    nics: list[NicSpec]
    processes: list[Process] = field(default_factory=list)

    def by_xdp(self, nic: NicSpec) -> bool:
        """See Serving."""
        return self.config.io == AF_XDP and self.ports.of(nic).port == AF_XDP

    def waits(self) -> bool:
        """See Serving."""
        return any(p.waits for p in self.processes)

    def restart(self, reason: str) -> None:
        """See Serving."""
        for p in self.processes:
            p.supervisor.fail(reason)

    def hurry(self) -> None:
        """See Serving."""
        for p in self.processes:
            if p.waits:
                p.supervisor.hurry()

    async def follow(self, nics: list[NicSpec]) -> None:
        """See Serving."""
        self.nics = nics
        for p in self.processes:
            with contextlib.suppress(DmmError, OSError):
                await p.serve(self.nics)

    def process(self, number: int) -> Process | None:
        """The one of that number, if it is there."""
        return next((p for p in self.processes if p.number == number), None)

    async def take_back(self, nic: NicSpec) -> None:
        """See Serving."""
        await self.ports.put_xdp(nic, self.config.io)

    @property
    def first(self) -> Process | None:
        """Process 0, if it is there; it alone has AF_XDP sockets."""
        return next((p for p in self.processes if p.number == 0 and p.is_up), None)

    def note_sockets(self, p: Process) -> None:
        """Where process 0, which has just come up, has AF_XDP sockets."""
        self.nics = [
            replace(
                n, xsk=n.slot in p.zerocopy, xsk_mtu=p.xsk_mtu, no_xsk=p.no_sockets.get(n.slot, "")
            )
            for n in self.nics
        ]
        self.ports.forget_told()

    @property
    def status(self) -> str:
        """up while any process takes new flows."""
        active = [p for p in self.processes if not p.retiring]
        if not active:
            return DRAINING
        return Phase.UP if any(p.shown == Phase.UP for p in active) else active[0].shown

    @property
    def reason(self) -> str:
        """Why it, or some of its processes, does not serve; empty when all is well."""
        down = [p for p in self.processes if p.reason]
        if len(self.processes) == 1 or not down:
            return down[0].reason if down else ""
        return f"{len(down)} of {len(self.processes)} processes down, {down[0].record.label}: {down[0].reason}"
