# SPDX-License-Identifier: Apache-2.0
"""A service whose cgroup is removed and made again at each restart, and a policy that refuses what
it connects to: so that a connection says whether it was routed.
"""

from __future__ import annotations

from lab.routed import Routed

RESTARTS = 10
# %s: the rule's cgroup
REFUSE = """
[[rules]]
name = "shop"
cgroup = "%s"
table = "none"

[[tables.none.routes]]
to = "default"
stack = "reject"
"""
# For a program of Python's: remake(base, path) removes a cgroup and what is above it up to base,
# and makes all of them again; join() enters one; outcome() is the name of the error that connect()
# ended with.
SERVICE = """
import json, os, socket, sys, time
base, path, restarts = sys.argv[1], sys.argv[2], int(sys.argv[3])
def join(group):
    open(os.path.join(group, "cgroup.procs"), "w").write("0")
def remake(base, path):
    at = path
    while len(at) > len(base):
        if os.path.isdir(at):
            os.rmdir(at)
        at = os.path.dirname(at)
    os.makedirs(path)
def outcome():
    with socket.socket() as s:
        s.settimeout(1)
        try:
            s.connect(("127.0.0.1", 9))
        except OSError as error:
            return type(error).__name__
"""


class Pending(Routed):
    """Attached to a cgroup that need not be there."""

    options = ("--pending",)
