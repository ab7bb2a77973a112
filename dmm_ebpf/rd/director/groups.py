# SPDX-License-Identifier: Apache-2.0
"""The cgroups of an instance, followed: the one that its hooks are on, and those that rules of
the policy name; and the files of executables that they name, which a package update replaces.

A service manager removes a service's cgroup and makes it again with each restart: hooks go with
the old one, and programs know a group by a number that nobody has any more. So the hooks of an
instance whose cgroup comes and goes are on the nearest one above it, with a gate (bpf/group.h), and
the kernel itself writes the new number where hooks and rules look, within mkdir(2)
(loader/groupmade.py): no connection can come before. Should the group with the hooks go, too, they
go to one further up, and stay there.

What is left is done here: to say so, to put the hooks above a group that was thought to stay, to
follow files and devices, and all of it where the kernel does not tell. inotify(7) on the
directories above tells of a new one at once; a look each second is for what inotify does not tell.
There it is a race with the service manager, which starts the program some milliseconds after it
has made the group. So hooks and rules are moved where the news is heard, in the event loop's own
thread: another one would first have to get Python's lock. What nobody's connection waits for comes
later, in threads.

Invariants: watches are set before anything is looked at, from the root down, so that nothing
happens unseen. A number in the kernel is read before the group is looked at, and replaced only if
it is still that one: what the kernel has written since is newer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dmm_ebpf import abi, records
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.hal import exefile, nic
from dmm_ebpf.hal.inotify import EntryWatch
from dmm_ebpf.loader import Attached, groupmade, restore
from dmm_ebpf.loader import cgroup as cgroups
from dmm_ebpf.loader.cgroup import NOWHERE
from dmm_ebpf.loader.compile import knows_groups
from dmm_ebpf.rd.director import executables, globbed, sync, urgency
from dmm_ebpf.rd.director.globbed import Globbed
from dmm_ebpf.rd.director.nested import nested
from dmm_ebpf.rd.policy.cgroupglob import is_glob, is_in
from dmm_ebpf.rd.policy.compile import NO_DEVICE, NO_FILE, Compiled
from dmm_ebpf.rd.policy.compile_rules import Check
from dmm_ebpf.rd.policy.evaluate import Query
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.threads import in_thread

LOOK_S = 1.0
_TURNS = 8  # of the watches of patterns, while cgroups are made in those that they are set on
# Of systemd, whose cgroups are removed and made again whenever they are stopped and started.
UNITS = frozenset({".service", ".scope", ".socket", ".mount", ".swap"})
UNTOLD = "cgroups that are made again are followed by inotify, in a race with who makes them"

log = logging.getLogger("dmm-ebpf")


def lookup(path: str) -> tuple[int, int]:
    """A cgroup's id and level, for compile_policy(); NOWHERE: there is none of that path. DmmError:
    there is no cgroup v2.
    """
    place = cgroups.place(path)
    return cgroups.id_of(place), cgroups.level(place)


def attach_place(path: str, *, pending: bool) -> Path:
    """The directory of a cgroup to attach to; pending: it may be made later. UsageError: it
    does not exist.
    """
    if pending:
        return cgroups.place(path)
    try:
        return cgroups.resolve(path)
    except cgroups.NoSuchCgroupError as error:
        raise UsageError(
            error.what, why=error.why, hint=f"{error.hint}, or attach with --pending to wait for it"
        ) from error


def hooks_on(instance: str, cgroup: Path, *, pending: bool) -> Path | None:
    """The directory of the cgroup that the hooks of an instance belong on whose own is cgroup;
    None: it is not there yet. pending: its own may come and go, as one with the name of a unit
    does in any case. A slice that is there is taken to stay, as long as it does.
    """
    there = cgroup if cgroup.is_dir() else None
    goes = cgroup.suffix in UNITS or (pending and not (there and cgroup.suffix == ".slice"))
    if not goes:
        return there
    return _above(instance, cgroup) or there


def _above(instance: str, cgroup: Path) -> Path | None:
    """Where the hooks of an instance belong whose own cgroup comes and goes: on the nearest one
    above. None: they cannot be there, as nothing could tell its sockets from others'.
    """
    if cgroup == cgroups.find_cgroup2() or not (knows_groups() and cgroups.sees_root()):
        return None
    above = cgroups.nearest(cgroup.parent)
    for other in nested(instance):
        # Of hooks on one cgroup the order is that in which they came, and the inner's are first.
        if other.above and Path(other.cgroup) == above:
            log.warning(
                "the hooks of instance %s are on %s, so those of this one go to %s itself each time "
                "it is made: its first connection may come before them",
                *(other.instance, other.cgroup, cgroup),
            )
            return None
    return above


def known_cgroup(policy: Policy, query: Query) -> None:
    """UsageError if the flow that is asked about is in a cgroup that does not exist, and that
    no rule waits for.
    """
    path = query.cgroup
    if path is None or any(
        is_in(path, one) for rule in policy.rules for one in rule.every("cgroup")
    ):
        return
    if not cgroups.place(path).is_dir():
        raise UsageError(
            "ask for a route", why=f"there is no cgroup {path}, and no rule waits for it"
        )


class Groups:
    """Follows the cgroups of one instance. Lives in its event loop."""

    def __init__(
        self, attached: Attached, cgroup: Path, told: Callable[[], None], earlier: Callable[[], int]
    ) -> None:
        """cgroup: the directory of the instance's own. told: called when one of them came or
        went. earlier: finds listeners that were on it before the hooks; called in a thread,
        says how many.
        """
        self._attached = attached
        self._cgroup = cgroup
        self._gated = attached.gated
        self._on = self._found() if self._gated else cgroup  # where the hooks belong
        self._own_id = attached.own_id  # as it was last seen
        self._waited = groupmade.Waited(attached)
        self._waits = self._gated  # whether the kernel is still to be asked to tell of it
        self._stays = False  # whether the hooks cannot go above
        self._told = told
        self._earlier = earlier
        self._generation = 0
        self._rules: list[Struct] = []
        self._texts: list[str] = []
        self._checks: tuple[Check, ...] = ()
        self._globs: tuple[str, ...] = ()
        self.globbed = Globbed(attached.maps)
        self._watch: EntryWatch | None = None
        self._looking = asyncio.Lock()
        self._news = asyncio.Event()
        # The hooks are on another cgroup, and the rest of that is still to be done
        self._hooked = False
        self._pointed = False  # the same of rules
        self._untold = False  # it has been said that the kernel does not tell
        self._refused = ""  # why the hooks could not be put where they belong, until they are

    @property
    def refused(self) -> str:
        """Why hooks that are missing cannot be put back."""
        return self._refused

    @property
    def missing(self) -> bool:
        """Whether the instance's own cgroup is not there."""
        return cgroups.id_of(self._cgroup) == NOWHERE

    @property
    def moved(self) -> bool:
        """Whether that cgroup is another than the one whose sockets the hooks see."""
        number = cgroups.id_of(self._cgroup)
        if number not in (NOWHERE, self._attached.own_id):
            return True
        return not self._stand and (self._gated or number != NOWHERE)

    @property
    def _stand(self) -> bool:
        """Whether the hooks are where they belong."""
        return cgroups.id_of(self._on) == self._attached.cgroup_id

    def _found(self) -> Path:
        """Where hooks with a gate are, or else belong."""
        path = cgroups.path_of(self._attached.cgroup_id) if self._attached.cgroup_id else None
        return cgroups.place(path) if path else cgroups.nearest(self._cgroup.parent)

    def pending(self) -> list[records.status.Pending]:
        """The rules that wait for their cgroup."""
        matched = self.globbed.matched(self._generation & 1)
        return waiting(
            self._texts, self._checks, lambda index, key: waits(self._rules[index], key, matched)
        )

    def follow(self, policy: Policy, compiled: Compiled, generation: int) -> None:
        """The policy that is in force from now on; look() then tells whether its cgroups
        are still those.
        """
        self._generation = generation
        self._rules = list(compiled.rules)
        self._texts = [policy.rule_text(index) for index in range(len(policy.rules))]
        self._checks, self._globs = compiled.checks, compiled.globs
        self._match(generation & 1 ^ 1, {})  # nobody reads that half
        if self._waited.there:
            with contextlib.suppress(DmmError):  # nobody reads that half
                self._waited.rules(generation & 1 ^ 1, {})

    def prepare(self, compiled: Compiled, half: int) -> None:
        """Have the cgroups known, from now on, of rules that were just written to a half which is
        not in force yet. To be called in a thread.
        """
        self._match(half, globbed.find(compiled.globs).ids)
        asked = _asked(compiled.checks, "cgroup")
        if asked and self._wait():
            wanted: dict[Path, list[int]] = {}
            for index, path in asked.items():
                wanted.setdefault(cgroups.place(path), []).append(index)
            self._waited.rules(half, wanted)
        rules, first = self._attached.maps.rules, half * C.DMM_MAX_CHECKS
        for index, path in asked.items():
            rule = rules[first + index]
            was, rule.cgroup_id = int(rule.cgroup_id), lookup(path)[0]
            if rule.cgroup_id != was:
                groupmade.set_rule(self._attached, first + index, rule, was)

    def _wait(self) -> bool:
        """Have the kernel tell of cgroups; whether it does."""
        try:
            self._waited.put()
        except DmmError as error:
            if not self._untold:
                log.warning("%s: %s", error, UNTOLD)
            self._untold = True
        return not self._untold

    def _asked(self, key: str) -> dict[int, str]:
        """By the index of a check what it asks for."""
        return _asked(self._checks, key)

    async def run(self) -> None:
        """Follow until cancelled."""
        loop = asyncio.get_running_loop()
        urgency.prefer()
        try:
            self._watch = EntryWatch()
        except OSError as error:
            log.warning("cgroups are looked at once a second only: %s", error)
        else:
            loop.add_reader(self._watch.fileno(), self._hear)
        try:
            while True:
                await self.look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()
                if self._news.is_set():
                    self._news.clear()
                    self._told()
        finally:
            if self._watch is not None:
                loop.remove_reader(self._watch.fileno())
                self._watch.close()
                self._watch = None

    def _hear(self) -> None:
        if self._watch is not None and self._watch.drain():
            with urgency.at_once():
                self._move()
            self._news.set()

    async def look(self, *, mend: bool = False) -> None:
        """Put hooks and rules on the cgroups that are there now; mend: also hooks that somebody
        took off the one that they were on. What fails is logged, and tried again at the next look.
        """
        async with self._looking:
            self._move(mend=mend)
            if self._hooked:
                self._hooked = False  # it may be set again meanwhile
                try:
                    await self._settle()
                except BaseException:
                    self._hooked = True
                    raise
            if self._pointed:
                self._pointed = False
                try:
                    await self._point_listeners()
                except BaseException:
                    self._pointed = True
                    raise

    async def ask(self, flags: int) -> None:
        """Put the hooks on that a policy with these flags of enum dmm_control_flag needs besides;
        they stay. DmmError if the cgroup does not take them; then all is as before.
        """
        if not flags & ~self._attached.asked:
            return
        async with self._looking:
            before = self._attached.asked
            self._attached.asked |= flags
            try:
                if self._stand and restore.unhooked(self._attached):
                    restore.hook(self._attached, self._on)
                    self._hooked = True
            except BaseException:
                self._attached.asked = before
                raise

    def _move(self, *, mend: bool = False) -> None:
        """What new connections wait for."""
        self._set_watches()
        try:
            self._hook(mend)
        except (DmmError, OSError) as error:
            if not self.missing:  # else it was removed once more meanwhile
                self._refuse(str(error))
        else:
            if self._hooked:
                self._refused = ""
        self._point()

    def _refuse(self, why: str) -> None:
        """Tried again at each look, and told once."""
        if why != self._refused:
            log.warning("cgroup %s: %s", self._cgroup, why)
        self._refused = why

    async def _settle(self) -> None:
        """What comes after the hooks: their pins, and what was on the cgroup before them."""
        try:
            await in_thread(restore.pin, self._attached)
            self._pointed |= bool(await in_thread(self._earlier) and self._rules)
        except (DmmError, OSError) as error:
            self._hooked = True
            log.warning("cgroup %s: %s", self._cgroup, error)

    def _set_watches(self) -> None:
        if self._watch is None:
            return
        wanted: dict[Path, set[bytes]] = {}
        try:
            root = cgroups.find_cgroup2()
            for place in [self._cgroup, *map(cgroups.place, self._asked("cgroup").values())]:
                parent = root
                for name in place.relative_to(root).parts if place.is_relative_to(root) else ():
                    wanted.setdefault(parent, set()).add(os.fsencode(name))
                    parent /= name
            for path in self._asked("executable").values():
                for folder, name_there in exefile.way(path):
                    wanted.setdefault(folder, set()).add(name_there)
            self._follow(self._watch, wanted)
        except (DmmError, OSError) as error:
            log.warning("cgroups are looked at once a second only: %s", error)

    def _follow(self, watch: EntryWatch, wanted: dict[Path, set[bytes]]) -> None:
        """These entries, and those that patterns stand for, also in what is made meanwhile."""
        ways: dict[Path, set[str]] = {}
        for turn in range(_TURNS):
            known, ways = ways.keys(), globbed.find(self._globs).ways
            if turn and ways.keys() <= known:
                return
            watch.follow(globbed.entries(wanted, ways))

    def _match(self, half: int, ids: Mapping[int, int]) -> None:
        try:
            self._pointed |= self.globbed.put(half, ids) and bool(ids)
        except DmmError as error:
            log.warning("cgroups that patterns match: %s", error)

    def _hook(self, mend: bool) -> None:
        before = self._attached.cgroup_id
        if self._waits:
            self._waits = False
            self._have_own_told()
        if before and not self._stand:
            self._rise()
        number = cgroups.id_of(self._on)
        if number != NOWHERE and (number != before or mend):
            restore.hook(self._attached, self._on)
            self._hooked = True
        self._see_own(before)

    def _rise(self) -> None:
        """The cgroup with the hooks does not last, as one above it may."""
        if self._gated:
            self._on = cgroups.nearest(self._on.parent)
            return
        above = None if self._stays else _above(self._attached.instance, self._cgroup)
        self._stays = above is None
        if above is not None:
            self._on, self._gated = above, True
            self._have_own_told()
            sync.set_gate(self._attached.maps)

    def _have_own_told(self) -> None:
        if self._wait():
            self._waited.own(self._cgroup)

    def _see_own(self, before: int) -> None:
        """Have the hooks know the instance's own cgroup. before: the id of the one that they
        were on.
        """
        known = self._attached.own_id
        number = cgroups.id_of(self._cgroup)
        if number != known:
            groupmade.set_own(self._attached, known, number)
        if number == self._own_id:
            return
        self._own_id = number
        if number != NOWHERE:
            self._hooked = True
            again = " again" if before and not self._gated else ""
            log.info("cgroup %s is there%s: hooks are on it", self._cgroup, again)

    def _point(self) -> None:
        changed: dict[int, Struct] = {}
        known: dict[int, int] = {}  # the id of its cgroup in the kernel
        first = (self._generation & 1) * C.DMM_MAX_CHECKS
        for index, path in self._asked("cgroup").items():
            rule = abi.copy(self._rules[index])
            if lookup(path)[0] != rule.cgroup_id:
                known[index] = int(self._attached.maps.rules[first + index].cgroup_id)
                rule.cgroup_id = number = lookup(path)[0]
                changed[index] = rule
                log.info("cgroup %s of rule %d %s", path, rule.number, _became(number != NOWHERE))
        for index, name in self._asked("interface").items():
            rule = changed.get(index) or abi.copy(self._rules[index])
            ifindex = device_lookup(name)
            if ifindex != rule.device:
                rule.device = ifindex
                changed[index] = rule
                log.info("device %s of rule %d has come or gone", name, rule.number)
        for index, path in self._asked("executable").items():
            rule = changed.get(index) or abi.copy(self._rules[index])
            file = executables.find(path)
            if file != (rule.exe_device, rule.exe_inode):
                rule.exe_device, rule.exe_inode = file
                changed[index] = rule
                log.info("file %s of rule %d %s", path, rule.number, _became(file != NO_FILE))
        if self._globs:
            with contextlib.suppress(OSError):  # the next look may be luckier
                self._match(self._generation & 1, globbed.find(self._globs).ids)
        if not changed:
            return
        for index, rule in changed.items():
            was = known.get(index, int(rule.cgroup_id))
            groupmade.set_rule(self._attached, first + index, rule, was)
            self._rules[index] = rule
        self._pointed = True

    async def _point_listeners(self) -> None:
        """Have the peers of every listener looked up where the rules that are in force now say."""
        await in_thread(
            sync.set_listener_tables,
            self._attached.maps.listeners,
            list(self._rules),
            self._generation & 1,
            self._attached.set_listener_table,
            sync.in_cgroup_by_path(cgroups.path_of),
            in_glob=sync.in_glob_by_path(cgroups.path_of, self._globs),
        )


