# SPDX-License-Identifier: Apache-2.0
"""A dmm-ebpf command that tells each step by which it changes something on the host, and may be
killed (SIGKILL) right before one of them.

    python stepping.py FILE STEP -- WORDS...

A step is written to FILE, a line each, before it is taken; STEP is the line at which the process
ends, empty: none. Steps are calls of bpf(2) that change something, and what Python's audit hooks
tell (PEP 578) of directories, files that come and go, and processes that are started.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork"}
CALLS = (
    *("map_create", "map_update", "map_update_batch", "map_delete", "prog_test"),
    *("obj_pin", "link_create", "link_detach"),
)


class Steps:
    """Of this process: what is counted is the step's kind, so that a step has one name in
    each run.
    """

    def __init__(self, told: Path, last: str) -> None:
        self._told = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._last = last
        self._counts: Counter[str] = Counter()

    def take(self, kind: str) -> None:
        """About to be done."""
        self._counts[kind] += 1
        step = f"{kind} {self._counts[kind]}"
        os.write(self._told, f"{step}\n".encode())
        if step == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See sys.addaudithook()."""
        if event in STARTS:
            self.take("start")
        elif event in FILES and any(root in str(arguments[0]) for root in ("/dmm-ebpf", "cgroup")):
            self.take(f"{event.removeprefix('os.')} {Path(str(arguments[0])).suffix or 'file'}")

    def before(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """call, told of."""

        def told(*args: Any, **options: Any) -> Any:
            self.take(kind)
            return call(*args, **options)

        return told


def main() -> None:
    told, last, dashes, *words = sys.argv[1:]
    assert dashes == "--"
    from dmm_ebpf.cli import start
    from dmm_ebpf.loader import bpf

    steps = Steps(Path(told), last)
    for name in CALLS:
        setattr(bpf, name, steps.before(name, getattr(bpf, name)))
    sys.addaudithook(steps.audit)
    sys.argv = ["dmm-ebpf", *words]
    start.main()


if __name__ == "__main__":
    main()
