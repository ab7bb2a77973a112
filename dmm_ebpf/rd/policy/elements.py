# SPDX-License-Identifier: Apache-2.0
"""What the named sets of a policy's routes have, beside its tables: they come and go, and what a
million routes were compiled to stays.

They mean what routes of a table do that stand behind all that is written (routes.py). More than
MOST_BESIDE have no room there; then they are compiled with the tables, as if they were written.
"""

from __future__ import annotations

from collections.abc import Mapping

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.livetable import MOST_FLEET, MOST_LIVE
from dmm_ebpf.rd.policy.named import Contents
from dmm_ebpf.rd.policy.routes import RouteTable

# Beside as many live routes and a fleet's
MOST_BESIDE = C.DMM_MAX_LIVE // C.DMM_LIVE_PLACES - MOST_LIVE - MOST_FLEET


class ElementTable(RouteTable):
    """Those of one table, which all are elements."""

    __slots__ = ()

    precedence = 0


class Elements:
    """Of one policy. The tables of them are made when somebody asks."""

    def __init__(self, tables: Mapping[str, RouteTable], contents: Contents) -> None:
        """tables: as they are written."""
        self._tables = tables
        self._contents = contents
        self._made: dict[str, ElementTable] = {}

    def __len__(self) -> int:
        sets = (one for table in self._tables.values() for one in table.sets)
        return sum(len(self._contents.get(one.to, ())) for one in sets)

    def table(self, name: str) -> ElementTable | None:
        """Those of one table, for the evaluator; None: it has none."""
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = _table(self._tables[name], self._contents)
        return found if len(found) else None


def _table(written: RouteTable, contents: Contents) -> ElementTable:
    made = ElementTable(written.name)
    made.file, made.sets = written.file, written.sets
    made.matches, made.stack_names = written.matches, written.stack_names
    made.add_elements(contents)
    return made