def waiting(
    texts: Sequence[str], checks: Sequence[Check], waits: Callable[[int, str], bool]
) -> list[records.status.Pending]:
    """The rules, by their texts, that wait for a cgroup or a file, each once for each. waits: by
    the index of a check and "cgroup" or "executable" whether it does for what it names there.
    """
    found = {
        (one.rule, key, one.wanted[key]): None
        for index, one in enumerate(checks)
        for key in ("cgroup", "executable")
        if key in one.wanted and not one.skip and waits(index, key)
    }
    return [
        records.status.Pending(
            texts[rule],
            rule + 1,
            cgroup=path if key == "cgroup" else None,
            executable=path if key == "executable" else None,
        )
        for rule, key, path in found
    ]


def waits(rule: Struct, key: str, matched: int) -> bool:
    """Whether the cgroup, or the executable, that a struct dmm_rule asks for is not there. matched:
    the bits of patterns that match one.
    """
    if rule.flags & C.DMM_RULE_GLOB and key == "cgroup":
        return not rule.cgroup_id & matched
    if key == "cgroup":
        return bool(rule.cgroup_id == NOWHERE)
    return (rule.exe_device, rule.exe_inode) == NO_FILE


def device_lookup(name: str) -> int:
    """The ifindex of a device of this network namespace, by any of its names; NO_DEVICE: it is not
    there.
    """
    names = nic.names_of(name)
    return (nic.ifindex_of(names[0]) if names else None) or NO_DEVICE


def _asked(checks: Sequence[Check], key: str) -> dict[int, str]:
    """Without patterns."""
    found = {i: one.wanted[key] for i, one in enumerate(checks) if key in one.wanted}
    return found if key != "cgroup" else {i: p for i, p in found.items() if not is_glob(p)}


def _became(there: bool) -> str:
    return "is there: the rule matches it" if there else "is gone: the rule waits for it"
