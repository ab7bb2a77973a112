# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf capture`: frames of user stacks into a pcapng file, or through a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dmm_ebpf import pcapng
from dmm_ebpf.cli import output
from dmm_ebpf.errors import DmmError, UsageError
from dmm_ebpf.rd.director.capture import Capture, Wanted
from dmm_ebpf.records.segment import Captured


def capture(
    instance: str,
    wanted: Wanted,
    file: str,
    *,
    count: int | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Until Ctrl-C, SIGTERM, count frames, seconds, or the end of the processes. file: "-"
    is standard output.
    """
    if file == "-" and as_json:
        raise UsageError(
            "capture to standard output", why="--json prints there, too", hint="name a file with -w"
        )
    if file == "-" and sys.stdout.isatty():
        raise UsageError(
            "capture to a terminal",
            why="frames are no text",
            hint="pipe it into tcpdump -r -, or use -w FILE",
        )
    errors, frames = asyncio.run(_capture(Capture(instance, wanted), file, count, seconds))
    if as_json:
        output.print_json(Captured(instance, file, frames))
    else:
        output.note(f"{frames} frames captured")
    if errors:
        raise errors[0]


async def _capture(
    capture: Capture, file: str, count: int | None, seconds: float | None
) -> tuple[list[DmmError], int]:
    frames = 0
    async with capture:
        with _sink(file) as sink, ending(capture.end, seconds):
            sink.write(capture.header)
            async with contextlib.aclosing(capture.parts(count)) as parts:
                async for part, number in parts:
                    try:
                        sink.write(part if count is None else _first(part, count - frames))
                    except BrokenPipeError:
                        return [], frames
                    frames += number
                    if count is not None and frames >= count:
                        return [], count
    return capture.errors, frames


def _first(data: bytes, count: int) -> bytes:
    """So many of the blocks."""
    return pcapng.Stream("the stacks", 0, 1 << 32).feed(data, count)[0]


class _Sink:
    """A file that says what is wrong with it."""

    def __init__(self, file: str, opened: BinaryIO) -> None:
        self._file, self._opened = file, opened

    def write(self, data: bytes) -> None:
        """All of data. BrokenPipeError: nobody reads any more. DmmError for a disk that is full
        and the like.
        """
        with self._told():
            self._opened.write(data)
            self._opened.flush()

    def close(self) -> None:
        """Raises DmmError where what was written is lost after all."""
        with self._told():
            self._opened.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DmmError(f"write {self._file}", why=os.strerror(error.errno or 0)) from error


@contextlib.contextmanager
def _sink(file: str) -> Iterator[_Sink]:
    if file == "-":
        yield _Sink("to standard output", sys.stdout.buffer)
        return
    try:
        opened = Path(file).open("wb")  # noqa: SIM115 - errors of its use are others
    except OSError as error:
        raise DmmError(f"write {file}", why=os.strerror(error.errno or 0)) from error
    sink = _Sink(file, opened)
    try:
        yield sink
    except BaseException:
        with contextlib.suppress(OSError):  # it tries once more what could not be written
            opened.close()
        raise
    sink.close()


@contextlib.contextmanager
def ending(end: Callable[[], object], seconds: float | None) -> Iterator[None]:
    """By Ctrl-C, SIGTERM, or when so much time is over."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds, end) if seconds is not None else None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        if timer is not None:
            timer.cancel()
