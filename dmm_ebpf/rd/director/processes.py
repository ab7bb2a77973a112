# SPDX-License-Identifier: Apache-2.0
"""One process of a user stack, and what leads from an app's packets to it.

Each process has a number k of its own in the namespace, by which its devices are named, and its
seat, k + 1, in the
maps: so the death of one concerns no flow of another. For every NIC it has a TAP device for the
inner leg (bpf/tcout.h, bpf/ingress.h) and one for the outer leg (bpf/tcin.h, hal/tapnic.h). Process
0 may have AF_XDP sockets besides, and uses them where ports.py says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dmm_ebpf import abi, records
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import nic, procgroup, stackdevice, tcfilter
from dmm_ebpf.loader import Attached, Maps
from dmm_ebpf.loader.cgroup import find_cgroup2
from dmm_ebpf.rd.director import endflows, load, standing
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.nics import DeviceGoneError, known_of
from dmm_ebpf.rd.director.phase import DRAINING, HUNG, Phase, move
from dmm_ebpf.rd.director.rundir import StackState
from dmm_ebpf.rd.director.steps import Steps
from dmm_ebpf.threads import in_thread
from dmm_ebpf.userstack.supervisor import NicSpec, StackSpec, StackSupervisor, kill_process

C = abi.C
ORPHANS_S = 300.0  # as long as a peer, or an app, may take to send again (RFC 9293: R2)
log = logging.getLogger("dmm-ebpf")


def group_of(instance: str, record: StackState) -> Path:
    """The directory of a process's own cgroup."""
    return procgroup.path_of(find_cgroup2(), instance, record.label)


