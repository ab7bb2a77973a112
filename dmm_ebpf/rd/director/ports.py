# SPDX-License-Identifier: Apache-2.0
"""Which port each NIC of a user stack has, and why: what the policy says, or, with io = "auto",
what the facts of the NIC speak for (hal/choice.py), for as long as the stack runs.

Every process gets by its TAP devices whatever XDP does not take, so a change of port moves all
flows of the NIC at once, open ones too, and loses none: nics[].stack says to XDP whether
process 0 gets its frames by its AF_XDP sockets, and the process is told by what to send. Our
XDP program stands on the NIC only while they do: native XDP may cost others something, a veth's
peer its segmentation offload.

Away from AF_XDP a NIC goes at once; to it only when for BACK_S nothing has spoken against it. With
io = "af_xdp" it goes while the sockets are of no use: its MTU is above what they were opened for,
or they went with a device that was deleted (only a process that starts can open others), or an XDP
program of others has come to the NIC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmm_ebpf import records
from dmm_ebpf.errors import ConflictError, DmmError, KernelFeatureError
from dmm_ebpf.hal import nic as hal_nic
from dmm_ebpf.hal.choice import Choice, Facts, Port, choose
from dmm_ebpf.rd.director import portfacts
from dmm_ebpf.rd.director.nics import Nics
from dmm_ebpf.threads import in_thread
from dmm_ebpf.userstack.spec import NicSpec

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.processes import Process

BACK_S = 5.0
AUTO, AF_XDP, TAP = "auto", "af_xdp", "tap"

log = logging.getLogger("dmm-ebpf")


@dataclass
class NicPort:
    """Of one NIC of a stack. port: empty while nothing is settled; told: what process 0 sends
    by, as far as known; kept_out: why AF_XDP, which the policy names, cannot be had now.
    """

    port: str = ""
    reason: str = ""
    told: str = ""
    kept_out: str = ""
    free_since: float | None = None  # while nothing speaks against AF_XDP

    def wish(self, choice: Choice, now: float) -> str:
        """The port that it is to have at that moment (seconds, of any clock that only grows)."""
        self.reason = choice.reason
        if choice.port != Port.AF_XDP:
            self.free_since = None
            return TAP
        if self.port == TAP:
            self.free_since = now if self.free_since is None else self.free_since
            if now - self.free_since < BACK_S:
                self.reason = f"af_xdp in {BACK_S:.0f} s if it stays so: {choice.reason}"
                return TAP
        return AF_XDP


def facts_of(nics: Iterable[NicSpec]) -> dict[int, Facts]:
    """Those of the NICs that are there, by slot."""
    found = {n.slot: info for n in nics if (info := hal_nic.find(n.ifindex, n.name)) is not None}
    facts = portfacts.gather(found.values())
    return {slot: facts[info.ifindex] for slot, info in found.items()}


class Ports:
    """The ports of one stack's NICs. Lives in the Resource Director's event loop and namespace."""

    def __init__(self, nics: Nics, stack: str, stack_id: int) -> None:
        self._nics = nics
        self._stack = stack
        self._stack_id = stack_id
        self._by_slot: dict[int, NicPort] = {}
        self._open = True
        self.settling = asyncio.Lock()

    def of(self, n: NicSpec) -> NicPort:
        """A NIC's."""
        return self._by_slot.setdefault(n.slot, NicPort())

    def rows(self, nics: Iterable[NicSpec]) -> list[records.stack.PortRow]:
        """For listings."""
        return [records.stack.PortRow(n.name, self.of(n).port, self.of(n).reason) for n in nics]

    def begin(self, n: NicSpec, io: str) -> None:
        """Before the first process is started, or when the NIC was made anew. Raises DmmError where
        the port that the policy names cannot be had.
        """
        if io == AF_XDP:
            self._nics.put_xdp(self._stack, n, explicit=True)
            self._nics.take_xdp(self._stack, self._stack_id, n)
        port = "" if io == AUTO else io
        self._by_slot[n.slot] = NicPort(port, _by_policy(io) if port else "", port)

    def carry_on(self, n: NicSpec) -> None:
        """The NIC is another device now, by which the processes that live go on: not by AF_XDP."""
        self._by_slot[n.slot] = NicPort(TAP)

    def forget_told(self) -> None:
        """Another process 0 is there: it has to be told again."""
        for one in self._by_slot.values():
            one.told = ""

    async def close(self) -> None:
        """No NIC is moved any more."""
        async with self.settling:
            self._open = False

    async def settle(
        self,
        io: str,
        nics: Collection[NicSpec],
        first: Process | None,
        held: Callable[[NicSpec], str],
        *,
        asked: bool,
    ) -> None:
        """Give each NIC the port that it is to have. first: process 0, if it is there; held: what
        other stack has the queues of a NIC, or empty. asked: a policy asks for io just now; then
        DmmError is raised where a port that it names cannot be had. Later such a NIC goes by tap
        for as long as that is so: somebody's XDP program has come there.
        """
        async with self.settling:
            if not self._open:
                return
            facts = await in_thread(facts_of, nics) if io == AUTO else {}
            useless = await in_thread(_useless, nics) if io == AF_XDP else {}
            for n in nics:
                if io == AUTO and n.slot not in facts:
                    continue  # it is not there now
                one = self.of(n)
                if io == AUTO:
                    wish = self._wish(n, one, facts[n.slot], held(n))
                else:
                    one.reason = useless.get(n.slot) or _by_policy(io)
                    wish = TAP if n.slot in useless else io
                try:
                    if wish == AF_XDP:  # each time: somebody may have taken the program off
                        await self.put_xdp(n, io)
                    await self._move(n, one, wish, first)
                    one.kept_out = ""
                except (ConflictError, KernelFeatureError) as error:
                    if asked and io != AUTO:
                        raise
                    one.free_since, one.reason = None, error.why
                    one.kept_out = error.why if io == AF_XDP else ""
                    await self._move(n, one, TAP, first)

    async def put_xdp(self, n: NicSpec, io: str) -> None:
        """See Nics.put_xdp()."""
        await in_thread(self._nics.put_xdp, self._stack, n, explicit=io == AF_XDP)

    def _wish(self, n: NicSpec, one: NicPort, facts: Facts, held: str) -> str:
        choice = choose(facts)
        lacking = _lacking(n, facts, held) if choice.port == Port.AF_XDP else ""
        return one.wish(Choice(Port.TAP, (lacking,)) if lacking else choice, time.monotonic())

    async def _move(self, n: NicSpec, one: NicPort, port: str, first: Process | None) -> None:
        if port == one.port and (port == one.told or first is None):
            return
        if port != AF_XDP:
            self._nics.pass_xdp(self._stack_id, n)
        if first is not None and port != one.told:
            await _tell(first, n, one, port)
        if port != AF_XDP:
            await in_thread(self._nics.leave_xdp, self._stack_id, n)
        else:
            self._nics.take_xdp(self._stack, self._stack_id, n)
        if port != one.port:
            log.info("stack %s is on %s by %s: %s", self._stack, n.name, port, one.reason)
        one.port = port


