# SPDX-License-Identifier: Apache-2.0
"""A process on a host that runs sides of scripts, each in a child of its own.

Its standard input is a SEQPACKET socket: a message is JSON with two descriptors, the way to the
other side and the one that the notes go to. Run by /usr/bin/python3 as it is, in the cgroup
that is routed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sockets import topics  # noqa: F401  (it fills SCRIPTS)
from sockets.script import PR_SET_PDEATHSIG, SCRIPTS, observe


def run(told: dict[str, object], other: int, notes: int) -> None:
    """One side, to its end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    script = SCRIPTS[str(told.pop("script"))](**told, other=other)
    seen = observe(script)
    with socket.socket(fileno=notes) as out:
        out.sendall(json.dumps(seen).encode())


def main() -> None:
    """Until the harness hangs up."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    asked = socket.socket(fileno=os.dup(0))
    asked.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, 1 << 16, 2)
        if not message:
            return
        if not os.fork():
            asked.close()
            try:
                run(json.loads(message), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
