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
from pathlib import Path
from typing import Any

from dmm_ebpf import abi, loader
from dmm_ebpf.abi import C
from dmm_ebpf.errors import ConflictError, DmmError, NotAttachedError
from dmm_ebpf.hal import stackdevice, tuning
from dmm_ebpf.hal.netns import NetNS
from dmm_ebpf.loader import Attached, EventReader
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.rd.director import flows, load, routeget, sync, undo
from dmm_ebpf.rd.director.earlier import Earlier
from dmm_ebpf.rd.director.groups import Groups, attach_place, lookup
from dmm_ebpf.rd.director.guard import Guard, Item
from dmm_ebpf.rd.director.inside import Inside
from dmm_ebpf.rd.director.load import core_counters
from dmm_ebpf.rd.director.offline import labels_left
from dmm_ebpf.rd.director.openflows import OpenFlows
from dmm_ebpf.rd.director.routeget import Here
from dmm_ebpf.rd.director.rundir import RunDir, State, why_not_for
from dmm_ebpf.rd.director.stacks import StackManager
from dmm_ebpf.rd.director.standing import Hooks, Namespace, Pins, StateFile
from dmm_ebpf.rd.director.steps import Steps
from dmm_ebpf.rd.director.usual import read_usual
from dmm_ebpf.rd.director.watch import PolicyWatch
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.compile import Compiled, Labels, compile_policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.model import BUILT_IN, KERNEL, Policy
from dmm_ebpf.rd.policy.plugins import check_plugins
from dmm_ebpf.threads import in_thread

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
        self.state = state
        self.adopted = adopted
        self._run = run
        self._attached = attached
        self._ids = IdSpace.from_dict(state.ids) if state.ids else IdSpace()
        self._policy: Policy | None = None
        self._labels: dict[int, Labels] = {}
        self._applying = asyncio.Lock()
        self._appliers: set[asyncio.Task[Any]] = set()  # tasks in apply()
        self._closing = False
        self._since = time.monotonic()
        self._listeners: list[Callable[[dict[str, Any]], None]] = []
        # A Resource Director that was killed may have had followers.
        sync.set_events(attached.maps, wanted=False)
        self._events = EventReader(attached.maps["events"].fd)
        self._cgroup_paths: dict[int, str | None] = {}
        self.stacks = StackManager(attached, run, state, netns, self.publish)
        self.inside = Inside(attached, state, self.stacks.ifindexes, lambda: run.save(state))
        self.watch = PolicyWatch(self)
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
        if generation == self.state.generation and (left := labels_left(self.state, self._ids)):
            self._labels[generation] = left
        source = self.state.policy or "the policy in force"
        base = Path(self.state.policy).parent if self.state.policy else Path("/")
        try:
            running = policies.parse(self.state.policy_text, source=source, base=base)
            await self.apply(running, Path(self.state.policy) if self.state.policy else None)
        except DmmError as e:
            log.warning("the policy in force stays, but cannot be read again: %s", e)

    async def close(self) -> list[str]:
        """Detach: hooks first, so that no new flow comes, then stacks, then every other trace.
        Returns what went; a step that fails keeps no other from being tried, and DmmError tells of
        all that failed.
        """
        self._closing = True
        for task in self._appliers:
            task.cancel()
        async with self._applying:  # until what they had begun is undone
            return await self._close()

    async def _close(self) -> list[str]:
        steps = Steps(f"detach instance {self.state.instance} wholly")
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        steps.do("hooks", self._attached.unhook)
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
    ) -> dict[str, Any]:
        """Put new in force. DmmError if it cannot be; then nothing has changed. unless is asked
        when it is new's turn: true means that it is wanted no more; then nothing is done, and the
        answer is empty.
        """
        task = asyncio.current_task()
        if task is None or self._closing:
            raise self._too_late()
        self._appliers.add(task)
        try:
            async with self._applying:
                return {} if unless() else await self._apply(new, path)
        except asyncio.CancelledError:
            if self._closing:
                raise self._too_late() from None
            raise
        finally:
            self._appliers.discard(task)

    def _too_late(self) -> DmmError:
        return NotAttachedError(
            "apply the policy", why=f"instance {self.state.instance} is being detached"
        )

    async def _apply(self, new: Policy, path: Path | None) -> dict[str, Any]:
        users = new.user_stacks()
        wanted = {name: users[name] for name in new.routed_stacks() if name in users}
        ids = IdSpace.from_dict(self._ids.to_dict())
        await asyncio.to_thread(check_plugins, new, wanted)
        await in_thread(
            self.stacks.number, {name: config.processes for name, config in wanted.items()}
        )
        compiled = await asyncio.to_thread(
            compile_policy,
            new,
            ids,
            lookup,
            netns_lookup=routeget.netns_cookie,
            congestion_controls=tuning.read("net/ipv4/tcp_available_congestion_control").split(),
            usual=read_usual(),
            busy_stacks=self._busy_stacks(),
        )
        started = await self.stacks.ensure(
            {name: (ids.stack(name), config) for name, config in wanted.items()}
        )
        generation = sync.next_generation(sync.current_generation(self._attached.maps))
        after: dict[str, Any] = {
            "ids": ids.to_dict(),
            "generation": generation,
            "policy": str(path) if path else None,
            "policy_text": new.text,
        }
        try:
            # Before it is in force: what cannot be written down is refused, and
            # nothing has changed.
            self._run.save(replace(self.state, **after))
            await in_thread(self._sync, compiled, generation)
        except BaseException:
            await self.stacks.drop(started)
            self._run.keep(self.state)
            raise
        self._ids, self._policy = ids, new
        self._labels[generation] = compiled.labels
        self._forget_generations(generation)
        vars(self.state).update(after)
        self.stacks.retire(wanted)
        summary: dict[str, Any] = {
            "generation": generation,
            "rules": len(new.rules),
            "routes": new.n_routes,
            "stacks": sum(name not in BUILT_IN for name in new.stacks),
        }
        self.groups.follow(new, compiled, generation)
        await self.groups.look()
        summary["pending"] = self.groups.pending()
        await in_thread(self.inside.put_in_force, generation & 1, compiled.by_device)
        self.publish({"type": "policy", "path": self.state.policy, **summary})
        log.info(
            "policy generation %d: %d rules, %d routes",
            generation,
            summary["rules"],
            summary["routes"],
        )
        return summary

    def _sync(self, compiled: Compiled, generation: int) -> int:
        return sync.apply(
            self._attached.maps,
            compiled,
            generation=generation,
            inner=loader,
            listener_set=self._attached.set_listener_table,
            in_cgroup=sync.in_cgroup_by_path(cgroups.path_of),
            devices=lambda half: self.inside.prepare(half, compiled.by_device),
            containers=self.state.containers,
        )

    async def apply_text(self, text: str, path: str | None) -> dict[str, Any]:
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
        return await self.apply(new, source)

    @property
    def policy(self) -> Policy | None:
        """The policy in force; None when there is none, or its text cannot be read again
        after a take-over.
        """
        return self._policy

    def policy_show(self) -> dict[str, Any]:
        return {
            "instance": self.state.instance,
            "path": self.state.policy,
            "text": self.state.policy_text,
            "generation": self.state.generation,
        }

    def _forget_generations(self, current: int) -> None:
        """Names of old generations are kept for as long as an open flow was decided under them."""
        used = {current} | {d.generation for d in self._decisions()}
        for generation in set(self._labels) - used:
            del self._labels[generation]

    def _busy_stacks(self) -> set[int]:
        return {n for d in self._decisions() for n in (d.stack, d.wanted)}

    def _decisions(self) -> Iterator[Any]:
        return (abi.copy(flow.decision) for flow in self._attached.flows())

    # -- what has to stand on the host --

    def _standing(self) -> list[Item]:
        return [*self.ground, *self.stacks.standing(), self.inside]

    def _own_pids(self) -> list[int]:
        return [os.getpid(), *self.stacks.pids()]

    # -- names, for flows.Names --

    def stack(self, stack_id: int) -> str:
        return self._ids.stack_name(stack_id) or f"#{stack_id}"

    def table(self, table: int) -> str | None:
        return self._ids.table_name(table) or None

    def rule(self, generation: int, rule: int) -> str | None:
        if not rule:
            return None
        labels = self._labels.get(generation)
        return labels.rule_text(rule - 1) if labels else f"{rule} of generation {generation}"

    def route(self, generation: int, route: int) -> str | None:
        if route == C.DMM_ROUTE_NONE or not generation:
            return None
        labels = self._labels.get(generation)
        return labels.route_text(route) if labels else f"{route} of generation {generation}"

    def cgroup(self, cgroup_id: int) -> str | None:
        if cgroup_id not in self._cgroup_paths:
            if len(self._cgroup_paths) > 4096:
                self._cgroup_paths.clear()
            self._cgroup_paths[cgroup_id] = cgroups.path_of(cgroup_id) if cgroup_id else None
        return self._cgroup_paths[cgroup_id]

    # -- what can be asked --

    async def status(self) -> dict[str, Any]:
        await self.guard.known()
        maps, counts = self._attached.maps, await self.flows.by_stack()
        return {
            "instance": self.state.instance,
            "pid": os.getpid(),
            "netns": self.state.netns,
            "cgroup": self.state.cgroup,
            "policy": self.state.policy,
            "policy_refused": self.watch.trouble,
            "generation": self.state.generation,
            "uptime_s": round(time.monotonic() - self._since, 1),
            "flows": counts.total(),
            "listeners": maps.listeners.count(),
            "rules": len(self._policy.rules) if self._policy else 0,
            "routes": self._policy.n_routes if self._policy else 0,
            "counters": flows.counters_dict(maps.counters.percpu),
            "nics": self.stacks.nics(),
            "problem": None,
            "missing": self.guard.missing(),
            "pending": self.groups.pending(),
            "earlier": self.earlier.trouble,
            "stacks": await self.list_stacks(counts),
        }

    async def list_stacks(self, counts: Counter[int] | None = None) -> list[dict[str, Any]]:
        """Every stack of the policy, and those that are still draining. counts: flows by stack,
        if known already.
        """
        counts = await self.flows.by_stack() if counts is None else counts
        asked = await self.stacks.query_all("stats", within_s=LISTING_S)
        dropped = await in_thread(stackdevice.dropped)
        defined = dict(self._policy.stacks) if self._policy else {}
        rows = []
        # One that is being started for a policy not yet in force has no number.
        others = filter(self._ids.has_stack, self.stacks.names())
        for name in dict.fromkeys([KERNEL, *defined, *others]):
            config = defined.get(name)
            stack_id = self._ids.stack(name)
            row: dict[str, Any] = {
                "instance": self.state.instance,
                "name": name,
                "id": stack_id,
                "kind": config.kind if config else ("kernel" if name == KERNEL else "user"),
                "state": "up",
                "flows": counts[stack_id],
            }
            if row["kind"] == "user":
                row.update(self.stacks.describe(name))
                row["counters"] = core_counters(asked, name)
                row["counters"] |= load.device_counters(dropped, row.get("processes", ()))
                row.update(load.figures(asked, name))
                for process in row.get("processes", ()):
                    process.update(load.process_figures(asked.get((name, process["process"]))))
            if config is not None:
                row["options"] = config.options()
                for key in ("transport", "congestion", "io", "fallback"):
                    if key in row["options"]:
                        row[key] = row["options"][key]
            rows.append(row)
        return rows

    def list_flows(self) -> AsyncIterator[list[dict[str, Any]]]:
        """See OpenFlows.pages()."""
        return self.flows.pages(self)

    def list_listeners(self) -> list[dict[str, Any]]:
        return [
            flows.listener_dict(key, one, self.state.instance, self.state.generation, self)
            for key, one in self._attached.maps.listeners.items()
        ]

    def route_get(self, params: dict[str, Any]) -> dict[str, Any]:
        """What a new flow would get now: see routeget.route_get()."""
        here = Here(
            policy=self._policy,
            attached=cgroups.name_of(Path(self.state.cgroup)),
            netns_cookie=self.state.netns_cookie,
            takes_flows=self.stacks.takes_flows,
            devices=lambda name: list(self.stacks.describe(name).get("nics") or ()),
        )
        return routeget.route_get(here, params)

    # -- events --

    def subscribe(self, callback: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
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

        return unsubscribe

    def publish(self, event: dict[str, Any]) -> None:
        event.setdefault("time", round(time.time(), 6))
        event.setdefault("instance", self.state.instance)
        for callback in list(self._listeners):
            callback(event)

    def _events_ready(self) -> None:
        events = self._events.read()
        if not self._listeners:
            return
        for event in events:
            self.publish(flows.event_dict(event, self.state.instance, self))
