# SPDX-License-Identifier: Apache-2.0
"""One attached instance: the kernel hooks on its cgroup, the policy in force, the user stacks, and
what can be asked.

The Resource Director (service.py) is a socket in front of this. Lives in one event loop, in the
instance's network namespace. A policy is applied whole or not at all: stacks it needs are up before
the hooks can see it, and what fails on the way leaves the old one in force.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dmm_ebpf import abi, loader, records, states
from dmm_ebpf.abi import C
from dmm_ebpf.errors import ConflictError, DmmError, NotAttachedError
from dmm_ebpf.hal import stackdevice
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import Attached
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.director import (
    faults,
    flows,
    generations,
    hostcheck,
    routechange,
    routeget,
    stackrow,
    sync,
    undo,
)
from dmm_ebpf.rd.director.adaptive import Adaptive
from dmm_ebpf.rd.director.earlier import Earlier
from dmm_ebpf.rd.director.followers import Followers
from dmm_ebpf.rd.director.generations import Generations
from dmm_ebpf.rd.director.globbed import Room
from dmm_ebpf.rd.director.groups import Groups, attach_place, hooks_on
from dmm_ebpf.rd.director.guard import Guard, Item
from dmm_ebpf.rd.director.inside import Inside
from dmm_ebpf.rd.director.liveroutes import Live
from dmm_ebpf.rd.director.mptcp import Mptcp
from dmm_ebpf.rd.director.names import Names
from dmm_ebpf.rd.director.nested import nested
from dmm_ebpf.rd.director.openflows import OpenFlows
from dmm_ebpf.rd.director.routechange import Changing
from dmm_ebpf.rd.director.routeget import Here
from dmm_ebpf.rd.director.rundir import RunDir, State, why_not_for
from dmm_ebpf.rd.director.sets import Sets
from dmm_ebpf.rd.director.stacks import StackManager
from dmm_ebpf.rd.director.stage import PROGRESS, STAGES, Progress, Stage
from dmm_ebpf.rd.director.standing import Hooks, Namespace, Pins, StateFile
from dmm_ebpf.rd.director.steps import Steps
from dmm_ebpf.rd.director.watch import PolicyWatch
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import Compiled
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.model import KERNEL, Policy
from dmm_ebpf.rd.policy.plugins import check_plugins
from dmm_ebpf.threads import in_thread

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.source import Source
    from dmm_ebpf.records.event import Event

T = TypeVar("T")
LISTING_S = 1.0  # a stack process that does not answer must not hold a listing up for longer
log = logging.getLogger("dmm-ebpf")


@dataclass(frozen=True)
class AttachOptions:
    """What `dmm-ebpf attach` was told."""

    instance: str = "default"
    cgroup: str = "/"
    policy: Path | None = None
    netns: str | None = None
    daemon: bool = False
    pending: bool = False  # also if the cgroup is not there yet, as it comes and goes
    containers: bool = False  # also sockets of other network namespaces that the cgroup has
    readers: int | None = None  # gid of the group that may ask, besides root
    # The directory of the cgroup to which goes what is left in one that is made
    home: str | None = None


class Instance:
    """An attached instance. Make it with open(); end it with close()."""

    def __init__(
        self, run: RunDir, state: State, attached: Attached, netns: NetNS, adopted: bool
    ) -> None:
        bulk.blocks_apart()
        self.state = state
        self.adopted = adopted
        self._run = run
        self._attached = attached
        self._ids = IdSpace.from_dict(state.ids) if state.ids else IdSpace()
        self._policy: Policy | None = None
        self._generations = Generations(state)
        self._applying = asyncio.Lock()
        self._appliers: set[asyncio.Task[Any]] = set()  # tasks in apply()
        self.stage = Stage.ATTACHING
        self.progress = Progress.IDLE  # of the policy that holds _applying
        self._since = time.monotonic()
        self.live = Live(run.path, attached.maps)
        self._generations.extend(state.generation, self.live.journal)
        self._names = Names(lambda: self._ids, self._generations.labels, live=self.live.name)
        self.stacks = StackManager(attached, run, state, netns, self.publish)
        self.inside = Inside(attached, state, self.stacks.ifindexes, lambda: run.save(state))
        self.adaptive = Adaptive(attached, self.stacks, run.path)
        self.followers = Followers(attached, state.instance, self._names, self.adaptive.ended)
        self.file = PolicyWatch(self)
        self.watch: Source = self.file
        self.sets = Sets(self)
        self.guard = Guard(self._standing)
        self.earlier = Earlier(attached, netns.cookie)
        self.flows = OpenFlows(attached, state, self.earlier, self.stacks)
        self.groups = Groups(attached, Path(state.cgroup), self.guard.look_soon, self.earlier.look)
        self.mptcp = Mptcp(attached)
        self.orphaned = asyncio.Event()  # set when nothing is left that an instance could be for
        self.ground: list[Item] = [
            Namespace(
                state.netns or "of the instance", netns.inode, self._own_pids, self.orphaned.set
            ),
            Hooks(attached, Path(state.cgroup), self.groups),
            Room(self.groups.globbed),
            Pins(attached),
            self.mptcp,
            StateFile(run, state),
        ]

    # -- life --

    def _enter(self, stage: Stage) -> None:
        self.stage = states.move(f"instance {self.state.instance}", STAGES, self.stage, stage)

    @classmethod
    async def open(
        cls, options: AttachOptions, run: RunDir, netns: NetNS, *, own_cgroup: bool = False
    ) -> Instance:
        """Attach, or adopt what a Resource Director that was killed left behind;
        then apply options.policy.

        A failure leaves the host as it was (an adopted instance as it was found); a
        cancellation detaches both.
        own_cgroup: options.cgroup is the path of one that is made, and goes with the instance.
        """
        cgroup = (
            Path(options.cgroup)
            if own_cgroup
            else attach_place(options.cgroup, pending=options.pending)
        )
        first = policies.load(options.policy) if options.policy else None
        self = await cls._adopt(options, run, cgroup, netns, own_cgroup)
        self = self or await cls._attach(options, run, cgroup, netns, own_cgroup)
        try:
            # It gets its tables from the policy that comes next.
            if not own_cgroup:
                await in_thread(self.earlier.begin, adopted=self.adopted)
            if self.adopted:
                await in_thread(self.stacks.bury)
                await self._resume()
            if first is not None and options.policy:
                await self.file.begin(first, options.policy)
            self._enter(Stage.SERVING)
        except BaseException as error:
            await self.give_up(error)
            raise
        return self

    @classmethod
    async def _adopt(
        cls, options: AttachOptions, run: RunDir, cgroup: Path, netns: NetNS, own_cgroup: bool
    ) -> Instance | None:
        """None: nothing is there that could be taken over, though there may be something
        to clear away.
        """
        state = run.load()
        if options.instance not in loader.instances() or (state and state.own_cgroup):
            return None
        why = why_not_for(state, None if own_cgroup else cgroup, netns)
        if state is None or why:
            hint = f"run `dmm-ebpf detach --instance {options.instance}` first"
            raise ConflictError(f"attach instance {options.instance}", why=why, hint=hint)
        try:
            attached = await in_thread(loader.adopt, options.instance, unhooked=state.whole)
        except loader.HalfAttachedError:
            if state.whole:
                raise
            return None  # it was killed while attaching
        state.pid, state.whole, state.netns_cookie = os.getpid(), True, netns.cookie
        state.containers = options.containers
        run.keep(state)
        log.info("adopted instance %s as its last Resource Director left it", options.instance)
        return cls(run, state, attached, netns, adopted=True)

    @classmethod
    async def _attach(
        cls, options: AttachOptions, run: RunDir, cgroup: Path, netns: NetNS, own_cgroup: bool
    ) -> Instance:
        left = await in_thread(undo.clear, run)
        for what in left.removed + left.unknown:
            log.warning("left by a Resource Director that was killed: %s", what)
        state = State(
            instance=options.instance,
            pid=os.getpid(),
            cgroup=str(cgroup),
            netns_inode=netns.inode,
            netns_cookie=netns.cookie,
            netns=options.netns,
            containers=options.containers,
            own_cgroup=own_cgroup,
            home=options.home,
        )
        try:
            run.save(state)
            if own_cgroup:
                cgroups.dissolve(cgroup)
                cgroup.mkdir()
            on = hooks_on(options.instance, cgroup, pending=options.pending)
            attached = await in_thread(
                loader.attach, options.instance, on, netns_cookie=netns.cookie, own=cgroup
            )
            state.whole = True
            run.save(state)
            return cls(run, state, attached, netns, adopted=False)
        except BaseException:
            try:
                undo.clear(run)
            except DmmError as error:
                log.error("%s", error)
            raise

    async def _resume(self) -> None:
        """Take the policy that is in force, and the stack processes that live on,
        under our care.
        """
        generation = sync.current_generation(self._attached.maps)
        if not self.state.policy_text or not generation:
            return
        await asyncio.to_thread(self._generations.read)
        try:
            running = generations.again(generations.in_force(self.state))
            self.sets.remember(self.state.hosts, self.state.unanswered)
            running = replace(running, fleet=self.live.fleet)
            running = await self.sets.fill(running, anyhow=True)
            await self.apply(running, Path(self.state.policy) if self.state.policy else None)
        except DmmError as error:
            log.warning("the policy in force stays, but cannot be read again: %s", error)

    async def give_up(self, why: BaseException) -> None:
        """What a failure on the way up asks for: the host as it was, an adopted instance as it was
        found, but neither after a cancellation. What cannot be removed is logged.
        """
        if self.adopted and not isinstance(why, asyncio.CancelledError):
            return
        try:
            await self.close()
        except DmmError as left:
            log.error("%s", left)

    async def close(self) -> list[str]:
        """Detach: hooks first, so that no new flow comes, then stacks, then every other trace.
        Returns what went; a step that fails keeps no other from being tried, and DmmError tells of
        all that failed.
        """
        self._enter(Stage.DETACHING)
        for task in self._appliers:
            task.cancel()
        async with self._applying:  # until what they had begun is undone
            removed = await self._close()
        self._enter(Stage.DETACHED)
        return removed

    async def _close(self) -> list[str]:
        steps = Steps(f"detach instance {self.state.instance} wholly")
        self.followers.close()
        self.sets.close()
        self.live.close()
        steps.do("hooks", self._attached.unhook)
        # Whoever comes after a SIGKILL from here on clears away what is left.
        self.state.whole = False
        self._run.keep(self.state)
        steps.do("listeners", self._take_no_flows)
        steps.do("devices of others", self.inside.close)
        await self.stacks.close(steps)
        await steps.wait("pins", in_thread(loader.detach, self.state.instance))
        if self.state.own_cgroup:
            steps.do("cgroup", lambda: cgroups.dissolve(Path(self.state.cgroup), self.state.home))
        steps.finish()
        self._run.remove()
        return steps.removed

    def _take_no_flows(self) -> None:
        self._attached.maps.stack_state.update(
            dict.fromkeys(range(C.DMM_MAX_STACKS), abi.new("dmm_stack_state"))
        )

    # -- policy --

    async def apply(
        self, new: Policy, path: Path | None, *, unless: Callable[[], bool] = lambda: False
    ) -> int | None:
        """Put new in force, and return its generation. DmmError if it cannot be; then nothing
        has changed. unless is asked when it is new's turn: true means that it is wanted no more;
        then nothing is done, and the answer is None.
        """

        async def work() -> int | None:
            return None if unless() else await self._apply_in_turn(new, path)

        generation = await self._in_turn(work)
        for at, told in new.old_names_told() if generation is not None else ():
            log.warning("%s: %s", at, told)
        return generation

    async def change(self, work: Callable[[Changing], Awaitable[T]]) -> T:
        """What work does with what is in force, while nobody else changes it."""
        return await self._in_turn(lambda: work(self._changing()))

    def _took(self, new: Policy) -> None:
        self._policy = new
        self.keep_hosts()

    def keep_hosts(self) -> None:
        """What is known of hostnames, for who takes over."""
        if self._policy is not None:
            generations.keep_hosts(self._run, self.state, self._policy, self.sets.unanswered())

    async def _in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        """What work does while nobody else changes what is in force."""
        task = asyncio.current_task()
        if task is None or self._leaves():
            raise self._too_late()
        self._appliers.add(task)
        try:
            async with self._applying:
                return await work()
        except asyncio.CancelledError:
            if self._leaves():
                raise self._too_late() from None
            raise
        finally:
            self._appliers.discard(task)

    def _leaves(self) -> bool:
        return self.stage in {Stage.DETACHING, Stage.DETACHED}

    def _too_late(self) -> DmmError:
        return NotAttachedError(
            "apply the policy", why=f"instance {self.state.instance} is being detached"
        )

    def _come_to(self, progress: Progress, reason: str = "") -> None:
        label = f"the policy of instance {self.state.instance}"
        self.progress = states.move(label, PROGRESS, self.progress, progress, reason)

    async def _apply_in_turn(self, new: Policy, path: Path | None) -> int:
        """_apply(), and the end of its progress, whatever becomes of it."""
        self._come_to(Progress.COMPILING)
        try:
            generation = await self._apply(new, path)
        except BaseException as error:
            self._come_to(Progress.IDLE, str(error) or type(error).__name__)
            raise
        self._come_to(Progress.IDLE)
        return generation

    async def _apply(self, new: Policy, path: Path | None) -> int:
        if new.plain is None:
            new = await self.sets.fill(new)
        new = new.with_live(self.live.kept(new))
        wanted = hostcheck.served(new)
        ids = IdSpace.from_dict(self._ids.to_dict())
        await asyncio.to_thread(check_plugins, new, wanted)
        await in_thread(
            self.stacks.number, {name: config.processes for name, config in wanted.items()}
        )
        facts = hostcheck.HostFacts.read()
        compiled = await asyncio.to_thread(facts.compile, new, ids, self.flows.busy_stacks())
        self._come_to(Progress.STARTING)
        started = await self.stacks.ensure(
            {name: (ids.stack(name), config) for name, config in wanted.items()}
        )
        current = sync.current_generation(self._attached.maps)
        overlay = await asyncio.to_thread(self.live.compiled, new, ids)
        generation = await self.live.next_generation(current, overlay)
        after: dict[str, Any] = {
            "ids": ids.to_dict(),
            "earlier": self._generations.earlier({current} | self.flows.generations()),
            **generations.after(new, path, generation),
            "unanswered": self.sets.unanswered(),
        }
        try:
            self._come_to(Progress.SWITCHING)
            # Before it is in force: what cannot be written down is refused, and
            # nothing has changed.
            generations.write(self._run, self.state, after)
            containers = self.state.containers
            await self.groups.ask(sync.control_flags(compiled, containers=containers))
            prepare = partial(self._prepare, new, ids, compiled, generation)
            async with self.live.writing:  # by a thread, and by nobody else
                await in_thread(self._sync, compiled, generation, prepare)
        except BaseException:
            self.live.refused()
            await self.stacks.drop(started)
            self._run.keep(self.state)
            raise
        self._come_to(Progress.SETTLING)
        changed = self._policy is None or self._policy.as_written is not new.as_written
        self._ids, self._policy = ids, new
        self.live.in_force(new, overlay, ids, generation)
        self.live.left(current, generation)
        self.sets.follow(new)
        self._generations.put(generation, new, compiled.labels, path)
        self._generations.keep({generation} | self.flows.generations())
        vars(self.state).update(after)
        self.adaptive.in_force(new, ids, generation & 1)
        self.stacks.retire(wanted)
        await self.mptcp.follow(compiled.makes_mptcp)
        self.groups.follow(new, compiled, generation)
        await self.groups.look()
        await in_thread(self.inside.put_in_force, generation & 1, compiled.by_device)
        level = logging.INFO if changed else logging.DEBUG
        counts = generation, len(new.rules), new.n_routes
        log.log(level, "policy generation %d: %d rules, %d routes", *counts)
        self.publish(lambda: self._policy_event(new, generation))
        return generation

    def _policy_event(self, new: Policy, generation: int) -> Event:
        name, pending, now = self.state.instance, self.groups.pending(), records.event.now()
        counts = (generation, *new.counts)
        return records.event.PolicyEvent("policy", self.state.policy, *counts, pending, now, name)

    def _prepare(
        self, new: Policy, ids: IdSpace, compiled: Compiled, generation: int, half: int
    ) -> None:
        """What sync.apply() does not write of a half."""
        self.live.write(generation)
        self.groups.prepare(compiled, half)
        self.inside.prepare(half, compiled.by_device)
        self.adaptive.prepare(new, ids, half)

    def _sync(self, compiled: Compiled, generation: int, prepare: Callable[[int], object]) -> int:
        return sync.apply(
            self._attached.maps,
            compiled,
            generation=generation,
            inner=loader,
            listener_set=self._attached.set_listener_table,
            in_cgroup=sync.in_cgroup_by_path(cgroups.path_of),
            devices=prepare,
            containers=self.state.containers,
        )

    async def apply_text(self, text: str, path: str | None) -> records.policy.Applied:
        """apply() for the text of a policy file; path is where it came from, for messages
        and for routes_from.
        """
        source = Path(path) if path else None
        new = await asyncio.to_thread(
            policies.parse,
            text,
            source=path or "policy",
            base=source.parent if source else Path("/"),
        )
        generation = await self.apply(new, source) or 0
        pending, sets = self.groups.pending(), self.sets.rows() or records.record.ABSENT
        counts = (self._policy or new).counts
        return records.policy.Applied(self.state.instance, generation, *counts, pending, sets)

    def _changing(self) -> Changing:
        path = Path(self.state.policy) if self.state.policy else None
        return Changing(
            self.state,
            self._policy,
            self._attached.maps,
            self.live,
            self._generations,
            lambda policy: self._apply_in_turn(policy, path),
            self._took,
            self.flows.generations,
        )

    def list_routes(self) -> AsyncIterator[list[records.policy.RouteRow]]:
        """The live routes, then those of the policy in force."""
        return routechange.listing(self._changing())

    @property
    def policy(self) -> Policy | None:
        """The policy in force; None when there is none, or its text cannot be read again
        after a take-over.
        """
        return self._policy

    def policy_show(self) -> records.policy.PolicyText:
        return generations.shown(self.state)

    # -- what has to stand on the host --

    def _standing(self) -> list[Item]:
        return [*self.ground, *self.stacks.standing(), self.inside]

    def _own_pids(self) -> list[int]:
        return [os.getpid(), *self.stacks.pids()]

    # -- what can be asked --

    async def status(self) -> records.status.Status:
        await self.guard.known()
        maps, counts = self._attached.maps, await self.flows.by_stack()
        return records.status.Status(
            instance=self.state.instance,
            pid=os.getpid(),
            netns=self.state.netns,
            cgroup=self.state.cgroup,
            policy=self.state.policy,
            policy_refused=self.watch.trouble,
            central=self.watch.told() or records.record.ABSENT,
            generation=self.state.generation,
            uptime_s=round(time.monotonic() - self._since, 1),
            flows=counts.total(),
            listeners=maps.listeners.count(),
            rules=len(self._policy.rules) if self._policy else 0,
            routes=self._policy.n_routes if self._policy else 0,
            counters=flows.counters_dict(maps.counters.percpu),
            nics=self.stacks.nics(),
            problem=None,
            missing=self.guard.missing(),
            pending=self.groups.pending(),
            sets=self.sets.rows() or records.record.ABSENT,
            live_routes=len(self.live.routes) or records.record.ABSENT,
            group=self._run.group or records.record.ABSENT,
            earlier=self.earlier.trouble,
            stacks=await self.list_stacks(counts),
            nested=await in_thread(nested, self.state.instance),
        )

    async def list_stacks(self, counts: Counter[int] | None = None) -> list[records.stack.StackRow]:
        """Every stack of the policy, and those that are still draining. counts: flows by stack,
        if known already.
        """
        counts = await self.flows.by_stack() if counts is None else counts
        stats = await self.stacks.query_all("stats", within_s=LISTING_S)
        faulty = {stack for (stack, _), one in stats.items() if one.get("faulty")}
        injected = await faults.rows(self.stacks, list(faulty)) if faulty else []
        loads, dropped = self._attached.maps.stack_load, await in_thread(stackdevice.dropped)
        asked = stackrow.Asked(loads, stats, dropped, injected)
        defined = dict(self._policy.stacks) if self._policy else {}
        # One that is being started for a policy not yet in force has no number.
        others = filter(self._ids.has_stack, self.stacks.names())
        rows = []
        for name in dict.fromkeys([KERNEL, *defined, *others]):
            stack_id = self._ids.stack(name)
            named = stackrow.Named(self.state.instance, name, stack_id, defined.get(name))
            rows.append(stackrow.row(named, counts[stack_id], self.stacks.get(name), asked))
        return rows

    def list_flows(self) -> AsyncIterator[list[records.flow.Flow]]:
        """See OpenFlows.pages()."""
        return self.flows.pages(self._names)

    def list_listeners(self) -> list[records.flow.Listener]:
        return [
            flows.of_listener(key, one, self.state.instance, self.state.generation, self._names)
            for key, one in self._attached.maps.listeners.items()
        ]

    def list_paths(self) -> list[records.path.Path]:
        return self.adaptive.rows(self.state.instance)

    def route_get(self, params: dict[str, Any]) -> records.policy.RouteAnswer:
        """What a new flow would get now: see routeget.route_get()."""
        here = Here(
            instance=self.state.instance,
            policy=self._policy,
            attached=cgroups.name_of(Path(self.state.cgroup)),
            netns_cookie=self.state.netns_cookie,
            turns_away=self.stacks.turns_away,
            devices=self.stacks.devices,
            is_behind=self.stacks.is_behind,
            path_to=partial(self.adaptive.path_to, self.state.instance),
            paths_to=partial(self.adaptive.paths_to, self.state.instance),
        )
        return routeget.route_get(here, params)

    def publish(self, make: Callable[[], Event]) -> None:
        """What make makes, if anybody follows."""
        self.followers.publish(make)
