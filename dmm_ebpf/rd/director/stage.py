# SPDX-License-Identifier: Apache-2.0
"""The states of an instance (instance.py), and of what puts a policy in force there: which may
follow which.
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """ATTACHING: the hooks are there, the policy that it begins with may not be. SERVING: it has
    that. DETACHING: no policy is taken any more. DETACHED: every trace is gone; the last.
    """

    ATTACHING = "attaching"
    SERVING = "serving"
    DETACHING = "detaching"
    DETACHED = "detached"


STAGES: dict[Stage, frozenset[Stage]] = {
    # DETACHING: its policy cannot be put in force.
    Stage.ATTACHING: frozenset({Stage.SERVING, Stage.DETACHING}),
    Stage.SERVING: frozenset({Stage.DETACHING}),
    # DETACHING again: not all could be removed, and that is tried once more.
    Stage.DETACHING: frozenset({Stage.DETACHING, Stage.DETACHED}),
    Stage.DETACHED: frozenset(),
}


class Progress(StrEnum):
    """How far a new policy is: one at a time. IDLE: there is none. COMPILING: nothing on the host
    has changed. STARTING: user stacks that it routes to are made to serve. SWITCHING: it is written
    down, then into the maps, at the end of which it is in force at once. SETTLING: what only the
    one before it needed goes.
    """

    IDLE = "idle"
    COMPILING = "compiling"
    STARTING = "starting"
    SWITCHING = "switching"
    SETTLING = "settling"


PROGRESS: dict[Progress, frozenset[Progress]] = {
    Progress.IDLE: frozenset({Progress.COMPILING}),
    # IDLE, from each: it failed, what it had begun is undone, and the one before is in force.
    Progress.COMPILING: frozenset({Progress.STARTING, Progress.IDLE}),
    Progress.STARTING: frozenset({Progress.SWITCHING, Progress.IDLE}),
    Progress.SWITCHING: frozenset({Progress.SETTLING, Progress.IDLE}),
    # IDLE from here: it is in force, whatever happened in this step.
    Progress.SETTLING: frozenset({Progress.IDLE}),
}
