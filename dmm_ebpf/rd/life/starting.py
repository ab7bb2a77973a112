# SPDX-License-Identifier: Apache-2.0
"""What attach and run have in common: the run directory, the way up, and the way down.

Whatever ends the way up, error or signal, what was made is removed again. The way down is gone
to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TextIO

from dmm_ebpf import loader
from dmm_ebpf.errors import DmmError, PrivilegeError
from dmm_ebpf.rd.api.server import Server
from dmm_ebpf.rd.director.instance import Instance
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.director.undo import undo
from dmm_ebpf.rd.life.detaching import collect_runs
from dmm_ebpf.rd.life.signals import Stop, StoppedError

DESCRIPTORS = 4096
log = logging.getLogger("dmm-ebpf")


def need_root(what: str) -> None:
    """PrivilegeError when we are somebody else."""
    if os.geteuid() != 0:
        raise PrivilegeError(what, why="not root", hint="run it with sudo")


def allow_descriptors() -> None:
    """As many open files as this process may have, and DESCRIPTORS where it may say so itself
    (getrlimit(2)): maps and programs alone are a hundred. Where it may not, what needs one more
    tells.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(most, DESCRIPTORS), most):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return


def log_to(stream: Any, level: int = logging.INFO) -> None:
    """From now on the log goes to stream alone."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


def log_file(path: Path) -> TextIO:
    """To be logged to: the file at path is added to, line by line."""
    return path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)


def log_again(path: Path) -> None:
    """A log that goes to the file at path does so once more, where that was removed."""
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler) and str(handler.stream.name) == str(path):
            old = handler.setStream(log_file(path))
            if old is not None:
                old.close()


@contextlib.contextmanager
def claimed(run_dir: RunDir) -> Iterator[None]:
    """The instance is this process's, or its fork's; see also clean()."""
    collect_runs()
    run_dir.claim()
    with clean(run_dir):
        yield


@contextlib.contextmanager
def clean(run_dir: RunDir) -> Iterator[None]:
    """A body that fails while nothing else is there takes the run directory along."""
    try:
        yield
    except BaseException:
        if run_dir.is_bare() and run_dir.instance not in loader.instances():
            run_dir.remove()
        raise


async def opened(opening: Coroutine[Any, Any, Instance], stop: Stop, run_dir: RunDir) -> Instance:
    """The instance that opening makes; StoppedError if a signal asks for the end first, and
    then nothing is left.
    """
    task = asyncio.get_running_loop().create_task(opening)
    stop.then(task.cancel)
    try:
        return await task
    except (Exception, asyncio.CancelledError) as error:
        if stop.by is None:
            raise
        undo(run_dir)
        raise StoppedError(f"attach instance {run_dir.instance}", stop.by) from error


async def closed(instance: Instance, server: Server) -> list[str]:
    """Detach, and tell who asked for it. Returns what was removed; DmmError tells what
    could not be.
    """
    try:
        removed = await instance.close()
    except DmmError as error:
        await server.finish(error)
        raise
    await server.finish(removed)
    return removed
