# SPDX-License-Identifier: Apache-2.0
"""The policy file of an instance, followed: a change is applied, and what cannot be applied is told
until it is mended.

The file, and the routes files that it names, are looked at by stat(2) through whatever path leads
there now, four times a second. That costs less than a thousandth of a processor, and sees what
inotify(7) does not: a link turned anywhere above the file, a directory replaced or not there yet,
another file system mounted, a file on another host. It cannot run out of watches. A change counts
when two looks in a row see the same, so that no half file is read.

Invariant: the policy in force changes only to one that was read whole and accepted. A file that is
gone, empty or wrong leaves it in force; a comment alone is a policy that routes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_ebpf import records
from dmm_ebpf.errors import DmmError, PolicyError, unforeseen
from dmm_ebpf.rd.policy import parse as policies
from dmm_ebpf.rd.policy.routes_file import Stamp, stamp_of

if TYPE_CHECKING:
    from dmm_ebpf.rd.director.instance import Instance
    from dmm_ebpf.rd.policy.model import Policy

LOOK_S = 0.25
# After a failure that is not the file's: no room on a disk, a stack that does not start
RETRY_S = 5.0

log = logging.getLogger("dmm-ebpf")

Stamps = dict[Path, Stamp]


class PolicyWatch:
    """Follows one instance's policy file. Lives in its event loop."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._in_force: Policy | None = None  # when _read was last set
        self._began = False
        self._read: Stamps = {}  # the files as the last reading saw them, whatever came of it
        self._last: Stamps = {}  # as the last look saw them
        self._retry_at: float | None = None
        self._trouble: records.status.Refused | None = None
        self._reading = asyncio.Lock()

    @property
    def trouble(self) -> records.status.Refused | None:
        """Why the file is not what is in force; None: it is."""
        return self._trouble

    def told(self) -> None:
        """See Source: a file is no fleet's."""

    async def begin(self, new: Policy, path: Path) -> None:
        """Put the file's policy in force, with which a director begins. DmmError, unless one is in
        force already, which was taken over, and it is not the file that is wrong: then that stays,
        and the file is tried again.
        """
        before = self._in_force_now()
        stamps: Stamps = {path: stamp_of(path), **new.files}
        try:
            await self._instance.apply(new, path)
        except DmmError as error:
            if before is None or isinstance(error, PolicyError):
                raise
            self._instance.state.policy = str(path)
            self._began, self._in_force, self._read = True, before, stamps
            self._retry_at = time.monotonic() + RETRY_S
            self._refuse(path, str(error))

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except Exception:
                log.exception("the policy file could not be looked at; it is looked at again")

    async def reload(self) -> None:
        """Read the file now, changed or not, and apply it. What is wrong with it goes the same
        ways as for a change.
        """
        path = self._path()
        if path is None:
            log.info("there is no policy file to read again")
            return
        async with self._reading:
            await self._apply(path, always=True)

    def _path(self) -> Path | None:
        path = self._instance.state.policy
        return Path(path) if path else None

    def _in_force_now(self) -> Policy | None:
        """As it was written: sets that it names may change, and it is the same policy."""
        policy = self._instance.policy
        return policy.as_written if policy else None

    async def _look(self) -> None:
        path, policy = self._path(), self._in_force_now()
        if path is None:
            self._trouble = None
            return
        if policy is not self._in_force or not self._began:
            self._began = True
            self._in_force, self._trouble, self._retry_at = policy, None, None
            # Of the file itself only the text is known, which may have come from elsewhere: it
            # is compared below.
            self._read = {**(policy.files if policy else {}), path: ()}
        seen = await asyncio.to_thread(_stamps, [path, *self._read])
        settled, self._last = seen == self._last, seen
        again = self._retry_at is not None and time.monotonic() >= self._retry_at
        if settled and (again or any(seen[file] != stamp for file, stamp in self._read.items())):
            async with self._reading:
                await self._apply(path, always=False)

    async def _apply(self, path: Path, *, always: bool) -> None:
        """Read the file and put it in force, if it is not; always: also if it is."""
        self._retry_at = None
        before = self._in_force_now()
        files: Stamps = {path: await asyncio.to_thread(stamp_of, path)}
        try:
            new = await asyncio.to_thread(self._load, path, files, always)
            if new is not None:
                await self._instance.apply(
                    new, path, unless=lambda: self._in_force_now() is not before
                )
            if self._in_force_now() is not (new or before):
                return  # somebody was faster with another one; the next look compares with that
            self._trouble, self._in_force = None, new or before
        except Exception as error:
            if not isinstance(error, PolicyError):
                self._retry_at = time.monotonic() + RETRY_S
            why = str(error)
            if not isinstance(error, DmmError | OSError):
                log.exception("%s could not be applied; it is tried again", path)
                why = str(unforeseen(f"apply {path}", error))
            self._refuse(path, why)
        self._read = files

    def _load(self, path: Path, files: Stamps, always: bool) -> Policy | None:
        """The policy in the file; None when it is in force already, and need not be made always.
        files is told the routes files that were looked at.
        """
        text = policies.read(path)
        if not text.strip():
            raise PolicyError(
                f"accept {path}",
                why="it is empty",
                hint="write a comment into it if nothing is to be routed",
            )
        running = self._instance.policy
        if not always and running is not None and text == running.text:
            now = _stamps(running.files)
            if now == running.files:
                files.update(now)
                return None
        routes: Stamps = {}
        try:
            return policies.parse(text, source=str(path), base=path.parent, files=routes)
        finally:
            files.update(routes)

    def _refuse(self, path: Path, reason: str) -> None:
        if self._trouble is not None and self._trouble.reason == reason:
            return
        since = self._trouble.since if self._trouble is not None else round(time.time(), 3)
        self._trouble = records.status.Refused(str(path), reason, since)
        log.error("%s; the policy in force stays", reason)
        self._instance.publish(partial(self._event, path, reason))

    def _event(self, path: Path, reason: str) -> records.event.PolicyRefusedEvent:
        name, now = self._instance.state.instance, records.event.now()
        return records.event.PolicyRefusedEvent("policy_refused", str(path), reason, now, name)


def _stamps(files: Iterable[Path] | Mapping[Path, Stamp]) -> Stamps:
    return {file: stamp_of(file) for file in files}
