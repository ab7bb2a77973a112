# SPDX-License-Identifier: Apache-2.0
"""What a director follows for its policy: a file (watch.py), or another that life gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dmm_ebpf.records.central import Central
    from dmm_ebpf.records.status import Refused


class Source(Protocol):
    """Puts policies in force by Instance.apply(), whole or not at all; what cannot be leaves the
    one in force.
    """

    @property
    def trouble(self) -> Refused | None:
        """Why what it has is not what is in force; None: it is."""

    def told(self) -> Central | None:
        """How it stands with the fleet; None: it is a file's."""

    async def run(self) -> None:
        """Follow until cancelled."""

    async def reload(self) -> None:
        """Read it now, changed or not."""
