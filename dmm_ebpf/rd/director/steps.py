# SPDX-License-Identifier: Apache-2.0
"""Undoing step by step: each is tried whatever became of those before it, and what failed is
told at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from dmm_ebpf.errors import DmmError

log = logging.getLogger("dmm-ebpf")


class Steps:
    """removed: what went, as text. unknown: what could not be found out, as sentences."""

    def __init__(self, what: str) -> None:
        """what: as in DmmError."""
        self.removed: list[str] = []
        self.unknown: list[str] = []
        self._what = what
        self._problems: list[str] = []

    def do(self, what: str, action: Callable[[], Iterable[str] | None]) -> None:
        """One step; action says what it has removed."""
        try:
            self.removed.extend(action() or ())
        except Exception as error:
            self._failed(what, error)

    async def wait(self, what: str, action: Awaitable[Iterable[str] | None]) -> None:
        """One step that takes its time."""
        try:
            self.removed.extend(await action or ())
        except Exception as error:
            self._failed(what, error)

    def finish(self) -> None:
        """Raises DmmError with all that failed, if anything did."""
        if self._problems:
            raise DmmError(
                self._what,
                why="; ".join(self._problems),
                hint="what could be removed is gone; detach again when the cause is mended",
            )

    def _failed(self, what: str, error: Exception) -> None:
        if not isinstance(error, DmmError | OSError):
            log.error("%s: a bug", what, exc_info=error)
        self._problems.append(f"{what}: {error}")
