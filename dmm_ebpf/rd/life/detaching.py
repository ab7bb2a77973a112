# SPDX-License-Identifier: Apache-2.0
"""`dmm-ebpf detach`: asks the Resource Director of an instance to end, or undoes what a dead
one has left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time

from dmm_ebpf import listing, loader
from dmm_ebpf.errors import DmmError, NotAttachedError, PrivilegeError
from dmm_ebpf.rd.api.client import Client
from dmm_ebpf.rd.director import found, rundir
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.director.undo import Undone, undo
from dmm_ebpf.rd.life.signals import Signals
from dmm_ebpf.userstack import pidfile

log = logging.getLogger("dmm-ebpf")
STOP_TIMEOUT_S = 20


def instances() -> list[str]:
    """Instances of this host, whether their RD lives or not. PrivilegeError to who may not look."""
    try:
        names = {folder.name for folder in listing.folders(rundir.ROOT)}
    except PermissionError as error:
        raise PrivilegeError(
            "look for instances", why="not root", hint="run it with sudo"
        ) from error
    with contextlib.suppress(DmmError):
        names |= set(loader.instances())
    return sorted(names)


def detach(instance: str, until: contextlib.ExitStack | None = None) -> Undone:
    """Remove every trace of an instance, its RD alive or not.

    Once something is being undone here it is brought to its end whatever signals come; until, where
    it is given, keeps them off until it is closed, for a caller who has to tell what was removed.
    """
    with contextlib.ExitStack() as here:
        return _detach(instance, until or here)


def _detach(instance: str, until: contextlib.ExitStack) -> Undone:
    run_dir = RunDir(instance)
    homeless = found.homeless_directors(run_dir) if run_dir.is_bare() else []
    if not homeless and instance not in instances() and not found.stack_processes(instance):
        run_dir.remove()
        return Undone()
    for director in homeless:
        _end(run_dir, director.pid, director.start_time)
    return _undo_if_dead(run_dir, until) or _ask(run_dir, until)


def collect_runs() -> None:
    """Undo what commands of `run` have left whose process was killed, and whose watcher too."""
    for name in instances():
        with contextlib.suppress(DmmError), contextlib.ExitStack() as until:
            run_dir = RunDir(name)
            if run_dir.is_locked():
                continue
            if run_dir.is_husk() and name not in loader.instances():
                _undo_if_dead(run_dir, until)
                continue
            state = run_dir.load()
            if state is not None and state.own_cgroup and _undo_if_dead(run_dir, until):
                log.warning(
                    "instance %s was left by a `dmm-ebpf run` that was killed: it is detached", name
                )


def _undo_if_dead(run_dir: RunDir, until: contextlib.ExitStack) -> Undone | None:
    """None: a living process has the instance."""
    with contextlib.ExitStack() as here:
        signals = here.enter_context(Signals())
        if not run_dir.try_claim():
            return None
        here.pop_all()
        until.push(signals)
        undone = undo(run_dir)
        signals.silence()
        return undone


def _ask(run_dir: RunDir, until: contextlib.ExitStack) -> Undone:
    try:
        with Client(run_dir.instance, timeout_s=STOP_TIMEOUT_S) as client:
            removed: list[str] = client.call("stop")["removed"]
    except NotAttachedError:
        # It is starting or ending, or its socket was removed: a signal reaches it all the same.
        pid = run_dir.holder()
        _end(run_dir, pid, pidfile.start_time(pid))
        undone = _undo_if_dead(run_dir, until) or Undone()
        return Undone(
            [f"what its Resource Director, pid {pid}, had made", *undone.removed], undone.unknown
        )
    _await_unlocked(run_dir)
    return Undone(removed)


def _end(run_dir: RunDir, pid: int, started: int) -> None:
    """SIGTERM to a Resource Director, and wait until it has detached."""
    fd = pidfile.open_process(pid, started)
    if fd is None:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        if not select.select([fd], [], [], STOP_TIMEOUT_S)[0]:
            raise DmmError(
                f"detach instance {run_dir.instance}",
                why=f"its Resource Director, pid {pid}, does not end",
                hint="kill it and detach again",
            )
    finally:
        os.close(fd)


def _await_unlocked(run_dir: RunDir) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while run_dir.is_locked():
        if time.monotonic() > deadline:
            raise DmmError(
                f"detach instance {run_dir.instance}",
                why="its Resource Director answered but does not end",
                hint="kill it and detach again",
            )
        time.sleep(0.01)
