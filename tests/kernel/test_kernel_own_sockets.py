# SPDX-License-Identifier: Apache-2.0
"""Sockets that the kernel connects in the name of a program: a mount by 9p. They stay with the
kernel, though the program's own are a user stack's.

A kernel without 9p skips it on the host; in a guest of `tools/kernelvm` (DMM_GUEST_KERNEL) it must
be there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sitefixtures import TAP
from talking import Talker, echo, server

from dmm_ebpf.rd.api.client import Client

PORT = 7640

# Takes a connection, and never answers what 9p asks.
SILENT = f"""
import socket
listening = socket.create_server(("", {PORT}))
print("ready", flush=True)
c, _ = listening.accept()
print(c.recv(4096)[4], flush=True)
c.recv(4096)
"""

# mount(2), which waits for an answer.
MOUNT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
print("ready", flush=True)
data = f"trans=tcp,port={sys.argv[2]},version=9p2000.L".encode()
libc.mount(sys.argv[1].encode(), sys.argv[3].encode(), b"9p", 0, data)
print(os.strerror(ctypes.get_errno()), flush=True)
"""
TVERSION = "100"


def _known() -> bool:
    lines = Path("/proc/filesystems").read_text(encoding="ascii").splitlines()
    return any(line.split()[-1] == "9p" for line in lines)


@pytest.mark.timeout(900)  # a guest is emulated
def test_a_mount_stays_with_the_kernel(wired, tmp_path):
    if not _known():
        done = wired.client.run(["modprobe", "-a", "9p", "9pnet_fd"], check=False)
        if not _known():
            assert "DMM_GUEST_KERNEL" not in os.environ, done.stderr
            pytest.skip("this kernel has no 9p")
    routed = wired.attach_client(TAP)
    echo(wired.server, wired.server_cgroup)
    asked = server(wired.server, wired.server_cgroup, SILENT)
    assert (
        Talker(wired.client, wired.client_cgroup, wired.server.ip4).flow(routed)["stack"] == "wan"
    )
    words = (wired.server.ip4, str(PORT), str(tmp_path))
    server(wired.client, wired.client_cgroup, MOUNT, *words)
    assert asked.stdout.readline().strip() == TVERSION
    with Client(routed.instance) as client:
        assert [row for row in client.call("flows") if row["dport"] == PORT] == []
        (stack,) = (one for one in client.call("stacks") if one["name"] == "wan")
    assert stack["counters"]["active_open"] == 1
