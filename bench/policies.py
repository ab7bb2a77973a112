# SPDX-License-Identifier: Apache-2.0
"""The policies that benchmarks run under: all peers of a cgroup, by one user stack called wan."""

from __future__ import annotations

import json

# Room for the whole of a long and fast path, towards the peer
ROOMY = {"sndbuf": "1024M", "rcvbuf": "64M", "memory": "2048M"}

_POLICY = """
[stacks.wan]
kind = "user"
{keys}[[rules]]
cgroup = "{{cgroup}}"
table = "t"
[[tables.t.routes]]
to = {to}
stack = "wan"
"""


def stack_policy(*, to: str = "default", io: str = "af_xdp", **keys: int | str) -> str:
    """The text for lab.routed.Routed. to: which peers; keys: of the stack, numbers and texts."""
    words = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {"io": io, **keys}.items())
    return _POLICY.format(keys=words, to=json.dumps(to))
