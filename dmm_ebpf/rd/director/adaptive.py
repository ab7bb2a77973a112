# SPDX-License-Identifier: Apache-2.0
"""Adaptive routes of an instance: what its flows show of their paths is gathered, and who serves
each prefix is put into the live map adaptive[].

Flows show themselves at their end (the ring) and, each POLL_S while they are open, by inet_diag
and, of a user stack's outer leg, by its process. Only flows of adaptive routes are looked at; where
no route is, nothing runs. What is known is kept in the instance's run directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf import abi
from dmm_ebpf.abi import C, Struct
from dmm_ebpf.errors import DmmError
from dmm_ebpf.hal.sockdiag import TcpSocket
from dmm_ebpf.loader import Attached
from dmm_ebpf.loader.spec import ADAPTIVE_KEY
from dmm_ebpf.rd.adaptive.mind import Draw
from dmm_ebpf.rd.adaptive.paths import Choice, Paths
from dmm_ebpf.rd.adaptive.prefix import Prefix
from dmm_ebpf.rd.adaptive.sample import End, Sample, segments_of
from dmm_ebpf.rd.director.ending import reason
from dmm_ebpf.rd.director.flows import Leg, Pair, Place, legs_of
from dmm_ebpf.rd.director.live import with_sockets
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.model import Auto, Policy, UserStack
from dmm_ebpf.tcpstates import NUMBERS
from dmm_ebpf.threads import in_thread

if TYPE_CHECKING:
    from dmm_ebpf import records
    from dmm_ebpf.rd.director.stacks import StackManager

TICK_S = 1.0
POLL_S = 2.0
SAVE_S = 30.0
RTO_S = 1.0  # the first one of a SYN (RFC 6298 section 2): who waits for less has been refused
FILE = "paths.json"
MAX_FILE_BYTES = 64 << 20
_LOTS = 1 << 32
_ENDS = {
    "timeout": End.FAILED,
    "unreachable": End.FAILED,
    "reset-by-peer": End.FAILED,
    "stack-died": End.FAILED,
    "fin": End.WELL,
    "refused": End.NEITHER,
    "given-up": End.NEITHER,
}
log = logging.getLogger("dmm-ebpf")


@dataclass(slots=True)
class _Seen:
    """What an open flow had shown when it was looked at last. resent and rtt_us: of the path."""

    at: float
    n_bytes: int = 0
    resent: int = 0
    rtt_us: int = 0


class Adaptive:
    """Of one instance. Times are of CLOCK_MONOTONIC."""

    def __init__(self, attached: Attached, stacks: StackManager, folder: Path) -> None:
        self._attached = attached
        self._stacks = stacks
        self._file = folder / FILE
        self._kept: dict[str, Any] = {}
        self._known: dict[str, Paths] = {}
        self.sharing: dict[str, Paths] = {}  # those that other hosts are to know, and tell of
        self._numbers: dict[str, int] = {}  # of candidates, and of what routes name
        self._names: dict[int, str] = {}
        self._half = 0
        self._there: dict[Any, tuple[int, int, int]] = {}  # what the map has of this half
        self._seen: dict[int, _Seen] = {}
        self._polled = self._saved = 0.0
        self._restored = False
        self._lock = threading.Lock()  # prepare() is called in a thread

    # -- a policy comes in force --

    def prepare(self, policy: Policy, ids: IdSpace, half: int) -> None:
        """Write what a policy's adaptive routes begin with, into the half that is not in force."""
        if not self._restored:
            self._kept, self._restored = _read(self._file), True
        self._clear(half)
        now = time.monotonic()
        entries = {}
        with self._lock:
            for name, auto in policy.autos.items():
                paths = self._known.get(name) or self._begin(policy, auto, now)
                minds = itertools.islice(paths.minds.items(), _share(policy))
                draws = {prefix: mind.draw for prefix, mind in minds}
                entries.update(_entries(half, ids.stack(name), draws, ids.stack))
        if entries:
            self._attached.maps.adaptive.update(_structs(entries))

    def _begin(self, policy: Policy, auto: Auto, now: float) -> Paths:
        paths = Paths(_choice(policy, auto), now)
        paths.take_back(self._kept.get(auto.name), now)
        return paths

    def in_force(self, policy: Policy, ids: IdSpace, half: int) -> None:
        """prepare() was for this one, and it is in force now."""
        now = time.monotonic()
        self._known = {
            name: self._known.get(name) or self._begin(policy, auto, now)
            for name, auto in policy.autos.items()
        }
        shared = [name for name, auto in policy.autos.items() if auto.share]
        self.sharing = {name: self._known[name] for name in shared}
        candidates = [name for auto in policy.autos.values() for name in auto.candidates]
        self._numbers = {name: ids.stack(name) for name in [*policy.autos, *candidates]}
        self._names = {self._numbers[name]: name for name in candidates}
        for name, paths in self._known.items():
            paths.choice = _choice(policy, policy.autos[name])  # the kind of a stack may be another
            paths.allow(_share(policy))
        self._half = half
        self._there = {}
        with contextlib.suppress(DmmError):  # nobody reads it; the next policy's turn clears it
            self._clear(1 - half)

    def _clear(self, half: int) -> None:
        """Take away what the map has of a half that no program reads."""
        first = half * C.DMM_MAX_STACKS
        for key in list(self._attached.maps.adaptive):
            if first <= key.route < first + C.DMM_MAX_STACKS:
                self._attached.maps.adaptive.delete(key)

    # -- while it is --

    async def run(self) -> None:
        """Look, decide and write until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            if not self._known:
                continue
            try:
                await self.look(time.monotonic())
            except Exception:
                log.exception("paths could not be looked at; what was chosen stays")

    async def look(self, now: float) -> None:
        """One turn."""
        if now - self._polled >= POLL_S:
            self._polled = now
            await self._poll(now)
        self._decide(now)
        if now - self._saved >= SAVE_S:
            self._saved = now
            kept = {name: paths.kept(now) for name, paths in self._known.items()}
            self._kept |= kept
            await asyncio.to_thread(self._save, self._kept)

    def _decide(self, now: float) -> None:
        with self._lock:
            entries = self._decided(now)
        changed = {key: one for key, one in entries.items() if self._there.get(key) != one}
        if changed:
            self._attached.maps.adaptive.update(_structs(changed))
        for key in set(self._there) - set(entries):
            self._attached.maps.adaptive.delete(key)
        self._there = entries

    def _decided(self, now: float) -> dict[Any, tuple[int, int, int]]:
        entries: dict[Any, tuple[int, int, int]] = {}
        for name, paths in self._known.items():
            down = [one for one in paths.choice.candidates if self._takes_none(paths, one)]
            before = {prefix: mind.chosen for prefix, mind in paths.minds.items()}
            draws = paths.decide(down, now)
            for prefix, draw in draws.items():
                if before.get(prefix, draw.chosen) != draw.chosen:
                    why = paths.minds[prefix].why
                    log.info("%s: %s goes by %s now: %s", name, prefix, draw.chosen, why)
            entries.update(
                _entries(self._half, self._numbers[name], draws, self._numbers.__getitem__)
            )
        return entries

    def _takes_none(self, paths: Paths, stack: str) -> bool:
        return stack in paths.choice.dear and bool(self._stacks.turns_away(stack))

    # -- what flows show --

    async def _poll(self, now: float) -> None:
        noted = await in_thread(self._adaptive_flows)
        if not noted:
            self._seen.clear()
            return
        legs: Mapping[tuple[Place, Pair], Leg] = {}
        if any(flow.decision.taken for flow in noted.values()):
            legs = await legs_of(self._stacks.connections())
        cookies = set(noted)
        for flow, live in await in_thread(lambda: list(with_sockets(noted))):
            if live is not None:
                self._look_at(flow, live, legs, now)
        for cookie in set(self._seen) - cookies:
            del self._seen[cookie]

    def _adaptive_flows(self) -> dict[int, Struct]:
        return {flow.cookie: flow for flow in self._attached.flows() if flow.adaptive}

    def _look_at(
        self,
        flow: Struct,
        live: TcpSocket,
        legs: Mapping[tuple[Place, Pair], Leg],
        now: float,
    ) -> None:
        """An open flow; of a user stack's the figures of its outer leg count."""
        ends = (live.laddr, live.lport, live.raddr, live.rport)
        place = flow.decision.stack, flow.decision.process
        leg = legs.get((place, ends)) if flow.decision.taken else None
        if flow.decision.taken and leg is None:
            return
        resent = live.total_retrans if leg is None else leg["retransmits"]
        rtt_us = live.rtt_us if leg is None else leg["srtt_us"]
        seen = _Seen(now, live.bytes_acked + live.bytes_received, resent, rtt_us)
        before = self._seen.get(flow.cookie) or _Seen(min(now, flow.opened_ns / 1e9))
        self._seen[flow.cookie] = seen
        self._add(flow, before, seen, None, now)

    def ended(self, event: Struct) -> None:
        """A flow's last word, from the ring."""
        flow = event.flow
        if event.type != C.DMM_EVENT_CLOSE or not flow.adaptive or not self._known:
            return
        now = time.monotonic()
        before = self._seen.pop(flow.cookie, None) or _Seen(flow.opened_ns / 1e9)
        taken = bool(flow.decision.taken)
        last = _Seen(
            event.time_ns / 1e9,
            flow.bytes_sent + flow.bytes_received,
            before.resent if taken else flow.retransmits,
            before.rtt_us if taken else flow.srtt_us,
        )
        self._add(flow, before, last, _end(event), now)

    def _add(self, flow: Struct, before: _Seen, seen: _Seen, end: End | None, now: float) -> None:
        stack = self._names.get(flow.decision.stack)
        n_bytes, resent = seen.n_bytes - before.n_bytes, seen.resent - before.resent
        if stack is None or (not n_bytes and not resent and end is None):
            return
        sample = Sample(
            bytes(flow.pair.raddr),
            stack,
            seen.at - before.at,
            n_bytes,
            segments_of(max(0, n_bytes), max(0, resent)),
            resent,
            seen.rtt_us,
            end,
        )
        for paths in self._known.values():
            paths.add(sample, now)

    # -- what can be asked --

    def rows(self, instance: str) -> list[records.path.Path]:
        """For `dmm-ebpf paths`."""
        now = time.monotonic()
        return [row for paths in self._known.values() for row in paths.rows(instance, now)]

    def path_to(self, instance: str, named: str, address: str) -> records.path.Path | None:
        """What decides for a peer, where a route names that; None: no adaptive route does."""
        paths = self._known.get(named)
        if paths is None:
            return None
        prefix, _ = paths.mind_of(abi.addr16(address))
        return paths.row(instance, prefix, time.monotonic())

    def paths_to(self, instance: str, named: str, address: str) -> list[records.path.Path]:
        """All that is known of a peer's prefixes, where path_to() tells of one."""
        paths = self._known.get(named)
        if paths is None:
            return []
        return paths.rows_around(instance, abi.addr16(address), time.monotonic())

    # -- over a restart --

    def _save(self, kept: Mapping[str, Any]) -> None:
        """Keep what is known. What cannot be written is told, and tried again."""
        new = self._file.with_suffix(".new")
        try:
            new.write_text(json.dumps(kept, allow_nan=False), encoding="utf-8")
            new.replace(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            log.warning("cannot keep what is known of paths in %s: %s", self._file, error.strerror)


def _share(policy: Policy) -> int:
    """Of the map's entries, those of one half and one adaptive route's candidates."""
    return int(C.DMM_MAX_ADAPTIVE // 2 // max(1, len(policy.autos)))


def _choice(policy: Policy, auto: Auto) -> Choice:
    dear = {one for one in auto.candidates if isinstance(policy.stacks[one], UserStack)}
    return Choice(auto.name, auto.goal, auto.candidates, frozenset(dear))


def _end(event: Struct) -> End:
    """How the path, not the program or the peer, has ended a transfer."""
    gone = bool(event.process_gone)
    told = reason(event.before, event.error, process_gone=gone)
    if not told and event.before == NUMBERS["SYN_SENT"]:
        waited = (event.time_ns - event.flow.opened_ns) / 1e9
        return End.FAILED if waited >= RTO_S else End.NEITHER
    return _ENDS.get(told, End.WELL)


def _entries(
    half: int, route: int, draws: Mapping[Prefix, Draw], number: Any
) -> dict[Any, tuple[int, int, int]]:
    """What the map is to have: of each key chosen, explores and share."""
    key = ADAPTIVE_KEY.type
    return {
        key(32 + prefix.length, half * C.DMM_MAX_STACKS + route, prefix.packed): (
            number(draw.chosen),
            number(draw.explores) if draw.explores else 0,
            min(int(draw.share * _LOTS), _LOTS - 1) if draw.explores else 0,
        )
        for prefix, draw in draws.items()
    }


def _structs(entries: Mapping[Any, tuple[int, int, int]]) -> dict[Any, Struct]:
    return {
        key: abi.new("dmm_adaptive", chosen=chosen, explores=explores, share=share)
        for key, (chosen, explores, share) in entries.items()
    }


def _read(file: Path) -> dict[str, Any]:
    """What save() has kept; nothing where that cannot be read."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return {}
        kept = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("what was known of paths is forgotten: %s cannot be read: %s", file, error)
        return {}
    return kept if isinstance(kept, dict) else {}
