# SPDX-License-Identifier: Apache-2.0
"""What a host makes of a try that fails, whatever it fails with: the reason is told, and told as
the reason of that policy alone, and the try is repeated.

Etcd and the instance are reduced to what a source asks of them; tests/apps/test_fleet.py has the
whole.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dmm_ebpf.central import layout, place
from dmm_ebpf.central.client import Found, Item
from dmm_ebpf.central.fleet import Fleet
from dmm_ebpf.central.layout import Bundle, Rollout
from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.rd.director.instance import Instance
from dmm_ebpf.rd.sources import etcdsource
from dmm_ebpf.rd.sources.etcdsource import EtcdSource
from dmm_ebpf.rd.sources.follower import follower

POLICY = '[stacks.lan]\nkind = "kernel"\n'
PLACE = place.parse("etcd://192.0.2.1/dmm")


class Shelf:
    """A fleet's keys."""

    def __init__(self) -> None:
        self.want: dict[str, bytes] = {}
        self.bundles: dict[int, Bundle] = {}
        self.etcd = SimpleNamespace(grant=self._one, keep=self._one, place=PLACE)

    async def _one(self, *_: object) -> int:
        return 1

    async def commit(self, *_: object) -> int:
        return 1

    async def find(self, *_: object, **_options: object) -> Found:
        items = (Item(key, value, 1) for key, value in self.want.items())
        return Found(1, tuple(items))

    async def bundle(self, number: int, _digest: str) -> Bundle:
        return self.bundles[number]

    def push(self, number: int, policy: str = POLICY) -> None:
        self.bundles[number] = Bundle(f"# push {number}\n{policy}")
        rollout = Rollout(number, f"d{number}", 0, "", "everywhere")
        self.want[layout.ROLLOUT] = json.dumps(asdict(rollout)).encode()


class Host:
    """An instance that fails with what it is told to."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(instance="default", policy=None, cgroup="/")
        self.policy: Any = None
        self.live = SimpleNamespace(reserve=lambda _count: 1)
        self.fails: Exception | None = None
        self.tries = 0
        self.changes = 0
        self.events: list[Any] = []

    async def apply(self, new: Any, path: Any) -> int:
        self.tries += 1
        if self.fails is not None:
            raise self.fails
        self.policy, self.state.policy = new, str(path)
        return 1

    async def change(self, _how: object) -> None:
        self.changes += 1
        raise DmmError("change routes", why="there is no room beside the policy")

    async def list_stacks(self) -> list[Any]:
        return []

    def list_listeners(self) -> list[Any]:
        return []

    def publish(self, make: Callable[[], Any]) -> None:
        self.events.append(make())


Story = Callable[[EtcdSource, Shelf, Host], Awaitable[None]]


@pytest.fixture
def tell(tmp_path, monkeypatch):
    """Runs a story with a source whose tries are repeated at once."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(etcdsource, "RETRY_S", 0.0)

    def run(story: Story) -> None:
        async def main() -> None:
            shelf, host = Shelf(), Host()
            who = follower(PLACE, "h", [])
            await story(EtcdSource(cast(Instance, host), cast(Fleet, shelf), who), shelf, host)

        asyncio.run(main())

    return run


@pytest.mark.parametrize(
    "error", [KeyError("wan"), RecursionError("too deep"), DmmError("start wan", why="no room")]
)
def test_a_try_that_fails_by_whatever_is_told_and_repeated(tell, error) -> None:
    async def story(source: EtcdSource, shelf: Shelf, host: Host) -> None:
        host.fails = error
        shelf.push(1)
        await source._read()
        told = source.told()
        assert (told.state, told.push, told.wanted) == ("refused", 0, 1)
        why = error.why if isinstance(error, DmmError) else type(error).__name__
        assert why in told.why and "\n" not in told.why
        assert source.trouble and why in source.trouble.reason
        await source._read()
        assert host.tries == 2, "what is not the policy's fault is tried again"
        host.fails = None
        await source._read()
        assert source.told().state == "applied"
        assert source.trouble is None

    tell(story)


def test_routes_that_cannot_be_changed_are_tried_once(tell) -> None:
    """Then the whole policy is put in force with them."""

    async def story(source: EtcdSource, shelf: Shelf, host: Host) -> None:
        shelf.push(1, POLICY + "[[rules]]\ntable = 't'\n[tables.t]\nroutes = []\n")
        for number, route in enumerate(("192.0.2.0/24", "198.51.100.0/24")):
            shelf.want[f"{layout.ROUTES}t/a"] = f"{route},,,lan\n".encode()
            await source._read()
            assert (source.told().state, host.tries, host.changes) == (
                "applied",
                number + 1,
                number,
            )

    tell(story)


def test_what_a_policy_is_refused_for_stays_its_own_reason(tell) -> None:
    async def story(source: EtcdSource, shelf: Shelf, host: Host) -> None:
        host.fails = PolicyError("accept it", why="nosuch is not loaded")
        shelf.push(1)
        await source._read()
        kept = dict(shelf.want)
        shelf.want.clear()
        await source._read()
        assert source.told().state == "held"
        shelf.want.update(kept)
        await source._read()
        told = source.told()
        assert (told.state, host.tries) == ("refused", 1)
        assert "nosuch is not loaded" in told.why

    tell(story)


def test_what_cannot_be_looked_at_is_told_and_what_comes_next_is_taken(tell, monkeypatch) -> None:
    async def story(source: EtcdSource, shelf: Shelf, host: Host) -> None:
        def fails(*_: object) -> None:
            raise MemoryError("no room for ten million")

        with monkeypatch.context() as patched:
            patched.setattr(etcdsource, "compose", fails)
            shelf.push(1)
            await source._read()
        told = source.told()
        assert told.state == "held" and "MemoryError: no room" in told.why
        await source._read()
        assert (source.told().state, host.tries) == ("applied", 1)

    tell(story)


def test_a_kept_policy_that_fails_by_whatever_does_not_keep_a_host_from_beginning(tell) -> None:
    async def story(source: EtcdSource, shelf: Shelf, host: Host) -> None:
        shelf.push(1)
        await source._read()
        again = Host()
        again.fails = KeyError("wan")
        who = follower(PLACE, "h", [])
        await EtcdSource(cast(Instance, again), cast(Fleet, shelf), who).begin()
        assert again.tries

    tell(story)


def test_a_clock_that_jumps_changes_nothing_but_what_is_told_of_times(tell, monkeypatch) -> None:
    """Nothing waits by the clock that an administrator, or NTP, may set."""

    async def story(source: EtcdSource, shelf: Shelf, host: Host) -> None:
        for number, now in enumerate((4e9, 1.0, -5.0, 1e300, 2e9), 1):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            host.fails = DmmError("start wan", why="no room")
            shelf.push(number)
            await source._read()
            assert source.told().state == "refused"
            assert source.told().since == now
            host.fails = None
            await source._read()
            told = source.told()
            assert (told.state, told.push) == ("applied", number)
        assert host.tries == 10

    tell(story)
