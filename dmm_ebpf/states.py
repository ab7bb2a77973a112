# SPDX-License-Identifier: Apache-2.0
"""The one way from a state to the next, for whatever has a table of which may follow which."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from dmm_ebpf.errors import DmmError

State = TypeVar("State", bound=StrEnum)
log = logging.getLogger("dmm-ebpf")


class ForbiddenError(DmmError):
    """A state was to follow that may not: a mistake of ours, not of the host's."""


def move(
    what: str, follows: Mapping[State, frozenset[State]], old: State, new: State, reason: str = ""
) -> State:
    """new, after a change from old has been logged. what: whose states they are; follows: what may
    come after each. Raises ForbiddenError.
    """
    if new not in follows[old]:
        raise ForbiddenError(f"go on with {what}", why=f"it is {old}, and {new} may not follow")
    if new is not old:
        log.debug("%s: %s, then %s%s", what, old, new, f": {reason}" if reason else "")
    return new
