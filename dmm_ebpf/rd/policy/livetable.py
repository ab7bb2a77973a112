# SPDX-License-Identifier: Apache-2.0
"""Live routes: those that `dmm-ebpf route add` has put beside the policy in force, and a fleet's,
which stand in etcd by themselves.

Owns what one is, what may be added, and the tables of them that the evaluator looks into. They mean
what a route of the policy means; of two routes that are equal in all that counts, the live one
does, then a fleet's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.routes import Contradiction, Match, RouteTable, route_text
from dmm_ebpf.rd.policy.values import PROTOCOL_NAMES, Prefix, ports_text

MOST_LIVE = 32768  # of an instance, so that live[] has room for them in each of its places
MOST_FLEET = 16384  # of a fleet's, likewise
Key = tuple[str, Prefix, Match]


class LiveRoute(NamedTuple):
    """number: among all that this instance ever had; no other gets it. place: of a fleet's, where
    it stands in etcd.
    """

    number: int
    table: str
    prefix: Prefix
    match: Match
    stack: str
    place: str = ""

    @property
    def key(self) -> Key:
        """What tells it from others: a table has one route of a prefix, protocol and ports."""
        return self.table, self.prefix, self.match

    @property
    def recorded(self) -> int:
        """What flow records call it."""
        return int(C.DMM_ROUTE_LIVE) | self.number

    def text(self) -> str:
        """As Route.text()."""
        return route_text(self.prefix, self.match)


def typed(to: object, match: Match, stack: str, table: str) -> str:
    """A route in the words that `dmm-ebpf route add` takes."""
    words = [str(to)]
    if match.proto:
        words += ["proto", PROTOCOL_NAMES[match.proto]]
    if match.ports:
        words += ["port", ports_text(match.ports)]
    return " ".join([*words, "stack", stack, "table", table])


class LiveTable(RouteTable):
    """The live routes of one table."""

    __slots__ = ()

    is_live = True
    precedence = 3

    def where(self, index: int) -> str:
        """See RouteTable."""
        return f"live route of table {self.name}"


class FleetTable(RouteTable):
    """A fleet's routes of one table."""

    __slots__ = ("places",)

    precedence = 1

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.places: list[str] = []

    def where(self, index: int) -> str:
        """See RouteTable."""
        return self.places[index]


class LiveRoutes:
    """All of an instance, by what tells them from others."""

    def __init__(self, routes: Iterable[LiveRoute] = ()) -> None:
        self.routes: dict[Key, LiveRoute] = {}
        self.stacks: Counter[str] = Counter()
        self._tables: dict[str, RouteTable] = {}
        self._by_prefix: dict[tuple[str, Prefix], list[LiveRoute]] = {}
        self.change(routes, ())

    def __len__(self) -> int:
        return len(self.routes)

    def change(self, put: Iterable[LiveRoute], drop: Iterable[LiveRoute]) -> None:
        """Take away these, which are there, and add those."""
        for one in drop:
            del self.routes[one.key]
            self.stacks -= Counter([one.stack])
            at = one.table, one.prefix
            self._by_prefix[at].remove(one)
            if not self._by_prefix[at]:
                del self._by_prefix[at]
            self._tables.pop(one.table, None)
        for one in put:
            self.routes[one.key] = one
            self.stacks[one.stack] += 1
            self._by_prefix.setdefault((one.table, one.prefix), []).append(one)
            self._tables.pop(one.table, None)

    def of_prefix(self, table: str, prefix: Prefix) -> list[LiveRoute]:
        """Those of one prefix."""
        return self._by_prefix.get((table, prefix), [])

    def table(self, name: str) -> RouteTable | None:
        """Those of one table, for the evaluator; None: it has none."""
        found = self._tables.get(name)
        if found is None:
            found = self._made(name, (one for one in self.routes.values() if one.table == name))
            self._tables[name] = found
        return found if len(found) else None

    def _made(self, name: str, routes: Iterable[LiveRoute]) -> RouteTable:
        return add_to(LiveTable(name), routes)


class FleetRoutes(LiveRoutes):
    """All of a fleet's, beside one policy. indexes: of tables of that policy, once somebody looked
    for a prefix there.
    """

    def __init__(self, routes: Iterable[LiveRoute] = ()) -> None:
        self.indexes: dict[str, bulk.Prefixes] = {}
        super().__init__(routes)

    def _made(self, name: str, routes: Iterable[LiveRoute]) -> RouteTable:
        held = list(routes)
        made = FleetTable(name)
        made.places = [one.place for one in held]
        return add_to(made, held)


def add_to(table: RouteTable, routes: Iterable[LiveRoute]) -> RouteTable:
    """The table, with these behind its own."""
    for one in routes:
        table.add(one.prefix, table.intern_match(one.match), table.intern_stack(one.stack), 0)
    return table


def contradiction(routes: list[LiveRoute]) -> Contradiction | None:
    """Two live routes of one prefix that contradict, as two of a policy would; None: none do."""
    made = add_to(LiveTable(""), routes)
    made.index_duplicates()
    return made.contradiction()


def find_written(table: RouteTable, prefix: Prefix, match: Match) -> int | None:
    """The route of a policy's table with this prefix, protocol and ports."""
    for index in bulk.containing(table, prefix.family, prefix.addr):
        is_it = table.lengths[index] == prefix.length and table.prefix(index) == prefix
        if is_it and index < table.written and table.matches[table.match[index]] == match:
            return index
    return None
