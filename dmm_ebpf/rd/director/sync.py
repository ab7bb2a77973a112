# SPDX-License-Identifier: Apache-2.0
"""Putting a compiled policy into the kernel's maps, whole or not at all.

Owns the order of writes. Every policy map has two halves, and control[0].generation says by its
lowest bit which one the programs read. apply() fills the other half, then writes control[0]: that
one write is the change. Whatever fails before it leaves the running policy as it was; nothing that
fails after it is allowed to matter.

A program that read the old generation may run on for a moment after the change, so the old half is
not touched until an RCU grace period has passed. The wait is the kernel's own: bpf(2)
BPF_MAP_UPDATE_ELEM on a map of maps returns only after synchronize_rcu(), so an inner map is put
once more where it already is.

listeners[] has, per half, the table each listening socket's peers are looked up in. BPF fills it
in when a socket begins to listen, for the policy of that moment; here it is worked out for the
new policy: before the change for every listener there is, and after the grace period for those
that appeared meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import cgroup
from dmm_ebpf.loader import maps as loader_maps
from dmm_ebpf.loader.maps import Map, RoutesKind
from dmm_ebpf.loader.spec import Maps
from dmm_ebpf.loader.table import Table
from dmm_ebpf.rd.policy.cgroupglob import is_in
from dmm_ebpf.rd.policy.compile import Compiled
from dmm_ebpf.rd.policy.compile_routes import Entries

log = logging.getLogger(__name__)

INNER_KINDS = tuple(loader_maps.INNER)
_U32_MAX = 0xFFFFFFFF
# Of enum dmm_control_flag, at a change of policy. Exchanges that an earlier one gave to a user
# stack may go on.
_STAYS = C.DMM_CONTROL_EVENTS | C.DMM_CONTROL_CHOICE | C.DMM_CONTROL_DATAGRAMS | C.DMM_CONTROL_GATE
# control[0] is written whole, by a change of policy in a thread and by set_events() in
# the event loop.
_control_lock = threading.Lock()


class InnerMaps(Protocol):
    """Making the tries of one half, and putting them in; dmm_ebpf.loader.maps is one."""

    def create_routes_map(self, kind: RoutesKind, max_entries: int) -> Map:
        """An empty map for kind, one of INNER_KINDS."""

    def set_inner(self, outer: Map, index: int, inner: Map | None) -> None:
        """Put inner at outer[index], or take away what is there; the first returns after an
        RCU grace period.
        """


ForHalf = Callable[[int], object]
ListenerSet = Callable[[Any, int, int, int, int], object]
InCgroup = Callable[[int, int], bool]


def _in_none(_cgroup_id: int, _glob: int) -> bool:
    return False


def current_generation(maps: Maps) -> int:
    """The generation in force; 0 when there is no policy yet."""
    return int(maps.control[0].generation)


def next_generation(current: int) -> int:
    """The generation after current: of the other parity, and never 0, which means no policy."""
    return current + 1 if current < _U32_MAX else 2


def apply(
    maps: Maps,
    compiled: Compiled,
    *,
    listener_set: ListenerSet,
    inner: InnerMaps = loader_maps,
    in_cgroup: InCgroup | None = None,
    generation: int | None = None,
    netns_cookie: int | None = None,
    devices: ForHalf | None = None,
    containers: bool = False,
) -> int:
    """Put compiled in force; returns its generation.

    listener_set: (key, half, table, rule, chosen) sets tables, rules and chosen[half] of
    listeners[key] in place, leaving its count alone; a key that is gone is no error. Must be a BPF
    program's write: user space cannot write part of a value.
    inner: makes and places the tries.
    in_cgroup: (cgroup id, id of a rule's cgroup) → whether the first is the second or below it;
    None: by their paths.
    generation: must have the other parity than the one in force; None: the next one.
    netns_cookie: for control[0]; None: as it is there.
    devices: writes, for that half, which devices compiled.forwards hold for; called
    before the change.
    containers: whether sockets of other network namespaces are meant.
    DmmError, and the running policy untouched, when the kernel refuses something.
    """
    below = in_cgroup or in_cgroup_by_path(cgroup.path_of)
    swap = _Swap(maps, compiled, inner, listener_set, below, devices)
    return swap.run(generation, netns_cookie, control_flags(compiled, containers=containers))


def control_flags(compiled: Compiled, *, containers: bool) -> int:
    """Of enum dmm_control_flag, those that a policy decides."""
    flags = C.DMM_CONTROL_CONTAINERS if containers else 0
    choose = [int(rule.choose) for rule in compiled.rules]
    users = [n for n, stack in compiled.stacks.items() if stack.kind == C.DMM_STACK_USER]
    chosen = any(one >> n & 1 for one in choose for n in users)
    if chosen or compiled.head.datagrams & C.DMM_DATAGRAMS_USER:
        flags |= C.DMM_CONTROL_DATAGRAMS
    flags |= C.DMM_CONTROL_FORWARD if containers or compiled.forwards else 0
    flags |= C.DMM_CONTROL_CHOICE if any(choose) else 0
    by_dscp = any(rule.flags & C.DMM_RULE_DSCP for rule in compiled.rules)
    flags |= C.DMM_CONTROL_ADAPTIVE if compiled.is_adaptive else 0
    return flags | (C.DMM_CONTROL_DSCP if by_dscp else 0)


def in_cgroup_by_path(path_of: Callable[[int], str | None]) -> InCgroup:
    """An InCgroup from what gives a cgroup's path below the cgroup v2 mount by its id; None:
    it is gone.
    """
    paths: dict[int, list[str] | None] = {}

    def parts(cgroup_id: int) -> list[str] | None:
        if cgroup_id not in paths:
            path = path_of(cgroup_id)
            paths[cgroup_id] = None if path is None else [part for part in path.split("/") if part]
        return paths[cgroup_id]

    def test(cgroup_id: int, ancestor_id: int) -> bool:
        if cgroup_id == ancestor_id:
            return True
        below, above = parts(cgroup_id), parts(ancestor_id)
        return below is not None and above is not None and below[: len(above)] == above

    return test


def in_glob_by_path(path_of: Callable[[int], str | None], globs: Sequence[str]) -> InCgroup:
    """The same of patterns of cgroups, which are named by their bits."""
    paths: dict[int, str | None] = {}

    def test(cgroup_id: int, bit: int) -> bool:
        if cgroup_id not in paths:
            paths[cgroup_id] = path_of(cgroup_id)
        return is_in(paths[cgroup_id], globs[bit.bit_length() - 1])

    return test


@contextlib.contextmanager
def _control(maps: Maps) -> Iterator[Struct]:
    """control[0] to be changed; written back when the block ends without an error."""
    with _control_lock:
        control = maps.control[0]
        yield control
        maps.control[0] = control


def set_generation(maps: Maps, generation: int) -> None:
    """Put in force what the same half has with other live routes (places.py)."""
    with _control(maps) as control:
        control.generation = generation


def set_events(maps: Maps, wanted: bool) -> None:
    """Whether the programs put events in the ring; the policy in force stays."""
    with _control(maps) as control:
        if wanted:
            control.flags |= C.DMM_CONTROL_EVENTS
        else:
            control.flags &= ~C.DMM_CONTROL_EVENTS


def set_gate(maps: Maps) -> None:
    """From now on the hooks are on a cgroup above the instance's own."""
    with _control(maps) as control:
        control.flags |= C.DMM_CONTROL_GATE


class _Swap:
    """One change of policy."""

    def __init__(  # noqa: PLR0917 - what apply() was given
        self,
        maps: Maps,
        compiled: Compiled,
        inner: InnerMaps,
        listener_set: ListenerSet,
        in_cgroup: InCgroup,
        devices: ForHalf | None,
    ) -> None:
        self.maps = maps
        self.compiled = compiled
        self.inner = inner
        self.listener_set = listener_set
        self.in_cgroup = in_cgroup
        self.devices = devices
        self.half = 0
        self.tries: dict[RoutesKind, Map] = {}

    def run(self, generation: int | None, netns_cookie: int | None, flags: int) -> int:
        current = current_generation(self.maps)
        new = next_generation(current) if generation is None else generation
        if not 0 < new <= _U32_MAX or (new & 1 == current & 1 and current):
            raise ValueError(f"generation {new} cannot follow {current}: both are in one half")
        self.half = new & 1
        try:
            self._fill()
            self._listeners()
            self._flip(new, netns_cookie, flags)
        except BaseException:
            self._clear(self.half)
            self._close()
            raise
        self._settle(new)
        self._close()
        return new

    def _fill(self) -> None:
        for kind in INNER_KINDS:
            entries: Entries = getattr(self.compiled, kind)
            self.tries[kind] = self.inner.create_routes_map(kind, max(1, entries.count))
        # Side by side: an insertion holds its own trie's lock alone, and each trie that is put in
        # waits for a grace period, tens of milliseconds, which is then the same one for all.
        with ThreadPoolExecutor(len(self.tries), "dmm-inner") as pool:
            filling = [pool.submit(self._fill_trie, kind) for kind in self.tries]
        for filled in filling:
            filled.result()
        set_rules(self.maps, self.half, dict(enumerate(self.compiled.rules)))
        first = self.half * C.DMM_MAX_FORWARDS
        self.maps.forwards.update(dict(enumerate(self.compiled.forwards, first)))
        if self.devices is not None:
            self.devices(self.half)
        first, none = self.half * C.DMM_MAX_STACKS, abi.new("dmm_stack")
        stacks = (self.compiled.stacks.get(number, none) for number in range(C.DMM_MAX_STACKS))
        self.maps.stacks.update(dict(enumerate(stacks, first)))
        self.maps.heads[self.half] = self.compiled.head

    def _fill_trie(self, kind: RoutesKind) -> None:
        entries: Entries = getattr(self.compiled, kind)
        trie = self.tries[kind]
        for keys, values, count in entries.chunks():
            trie.update_batch(keys, values, count)
        self.inner.set_inner(self.maps[kind], self.half, trie)

    def _flip(self, generation: int, netns_cookie: int | None, flags: int) -> None:
        with _control(self.maps) as control:
            control.abi_version = C.DMM_ABI_VERSION
            control.generation = generation
            control.flags = control.flags & _STAYS | flags
            if netns_cookie is not None:
                control.netns_cookie = netns_cookie

    def _settle(self, generation: int) -> None:
        """What is left when the policy is in force; a failure here costs memory or lateness, so
        it is logged.
        """
        try:
            self.inner.set_inner(self.maps["routes"], self.half, self.tries["routes"])
            self._listeners()
        except DmmError as error:
            log.warning(
                "policy generation %d is in force, but listeners may lag: %s", generation, error
            )
            return
        self._clear(self.half ^ 1)

    def _listeners(self) -> None:
        set_listener_tables(
            self.maps.listeners,
            self.compiled.rules,
            self.half,
            self.listener_set,
            self.in_cgroup,
            in_glob=in_glob_by_path(cgroup.path_of, self.compiled.globs),
        )

    def _clear(self, half: int) -> None:
        """Free the tries of a half that no program reads."""
        for kind in INNER_KINDS:
            with contextlib.suppress(DmmError):
                self.inner.set_inner(self.maps[kind], half, None)

    def _close(self) -> None:
        for trie in self.tries.values():
            trie.close()


def set_rules(maps: Maps, half: int, rules: Mapping[int, Struct]) -> None:
    """Write rules of a half that is not in force, by their index."""
    first = half * C.DMM_MAX_CHECKS
    maps.rules.update({first + index: rule for index, rule in rules.items()})


def set_listener_tables(
    listeners: Table[Any, Struct],
    rules: Sequence[Struct],
    half: int,
    listener_set: ListenerSet,
    in_cgroup: InCgroup,
    *,
    in_glob: InCgroup = _in_none,
) -> None:
    """Have the peers of every listening socket looked up, in that half, where these rules say."""
    for key, listener in list(listeners.items()):
        found = listener_table(rules, key, listener, in_cgroup, in_glob=in_glob)
        if (listener.tables[half], listener.rules[half], listener.chosen[half]) != found:
            listener_set(key, half, *found)


def listener_table(
    rules: Sequence[Struct],
    key: Struct,
    listener: Struct,
    in_cgroup: InCgroup,
    *,
    in_glob: InCgroup = _in_none,
) -> tuple[int, int, int]:
    """(table, rule from 1, chosen) for a struct dmm_listener at key: its program's wish, if a rule
    lets it; else the table of the first rule that matches and has one, as in bpf/bind.h; or zeros.
    One that is bound to a device is the kernel's. in_glob: as in_cgroup of a pattern's bit.
    """
    if listener.device:
        return 0, 0, 0
    matching = [
        (int(rule.number), rule) for rule in _matching(rules, key, listener, in_cgroup, in_glob)
    ]
    wish = int(listener.wish)
    for number, rule in matching if wish else ():
        if rule.choose >> (wish - 1) & 1:
            return 0, number, wish
    return next(
        ((int(rule.table), number, 0) for number, rule in matching if rule.table), (0, 0, 0)
    )


def _matching(
    rules: Sequence[Struct],
    key: Struct,
    listener: Struct,
    in_cgroup: InCgroup,
    in_glob: InCgroup,
) -> Iterator[Struct]:
    """The checks that match, without those that only except."""
    index = 0
    while index < len(rules):
        rule, index = rules[index], index + 1
        if not _matches(rule, key, listener):
            continue
        if not _is_there(rule, int(listener.cgroup_id), in_cgroup, in_glob):
            continue
        if rule.skip:
            index += rule.skip
        else:
            yield rule


def _is_there(rule: Struct, cgroup_id: int, in_cgroup: InCgroup, in_glob: InCgroup) -> bool:
    if rule.flags & C.DMM_RULE_GLOB:
        return in_glob(cgroup_id, int(rule.cgroup_id))
    return not rule.flags & C.DMM_RULE_CGROUP or in_cgroup(cgroup_id, int(rule.cgroup_id))


def _matches(rule: Struct, key: Struct, listener: Struct) -> bool:
    """All that the rule asks for but its cgroup."""
    flags, port = rule.flags, socket.ntohs(key.port_be)
    if not rule.directions & C.DMM_DIR_LISTEN:
        return False
    equal = {
        C.DMM_RULE_DSCP: "dscp",
        C.DMM_RULE_NETNS: "netns_cookie",
        C.DMM_RULE_DEVICE: "device",
    }
    executes = (listener.exe_inode, listener.exe_device) == (rule.exe_inode, rule.exe_device)
    return (
        all(getattr(listener, k) == getattr(rule, k) for bit, k in equal.items() if flags & bit)
        and (not flags & C.DMM_RULE_EXECUTABLE or executes)
        and (not flags & C.DMM_RULE_UID or rule.uid_first <= listener.uid <= rule.uid_last)
        and (not flags & C.DMM_RULE_GID or rule.gid_first <= listener.gid <= rule.gid_last)
        and (not flags & C.DMM_RULE_LPORT or rule.lport_first <= port <= rule.lport_last)
        and (not flags & C.DMM_RULE_MARK or listener.mark & rule.mark_mask == rule.mark)
        and (not flags & C.DMM_RULE_COMM or abi.text(listener.comm) == abi.text(rule.comm))
    )