class Process:
    """Starts, follows and stops one process. Lives in the RD's event loop and namespace."""

    def __init__(
        self,
        record: StackState,
        spec: StackSpec,
        attached: Attached,
        *,
        renew: Callable[[], StackSpec],
        save: Callable[[], None],
        changed: Callable[[Process], None],
    ) -> None:
        """renew makes the spec of the next process, in a thread. save keeps the record. changed is
        called when phase has become UP or DOWN, not for a stop() that was asked for; what it raises
        for UP ends the process.
        """
        self.record = record
        self.retiring = False  # carries its flows to their end, and gets no new one
        self.phase = Phase.STARTING
        self.reason = ""  # of what is not as it should be
        self.restarts = 0
        self.sums: Mapping[
            int, bool
        ] = {}  # by slot: whether checksums are left to what takes its frames
        self.zerocopy: Mapping[int, bool] = {}  # by slot of a NIC where it has AF_XDP sockets,
        self.waits = False  # cannot be started for want of a device
        self.xsk_mtu = 0  # for packets of that length
        self.no_sockets: dict[int, str] = {}  # why it has none where it was to have some
        # Slots where it had some at its start, or when it was adopted
        self.began_with: frozenset[int] = frozenset()
        self._told: dict[int, NicSpec] = {}  # by slot, what it has been told of its NICs
        self.supervisor = StackSupervisor(
            spec, renew=self._renewed, on_up=self._on_up, on_down=self._on_down
        )
        self._renew = renew
        self._attached = attached
        self._save = save
        self._changed = changed
        self._ending: asyncio.Task[None] | None = None
        self._orphans: asyncio.TimerHandle | None = None

    def _become(self, phase: Phase, reason: str = "") -> None:
        self.phase = move(self.record.label, self.phase, phase, reason)
        self.reason = reason

    @property
    def _stopping(self) -> bool:
        return self.phase is Phase.STOPPING

    @property
    def is_up(self) -> bool:
        """It serves; it may hang, and it may be on its way out."""
        return self.phase is Phase.UP

    @property
    def number(self) -> int:
        """Among the stack's processes, from 0."""
        return self.record.process

    @property
    def hung(self) -> bool:
        """It has not run for a while, though it is up: the hooks give it no new flow."""
        record = self.record
        return self.is_up and load.hung(
            self._attached.maps.stack_load, record.stack_id, record.process
        )

    @property
    def pid(self) -> int:
        """0: there is none now."""
        return self.record.pid if self.is_up else 0

    async def start(self) -> None:
        """Adopt the process that the record names, or start one, and wait until it
        serves. Raises DmmError.
        """
        record = self.record
        if record.pid:
            if await self.supervisor.adopt(record.pid, record.start_time):
                self._told = {}  # by whom was here before, of how it was then
                return
            await in_thread(kill_process, record.pid, record.start_time)
            record.pid = 0
            await in_thread(partial(end_flows, self._attached.maps, record, heir=True))
        await self.supervisor.start()
        self._let_orphans_go()

    async def stop(self) -> None:
        """End the process, reset its flows, and take away what led to it."""
        self._become(Phase.STOPPING)
        steps = Steps(f"stop stack {self.record.label}")
        await steps.wait("its process", self.supervisor.stop())
        if self._ending is not None:
            await steps.wait("its old flows", self._ending)
        await steps.wait("its flows", self._end_flows(asyncio.get_running_loop().create_future()))
        steps.do("its places in the maps", self._lead_out)
        steps.do("its devices", lambda: stackdevice.remove_all(self.record.k))
        steps.finish()

    def standing(self) -> list[Item]:
        """What has to stand on the host while the process is up."""
        if not self.is_up:
            return []
        label, spec = self.record.label, self.supervisor.spec
        return [
            *(standing.StackDevice(label, name) for name in spec.devices()),
            *(
                standing.Ingress(label, name, self._attached.ingress_fd())
                for name in spec.devices()
            ),
        ]

    @property
    def shown(self) -> str:
        """The phase as listings say it."""
        if self.hung:
            return HUNG
        return DRAINING if self.retiring and self.is_up else self.phase

    def describe(
        self, full: list[str], stats: Mapping[str, Any] | None
    ) -> records.stack.ProcessRow:
        """For `dmm-ebpf stacks`. full: of what; stats: what it has said of itself, if it has."""
        return records.stack.ProcessRow(
            process=self.number,
            state=self.shown,
            reason=self.reason,
            pid=self.pid or None,
            restarts=self.restarts,
            device=self.record.device,
            limits=self._limits(),
            full=full,
            **load.process_figures(stats),
        )

    def _limits(self) -> records.stack.Limits:
        """Of its cgroup."""
        group = Path(self.supervisor.spec.cgroup)
        granted = procgroup.granted(group)
        return records.stack.Limits(
            str(group),
            granted.memory_bytes,
            granted.processes,
            self.supervisor.no_group or granted.missing,
        )

    def _on_up(self, info: Mapping[str, Any]) -> None:
        self.record.pid, self.record.start_time = int(info["pid"]), int(info["start_time"])
        self._note(info)
        self.began_with = frozenset(self.zerocopy)
        self._told = {n.slot: n for n in self.supervisor.spec.nics}
        self._save()
        self._become(Phase.UP)
        try:
            self._lead_in()
            self._changed(self)
        except (DmmError, OSError) as error:
            self._become(Phase.DOWN, str(error))
            raise

    def _note(self, info: Mapping[str, Any]) -> None:
        self.zerocopy = {int(slot): done for slot, done in info["zerocopy"].items()}
        self.sums = {int(slot): done for slot, done in info["sums"].items()}
        self.xsk_mtu = int(info["xsk_mtu"])
        self.no_sockets = {int(slot): why for slot, why in info["no_sockets"].items()}

    async def look_at_sockets(self) -> None:
        """Which of its AF_XDP sockets are of use now. Raises DmmError."""
        self._note(await self.supervisor.query("ping"))

    def lost_sockets(self) -> frozenset[int]:
        """Slots where it has lost those that it began with."""
        return self.began_with - self.zerocopy.keys()

    async def is_idle(self) -> bool:
        """Whether nobody would miss it: see dmm_core_in_use(). Raises DmmError."""
        return not (await self.supervisor.query("stats"))["in_use"]

    def _renewed(self) -> StackSpec:
        try:
            spec = self._renew()
        except DeviceGoneError:
            self.waits = True
            raise
        self.waits = False
        return spec

    def serves(self, n: NicSpec) -> bool:
        """Whether it has devices for that NIC: it was there when the process started. One that
        does not live begins with the NICs of its time.
        """
        return not self.is_up or nic.ifindex_of(self.supervisor.spec.inner_device(n)) is not None

    def knows(self, n: NicSpec) -> bool:
        """Whether it has been told what that NIC is now, so far as it serves it."""
        if not self.is_up or not self.serves(n):
            return True
        told = self._told.get(n.slot)
        return told is not None and known_of(told) == known_of(n)

    async def serve(self, nics: Sequence[NicSpec]) -> None:
        """The NICs have other names, MTUs or addresses now, or are other devices. What it could not
        be told, knows() says.
        """
        self.record.nics = [n.name for n in nics]
        self._save()
        for n in nics:
            if self.knows(n):
                continue
            self._lead_in_by(n)
            change = {"mtu": n.mtu, "ifindex": n.ifindex, "mac": n.mac.hex()}
            try:
                await self.supervisor.query("configure", slot=n.slot, **change)
            except (DmmError, OSError) as error:
                log.warning(
                    "stack %s does not know yet what %s is: %s", self.record.label, n.name, error
                )
                continue
            self._told[n.slot] = n
        spec = self.supervisor.spec
        self.supervisor.spec = replace(spec, nics=[self._as_told(n) for n in spec.nics])

    def _as_told(self, n: NicSpec) -> NicSpec:
        now = self._told.get(n.slot, n)
        return replace(n, ifindex=now.ifindex, name=now.name, mtu=now.mtu, mac=now.mac)

    async def send_by(self, n: NicSpec, port: str) -> None:
        """Packets to that NIC go by that port from now on. Raises DmmError."""
        await self.supervisor.query("configure", slot=n.slot, port=port)

    def _lead_in(self) -> None:
        record, maps, spec = self.record, self._attached.maps, self.supervisor.spec
        load.begin(maps.stack_load, record.stack_id, record.process)
        for n in spec.nics:
            inner, outer = self._lead_in_by(n)
            for device in filter(None, (inner, outer)):
                tcfilter.attach(device, self._attached.ingress_fd())
            if inner:
                maps.inner_devs[self._place(n)] = inner
                maps.outer_devs[self._place(n)] = outer

    def _lead_in_by(self, n: NicSpec) -> tuple[int, int]:
        """What it sends to apps comes in by that NIC from now on; the ifindices of its devices for
        both legs, 0 for one that is not there.
        """
        record, spec = self.record, self.supervisor.spec
        inner, outer = (
            nic.ifindex_of(name) or 0 for name in (spec.inner_device(n), spec.outer_device(n))
        )
        for device in filter(None, (inner, outer)):
            self._attached.maps.seats[device] = abi.new(
                "dmm_seat",
                stack=record.stack_id,
                process=record.process,
                seat=record.seat,
                nic=n.ifindex,
                home=n.slot + 1,
                outer=device == outer,
            )
        return inner, outer

    def _lead_out(self) -> None:
        """Its devices go with it, or are gone."""
        record, maps = self.record, self._attached.maps
        for n in self.supervisor.spec.nics:
            maps.inner_devs[self._place(n)] = 0
            maps.outer_devs[self._place(n)] = 0
        for inner in maps.seats.where(seat=record.seat):
            maps.seats.delete(inner)

    def _place(self, n: NicSpec) -> int:
        """In inner_devs and outer_devs."""
        return int((self.record.seat - 1) * C.DMM_MAX_NICS + n.slot)

    def _on_down(self, reason: str) -> Awaitable[Any]:
        """What the next process must wait for: nothing that the dead one owned may be taken
        for its own.
        """
        self._become(Phase.DOWN, reason)
        self.record.pid = 0
        self.restarts += 1
        # First, so that no new flow is given to it while the old ones are reset.
        self._changed(self)
        self._lead_out()
        self._save()
        loop = asyncio.get_running_loop()
        disowned = loop.create_future()
        self._ending = loop.create_task(self._end_flows(disowned))
        return disowned

    async def _end_flows(self, disowned: asyncio.Future[None]) -> None:
        """In a thread: with a hundred thousand flows it takes a second or more. Until they are
        reset they stay the process's, so that nothing of them gets to their peers, which know
        other sequence numbers.
        """
        label = self.record.label
        try:
            ending = partial(end_flows, self._attached.maps, self.record, heir=not self._stopping)
            owned = await asyncio.to_thread(ending)
            if owned:
                log.info("stack %s: %d flows that it carried are reset", label, owned)
        except DmmError as error:
            log.error("stack %s: its flows could not all be reset: %s", label, error)
        finally:
            if not disowned.done():  # who waited for it may have been called off
                disowned.set_result(None)
        self._let_orphans_go()

    def _let_orphans_go(self) -> None:
        """In a while: who has sent nothing until then is not reset any more."""
        if self._orphans is not None:
            self._orphans.cancel()
        if not self._stopping:
            loop = asyncio.get_running_loop()
            self._orphans = loop.call_later(
                ORPHANS_S,
                lambda: loop.run_in_executor(
                    None, endflows.end_orphans, self._attached.maps, self.record
                ),
            )


def end_flows(maps: Maps, record: StackState, *, heir: bool = False) -> int:
    """Reset what a process that is gone has carried, and delete its entries in xdp_flows; returns
    how many there were. heir: see endflows.end().
    """
    return endflows.end(
        maps, endflows.owned_by(maps, record), endflows.served_by(maps, record), heir=heir
    )


def end_all_flows(maps: Maps) -> int:
    """The same for all processes of an instance."""
    return endflows.end(maps, endflows.owned_by(maps), endflows.served_by(maps))
