# SPDX-License-Identifier: Apache-2.0
"""New flows, one after another until standard input ends, and whether each had a valid decision.

    python -m soak.newflows ADDRESS JSON

JSON maps each port, to which connections go in turn, to the stacks that may serve it, and these to
the congestion control that a socket of theirs has; empty: a user stack's, which the app's socket
does not show. A decision is valid if the program is told of such a stack (getsockopt() of SOL_DMM),
and its socket has what that stack sets. Prints a Told as JSON.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field

from dmm_ebpf.abi import C

WITHIN_S = 60.0
MOST_WRONG = 20
_SERVING_BYTES = 72


@dataclass
class Told:
    """served: flows by port and stack. failed: by port and errno. wrong: what was not valid, in
    words, the first MOST_WRONG.
    """

    served: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def _serving(sock: socket.socket) -> str:
    told = sock.getsockopt(C.SOL_DMM, C.DMM_SERVING, _SERVING_BYTES)
    return told[: C.DMM_STACK_NAME].rstrip(b"\0").decode()


def _congestion(sock: socket.socket) -> str:
    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return told.rstrip(b"\0").decode()


def _wrong(sock: socket.socket, allowed: dict[str, str]) -> tuple[str, str]:
    """The stack that serves, and what is not valid about it; empty: nothing."""
    try:
        stack = _serving(sock)
    except OSError as error:
        return "", f"nobody decided about it ({errno.errorcode.get(error.errno or 0, error.errno)})"
    if stack not in allowed:
        return stack, f'the stack "{stack}" has it, which no policy names for it'
    wanted, found = allowed[stack], _congestion(sock)
    if wanted and found != wanted:
        return stack, f"{stack} has it, and its congestion control is {found}"
    return stack, ""


def _one(told: Told, address: str, port: str, allowed: dict[str, str]) -> None:
    with socket.socket() as sock:
        sock.settimeout(WITHIN_S)
        try:
            sock.connect((address, int(port)))
            stack, wrong = _wrong(sock, allowed)
            if wrong and len(told.wrong) < MOST_WRONG:
                told.wrong.append(f"port {port}: {wrong}")
            sock.sendall(b"?")
            if sock.recv(1) != b"?":
                raise ConnectionResetError(errno.ECONNRESET, "")
        except OSError as error:
            why = errno.errorcode.get(error.errno or 0, "timeout")
            told.failed[f"{port} {why}"] += 1
        else:
            told.served[f"{port} {stack}"] += 1


def main(address: str, ports: dict[str, dict[str, str]]) -> Told:
    """Until standard input ends; each port once at least."""
    told = Told()
    while True:
        for port, allowed in ports.items():
            _one(told, address, port, allowed)
        if select.select([sys.stdin], [], [], 0)[0]:
            return told


if __name__ == "__main__":
    print(json.dumps(vars(main(sys.argv[1], json.loads(sys.argv[2])))))
