# SPDX-License-Identifier: Apache-2.0
"""dmm-ebpf's commands, each a process of its own, without the start of an interpreter.

A command is mostly start: of a fifth of a second nine tenths are the interpreter and its imports,
and a test asks dozens of times. So the caller is forked, which has imported all of it, and the
child runs the command line on its own standard streams, as the interpreter would have. Where other
threads run, any of which may hold a lock that the child would wait for, an interpreter is started.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from typing import NoReturn

from dmm_ebpf.cli import actions, gather, known, main, routes, tables
from dmm_ebpf.rd.life import attaching
from lab.waiting import patient, wait_pid_gone

CLI = (sys.executable, "-X", "faulthandler", "-m", "dmm_ebpf.cli.main")
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h: no code of dmm-ebpf's own
FD_MAX = 1 << 20

# What commands import when they begin, which each child would do again.
IMPORTED = (actions, attaching, gather, known, routes, tables)


def run(words: tuple[str, ...], timeout: float) -> subprocess.CompletedProcess[str]:
    """`dmm-ebpf WORDS` to its end, with nothing to read and what it wrote; TimeoutExpired when
    it has been killed after timeout seconds.
    """
    if threading.active_count() > 1:
        return subprocess.run(
            [*CLI, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(timeout),
        )
    with (
        os.fdopen(os.memfd_create("stdout"), encoding="utf-8") as out,
        os.fdopen(os.memfd_create("stderr"), encoding="utf-8") as err,
    ):
        pid = os.fork()
        if pid == 0:
            _become(words, out.fileno(), err.fileno())
        is_late = True
        try:
            is_late = not wait_pid_gone(pid, timeout)
        finally:
            if is_late:
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [_whole(stream) for stream in (out, err)]
    if is_late:
        raise subprocess.TimeoutExpired(["dmm-ebpf", *words], patient(timeout), *said)
    return subprocess.CompletedProcess(["dmm-ebpf", *words], code, *said)


def _whole(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _become(words: tuple[str, ...], out: int, err: int) -> NoReturn:
    """The child: whatever happens, it does not return into the caller's program."""
    code = EXIT_BUG
    try:
        # What the caller has is not this process's to collect, to write out, or to hold open.
        gc.freeze()
        sys.argv = ["dmm-ebpf", *words]
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, standard in ((null, 0), (out, 1), (err, 2)):
            os.dup2(fd, standard)
        os.closerange(3, FD_MAX)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # by which pytest ends a test
        try:
            main.main(list(words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else EXIT_BUG
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
