# SPDX-License-Identifier: Apache-2.0
"""The table under another kernel, in an emulated machine (tools/kernelvm): the guest runs this same
command, and says each result as soon as it is known.

What the guest writes is gone with it, and it may be ended at any time; so its results are kept here
(results.py), and it is told by the same file which are known already.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from compat.run import Result
from dmm_ebpf.errors import DmmError
from lab.vm.bytecode import prepare
from lab.vm.machine import GuestTimeoutError, Options, check_host, run
from lab.vm.packages import Kernel, find_kernel

ROOT = Path(__file__).resolve().parents[1]
SLOWER = 3  # than this machine, as deadlines have it
ENDED = (0, 1)  # exit codes of a run that came to its end


def kernel_of(version: str) -> Kernel:
    """The kernel of that version, and the BPF programs for it. Raises DmmError."""
    check_host()
    kernel = find_kernel(version)
    prepare(kernel)
    return kernel


def try_there(
    kernel: Kernel, words: Sequence[str], within_minutes: int, done: Callable[[Result], None]
) -> bool:
    """Runs the table there by these words of the command line; done is told of each cell. False
    when that time was not enough for all. Raises DmmError when the guest ends otherwise.
    """
    said = Said(done)
    environment = [f"DMM_LAB_PATIENCE={SLOWER}", f"PYTHONPATH={ROOT}"]
    command = ["env", *environment, sys.executable, "-m", "compat", "--lines", *words]
    try:
        code = run(
            kernel, command, Options(timeout_s=within_minutes * 60, output=said.take, counted=True)
        )
    except GuestTimeoutError:
        return False
    if code not in ENDED:
        raise DmmError(
            f"try cells under Linux {kernel.release}",
            why=f"the guest ended with {code}: {said.last_words()}",
        )
    return True


class Said:
    """What the guest says: results on stdout, which are passed on, and words on stderr."""

    def __init__(self, done: Callable[[Result], None]) -> None:
        self._done = done
        self._rest = b""
        self._errors = bytearray()

    def take(self, fd: int, data: bytes) -> None:
        """Some bytes of file descriptor 1 or 2."""
        if fd != 1:
            self._errors += data
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._done(Result(**json.loads(line)))

    def last_words(self) -> str:
        """The last line that it has said of what is wrong."""
        lines = bytes(self._errors).decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
