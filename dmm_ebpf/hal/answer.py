# SPDX-License-Identifier: Apache-2.0
"""An answer about hardware that nobody could give, with the reason: neither yes nor no,
and never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unknown:
    """It could not be told. why: as the rest of "could not tell: ..."."""

    why: str


YesNo = bool | Unknown
