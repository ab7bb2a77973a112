# SPDX-License-Identifier: Apache-2.0
"""What the processes of user stacks take and send, as one pcapng file, asked of
the processes themselves.

The Resource Director has no part in it, so it may be dead. What a process sends is checked
(dmm_ebpf/pcapng.py): it faces the network, and may have been taken over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from dmm_ebpf import frames, pcapng
from dmm_ebpf.errors import DmmError, NotAttachedError, UsageError
from dmm_ebpf.rd.director.rundir import RunDir, StackState
from dmm_ebpf.userstack import control
from dmm_ebpf.userstack.spec import control_path

_ANSWER_S = 5.0
_READ_BYTES = 1 << 20
_MAX_INTERFACES = 64
_MAX_TEXT = 256


@dataclass(frozen=True)
class Wanted:
    """stacks: their names, or of single processes, as "wan@1"; none: all. legs: "inner", "outer".
    snaplen_bytes: of each frame at most. verb: what errors say was tried, "capture" or "trace".
    """

    stacks: tuple[str, ...] = ()
    legs: tuple[str, ...] = ("inner", "outer")
    snaplen_bytes: int = pcapng.SNAPLEN_MAX_BYTES
    verb: str = "capture"


class Capture:
    """One that runs. async with, then header, then parts()."""

    def __init__(self, instance: str, wanted: Wanted) -> None:
        """Raises NotAttachedError for an instance that is not there, UsageError for a stack
        that it has not.
        """
        self._instance, self._wanted = instance, wanted
        self._run = RunDir(instance)
        self._processes = self._chosen()
        self._streams: list[tuple[pcapng.Stream, asyncio.StreamReader]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.header = b""  # of the file
        # By the number of an interface: the process, as wan@1, and the leg
        self.interfaces: list[tuple[str, str]] = []
        self.errors: list[DmmError] = []  # why streams have ended
        self._ending = False

    def _chosen(self) -> list[StackState]:
        state = self._run.load()
        if state is None:
            raise NotAttachedError(
                f"{self._wanted.verb} instance {self._instance}", why="there is none"
            )
        chosen = [
            s
            for s in state.stacks
            if s.pid and (not self._wanted.stacks or {s.name, s.label} & {*self._wanted.stacks})
        ]
        known = {name for s in state.stacks for name in (s.name, s.label)}
        for name in self._wanted.stacks:
            if name not in known:
                why = (
                    f"instance {self._instance} has {', '.join(sorted(known)) or 'none that runs'}"
                )
                raise UsageError(f"{self._wanted.verb} stack {name}", why=why)
        if not chosen:
            raise NotAttachedError(
                f"{self._wanted.verb} instance {self._instance}",
                why="no process of a user stack runs",
                hint="`dmm-ebpf stacks` says why",
            )
        return chosen

    async def __aenter__(self) -> Capture:
        interfaces: list[tuple[str, str]] = []
        try:
            for process in self._processes:
                interfaces += await self._begin(process, len(interfaces))
        except BaseException:
            self._hang_up()
            raise
        self.header = pcapng.header(interfaces, self._wanted.snaplen_bytes)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _begin(self, process: StackState, first: int) -> list[tuple[str, str]]:
        what = f"{self._wanted.verb} stack {process.label}"
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(
                    control_path(self._run.path, process.label)
                )
                self._writers.append(writer)
                params = {
                    "legs": list(self._wanted.legs),
                    "snaplen_bytes": self._wanted.snaplen_bytes,
                }
                await control.write(writer, frames.request(1, "capture", params))
                answer = await control.ANSWERS.read(reader)
        except TimeoutError:
            raise DmmError(what, why=f"its process, pid {process.pid}, does not answer") from None
        except frames.FrameError as error:
            raise DmmError(what, why=error.why) from error
        except OSError as error:
            raise DmmError(
                what, why=f"its process, pid {process.pid}, cannot be asked: {error.strerror}"
            ) from error
        interfaces = _interfaces(what, answer)
        legs = ("outer", "inner")  # of each NIC in turn, see capture.h
        self.interfaces += [(process.label, legs[n % 2]) for n in range(len(interfaces))]
        self._streams.append(
            (pcapng.Stream(f"stack {process.label}", first, len(interfaces)), reader)
        )
        return interfaces

    async def parts(self, most: int | None = None) -> AsyncGenerator[tuple[bytes, int], None]:
        """Blocks of frames as they come, and how many they are, until every process has ended,
        or there were most.
        """
        queue: asyncio.Queue[tuple[bytes, int] | None] = asyncio.Queue(maxsize=8)
        tasks = [asyncio.create_task(self._pass_on(*one, most, queue)) for one in self._streams]
        try:
            left = len(tasks)
            while left:
                part = await queue.get()
                if part is None:
                    left -= 1
                else:
                    yield part
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end(self) -> None:
        """The processes send what they have, and no more."""
        self._ending = True
        for writer in self._writers:
            writer.write_eof()

    async def _pass_on(
        self,
        stream: pcapng.Stream,
        reader: asyncio.StreamReader,
        most: int | None,
        queue: asyncio.Queue[tuple[bytes, int] | None],
    ) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(_READ_BYTES):
                    await queue.put(stream.feed(data, most))
            if not self._ending:
                what = f"go on with the {self._wanted.verb} of {stream.name}"
                self.errors.append(DmmError(what, why="its process has ended"))
        except pcapng.StreamError as error:
            self.errors.append(error)
        await queue.put(None)


def _interfaces(what: str, answer: Any) -> list[tuple[str, str]]:
    if not isinstance(answer, dict):
        raise DmmError(what, why="its process hung up")
    if not answer.get("ok"):
        error = answer.get("error")
        raise DmmError(
            what, why=str(error.get("why") if isinstance(error, dict) else error)[:_MAX_TEXT]
        )
    result = answer.get("result")
    found = result.get("interfaces") if isinstance(result, dict) else None
    if not isinstance(found, list) or not 0 < len(found) <= _MAX_INTERFACES:
        raise DmmError(what, why="its process does not say what its interfaces are")
    rows: Sequence[Any] = found
    return [(_text(row, 0), _text(row, 1)) for row in rows]


def _text(row: Any, place: int) -> str:
    return str(row[place])[:_MAX_TEXT] if isinstance(row, list) and len(row) > place else "?"
