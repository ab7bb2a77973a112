# SPDX-License-Identifier: Apache-2.0
"""The user stacks of an instance: from a name in the policy to processes that packets
reach, and back.

Owns, for each user stack: our programs on its NICs (nics.py), its processes (processes.py), and
its line in stack_state[].

Invariant: a process has its bit in stack_state[id].up only while everything a flow needs is in
place. The bit is set last and cleared first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from dmm_ebpf import abi, records
from dmm_ebpf.errors import ConflictError, DmmError
from dmm_ebpf.hal import procgroup, stackdevice
from dmm_ebpf.hal.choice import Facts
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.kit.names import SEAMS, is_plugin, locate
from dmm_ebpf.loader import Attached
from dmm_ebpf.rd.director import lostsockets, numbering, plugins, ports, stackrow
from dmm_ebpf.rd.director.beside import Beside
from dmm_ebpf.rd.director.changes import refuse_change
from dmm_ebpf.rd.director.flows import Place
from dmm_ebpf.rd.director.guard import Item
from dmm_ebpf.rd.director.nics import Nics, there, xdp_mode
from dmm_ebpf.rd.director.onestack import Stack
from dmm_ebpf.rd.director.phase import HUNG, Phase
from dmm_ebpf.rd.director.ports import AF_XDP, AUTO, TAP, Ports
from dmm_ebpf.rd.director.portwatch import PortWatch
from dmm_ebpf.rd.director.processes import Process, end_flows, group_of
from dmm_ebpf.rd.director.rundir import RunDir, StackState, State
from dmm_ebpf.rd.director.servednic import ServedNic
from dmm_ebpf.rd.director.steps import Steps
from dmm_ebpf.rd.policy.model import UserStack
from dmm_ebpf.records.record import ABSENT, Maybe
from dmm_ebpf.threads import in_thread
from dmm_ebpf.userstack import pidfile
from dmm_ebpf.userstack.spec import pid_path, process_label
from dmm_ebpf.userstack.supervisor import NicSpec, StackSpec, kill_process

C = abi.C
MAX_CONNECTIONS = 100_000  # of a process, unless the policy says otherwise
BEATS_S = 1.0

log = logging.getLogger("dmm-ebpf")


class StackManager:
    """Starts, follows and stops the user stacks of one instance. Lives in the RD's event
    loop and namespace.
    """

    def __init__(
        self,
        attached: Attached,
        run: RunDir,
        state: State,
        netns: NetNS,
        notify: Callable[[Callable[[], records.event.StackEvent]], None],
    ) -> None:
        self._attached = attached
        self._run = run
        self._state = state
        self._netns = netns
        self._notify = notify
        self._stacks: dict[str, Stack] = {}
        self._drains: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._nics = Nics(attached, state, lambda: run.save(state))
        self._beside = Beside(self._nics, lambda: list(self._stacks.values()))
        self._portwatch = PortWatch(self._settle_all)
        self._watch: list[asyncio.Task[None]] = []
        self._hung: set[tuple[str, int]] = set()
        self._lock = asyncio.Lock()  # held while processes are started or stopped

    # -- what the policy compiler and the listings ask --

    def number(self, wanted: Mapping[str, int]) -> None:
        """See numbering.number()."""
        numbering.number(self._run, self._state, wanted)

    def get(self, name: str) -> Stack | None:
        """A user stack, if it exists here."""
        return self._stacks.get(name)

    def devices(self, name: str) -> list[str]:
        """The names of the NICs that a user stack serves."""
        s = self._stacks.get(name)
        return [n.name for n in s.nics] if s is not None and s.processes else []

    def standing(self) -> list[Item]:
        """What has to stand on the host for the stacks that are there."""
        stacks = self._stacks.values()
        served: list[Item] = [ServedNic(self._nics, s, n) for s in stacks for n in s.nics]
        if served:
            served.append(self._beside)
        return [*served, *(item for s in stacks for p in s.processes for item in p.standing())]

    def pids(self) -> list[int]:
        """Of the stack processes that live."""
        return [p.pid for s in self._stacks.values() for p in s.processes if p.pid]

    def nics(self) -> list[records.status.NicRow]:
        """The NICs that have our programs, for `dmm-ebpf status`."""
        return [
            records.status.NicRow(
                n.name, n.ifindex, xdp_mode(n) if s.ports.of(n).port == AF_XDP else "tc", name
            )
            for name, s in self._stacks.items()
            for n in s.nics
        ]

    def ifindexes(self) -> set[int]:
        """Of the devices that have the programs of a NIC, whether a stack serves them or not."""
        return self._served() | self._nics.beside().keys()

    def is_behind(self, device: str) -> bool:
        """See Nics.is_behind()."""
        return self._nics.is_behind(device)

    def turns_away(self, name: str) -> records.policy.TurnsAway:
        """Why no new flow reaches it: "down", or "full", also if it hangs; empty: they do."""
        s = self._stacks.get(name)
        if s is None or s.status not in {Phase.UP, HUNG}:
            return "down"
        hangs = s.status == HUNG
        return "full" if hangs or stackrow.why_full(s, self._attached.maps.stack_load) else ""

    def names(self) -> list[str]:
        """User stacks that exist here, draining ones included."""
        return list(self._stacks)

    async def query_all(
        self,
        method: str,
        *,
        within_s: float | None = None,
        only: Collection[str] = (),
        strict: bool = False,
        **params: Any,
    ) -> dict[tuple[str, int], Any]:
        """method asked of every process that is up, by stack and number; one that does not
        answer is left out, or with strict its DmmError raised. only: of these stacks.
        """
        up = [
            (name, p)
            for name, s in self._stacks.items()
            for p in s.processes
            if p.is_up and not p.hung and (not only or name in only)
        ]
        asked = (asyncio.wait_for(p.supervisor.query(method, **params), within_s) for _, p in up)
        answers = await asyncio.gather(*asked, return_exceptions=not strict)
        return {
            (name, p.number): a
            for (name, p), a in zip(up, answers, strict=True)
            if not isinstance(a, BaseException)
        }

    async def connections(self) -> AsyncIterator[tuple[Place, dict[str, Any]]]:
        """What the processes that are up say of their connections, and who says it; asked of each
        in parts: a list of a hundred thousand would take a stack process more memory than they do.
        One that ends meanwhile may be missing, or hide another.
        """
        up = [(s, p) for s in self._stacks.values() for p in s.processes if p.is_up and not p.hung]
        for s, p in up:
            first = 0
            while True:
                try:
                    part = await p.supervisor.query("connections", first=first)
                except DmmError:
                    break
                for connection in part:
                    yield (s.stack_id, p.number), connection
                first += len(part)
                if not part or first > 2 * p.supervisor.spec.max_connections:
                    break

    # -- life --

    async def ensure(self, wanted: Mapping[str, tuple[int, UserStack]]) -> list[tuple[str, int]]:
        """Start what is wanted (name -> id, config) and not there, and wait until it serves.

        All or nothing: if one process cannot start, those started by this call are stopped again
        and its DmmError is raised. Returns what was started: names, and numbers of processes.
        """
        started: list[tuple[str, int]] = []
        async with self._lock:
            counts = {name: config.processes for name, (_, config) in wanted.items()}
            if not numbering.are_numbered(
                self._state, counts
            ):  # one that was draining when it was numbered has ended meanwhile
                await in_thread(self.number, counts)
            try:
                for name, (stack_id, config) in wanted.items():
                    present = self._stacks.get(name)
                    if present is not None:
                        await self._keep(present, config)
                    for number in range(config.processes):
                        if present is not None and present.process(number) is not None:
                            continue
                        started.append((name, number))
                        present = present or await self._open(name, stack_id, config)
                        await self._start(present, number)
                    if present is not None:
                        await self._settle(present)
            except BaseException:
                await self._stop_all(started)
                raise
        return started

    async def drop(self, started: Collection[tuple[str, int]]) -> None:
        """Stop at once what ensure() has just started for a policy that was then refused."""
        async with self._lock:
            await self._stop_all(started)

    async def _stop_all(self, started: Collection[tuple[str, int]]) -> None:
        for name, number in reversed(list(started)):
            await self._stop(name, number)

    def retire(self, keep: Mapping[str, UserStack]) -> None:
        """Let every other stack, and the processes that a stack has beyond its number, serve their
        open flows to the end, and then stop them.
        """
        for name, s in self._stacks.items():
            count = keep[name].processes if name in keep else 0
            for p in s.processes:
                if p.number < count or p.retiring:
                    continue
                p.retiring = True
                drain = asyncio.get_running_loop().create_task(self._drain(name, p))
                self._drains[name, p.number] = drain
            self._publish(s)
        self._end_strays()

    async def close(self, steps: Steps) -> None:
        """Stop everything; flows of the user stacks are reset."""
        for task in self._drains.values():
            task.cancel()
        await asyncio.gather(*self._drains.values(), return_exceptions=True)
        for task in self._watch:
            task.cancel()
        await asyncio.gather(*self._watch, return_exceptions=True)
        async with self._lock:
            for s in self._stacks.values():
                for p in s.processes:
                    p.retiring = True  # so that none gets a new flow while the others end
            for name, s in list(self._stacks.items()):
                for p in list(s.processes):
                    await steps.wait(f"stack {p.record.label}", self._stop(name, p.number))
                if name in self._stacks:
                    await s.ports.close()
                    steps.do(f"devices of stack {name}", partial(self._leave, s))
                steps.removed.append(f"stack {name}")
            steps.do("stacks of before", self._end_strays)
            self._run.keep(self._state)

    def bury(self) -> None:
        """End the flows of processes that died while no Resource Director was there to see it."""
        for record in self._state.stacks:
            # Of the two this is never behind: no process serves that it does not name.
            recorded = pidfile.read(pid_path(self._run.path, record.label))
            record.pid, record.start_time = recorded or (record.pid, record.start_time)
            if not record.pid or pidfile.start_time(record.pid) != record.start_time:
                record.pid = 0
                gone = end_flows(self._attached.maps, record, heir=True)
                if gone:
                    log.info(
                        "stack %s had died: %d flows that it carried are reset", record.label, gone
                    )

    async def _keep(self, s: Stack, config: UserStack) -> None:
        refuse_change(s, config)
        for seam in SEAMS.values():
            wanted = config.part(seam)
            if wanted != s.config.part(seam) and is_plugin(wanted, seam):
                await plugins.give(s.processes, seam, wanted)
        for p in s.processes:
            if p.number >= config.processes:
                continue
            p.retiring = False
            task = self._drains.pop((s.name, p.number), None)
            if task is not None:
                task.cancel()
        self._publish(s)
        if config != s.config:
            if config.io != s.config.io:
                await self._settle(s, config.io)
            s.config = config
            self._publish(s)
            for p in s.processes:
                p.supervisor.spec = self._spec(s, p.record)
                with contextlib.suppress(DmmError, OSError):
                    await p.supervisor.query(
                        "configure",
                        congestion=config.congestion,
                        transport=config.transport,
                        syn_cookies=config.syn_cookies,
                        negotiate=config.negotiate,
                        **config.redundancy_options(),
                    )

    async def _open(self, name: str, stack_id: int, config: UserStack) -> Stack:
        """A stack with no process yet, and our program on its NICs."""
        before = {n for r in self._state.stacks if r.name == name and r.pid for n in r.nics}
        nics = self._nics.choose(list(config.devices), before)
        s = Stack(name, stack_id, config, Ports(self._nics, name, stack_id), nics)
        self._stacks[name] = s
        self._publish(s)
        if config.io == AF_XDP:
            for n in s.nics:
                self._refuse_shared(s, n)
        for n in s.nics:
            await in_thread(s.ports.begin, n, config.io)
        await in_thread(self._nics.attach, s.name, s.nics)
        await in_thread(self._take_others)
        return s

    def _served(self) -> set[int]:
        return {n.ifindex for s in self._stacks.values() for n in s.nics}

    def _take_others(self) -> None:
        if self._beside.look():
            self._beside.put_right()

    def _refuse_shared(self, s: Stack, n: NicSpec) -> None:
        held = self._held(s, n)
        if held:
            raise ConflictError(
                f"serve {n.name} with one more user stack by AF_XDP",
                why=f"stack {held} holds its queues, and a queue has one AF_XDP UMEM",
                hint='use io = "tap", or give each user stack devices of its own',
            )

    def _held(self, s: Stack, n: NicSpec) -> str:
        """The other stack that has AF_XDP sockets on the NIC; empty: none."""
        holders = (
            o.name for o in self._others(s) for m in o.nics if m.ifindex == n.ifindex and m.xsk
        )
        return next(holders, "")

    def _with_sockets(self, s: Stack) -> list[NicSpec]:
        """The stack's NICs, with those marked where a process 0 that starts is to have AF_XDP
        sockets. Runs in a thread.
        """
        io = s.config.io
        facts = ports.facts_of(s.nics) if io == AUTO else {}
        return [
            replace(
                n,
                xsk=self._is_fit(s, n, facts.get(n.slot)),
                xsk_mtu=0,
                no_xsk="" if self._nics.is_own(n) else lostsockets.NOT_OWN,
                port=AF_XDP if io == AF_XDP and self._nics.is_own(n) else TAP,
            )
            for n in s.nics
        ]

    def _is_fit(self, s: Stack, n: NicSpec, facts: Facts | None) -> bool:
        return (
            ports.fit_for_sockets(s.config.io, facts)
            and not self._held(s, n)
            and self._nics.is_own(n)
        )

    async def _settle(self, s: Stack, io: str = "") -> None:
        """Give its NICs the ports that they are to have, by its policy or by io."""

        def held(n: NicSpec) -> str:
            return self._held(s, n)

        try:
            await s.ports.settle(io or s.config.io, there(s.nics), s.first, held, asked=bool(io))
        except DmmError:
            if io:
                await self._settle(s)
            raise

    async def _settle_all(self) -> None:
        for s in list(self._stacks.values()):
            await lostsockets.look(s, self._nics, self._publish)
            await self._settle(s)

    def _others(self, s: Stack) -> list[Stack]:
        return [other for other in self._stacks.values() if other is not s]

    def _leave(self, s: Stack) -> None:
        """Our programs off the stack's NICs, but for those where another stack needs them."""
        shared = {n.ifindex for other in self._others(s) for n in other.nics}
        self._nics.detach(s.stack_id, s.nics, shared)
        if not self._others(s):
            self._beside.leave()

    async def _start(self, s: Stack, number: int) -> None:
        record = next(r for r in self._state.stacks if (r.name, r.process) == (s.name, number))
        before = replace(record)
        record.stack_id = s.stack_id
        if number == 0:
            s.nics = await in_thread(self._with_sockets, s)
        record.nics = [n.name for n in s.nics]
        if record != before:  # else it is one that is taken over, and stands there
            self._run.save(self._state)
        process = Process(
            record,
            self._spec(s, record),
            self._attached,
            renew=lambda: self._renew(s, record),
            save=lambda: self._run.keep(self._state),
            changed=lambda p: self._changed(s, p),
        )
        s.processes.append(process)
        await process.start()
        if not self._watch:
            work = (self._watch_beats(), self._portwatch.run())
            self._watch = [asyncio.get_running_loop().create_task(one) for one in work]

    def _renew(self, s: Stack, record: StackState) -> StackSpec:
        """What the next process of a stack is to be told, of its NICs as they are now. Runs
        in a thread.
        """
        with self._nics.renewing:
            before = {n.slot: n.ifindex for n in s.nics}
            s.nics = self._nics.renew(s.name, s.stack_id, s.nics)
            for n in there(s.nics):
                own, other = self._nics.is_own(n), before[n.slot] != n.ifindex
                if own and record.process == 0 and s.config.io == AF_XDP:
                    s.ports.begin(n, s.config.io)
                elif other:
                    s.ports.carry_on(n)
            if record.process == 0:
                s.nics = self._with_sockets(s)
        record.nics = [n.name for n in s.nics]
        spec = self._spec(s, record)
        return replace(spec, nics=there(spec.nics))

    def _spec(self, s: Stack, record: StackState) -> StackSpec:
        maps, config = self._attached.maps, s.config
        return StackSpec(
            instance=self._state.instance,
            name=s.name,
            stack_id=s.stack_id,
            k=record.k,
            device=record.device,
            nics=s.nics
            if record.process == 0
            else [replace(n, xsk=False, port=TAP) for n in s.nics],
            xsks_fd=maps["xsks"].fd,
            congestion=config.congestion,
            transport=config.transport,
            plugins=[
                locate(config.part(seam), seam=seam)
                for seam in SEAMS.values()
                if is_plugin(config.part(seam), seam)
            ],
            options=config.process_options(),
            memory_bytes=(config.memory_bytes or 0) // config.processes,
            max_connections=-(-config.max_connections // config.processes)
            if config.max_connections
            else MAX_CONNECTIONS,
            command=config.command,
            run_dir=self._run.path,
            netns_fd=self._netns.fd,
            process=record.process,
            cgroup=str(group_of(self._state.instance, record)),
        )

    async def _watch_beats(self) -> None:
        """Says it when a process hangs, and when it runs again; the hooks see
        that by themselves.
        """
        while True:
            await asyncio.sleep(BEATS_S)
            hung = {
                (s.name, p.number): p for s in self._stacks.values() for p in s.processes if p.hung
            }
            for key, p in hung.items():
                if key not in self._hung:
                    log.warning(
                        "stack %s, pid %d, hangs; new flows go elsewhere", p.record.label, p.pid
                    )
                    self._tell(*key, HUNG)
            for name, number in self._hung - hung.keys():
                log.info("stack %s runs again, or is gone", process_label(name, number))
            self._hung = set(hung)

    def _changed(self, s: Stack, p: Process) -> None:
        self._publish(s)
        if p.number == 0 and p.is_up:
            s.note_sockets(p)
            s.ports.forget_told()
            self._portwatch.hurry()
        label = p.record.label
        if p.is_up:
            log.info(
                "stack %s is up, pid %d, on %s", label, p.pid, ", ".join(n.name for n in s.nics)
            )
        else:
            left = "the other processes" if s.status == Phase.UP else "its fallback"
            log.warning("stack %s went down: %s; new flows go to %s", label, p.reason, left)
        if p.is_up:
            self._tell(s.name, p.number, p.phase, pid=p.pid)
        else:
            self._tell(s.name, p.number, p.phase, reason=p.reason)

    def _tell(
        self,
        name: str,
        number: int,
        state: str,
        *,
        pid: Maybe[int] = ABSENT,
        reason: Maybe[str] = ABSENT,
    ) -> None:
        def made() -> records.event.StackEvent:
            now, instance = records.event.now(), self._state.instance
            return records.event.StackEvent(
                "stack", name, number, state, pid, reason, now, instance
            )

        self._notify(made)

    async def _stop(self, name: str, number: int) -> None:
        """Stop a process, and with its last one the stack."""
        s = self._stacks.get(name)
        if s is None:
            return
        p = s.process(number)
        if p is not None:
            p.retiring = True
            self._publish(s)
            await p.stop()
            s.processes.remove(p)
            self._forget(p.record)
        self._drains.pop((name, number), None)
        self._publish(s)
        if not s.processes:
            await s.ports.close()
            self._leave(s)
            del self._stacks[name]
        self._run.keep(self._state)

    def _forget(self, record: StackState) -> None:
        stackdevice.remove_all(record.k)
        procgroup.remove(group_of(self._state.instance, record))
        if record in self._state.stacks:
            self._state.stacks.remove(record)

    def _end_strays(self) -> None:
        """Records of processes that are not ours to keep: numbered for a policy that was refused,
        or left draining by a Resource Director that was killed.
        """
        kept = {id(p.record) for s in self._stacks.values() for p in s.processes}
        for record in [r for r in self._state.stacks if id(r) not in kept]:
            if record.pid:
                if kill_process(record.pid, record.start_time):
                    log.info(
                        "stack %s, pid %d, was left over and is ended", record.label, record.pid
                    )
                end_flows(self._attached.maps, record)
            self._forget(record)
        self._run.keep(self._state)

    async def _drain(self, name: str, p: Process) -> None:
        while True:
            try:
                stats = await p.supervisor.query("stats")
                if not stats["connections"]:
                    break
            except (DmmError, OSError):
                break
            await asyncio.sleep(1)
        async with self._lock:
            if p.retiring:
                log.info("stack %s has no flows left and is stopped", p.record.label)
                self._drains.pop((name, p.number), None)
                await self._stop(name, p.number)

    def _publish(self, s: Stack) -> None:
        """The stack's lines of stack_state[] and, where it has ended, of cookie_state[]."""
        value = abi.new("dmm_stack_state", datagrams=not s.config.command, follows=s.follows_routes)
        for p in s.processes:
            value.seats[p.number] = p.record.seat
            if p.retiring:
                continue
            value.processes = max(value.processes, p.number + 1)
            if p.is_up:
                value.up |= 1 << p.number
                value.pid = value.pid or p.pid
        self._attached.maps.stack_state[s.stack_id] = value
        if s.processes and not any(p.is_up for p in s.processes):
            # Nobody is left who could tell a SYN cookie from any other number.
            self._attached.maps.cookie_state[s.stack_id] = abi.new("dmm_cookie_state")
