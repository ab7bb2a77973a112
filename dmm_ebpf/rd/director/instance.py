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
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf import abi, loader, records, states
from dmm_ebpf.abi import C
from dmm_ebpf.errors import ConflictError, DmmError, NotAttachedError
from dmm_ebpf.hal import stackdevice
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import Attached, EventReader
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.director import (
    carriers,
    faults,
    flows,
    generations,
    hostcheck,
    routeget,
    stackrow,
    sync,
    undo,
)
from dmm_ebpf.rd.director.adaptive import Adaptive
from dmm_ebpf.rd.director.earlier import Earlier
from dmm_ebpf.rd.director.generations import Generations
from dmm_ebpf.rd.director.groups import Groups, attach_place
from dmm_ebpf.rd.director.guard import Guard, Item
from dmm_ebpf.rd.director.inside import Inside
from dmm_ebpf.rd.director.names import Names
from dmm_ebpf.rd.director.openflows import OpenFlows
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
from dmm_ebpf.rd.policy.model import BUILT_IN, KERNEL, Policy
from dmm_ebpf.rd.policy.plugins import check_plugins
from dmm_ebpf.threads import in_thread

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.source import Source
    from dmm_ebpf.records.event import Event

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
    pending: bool = False  # also if the cgroup is not there yet
    containers: bool = False  # also sockets of other network namespaces that the cgroup has
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
        self._listeners: list[Callable[[Event], None]] = []
        # A Resource Director that was killed may have had followers.
        sync.set_events(attached.maps, wanted=False)
        self._following = carriers.Following(state.instance)
        self._events = EventReader(attached.maps["events"].fd)
        self._names = Names(lambda: self._ids, self._generations.labels)
        self.stacks = StackManager(attached, run, state, netns, self.publish)
        self.inside = Inside(attached, state, self.stacks.ifindexes, lambda: run.save(state))
        self.adaptive = Adaptive(attached, self.stacks, run.path)
        self.watch: Source = PolicyWatch(self)
        self.sets = Sets(self)
        self.guard = Guard(self._standing)
        self.earlier = Earlier(attached, netns.cookie)
        self.flows = OpenFlows(attached, state, self.earlier, self.stacks)
        self.groups = Groups(attached, Path(state.cgroup), self.guard.look_soon, self.earlier.look)
        self.orphaned = asyncio.Event()  # set when nothing is left that an instance could be for
        self.ground: list[Item] = [
            Namespace(
                state.netns or "of the instance", netns.inode, self._own_pids, self.orphaned.set
            ),
            Hooks(attached, Path(state.cgroup), self.groups),
            Pins(attached),
            StateFile(run, state),
        ]
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._events_ready)

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
            if first is not None:
                await self.apply(first, options.policy)
            self._enter(Stage.SERVING)
        except BaseException as e:
            if not self.adopted or isinstance(e, asyncio.CancelledError):
                try:
                    await self.close()
                except DmmError as left:
                    log.error("%s", left)
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
            there = cgroup if cgroup.is_dir() else None
            attached = await in_thread(
                loader.attach, options.instance, there, netns_cookie=netns.cookie
            )
            state.whole = True
            run.save(state)
            return cls(run, state, attached, netns, adopted=False)
        except BaseException:
            try:
                undo.clear(run)
            except DmmError as e:
                log.error("%s", e)
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
            running = await self.sets.fill(running, anyhow=True)
            await self.apply(running, Path(self.state.policy) if self.state.policy else None)
        except DmmError as e:
            log.warning("the policy in force stays, but cannot be read again: %s", e)

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
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        self.sets.close()
        steps.do("hooks", self._attached.unhook)
        # Whoever comes after a SIGKILL from here on clears away what is left.
        self.state.whole = False
        self._run.keep(self.state)
        steps.do("listeners", self._take_no_flows)
        steps.do("devices of others", self.inside.close)
        await self.stacks.close(steps)
        await steps.wait("pins", in_thread(loader.detach, self.state.instance))
        self._events.close()
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
        task = asyncio.current_task()
        if task is None or self._leaves():
            raise self._too_late()
        self._appliers.add(task)
        try:
            async with self._applying:
                return None if unless() else await self._apply_in_turn(new, path)
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
        except BaseException as exc:
            self._come_to(Progress.IDLE, str(exc) or type(exc).__name__)
            raise
        self._come_to(Progress.IDLE)
        return generation

    async def _apply(self, new: Policy, path: Path | None) -> int:
        if new.plain is None:
            new = await self.sets.fill(new)
        wanted = hostcheck.served(new)
        ids = IdSpace.from_dict(self._ids.to_dict())
        await asyncio.to_thread(check_plugins, new, wanted)
        await in_thread(
            self.stacks.number, {name: config.processes for name, config in wanted.items()}
        )
        facts = hostcheck.HostFacts.read()
        compiled = await asyncio.to_thread(facts.compile, new, ids, self._busy_stacks())
        self._come_to(Progress.STARTING)
        started = await self.stacks.ensure(
            {name: (ids.stack(name), config) for name, config in wanted.items()}
        )
        current = sync.current_generation(self._attached.maps)
        generation = sync.next_generation(current)
        after: dict[str, Any] = {
            "ids": ids.to_dict(),
            "earlier": self._generations.earlier({current} | self._used_generations()),
            **generations.after(new, path, generation),
        }
        try:
            self._come_to(Progress.SWITCHING)
            # Before it is in force: what cannot be written down is refused, and
            # nothing has changed.
            self._run.save(replace(self.state, **after))
            containers = self.state.containers
            await self.groups.ask(sync.control_flags(compiled, containers=containers))
            await in_thread(
                self._sync, compiled, generation, partial(self._prepare, new, ids, compiled)
            )
        except BaseException:
            await self.stacks.drop(started)
            self._run.keep(self.state)
            raise
        self._come_to(Progress.SETTLING)
        changed = self._policy is None or self._policy.as_written is not new.as_written
        self._ids, self._policy = ids, new
        self.sets.follow(new)
        self._generations.put(generation, new, compiled.labels, path)
        self._generations.keep({generation} | self._used_generations())
        vars(self.state).update(after)
        self.adaptive.in_force(new, ids, generation & 1)
        self.stacks.retire(wanted)
        self.groups.follow(new, compiled, generation)
        await self.groups.look()
        await in_thread(self.inside.put_in_force, generation & 1, compiled.by_device)
        log.log(
            logging.INFO if changed else logging.DEBUG,
            "policy generation %d: %d rules, %d routes",
            *(generation, len(new.rules), new.n_routes),
        )
        self.publish(lambda: self._policy_event(new, generation))
        return generation

    def _policy_event(self, new: Policy, generation: int) -> Event:
        name, pending, now = self.state.instance, self.groups.pending(), records.event.now()
        counts = (generation, *_counts(new))
        return records.event.PolicyEvent("policy", self.state.policy, *counts, pending, now, name)

    def _prepare(self, new: Policy, ids: IdSpace, compiled: Compiled, half: int) -> None:
        """What sync.apply() does not write of a half."""
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
        counts = _counts(self._policy or new)
        return records.policy.Applied(self.state.instance, generation, *counts, pending, sets)

    @property
    def policy(self) -> Policy | None:
        """The policy in force; None when there is none, or its text cannot be read again
        after a take-over.
        """
        return self._policy

    def policy_show(self) -> records.policy.PolicyText:
        state = self.state
        return records.policy.PolicyText(
            state.instance, state.policy, state.policy_text, state.generation
        )

    def _used_generations(self) -> set[int]:
        """Under which an open flow was decided."""
        return {d.generation for d in self._decisions()}

    def _busy_stacks(self) -> set[int]:
        wished = (one.wish - 1 for one in self._attached.maps.listeners.views() if one.wish)
        return {n for d in self._decisions() for n in (d.stack, d.wanted)}.union(wished)

    def _decisions(self) -> Iterator[Any]:
        return (abi.copy(flow.decision) for flow in self._attached.flows())

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
            earlier=self.earlier.trouble,
            stacks=await self.list_stacks(counts),
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
        )
        return routeget.route_get(here, params)

    # -- events --

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """callback gets every event from now on; the returned function ends that. While nobody
        follows, the hooks report nothing, which costs connections less.
        """
        self._listeners.append(callback)
        if len(self._listeners) == 1:
            sync.set_events(self._attached.maps, wanted=True)

        def unsubscribe() -> None:
            self._listeners.remove(callback)
            if not self._listeners:
                sync.set_events(self._attached.maps, wanted=False)
                self._following.close()

        return unsubscribe

    def publish(self, make: Callable[[], Event]) -> None:
        """What make makes, if anybody follows."""
        if self._listeners:
            event = make()
            for callback in list(self._listeners):
                callback(event)

    def _events_ready(self) -> None:
        events = self._events.read()
        for event in events:
            self.adaptive.ended(event)
        if not self._listeners:
            return
        known = self._following.carriers(
            [event.flow for event in events if flows.is_decided(event)]
        )
        for event in events:
            make = partial(flows.of_event, event, self.state.instance, self._names, known)
            self.publish(make)


def _counts(policy: Policy) -> tuple[int, int, int]:
    """Rules, routes, and stacks that are not built in."""
    stacks = sum(name not in BUILT_IN for name in policy.stacks)
    return len(policy.rules), policy.n_routes, stacks
