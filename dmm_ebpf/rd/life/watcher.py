# SPDX-License-Identifier: Apache-2.0
"""Undoes what `dmm-ebpf run` has made when its process is killed: nobody else would, since a
command's instance is known to nobody else.

It is a line of shell that waits at a pipe, a megabyte where a fork of Python is thirty. Only when
the pipe ends without a word does it become `dmm-ebpf detach`. Should it be killed too, the next
attach, run or detach finds the instance.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from dmm_ebpf.closing import Closing

_SCRIPT = 'trap "" HUP INT TERM; read -r done || exec "$@"'


class Watcher(Closing):
    """Watches over this process until closed."""

    def __init__(self, instance: str) -> None:
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        # The package that runs here is the one that is to run there, installed or not.
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            self._shell = subprocess.Popen(
                [
                    *("/bin/sh", "-c", _SCRIPT, "dmm-ebpf-watcher"),
                    *(
                        sys.executable,
                        "-P",
                        "-m",
                        "dmm_ebpf.cli.main",
                        "detach",
                        "--instance",
                        instance,
                    ),
                ],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(reading)

    def close(self) -> None:
        """All is undone: it may end."""
        if self._writing < 0:
            return
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(self._writing, b"done\n")
        os.close(self._writing)
        self._writing = -1
        self._shell.wait()