async def _tell(first: Process, n: NicSpec, one: NicPort, port: str) -> None:
    """Process 0, by what to send. One that has just ended is told when it is up again."""
    with contextlib.suppress(DmmError, OSError):
        await first.send_by(n, port)
        one.told = port


def _by_policy(io: str) -> str:
    return f'the policy says io = "{io}"'


def _lacking(n: NicSpec, facts: Facts, held: str) -> str:
    """Why a NIC that is fit for AF_XDP has it not."""
    if held:
        return f"stack {held} holds its queues"
    return _short(n, facts.mtu) if n.xsk else _none(n)


def _none(n: NicSpec) -> str:
    return f"no AF_XDP sockets: {n.no_xsk or 'the next start of the stack opens them'}"


def _short(n: NicSpec, mtu: int) -> str:
    """Why AF_XDP sockets are no good at that MTU; empty: they are."""
    if mtu <= n.xsk_mtu:
        return ""
    return f"its MTU is {mtu} now, and the AF_XDP sockets were opened for {n.xsk_mtu}"


def _useless(nics: Iterable[NicSpec]) -> dict[int, str]:
    """By slot, why the AF_XDP sockets that a process has, or had, are no good now."""
    found = {n.slot: _none(n) for n in nics if not n.xsk}
    found |= {
        n.slot: _short(n, info.mtu)
        for n in nics
        if n.xsk and n.xsk_mtu and (info := hal_nic.find(n.ifindex, n.name))
    }
    return {slot: why for slot, why in found.items() if why}


def fit_for_sockets(io: str, facts: Facts | None) -> bool:
    """Whether a process that starts is to have AF_XDP sockets on a NIC: where they may be of
    use while it runs.
    """
    if io == AUTO:
        return facts is not None and facts.native_xdp is True and facts.zero_copy is True
    return io == AF_XDP


def shown(rows: Iterable[records.stack.PortRow]) -> str:
    """The ports of a stack in a word."""
    return ",".join(dict.fromkeys(row.port for row in rows if row.port))
