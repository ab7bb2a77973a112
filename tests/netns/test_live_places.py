# SPDX-License-Identifier: Apache-2.0
"""Routes beside a policy in the kernel's own maps: many that come at once hold up nothing that
comes behind them, and what a write that was refused has left is not taken for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmm_ebpf.abi import C
from dmm_ebpf.errors import DmmError
from dmm_ebpf.loader import programs
from dmm_ebpf.loader.spec import Maps
from dmm_ebpf.rd.director import sync
from dmm_ebpf.rd.director.liveroutes import Edit, Live
from dmm_ebpf.rd.director.places import CHUNK, Places, place_of
from dmm_ebpf.rd.policy import parse as policy
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.livetable import LiveRoute
from dmm_ebpf.rd.policy.overlay import Overlay, Own, Place
from dmm_ebpf.rd.policy.routes import Match
from dmm_ebpf.rd.policy.values import Prefix

WITHIN_S = 60
MANY = 16 * CHUNK
POLICY = """
[stacks.s]
kind = "kernel"
[[rules]]
table = "t"
[[tables.t.routes]]
to = "192.0.2.0/24"
stack = "s"
"""


@pytest.fixture
def opened() -> Iterator[Maps]:
    made = programs.create_maps()
    yield made
    programs.close_maps(made)


def _route(number: int) -> LiveRoute:
    to = Prefix(4, (10 << 24) + number, 32)
    return LiveRoute(1 + number, "t", to, Match(0, ()), "s")


async def _put(live: Live, opened: Maps, *routes: LiveRoute) -> int:
    before = sync.current_generation(opened)
    generation = await live.put_in_force(Edit(routes, ()), before)
    sync.set_generation(opened, generation)
    live.left(before, generation)
    return generation


def _lags(live: Live) -> list[int]:
    return [live.places.backlog(place) for place in range(C.DMM_LIVE_PLACES)]


def _noted_writes(live: Live) -> asyncio.Event:
    """Set whenever something was written into a place."""
    wrote, write = asyncio.Event(), live.places.write

    def noting(place: int, most: int | None = None) -> bool:
        done = write(place, most)
        wrote.set()
        return done

    live.places.write = noting
    return wrote


async def _changes(folder: Path, opened: Maps) -> None:
    live, ids = Live(folder, opened), IdSpace()
    wrote = _noted_writes(live)
    parsed = policy.parse(POLICY, source="policy.toml", base=folder)
    ids.assign(parsed.stacks, parsed.tables)
    sync.set_generation(opened, 2)
    live.in_force(parsed, live.compiled(parsed, ids), ids, 2)
    await _put(live, opened, *map(_route, range(MANY)))
    assert sorted(_lags(live)) == [0] + [MANY] * (C.DMM_LIVE_PLACES - 1)
    for number in range(20):
        # Its own place, and another one.
        while sum(lag <= CHUNK for lag in _lags(live)) < 2:
            wrote.clear()
            await wrote.wait()
        lags = _lags(live)
        generation = await _put(live, opened, _route(MANY + number))
        assert lags[place_of(generation)] <= CHUNK, "it takes a place that was made ready"
    await live.settled()
    assert max(_lags(live)) <= CHUNK, "all are made ready while nobody waits"
    found = [0] * C.DMM_LIVE_PLACES
    for key in opened.live:
        found[int(key.table) >> C.DMM_LIVE_TABLE_BITS] += 1
    assert min(found) >= MANY
    live.close()


def test_many_at_once_hold_up_nothing_behind_them(tmp_path: Path, opened: Maps) -> None:
    asyncio.run(asyncio.wait_for(_changes(tmp_path, opened), WITHIN_S))


def test_what_a_refused_write_left_is_taken_away(
    opened: Maps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have taken a part of what it was given."""
    places, overlay = Places(opened), Overlay()
    one = Place(1, 4, 10 << 24, 32), Own(Match(0, ()), 3, 7, 0, 0)
    places.take(overlay, overlay.change([one]))
    table = opened.live
    real = table.update

    def half(entries):
        real(entries)
        raise DmmError("write 2 entries to BPF map live", why="it is full")

    monkeypatch.setattr(table, "update", half)
    with pytest.raises(DmmError):
        places.write(1)
    monkeypatch.undo()
    places.take(overlay, overlay.change((), [one]))
    assert places.write(1)
    assert list(table) == []
