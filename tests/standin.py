# SPDX-License-Identifier: Apache-2.0
"""A stack process that is none: it says that it serves, and does nothing."""

from __future__ import annotations

# Its first argument is the descriptor of the director's channel (write-a-stack-process.md).
SERVES = """
import json, os, signal, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
while channel.recv(65536):
    pass
info = {"pid": os.getpid(), "landlock": 0, "xsk_mtu": 0, "own_user": False}
info |= {"zerocopy": {}, "sums": {}, "no_sockets": {}}
channel.sendall(json.dumps({"id": 0, "ok": True, "result": info}).encode())
channel.close()
while True:
    signal.pause()
"""
