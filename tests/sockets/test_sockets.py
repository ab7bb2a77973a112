# SPDX-License-Identifier: Apache-2.0
"""Every script sees through a stack what it sees without one, whichever side is routed, or
limits.toml says why not.

What differs once, and not when it is run again, is a warning: it may be who was faster, or a fault
that is rare.

DMM_SOCKETS=all in the environment adds modes: the other port, and more processes of the
stack by either.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue

import pytest
from labfixtures import assert_no_leaks, snapshot

from sockets import topics  # noqa: F401  (it fills SCRIPTS)
from sockets.field import MORE, QUICK, Field, Mode, Seen, families_of
from sockets.limits import DIFFERS, KERNELS, carriers, known_limits, objections
from sockets.script import SCRIPTS

MODES = QUICK + (MORE if os.environ.get("DMM_SOCKETS") == "all" else ())
# The longest first, so that no run ends with waiting for one.
CELLS = sorted(
    ((script, family) for script in SCRIPTS for family in families_of(script)),
    key=lambda cell: not cell[0].startswith(("pressure", "waiting", "options: KeepAlive")),
)
LIMITS = known_limits()
WORKERS = 12  # most of a script's time is waiting
FIELDS = 2  # pairs of hosts on which modes are run side by side
MORE_TURNS = 3  # how often each is run again, without dmm-ebpf and with, while they differ

Cell = tuple[str, str]

pytestmark = pytest.mark.timeout(900)  # the first test waits for all scripts


class Results:
    """What was seen: without dmm-ebpf, each time; and in every mode."""

    def __init__(self, directory) -> None:
        self.plain: dict[Cell, list[Seen]] = {cell: [] for cell in CELLS}
        self.rare: list[tuple[str, Cell, Seen]] = []  # seen once with it, and not when run again
        with (
            ThreadPoolExecutor(WORKERS) as self.pool,
            ThreadPoolExecutor(FIELDS + 1) as runs,
            Field("plain", directory) as self.without,
            ExitStack() as stack,
        ):
            fields: Queue[Field] = Queue()
            for number in range(FIELDS):
                fields.put(stack.enter_context(Field(f"routed{number}", directory)))
            self.once = runs.submit(self._run_plain, CELLS)
            modes = {mode.name: runs.submit(self._run_mode, fields, mode) for mode in MODES}
            self.seen = {name: run.result() for name, run in modes.items()}

    def _run_plain(self, cells: Sequence[Cell]) -> None:
        for cell, seen in zip(
            cells, self.pool.map(lambda cell: self.without.run(*cell), cells), strict=True
        ):
            self.plain[cell].append(seen)

    def _run_mode(self, fields: Queue[Field], mode: Mode) -> dict[Cell, Seen]:
        """While one field is attached or detached, the other's scripts have the machine."""
        field = fields.get()
        try:
            return self._run_routed(field, mode)
        finally:
            fields.put(field)

    def _run_routed(self, field: Field, mode: Mode) -> dict[Cell, Seen]:
        with field.routed(mode):
            found = dict(
                zip(CELLS, self.pool.map(lambda cell: field.run(*cell), CELLS), strict=True)
            )
            self.once.result()
            for _ in range(MORE_TURNS):
                # A stack that is not heard of for a second gets no flow, and on a busy
                # machine that happens.
                for cell in CELLS:
                    if carriers(cell[0], mode, found[cell]) and not self._is_limit(
                        cell, mode, KERNELS
                    ):
                        found[cell] = field.run(*cell)
                unseen = self._unseen(found)
                self._run_plain([c for c in unseen if not self._is_limit(c, mode, DIFFERS)])
                for cell in self._unseen(found):
                    if not self._is_limit(cell, mode, DIFFERS):
                        self.rare.append((mode.name, cell, found[cell]))
                        found[cell] = field.run(*cell)
        return found

    def _unseen(self, found: dict[Cell, Seen]) -> list[Cell]:
        """What has not been seen without dmm-ebpf."""
        return [c for c in CELLS if all(found[c].notes != p.notes for p in self.plain[c])]

    @staticmethod
    def _is_limit(cell: Cell, mode: Mode, kind: str) -> bool:
        return any(limit.names(kind, cell[0], mode.name, cell[1]) for limit in LIMITS)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    before = snapshot()
    directory = tmp_path_factory.mktemp("sockets")
    directory.chmod(0o755)
    found = Results(directory)
    assert_no_leaks(before, snapshot())
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_comes_to_its_end_without_us(results, script):
    for family in families_of(script):
        for seen in results.plain[script, family]:
            names = {name for notes in seen.notes.values() for name, _ in notes}
            assert not names & {"stuck", "alone", "ended by", "silent"}, f"{family}: {seen.notes}"


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_sees_the_same(results, script, mode):
    found = []
    for family in families_of(script):
        plain, seen = results.plain[script, family], results.seen[mode.name][script, family]
        found += objections(script, mode, family, plain, seen, LIMITS)
    assert not found, "\n".join(found)
    for name, cell, once in results.rare:
        if name == mode.name and cell[0] == script:
            warnings.warn(f"{mode.name}, {cell}: seen once: {once.notes}", stacklevel=1)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.why[:60])
def test_a_known_difference_names_scripts_that_there_are(limit):
    assert limit.kind in (DIFFERS, KERNELS)
    for script in limit.scripts:
        assert any(limit.names(limit.kind, s, m.name, f) for s, f in CELLS for m in QUICK + MORE), (
            script
        )
