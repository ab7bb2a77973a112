# SPDX-License-Identifier: Apache-2.0
"""The phases of a stack process's life, as the director sees it, and which may follow which."""

from __future__ import annotations

import logging
from enum import StrEnum

from dmm_ebpf import states

log = logging.getLogger("dmm-ebpf")


class Phase(StrEnum):
    """STARTING: it is to serve, and does not yet. UP: a flow may be given to it. DOWN: it has
    died, its flows are reset, and the next one starts by and by. STOPPING: it is ended on
    purpose; the last.
    """

    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    STOPPING = "stopping"


# What may come after each.
FOLLOWS: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.UP, Phase.DOWN, Phase.STOPPING}),
    # UP again: it was adopted, or the next one was there before the death of the last was heard of.
    Phase.UP: frozenset({Phase.UP, Phase.DOWN, Phase.STOPPING}),
    # DOWN again: the next one did not come up.
    Phase.DOWN: frozenset({Phase.UP, Phase.DOWN, Phase.STOPPING}),
    Phase.STOPPING: frozenset({Phase.STOPPING}),
}

# What a listing says of a process besides, or instead: these are no phases, since they are seen
# anew each time.
HUNG, DRAINING, OFF = "hung", "draining", "off"


def move(label: str, old: Phase, new: Phase, reason: str = "") -> Phase:
    """The phase of process label after a change from old to new: new, or old where the table
    forbids it. Logs it.
    """
    if new not in FOLLOWS[old]:
        log.debug("stack %s stays %s, and does not become %s", label, old, new)
        return old
    return states.move(f"stack {label}", FOLLOWS, old, new, reason)
