# SPDX-License-Identifier: Apache-2.0
"""The states of a supervisor (supervisor.py), and which may follow which."""

from __future__ import annotations

from enum import StrEnum


class Life(StrEnum):
    """OFF: there is no process, and none comes by itself. STARTING: the first one is to serve, and
    does not yet. UP: one serves. BETWEEN: it has died; the next one starts by and by. STOPPING: it
    is ended on purpose.
    """

    OFF = "off"
    STARTING = "starting"
    UP = "up"
    BETWEEN = "between"
    STOPPING = "stopping"


# What may come after each.
FOLLOWS: dict[Life, frozenset[Life]] = {
    # UP: one that was there is adopted. OFF again: it was stopped twice at the same time.
    Life.OFF: frozenset({Life.OFF, Life.STARTING, Life.UP, Life.STOPPING}),
    # OFF: it did not come up.
    Life.STARTING: frozenset({Life.UP, Life.OFF, Life.STOPPING}),
    Life.UP: frozenset({Life.BETWEEN, Life.STOPPING}),
    Life.BETWEEN: frozenset({Life.UP, Life.STOPPING}),
    # Not UP, which would let a process live that nobody wants; nor BETWEEN: no next one comes.
    Life.STOPPING: frozenset({Life.STOPPING, Life.OFF}),
}
