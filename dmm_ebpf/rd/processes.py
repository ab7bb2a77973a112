# SPDX-License-Identifier: Apache-2.0
"""One process of a user stack, and everything between an app's socket and its TUN device.

Each process has a number k of its own in the namespace: mark, rule, table and TUN device. So a socket's mark says
which process of a stack carries it, for as long as it lives, and the death of one concerns no flow of another.
Process 0 has the AF_XDP sockets on the stack's NICs; each other one has a TAP device for every NIC (hal/tapnic.h).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal import nic, procgroup, sockdiag, tcfilter, tuning
from dmm_ebpf.hal.routes import RouteMirror, StackNumbers
from dmm_ebpf.loader import Attached, Map
from dmm_ebpf.loader.cgroup import find_cgroup2
from dmm_ebpf.rd import endflows, load, standing
from dmm_ebpf.rd.guard import Item
from dmm_ebpf.rd.nics import DeviceGoneError
from dmm_ebpf.rd.rundir import StackState
from dmm_ebpf.rd.steps import Steps
from dmm_ebpf.threads import in_thread
from dmm_ebpf.userstack.supervisor import NicSpec, StackSpec, StackSupervisor, kill_process

C = abi.C
MARK_BASE = 0x0DD00000
MARK_MASK = 0x0FF00000

log = logging.getLogger("dmm-ebpf")


def numbers_of(k: int) -> StackNumbers:
    """What process number k of the namespace owns there."""
    return StackNumbers(k, MARK_BASE, MARK_MASK)


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
        """renew makes the spec of the next process, in a thread. save keeps the record. changed is called when status
        has become "up" or "down", not for a stop() that was asked for; what it raises for "up" ends the process.
        """
        self.record = record
        self.retiring = False  # carries its flows to their end, and gets no new one
        self.status = "starting"
        self.reason = ""
        self.restarts = 0
        self.waits = False  # cannot be started for want of a device
        self.supervisor = StackSupervisor(spec, renew=self._renewed, on_up=self._on_up, on_down=self._on_down)
        self._renew = renew
        self._attached = attached
        self._save = save
        self._changed = changed
        self._mirror: RouteMirror | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def number(self) -> int:
        """Among the stack's processes, from 0."""
        return self.record.process

    @property
    def hung(self) -> bool:
        """It has not run for a while, though it is up: the hooks give it no new flow."""
        record = self.record
        return self.status == "up" and load.hung(
            self._attached.maps["stack_load"], record.stack_id, record.process
        )

    @property
    def pid(self) -> int:
        """0: there is none now."""
        return self.record.pid if self.status == "up" else 0

    @property
    def mark(self) -> int:
        """The SO_MARK bits of the sockets it serves."""
        return numbers_of(self.record.k).mark

    async def start(self) -> None:
        """Adopt the process that the record names, or start one, and wait until it serves. Raises DmmError."""
        record = self.record
        if record.pid:
            if await self.supervisor.adopt(record.pid, record.start_time):
                return
            await in_thread(kill_process, record.pid, record.start_time)
            record.pid = 0
            await in_thread(end_flows, self._attached.maps["xdp_flows"], record)
        await self.supervisor.start()

    async def stop(self) -> None:
        """End the process, reset its flows, and take away what led to it."""
        self.status = "stopping"
        steps = Steps(f"stop stack {self.record.label}")
        await steps.wait("its process", self.supervisor.stop())
        if self._ending is not None:
            await steps.wait("its old flows", self._ending)
        await steps.wait("its flows", self._end_flows(asyncio.get_running_loop().create_future()))
        steps.do("its devices", self._tell_taps)
        steps.do("its routes", self._lead_out)
        steps.do("its numbers", lambda: numbers_of(self.record.k).remove())
        steps.finish()

    def _lead_out(self) -> None:
        if self._mirror is not None:
            asyncio.get_running_loop().remove_reader(self._mirror.fileno())
            self._mirror.close()
            self._mirror = None

    def standing(self) -> list[Item]:
        """What has to stand on the host while the process is up."""
        if self.status != "up" or self._mirror is None:
            return []
        label, tun = self.record.label, self.record.tun
        return [
            *(standing.StackDevice(label, name) for name in self.supervisor.spec.devices()),
            standing.Ingress(label, tun, self._attached.ingress_fd()),
            standing.Mirror(label, self._mirror),
        ]

    @property
    def shown(self) -> str:
        """The status as listings say it."""
        if self.hung:
            return "hung"
        return "draining" if self.retiring and self.status == "up" else self.status

    def describe(self) -> dict[str, Any]:
        """For `dmm-ebpf stacks`."""
        return {
            "process": self.number,
            "state": self.shown,
            "reason": self.reason,
            "pid": self.pid or None,
            "restarts": self.restarts,
            "tun": self.record.tun,
            "mark": f"{self.mark:#x}/{MARK_MASK:#x}",
            "limits": self._limits(),
        }

    def _limits(self) -> dict[str, Any]:
        """What keeps the process from eating the host: its cgroup's limits, and why one is missing."""
        group = Path(self.supervisor.spec.cgroup)
        granted = procgroup.granted(group)
        return {
            "cgroup": str(group),
            "memory_bytes": granted.memory_bytes,
            "processes": granted.processes,
            "missing": self.supervisor.no_group or granted.missing,
        }

    def _on_up(self, info: Mapping[str, Any]) -> None:
        self.record.pid, self.record.start_time = int(info["pid"]), int(info["start_time"])
        self._save()
        self.status, self.reason = "up", ""
        try:
            self._lead_in()
            self._changed(self)
        except (DmmError, OSError) as e:
            self.status, self.reason = "down", str(e)
            raise

    def _renewed(self) -> StackSpec:
        try:
            spec = self._renew()
        except DeviceGoneError:
            self.waits = True
            raise
        self.waits = False
        return spec

    def serve(self, nics: Sequence[NicSpec]) -> None:
        """The NICs have other names now."""
        self.record.nics = [n.name for n in nics]
        self._save()
        if self._mirror is not None:
            self._mirror.serve(self.record.nics)

    def _lead_in(self) -> None:
        numbers = numbers_of(self.record.k)
        ifindex = socket.if_nametoindex(self.record.tun)
        tuning.prepare_tun(self.record.tun)
        record = self.record
        mark = abi.pack(
            abi.new(
                "dmm_tun_mark",
                mark=numbers.mark,
                mask=MARK_MASK,
                stack=record.stack_id,
                tap=record.tap,
                process=record.process,
            )
        )
        load.begin(self._attached.maps["stack_load"], record.stack_id, record.process)
        self._attached.maps["tun_marks"].update(struct.pack("=I", ifindex), mark)
        self._tell_taps()
        tcfilter.attach(ifindex, self._attached.ingress_fd())
        if self._mirror is None:
            self._mirror = RouteMirror(numbers, self.record.nics)
            asyncio.get_running_loop().add_reader(self._mirror.fileno(), self._mirror_ready)
        self._mirror.serve(self.record.nics)
        self._mirror.sync()

    def _tell_taps(self) -> None:
        """Where the tc program on the NICs finds the process. Its devices are gone when it is down."""
        spec = self.supervisor.spec
        if spec.port != "tap":
            return
        for n in spec.nics:
            ifindex = (nic.ifindex_of(spec.tap_device(n)) or 0) if self.status == "up" else 0
            key = struct.pack("=I", (spec.tap - 1) * C.DMM_MAX_NICS + n.slot)
            self._attached.maps["tap_devs"].update(key, struct.pack("=I", ifindex))

    def _mirror_ready(self) -> None:
        if self._mirror is None:
            return
        try:
            self._mirror.handle_events()
        except (DmmError, OSError) as e:
            log.warning("stack %s: the routing mirror is behind: %s", self.record.label, e)

    def _on_down(self, reason: str) -> Awaitable[Any]:
        """What the next process must wait for: nothing that the dead one owned may be taken for its own."""
        self.status, self.reason = "down", reason
        self._tell_taps()
        self.record.pid = 0
        self.restarts += 1
        # First, so that no new flow is given to it while the old ones are reset.
        self._changed(self)
        self._save()
        loop = asyncio.get_running_loop()
        disowned = loop.create_future()
        self._ending = loop.create_task(self._end_flows(disowned))
        return disowned

    async def _end_flows(self, disowned: asyncio.Future[None]) -> None:
        """In a thread: with a hundred thousand flows it takes a second or more."""
        label = self.record.label
        try:
            owned, sockets = await asyncio.to_thread(
                endflows.disown, self._attached.maps["xdp_flows"], self.record, self.mark, MARK_MASK
            )
            disowned.set_result(None)
            await asyncio.to_thread(sockdiag.destroy, sockets)
            if owned:
                log.info("stack %s: %d flows that it carried are reset", label, owned)
        except DmmError as e:
            log.error("stack %s: its flows could not all be reset: %s", label, e)
        finally:
            if not disowned.done():
                disowned.set_result(None)


def end_flows(xdp_flows: Map, record: StackState) -> int:
    """Reset what a process that is gone has carried, and delete its XDP entries; returns how many there were."""
    owned, sockets = endflows.disown(xdp_flows, record, numbers_of(record.k).mark, MARK_MASK)
    sockdiag.destroy(sockets)
    return owned


def end_all_flows(xdp_flows: Map, ks: Iterable[int]) -> int:
    """The same for all processes of an instance, whose numbers are ks."""
    owned, sockets = endflows.disown_all(xdp_flows, [numbers_of(k).mark for k in ks], MARK_MASK)
    sockdiag.destroy(sockets)
    return owned
