# SPDX-License-Identifier: Apache-2.0
"""What an instance says of itself in etcd, for as long as it lives: a key under a lease, written
anew when there is something else to say.

The key is the host's and the instance's name. It is made only where there is none, so a name is one
instance's; who finds it taken says so below twice/, and in its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm_ebpf import __version__
from dmm_ebpf.central import layout
from dmm_ebpf.central.client import At, Delete, EtcdDownError, EtcdError, Put
from dmm_ebpf.errors import DmmError

if TYPE_CHECKING:
    from dmm_ebpf.central.fleet import Fleet
    from dmm_ebpf.rd.sources.served import Served
    from dmm_ebpf.records.central import Central

TTL_S = 15  # so long after its last word an instance counts as gone
BEAT_S = 5.0
MAX_LISTENERS = 256  # that are told of one by one
_BOOT = Path("/proc/sys/kernel/random/boot_id")
log = logging.getLogger("dmm-ebpf")


class Publisher:
    """Of one instance. Lives in its event loop. changed: set it when told() has changed."""

    def __init__(
        self, fleet: Fleet, instance: Served, host: str, told: Callable[[], Central]
    ) -> None:
        self.changed = asyncio.Event()
        self.trouble = ""  # why nothing is said; empty: it is
        self.twice = False  # that is: another has our name
        self._saying = asyncio.Lock()
        self._fleet = fleet
        self._instance = instance
        self._host = host
        self._told = told
        self._who = _identity()
        self._lease = 0
        self._revision = 0  # of our key; 0: it is not there, or not ours
        self._said = b""

    @property
    def lease(self) -> int:
        """Under which all stands that it says; 0: nothing does."""
        return self._lease

    async def run(self) -> None:
        """Say it until cancelled; then the key goes."""
        try:
            while True:
                self.changed.clear()
                try:
                    async with self._saying:
                        await self._say()
                except DmmError as error:
                    self.trouble = str(error)
                except Exception:
                    log.exception("what this host has could not be told to etcd; it is tried again")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await self.changed.wait()
        finally:
            with contextlib.suppress(DmmError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._end()

    async def claim(self) -> None:
        """Find out whether the name is ours, if that is not known. Raises EtcdDownError."""
        async with self._saying:
            if self._revision:
                return
            try:
                await self._say()
            except EtcdDownError:
                raise
            except DmmError as error:
                self.trouble = str(error)

    async def _end(self) -> None:
        if self._lease:
            await self._fleet.etcd.revoke(self._lease)

    async def _say(self) -> None:
        if self._lease and not await self._fleet.etcd.keep(self._lease):
            self._lease = self._revision = 0
        if not self._lease:
            self._lease = await self._fleet.etcd.grant(TTL_S)
            self._said = b""
        report = await self._report()
        if report == self._said:
            return
        key = layout.host_key(self._host, self._instance.state.instance)
        does: list[Put | Delete] = [Put(key, report, self._lease)]
        does += [Delete(self._twice_key(key))] if self.twice else []
        revision = await self._fleet.commit([At(key, self._revision)], does)
        if not revision:
            revision = await self._again(key, does)
        if revision:
            self._revision, self._said, self.trouble = revision, report, ""
            self.twice = False

    async def _again(self, key: str, does: list[Put | Delete]) -> int:
        """The key is not as we left it: gone, as etcd was restored; ours, of before a restart; or
        another's.
        """
        found = await self._fleet.find(key)
        at = found.items[0].revision if found.items else 0
        if found.items:
            other = _who(found.items[0].value)
            if other and other.partition(" ")[0] != self._who.partition(" ")[0]:
                await self._twice(key, other)
                return 0
        return await self._fleet.commit([At(key, at)], does)

    def _twice_key(self, key: str) -> str:
        """Of what is said as long as another has our name."""
        return f"{layout.TWICE}{key.removeprefix(layout.HOSTS)}/{self._who.partition(' ')[0]}"

    async def _twice(self, key: str, other: str) -> None:
        instance = self._instance.state.instance
        self._revision = 0
        why = f"{other.partition(' ')[2] or other} is called so, too, and is listed"
        error = EtcdError(
            f"be listed as {self._host}, instance {instance}",
            why=why,
            hint="give each host its own name: attach --host NAME",
        )
        if str(error) != self.trouble:
            log.error("%s", error)
        self.trouble, self.twice = str(error), True
        said = {"format": layout.FORMAT, "host": self._host, "instance": instance, "who": self._who}
        report = Put(self._twice_key(key), json.dumps(said).encode(), self._lease)
        await self._fleet.commit([], [report])

    async def _report(self) -> bytes:
        rows = await self._instance.list_stacks()
        listeners = self._instance.list_listeners()
        stacks = [
            {key: value for key, value in one.to_map().items() if key in _OF_A_STACK}
            for one in rows
        ]
        for one in stacks:
            one["ports"] = [port.to_map() for port in one.get("ports") or ()]
        said = {
            "format": layout.FORMAT,
            "who": self._who,
            "instance": self._instance.state.instance,
            "version": __version__,
            "kernel": platform.release(),
            "cgroup": self._instance.state.cgroup,
            **self._told().to_map(),
            "stacks": stacks,
            "listeners": [
                {
                    "proto": one.proto,
                    "addr": one.addr,
                    "port": one.port,
                    "table": one.table,
                    "comm": one.comm,
                }
                for one in listeners[:MAX_LISTENERS]
            ],
            "listeners_more": max(0, len(listeners) - MAX_LISTENERS),
        }
        return json.dumps(said, sort_keys=True).encode()


_OF_A_STACK = {"name", "kind", "state", "transport", "congestion", "ports", "nics"}


def _identity(boot: Path = _BOOT) -> str:
    """Tells this host and network namespace from others, and then in words where it is. A process
    that takes an instance over is the same. boot: a file that no two hosts have the same of, unlike
    /etc/machine-id, which copies of a disk image often have in common, as they have the name.
    """
    machine = ""
    with contextlib.suppress(OSError):
        machine = boot.read_text(encoding="ascii").strip().replace("-", "")[:12]
    inode = Path("/proc/self/ns/net").stat().st_ino
    node = platform.node() or "a host"
    return f"{machine or node}-{inode} {node}, pid {os.getpid()}, namespace {inode}"


def _who(value: bytes) -> str:
    """Whose report that is; empty: it cannot be told, so it may be replaced."""
    said: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(value)
    who = said.get("who") if isinstance(said, dict) else None
    return who[:200] if isinstance(who, str) else ""
