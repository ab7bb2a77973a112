# SPDX-License-Identifier: Apache-2.0
"""Base of everything that has to be closed: a context manager whose end is its close()."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """`with Thing() as thing:` ends by thing.close(), also when the body raised."""

    @abstractmethod
    def close(self) -> None:
        """Ends what it stands for; harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
