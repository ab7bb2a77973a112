# SPDX-License-Identifier: Apache-2.0
"""Numbers for names, the same for as long as an instance lives.

Owns IdSpace: stack name → 1..63 and table name → a u32 from 1. Maps hold numbers, and old flows
keep the number they were decided with, so a name keeps its number when a policy changes. A stack's
number is given to another name only when all 63 are taken, then the longest unused one goes first;
never one that the new policy or an open flow uses. 0 is the kernel's stack, and no table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dmm_ebpf.abi import C
from dmm_ebpf.errors import PolicyError
from dmm_ebpf.rd.policy.model import KERNEL

_KEPT_TABLES = 4096  # names of tables remembered for listings of old flows


class IdSpace:
    """The numbers of one instance. Both mappings are in order of last use, oldest first."""

    def __init__(
        self,
        stacks: Mapping[str, int] | None = None,
        tables: Mapping[str, int] | None = None,
        next_table: int = 1,
    ) -> None:
        self._stacks = dict(stacks or {})
        self._tables = dict(tables or {})
        self._next_table = next_table

    def stack(self, name: str) -> int:
        """The number of a stack; KeyError when it has none."""
        return 0 if name == KERNEL else self._stacks[name]

    def has_stack(self, name: str) -> bool:
        """Whether it has a number."""
        return name == KERNEL or name in self._stacks

    def table(self, name: str) -> int:
        """The number of a table; KeyError when it has none."""
        return self._tables[name]

    def stack_name(self, number: int) -> str | None:
        """The stack with that number; None when there is none or its name is forgotten."""
        if number == 0:
            return KERNEL
        return next((name for name, taken in self._stacks.items() if taken == number), None)

    def table_name(self, number: int) -> str | None:
        """The table with that number; None when there is none or its name is forgotten."""
        return next((name for name, taken in self._tables.items() if taken == number), None)

    def assign(
        self, stacks: Iterable[str], tables: Iterable[str], busy: Collection[int] = ()
    ) -> None:
        """Give each of these names a number, if it has none yet.

        busy: stack numbers that open flows have, which no other name may get.
        PolicyError, and nothing changed, when there are not enough stack numbers.
        """
        wanted = [name for name in stacks if name != KERNEL]
        taken = {name: self._stacks[name] for name in wanted if name in self._stacks}
        kept = {name: number for name, number in self._stacks.items() if name not in taken}
        free = iter(_free_numbers(kept, taken, busy))
        for name in wanted:
            if name in taken:
                continue
            number = next(free, None)
            if number is None:
                raise PolicyError(
                    f'number the stack "{name}"',
                    why=f"all {C.DMM_MAX_STACKS - 1} numbers are those of this policy's stacks or of open flows",
                    hint="keep the names of stacks, or wait until old flows have closed",
                )
            taken[name] = number
        numbers = set(taken.values())
        self._stacks = {
            name: number for name, number in kept.items() if number not in numbers
        } | taken
        self._assign_tables(list(tables))

    def _assign_tables(self, names: list[str]) -> None:
        used: dict[str, int] = {}
        for name in names:
            number = self._tables.get(name)
            if number is None:
                number = self._next_table
                self._next_table += 1
            used[name] = number
        old = [(name, number) for name, number in self._tables.items() if name not in used]
        room = max(0, _KEPT_TABLES - len(used))
        self._tables = dict(old[max(0, len(old) - room) :]) | used

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and integers, for JSON."""
        return {
            "stacks": dict(self._stacks),
            "tables": dict(self._tables),
            "next_table": self._next_table,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> IdSpace:
        """What to_dict() gave; ValueError when the numbers are not distinct or out of range."""
        stacks = {str(name): int(number) for name, number in data["stacks"].items()}
        tables = {str(name): int(number) for name, number in data["tables"].items()}
        next_table = int(data["next_table"])
        if len(set(stacks.values())) != len(stacks) or len(set(tables.values())) != len(tables):
            raise ValueError("two names have one number")
        if not all(0 < number < C.DMM_MAX_STACKS for number in stacks.values()):
            raise ValueError("a stack's number is out of range")
        if not all(0 < number < next_table for number in tables.values()):
            raise ValueError("a table's number is out of range")
        return cls(stacks, tables, next_table)


def _free_numbers(
    kept: Mapping[str, int], taken: Mapping[str, int], busy: Collection[int]
) -> list[int]:
    """Stack numbers to give out: never used ones, then those of forgotten names,
    longest unused first.
    """
    used = {*kept.values(), *taken.values(), *busy}
    unused = [number for number in range(1, C.DMM_MAX_STACKS) if number not in used]
    return unused + [number for number in kept.values() if number not in busy]
