# SPDX-License-Identifier: Apache-2.0
"""What the laboratory's things have in common: each is a context manager that closes itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """`with Thing() as thing:` ends by thing.close(), also when the body raised."""

    @abstractmethod
    def close(self) -> None:
        """Ends and removes all that belongs to it; harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
