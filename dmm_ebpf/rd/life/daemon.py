# SPDX-License-Identifier: Apache-2.0
"""A Resource Director in the background: daemon(7), and a parent that waits until it serves or says
why it cannot.

What the daemon says, on a pipe: its pid and a newline, then "ready", or an error as JSON; then
it hangs up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
from collections.abc import Callable

from dmm_ebpf.errors import DmmError, from_wire
from dmm_ebpf.rd.director.rundir import RunDir
from dmm_ebpf.rd.life.signals import Signals, StoppedError

log = logging.getLogger("dmm-ebpf")
_READY = b"ready"


def daemonize(run_dir: RunDir, signals: Signals, serve: Callable[[Callable[[], None]], int]) -> int:
    """Fork twice; serve(ready) runs in the daemon. Returns, in the parent alone, when ready()
    was called there.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(writing)
        return _await(reading, child, run_dir, signals)
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)
    os._exit(_be_daemon(writing, run_dir, serve))


def _await(reading: int, child: int, run_dir: RunDir, signals: Signals) -> int:
    what = f"attach instance {run_dir.instance}"
    ended: list[signal.Signals] = []
    with os.fdopen(reading, "rb") as pipe:
        os.waitpid(child, 0)
        daemon = _open(int(pipe.readline() or 0))

        def end(number: signal.Signals) -> None:
            if not signals.ends(number):
                return
            ended.append(number)
            with contextlib.suppress(OSError):  # it may have ended by itself
                signal.pidfd_send_signal(daemon, signal.SIGTERM)

        signals.listen(end)
        said = pipe.read()
        if ended and daemon >= 0:
            select.select([daemon], [], [])
    if ended:
        raise StoppedError(what, ended[0])
    if said == _READY:
        return 0
    if not said:
        why = "its process was killed before it served"
        hint = (
            f"attach again, or remove what it left: dmm-ebpf detach --instance {run_dir.instance}"
        )
        raise DmmError(what, why=why, hint=hint)
    raise from_wire(json.loads(said))


def _open(pid: int) -> int:
    """A pidfd; -1: it is gone."""
    try:
        return os.pidfd_open(pid)
    except (OSError, ValueError):
        return -1


def _be_daemon(writing: int, run_dir: RunDir, serve: Callable[[Callable[[], None]], int]) -> int:
    def say(words: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody may be left to hear it
            os.write(writing, words)

    def ready() -> None:
        say(_READY)
        os.close(writing)

    try:
        say(f"{os.getpid()}\n".encode())
        run_dir.relock_pid()
        os.chdir("/")
        _leave_terminal()
        return serve(ready)
    except DmmError as error:
        log.error("%s", error)
        say(json.dumps(error.to_wire()).encode())
        return error.exit_code
    except BaseException as error:
        log.exception("the Resource Director ended")
        say(
            json.dumps(
                DmmError("start the daemon", why=f"{type(error).__name__}: {error}").to_wire()
            ).encode()
        )
        return 1


def _leave_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
