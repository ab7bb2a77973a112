# SPDX-License-Identifier: Apache-2.0
"""One user stack of an instance as stacks.py keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dmm_ebpf.rd.director.phase import DRAINING, Phase
from dmm_ebpf.rd.director.ports import AF_XDP, Ports
from dmm_ebpf.rd.director.processes import Process
from dmm_ebpf.rd.director.servednic import Serving
from dmm_ebpf.rd.policy.model import UserStack
from dmm_ebpf.userstack.spec import NicSpec

OTHER_DEVICE = "they were opened for the device that was there before"


@dataclass
class Stack(Serving):
    """Its processes, its NICs, and what the policy says of it."""

    name: str
    stack_id: int
    config: UserStack
    ports: Ports
    nics: list[NicSpec]
    processes: list[Process] = field(default_factory=list)

    @property
    def follows_routes(self) -> bool:
        """Whether its flows may begin on devices by which default routes come to lead: the policy
        names none, and its program is ours, which goes by what frames say of the way (bpf/away.h).
        """
        return not self.config.devices and not self.config.command

    def by_xdp(self, nic: NicSpec) -> bool:
        """See Serving."""
        return self.config.io == AF_XDP and self.ports.of(nic).port == AF_XDP

    def kept_out(self, nic: NicSpec) -> str:
        """See Serving."""
        return self.ports.of(nic).kept_out

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

    def knows(self, nic: NicSpec) -> bool:
        """See Serving."""
        return all(p.knows(nic) for p in self.processes)

    def can_follow(self, nic: NicSpec) -> bool:
        """See Serving: our own program does, if it has served the NIC from its start."""
        return not self.config.command and all(p.serves(nic) for p in self.processes)

    async def follow(self, nics: list[NicSpec]) -> None:
        """See Serving."""
        before = {n.slot: n.ifindex for n in self.nics}
        # AF_XDP sockets belong to the device that was.
        self.nics = [
            n if n.ifindex == before.get(n.slot) else replace(n, xsk=False, no_xsk=OTHER_DEVICE)
            for n in nics
        ]
        for p in self.processes:
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
        """Where process 0 has AF_XDP sockets that are of use."""
        self.nics = [
            replace(
                n, xsk=n.slot in p.zerocopy, xsk_mtu=p.xsk_mtu, no_xsk=p.no_sockets.get(n.slot, "")
            )
            for n in self.nics
        ]

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
