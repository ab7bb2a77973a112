# SPDX-License-Identifier: Apache-2.0
"""choose.py STACK ADDR PORT: connects by a stack of the program's own choice, says on standard
error who serves, and copies what comes to standard output.
"""

import contextlib
import socket
import sys

from dmm_stack import choose, serving

stack, address, port = sys.argv[1:]
with socket.socket() as sock:
    try:
        choose(sock, stack)
    except OSError as error:  # without dmm-ebpf, or the permission, the connection is the kernel's
        print(f"choose: the stack {stack}: {error.strerror}", file=sys.stderr)
    sock.connect((address, int(port)))
    with contextlib.suppress(OSError):
        print(f"served by {serving(sock)[0]}", file=sys.stderr)
    while data := sock.recv(65536):
        sys.stdout.buffer.write(data)
