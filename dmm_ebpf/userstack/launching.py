# SPDX-License-Identifier: Apache-2.0
"""How the interpreter of a stack process is started: its command, its environment, and from
where it imports.

It goes without site(3python), which takes longer than half of what the process imports: what site
would find is told instead, on PYTHONPATH.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import _cffi_backend
import msgpack

PROGRAM = "dmm_ebpf.userstack.process"
COMMAND = (sys.executable, "-S", "-P", "-m", PROGRAM)


def environment() -> Mapping[str, str]:
    """Of a stack process: nothing of the Resource Director's that it has no use for."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, _folders()))),
    }


def _folders() -> list[str]:
    """The package that runs here is the one that is to run there, installed or not; and so are
    those that it needs beside the standard library.
    """
    root = Path(__file__).resolve().parents[2]
    needed = Path(_cffi_backend.__file__).parent, Path(msgpack.__file__).parents[1]
    return [str(root), os.environ.get("PYTHONPATH", ""), *map(str, needed)]
