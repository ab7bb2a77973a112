# SPDX-License-Identifier: Apache-2.0
"""Rules for sockets that are bound to a device, which comes and goes under an attached instance."""

from __future__ import annotations

import subprocess
import sys

from lab import wait_for

WITHIN_S = 30.0
POLICY = """
[[rules]]
name = "late"
cgroup = "{cgroup}"
interface = "late0"
not = { comm = "spared" }
action = "prohibit"
"""
# The errno of a connection by a socket that is bound to the device; -1: it cannot be bound.
BOUND = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
with socket.socket() as s:
    s.settimeout(0.1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"late0")
    try:
        s.connect(("198.51.100.9", 9))
    except TimeoutError:
        print(0)
    except OSError as error:
        print(error.errno)
"""


def test_a_rule_follows_the_device_that_its_sockets_are_bound_to(site):
    routed = site.attach_client(POLICY)
    program = [sys.executable, "-c", BOUND]

    def error_of(comm: str) -> int:
        process = site.client_cgroup.spawn(
            [*program, comm], host=site.client, stdout=subprocess.PIPE, text=True
        )
        return int(process.communicate(timeout=WITHIN_S)[0])

    asked = ("route", "get", "198.51.100.9:9", "-i", routed.instance, "--interface")
    for _ in range(2):
        site.client.ip(
            "link add late0 type bridge",
            "link set late0 up",
            "addr add 198.51.100.1/24 dev late0",
        )
        wait_for(lambda: error_of("curl") == 13, WITHIN_S, "the rule to find the device")
        assert error_of("spared") != 13
        said = routed.cli(*asked, "late0", "--comm", "curl").stdout
        assert "stack prohibit" in said and "rule late" in said
        site.client.ip("link del late0")
    assert "stack kernel" in routed.cli(*asked, "late0", "--comm", "spared").stdout
    refused = routed.cli(*asked, "no-such", check=False)
    assert refused.returncode == 2
    assert "there is no device no-such, and no rule waits for it" in refused.stderr
