# SPDX-License-Identifier: Apache-2.0
"""Results in a file, one JSON object a line, so that a table can be tried in slices: what is there
is not tried again, by the same kernel.

A line is written once its cell is known, and a line that an end cut off is left out, so the file
can be used whatever ended the run. The last line of a cell counts.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from compat.run import Result, Spot
from dmm_ebpf.errors import DmmError

BEGINNING = '{"group": "'  # of a line
Place = tuple[str, str, str, str, str]  # group, case, direction, family, carrier


def place(result: Result) -> Place:
    """Which cell a result is of."""
    return result.group, result.case, result.direction, result.family, result.carrier


def places(spot: Spot, carriers: Iterable[str]) -> list[Place]:
    """The cells of a spot."""
    case = spot.case
    return [(case.group, case.name, spot.direction, spot.family, one) for one in carriers]


def line_of(result: Result) -> str:
    """A result as a line of the file, without its end."""
    return json.dumps(result.as_dict())


class Results:
    """What is known of cells, by kernel: in memory, and in a file if one is given."""

    def __init__(self, path: Path | None = None) -> None:
        """Reads the file, if it is there. Raises DmmError for one that is of something else."""
        self._path = path
        self._known: dict[tuple[str, Place], Result] = {}
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise DmmError(f"read results from {path}", why=why) from error
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError) as error:
                if not line.endswith("\n") and line.startswith(BEGINNING):
                    self._cut(path, text, line)
                    return
                raise DmmError(
                    f"read results from {path}",
                    why=f"line {number} is no result of tools/compat",
                    hint="name another file, or remove this one",
                ) from error
            self._known[result.kernel, place(result)] = result

    @staticmethod
    def _cut(path: Path, text: str, line: str) -> None:
        with contextlib.suppress(OSError):  # of a reader's, which need not write
            os.truncate(path, len(text.encode()) - len(line.encode()))

    def add(self, result: Result) -> None:
        """A cell is known. Raises DmmError when the file cannot be written."""
        self._known[result.kernel, place(result)] = result
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line_of(result) + "\n")
        except OSError as error:
            raise DmmError(
                f"keep results in {self._path}", why=error.strerror or "it cannot be written"
            ) from error

    def missing(self, wanted: Iterable[Spot], carriers: Iterable[str], kernel: str) -> list[Spot]:
        """The spots of which a cell is not known of that kernel."""
        carriers = tuple(carriers)
        return [
            spot
            for spot in wanted
            if any((kernel, one) not in self._known for one in places(spot, carriers))
        ]

    def of(self, wanted: Iterable[Spot], carriers: Iterable[str], kernel: str) -> list[Result]:
        """What is known of that kernel's cells, in the table's order."""
        carriers = tuple(carriers)
        keys = [(kernel, one) for spot in wanted for one in places(spot, carriers)]
        return [self._known[key] for key in keys if key in self._known]

    def kernels(self) -> list[str]:
        """Those that something is known of, the newest first."""
        return sorted(
            {kernel for kernel, _ in self._known},
            key=lambda kernel: [int(word) for word in kernel.split(".") if word.isdigit()],
            reverse=True,
        )
