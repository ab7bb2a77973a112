# SPDX-License-Identifier: Apache-2.0
"""Single routes of a running instance: `dmm-ebpf route add`, `replace`, `del` and `flush`.

Live routes stand beside the policy in force and outlive it: a reload, another policy, and a
director that is killed. What another policy has no table or no stack for is gone with it. A change
is one generation: it is written where no program reads yet (places.py), then into the journal, and
one write of control[0] puts it in force. What fails before that has changed nothing.

Owns the journal, routes.live in the run directory: a line of JSON for each change, so that a change
among many costs a line, and the generation that it made. It is written anew with each policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader.spec import Maps
from dmm_ebpf.rd.director.places import CHUNK, Places, after, place_of
from dmm_ebpf.rd.director.rundir import unwritable
from dmm_ebpf.rd.policy import named
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.livetable import (
    FleetRoutes,
    LiveRoute,
    LiveRoutes,
    typed,
)
from dmm_ebpf.rd.policy.model import Policy
from dmm_ebpf.rd.policy.named import Named
from dmm_ebpf.rd.policy.overlay import Overlay
from dmm_ebpf.rd.policy.owning import Owned, of_elements, of_live, stays
from dmm_ebpf.rd.policy.routes import Match
from dmm_ebpf.rd.policy.values import (
    PROTOCOL_NAMES,
    parse_ports,
    parse_prefix,
    parse_protocol,
    ports_text,
)
from dmm_ebpf.threads import in_thread

_MOST_NAMES = 4096  # of routes that are gone, for flows that are not
MOST_LINES = 4096  # of the journal; then it is written anew
_SMALL = 256  # prefixes that a place may lag behind, as writing them takes no time to speak of

log = logging.getLogger("dmm-ebpf")


class Edit(NamedTuple):
    """What a request changes."""

    put: tuple[LiveRoute, ...]
    drop: tuple[LiveRoute, ...]

    def undo(self) -> Edit:
        """The change back."""
        return Edit(self.drop, self.put)


class Journal:
    """routes.live of an instance, read once. since: the generation with which the policy came in
    force; generation: the latest that it tells of, 0: none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "routes.live"
        self._fd = -1
        self.routes: dict[int, LiveRoute] = {}
        self.gone: dict[int, LiveRoute] = {}
        self.next_number = 1
        self.since = self.generation = 0
        self.lines = 0  # that were appended since it was written anew
        with contextlib.suppress(FileNotFoundError):
            self._read(self._path.read_bytes())

    def _read(self, data: bytes) -> None:
        for line in data.split(b"\n")[:-1]:  # a line that is not whole was never in force
            with contextlib.suppress(ValueError, TypeError, KeyError):
                said = json.loads(line)
                self._take(said)

    def _take(self, said: Mapping[str, Any]) -> None:
        put = [from_json(row) for row in said["put"]]
        for number in said["drop"]:
            if (one := self.routes.pop(int(number), None)) is not None:
                self.gone[one.number] = one
        self.routes |= {one.number: one for one in put}
        self.generation = int(said["generation"])
        self.since = int(said.get("since", self.since))
        self.next_number = max([self.next_number, *(one.number + 1 for one in put)])
        self.next_number = max(self.next_number, int(said.get("next", 0)))

    def name(self, recorded: int) -> str:
        """What a flow record's number is the route of; empty: it is not known any more."""
        return _name(recorded, self.gone | self.routes)

    def append(self, generation: int, edit: Edit) -> None:
        """Note a change before it is in force. DmmError: it cannot be written."""
        said = {
            "generation": generation,
            "since": self.since,
            "put": [to_json(one) for one in edit.put],
            "drop": [one.number for one in edit.drop],
        }
        try:
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            size = os.fstat(self._fd).st_size
            line = json.dumps(said).encode() + b"\n"
            if os.write(self._fd, line) != len(line):
                os.ftruncate(self._fd, size)
                raise OSError(28, "no space left on device")  # ENOSPC, of which write(2) told half
        except OSError as error:
            raise unwritable(self._path, error) from error
        self.generation = generation
        self.lines += 1

    def begin(
        self, generation: int, routes: Iterable[LiveRoute], gone: Mapping[int, LiveRoute]
    ) -> None:
        """Write it anew: these were there when a policy came in force. Logged where it cannot be:
        then what is there tells of earlier ones.
        """
        self.since = self.generation = generation
        self.compact(routes, gone)

    def compact(self, routes: Iterable[LiveRoute], gone: Mapping[int, LiveRoute]) -> None:
        """Write anew what there is; else as begin()."""
        generation, self.lines = self.generation, 0
        put = [to_json(one) for one in routes]
        told = {
            "generation": generation,
            "put": [to_json(one) for one in gone.values()],
            "drop": [],
        }
        lines = [told] if gone else []
        lines.append({
            "generation": generation,
            "since": self.since,
            "next": self.next_number,
            "put": put,
            "drop": list(gone),
        })  # fmt: skip
        self.close()
        if not put and not gone and self.next_number == 1:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
            new.replace(self._path)
        except OSError as error:
            log.warning(
                "%s; live routes are as they were when it was written last", unwritable(new, error)
            )

    def close(self) -> None:
        """The file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def to_json(one: LiveRoute) -> list[Any]:
    """For the journal, and for others that keep routes."""
    proto = PROTOCOL_NAMES[one.match.proto] if one.match.proto else "any"
    row = [one.number, one.table, str(one.prefix), proto, ports_text(one.match.ports), one.stack]
    return [*row, one.place] if one.place else row


def from_json(row: list[Any]) -> LiveRoute:
    """What to_json() gave. ValueError, TypeError: it is no such."""
    number, table, prefix, proto, ports, stack, *place = row
    match = Match(parse_protocol(proto), parse_ports(ports) if ports else ())
    (to,) = parse_prefix(prefix)
    return LiveRoute(int(number), str(table), to, match, str(stack), *map(str, place[:1]))


class Live:
    """The live routes of one instance. Lives in its event loop."""

    def __init__(self, folder: Path, maps: Maps) -> None:
        self._maps = maps
        self.journal = Journal(folder)
        known = self.journal.routes.values()
        self.routes = LiveRoutes(one for one in known if not one.place)
        self.fleet = FleetRoutes(one for one in known if one.place)
        self._gone: dict[int, LiveRoute] = dict(self.journal.gone)
        self.next_number = self.journal.next_number
        self.places = Places(maps)
        self._overlay = Overlay()
        self._ids = IdSpace()
        self._graces: dict[int, asyncio.Task[None]] = {}
        self._readying: asyncio.Task[None] | None = None
        self.writing = asyncio.Lock()  # who writes places; put_in_force() takes it itself

    def name(self, recorded: int) -> str:
        """What a flow record's number is the route of; empty: it is not known any more."""
        return _name(recorded, self._by_number())

    def _by_number(self) -> dict[int, LiveRoute]:
        return self._gone | {one.number: one for one in self._all()}

    def _all(self) -> list[LiveRoute]:
        return [*self.routes.routes.values(), *self.fleet.routes.values()]

    def reserve(self, count: int) -> int:
        """The first of so many numbers that no other route gets."""
        first = self.next_number
        self.next_number += count
        return first

    def close(self) -> None:
        """Write no more."""
        for task in (*self._graces.values(), self._readying):
            if task is not None:
                task.cancel()
        self.journal.close()

    # -- another policy --

    def kept(self, policy: Policy) -> LiveRoutes:
        """What stays of them beside another policy."""
        routes = self.routes.routes.values()
        return LiveRoutes(one for one in routes if stays(one.table, one.stack, policy))

    def compiled(self, policy: Policy, ids: IdSpace) -> Overlay:
        """What prefixes say beside a policy with these numbers."""
        made = Overlay()
        beside = (one.routes.values() for one in (policy.live, policy.fleet) if one)
        live = (of_live(one, ids) for routes in beside for one in routes)
        has = {name: dict.fromkeys(prefixes) for name, prefixes in policy.elements.items()}
        elements = of_elements(policy, ids, has) if policy.beside else ()
        made.change([*live, *elements], ())
        return made

    async def next_generation(self, current: int, overlay: Overlay) -> int:
        """The one with which a policy and its live routes come in force; its place may be written
        then.
        """
        async with self.writing:
            self.places.take(overlay)
        generation = after(current, 1)
        if place_of(generation) == place_of(current) and not self.places.is_ready(
            place_of(generation)
        ):
            generation = after(current, 3)
        await self._until_free(place_of(generation))
        return generation

    def write(self, generation: int) -> None:
        """What a generation that is about to come in force reads; in any thread, by who has
        writing.
        """
        self.places.write(place_of(generation))

    def refused(self) -> None:
        """That policy did not come in force."""
        self.places.take(self._overlay)

    def in_force(self, policy: Policy, overlay: Overlay, ids: IdSpace, generation: int) -> None:
        """It did."""
        # Empty ones, too, are the policy's from now on, which tells of what is put there.
        kept = LiveRoutes() if policy.live is None else policy.live
        fleet = FleetRoutes() if policy.fleet is None else policy.fleet
        for one in self.fleet.routes.values():
            if fleet.routes.get(one.key) != one:
                self._forget(one)
        for one in self.routes.routes.values():
            if one.key not in kept.routes:
                self._forget(one)
                log.warning(
                    "the live route %s is gone: the policy has no such table or stack any more",
                    typed(one.prefix, one.match, one.stack, one.table),
                )
        self.routes, self.fleet, self._overlay, self._ids = kept, fleet, overlay, ids
        self.journal.next_number = self.next_number
        self.journal.begin(generation, self._all(), self._gone)

    def _forget(self, one: LiveRoute) -> None:
        self._gone[one.number] = one
        while len(self._gone) > _MOST_NAMES:
            del self._gone[next(iter(self._gone))]

    # -- a change --

    def everything(self) -> Edit:
        """What route flush changes."""
        return Edit((), tuple(self.routes.routes.values()))

    def note(self, edit: Edit) -> None:
        """Have an edit among the routes, whatever the kernel has. Those that are gone keep their
        names for flows that are not.
        """
        for routes, of_fleet in ((self.routes, False), (self.fleet, True)):
            put, drop = ([one for one in part if bool(one.place) is of_fleet] for part in edit)
            routes.change(put, drop)
        self.next_number = max([self.next_number, *(one.number + 1 for one in edit.put)])
        for one in edit.drop:
            self._forget(one)

    async def put_in_force(self, edit: Edit, current: int) -> int:
        """Write a change beside the policy in force; the generation that is to be put in force
        then. DmmError: nothing has changed.
        """
        put = [of_live(one, self._ids) for one in edit.put]
        drop = [of_live(one, self._ids) for one in edit.drop]
        return await self._write(put, drop, edit, current)

    async def put_elements(
        self, policy: Policy, edits: Mapping[Named, named.Edit], current: int
    ) -> int:
        """The same of what the sets of the policy in force have from then on."""
        put = list(of_elements(policy, self._ids, {name: e.put for name, e in edits.items()}))
        drop = list(of_elements(policy, self._ids, {name: e.drop for name, e in edits.items()}))
        return await self._write(put, drop, Edit((), ()), current)

    async def _write(self, put: list[Owned], drop: list[Owned], edit: Edit, current: int) -> int:
        """edit: what of it is noted."""
        generation = self._readiest(current)
        await self._until_free(place_of(generation))
        if self.journal.lines >= MOST_LINES:
            self.journal.next_number = self.next_number
            self.journal.compact(self._all(), self._gone)
        async with self.writing:
            self.places.take(self._overlay, self._overlay.change(put, drop))
            try:
                while not self.places.write(place_of(generation), CHUNK):
                    await asyncio.sleep(0)
                self.journal.append(generation, edit)
            except BaseException:
                self.places.take(self._overlay, self._overlay.change(drop, put))
                raise
        return generation

    def _later(self, generation: int) -> list[int]:
        """The generations of the same policy that may come next, each with a place of its own."""
        return [after(generation, 2 * step) for step in range(1, C.DMM_LIVE_PLACES)]

    def _is_free(self, place: int) -> bool:
        """Whether no program reads it any more."""
        return place not in self._graces or self._graces[place].done()

    def _readiest(self, current: int) -> int:
        """The generation that is the next one soonest: what was read whole is in one place at
        first, and takes longer to be in others than programs to leave that.
        """

        def wait(one: int) -> tuple[int, bool]:
            behind = self.places.backlog(place_of(one))
            return behind if behind > _SMALL else 0, not self._is_free(place_of(one))

        return min(self._later(current), key=wait)

    def left(self, generation: int, now: int) -> None:
        """A generation is not in force any more: its place is made ready again, as are the next."""
        loop = asyncio.get_running_loop()
        self._graces[place_of(generation)] = loop.create_task(self._settle())

    async def _settle(self) -> None:
        try:
            await in_thread(self.places.wait)
        except DmmError as error:
            log.warning("%s", error)
        if self._readying is None or self._readying.done():
            self._readying = asyncio.get_running_loop().create_task(self._make_ready())

    async def _make_ready(self) -> None:
        """Write what is wanted into the next place, and into others that lag far behind, while
        nobody waits.
        """
        with contextlib.suppress(DmmError):  # who needs the place is told
            while True:
                async with self.writing:
                    place = self._lagging()
                    if place is None:
                        return
                    self.places.write(place, CHUNK)
                await asyncio.sleep(0)

    def _lagging(self) -> int | None:
        """The place that is to be made ready first; None: there is none."""
        following = self._later(int(self._maps.control[0].generation))
        for number, place in enumerate(map(place_of, following)):
            if self._is_free(place) and self.places.backlog(place) > (_SMALL if number else 0):
                return place
        return None

    async def settled(self) -> None:
        """Until every place that was left can be written again."""
        if self._graces:
            await asyncio.wait(self._graces.values())
        if self._readying is not None:
            await asyncio.wait([self._readying])

    async def _until_free(self, place: int) -> None:
        task = self._graces.pop(place, None)
        if task is not None:
            await asyncio.wait([task])


def _name(recorded: int, known: Mapping[int, LiveRoute]) -> str:
    one = known.get(recorded & ~C.DMM_ROUTE_LIVE)
    return "" if one is None else one.text() if one.place else f"{one.text()} live"
