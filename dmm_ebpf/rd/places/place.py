# SPDX-License-Identifier: Apache-2.0
"""Where sockets are: a cgroup and a network namespace. Apart from places.py, which finds one and
needs much for it: who names a cgroup outright waits for none of that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """what: whose place it is, for sentences; None: nobody asked. cgroup: its path from the root
    of the hierarchy.
    netns: a path that leads to its network namespace; None: it has no process of its own
    that would tell.
    """

    what: str | None
    cgroup: str
    netns: str | None

    def __str__(self) -> str:
        return f"{self.cgroup} of {self.what}" if self.what else self.cgroup
