# SPDX-License-Identifier: Apache-2.0
"""A table of routes, small enough in memory for a million of them.

Owns RouteTable: columns of integers, about 30 bytes a route, with Route records made on demand; and
the rule that two routes of one table may not contradict each other.

A route may name an nft set or a host (named.py). What such a set has stands behind all that is
written, as routes of the elements (with_elements()); it contradicts nothing, since the first of
equal routes counts.

Precedence inside a table (the compiler and the evaluator both follow it):
  1. the longest prefix that has a route for the protocol and port;
  2. within one prefix: an exact port before a range of ports before every port;
  3. within that: a route that names the protocol before one that takes both.
Two routes that are equal in all three and share a port must name the same stack, then the first one
counts; otherwise they contradict, which is refused.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.named import Contents, Named
from dmm_ebpf.rd.policy.values import (
    PORT_MAX,
    PROTOCOL_NAMES,
    Ports,
    Prefix,
    parse_prefix,
    ports_text,
)

RANK_ANY, RANK_RANGE, RANK_EXACT = 0, 1, 2
_COLUMNS = ("families", "lengths", "addrs_hi", "addrs_lo", "match", "stack", "origin")
_MAX_FINE = 65536  # ways to be fine that are remembered


class Match(NamedTuple):
    """What a route asks of a flow beside its prefix: proto 0 is TCP and UDP, ports ()
    is every port.
    """

    proto: int
    ports: Ports

    @property
    def takes_all(self) -> bool:
        """True when every protocol and port matches."""
        return self.proto == 0 and not self.ports


class Route(NamedTuple):
    """One route, as listings and the evaluator see it. through: the set whose element it is."""

    prefix: Prefix
    match: Match
    stack: str
    where: str  # "policy.toml, route 3 of table shop" or "prefixes.csv:17"
    through: Named | None = None

    def text(self) -> str:
        """For example "203.0.113.0/24 tcp 443,8000-8100"; as it is written, so that of a set's
        element "nft:inet filter lossy tcp 443".
        """
        return route_text(self.through or self.prefix, self.match)


class SetRoute(NamedTuple):
    """A route to a named set; match, stack and origin as in the columns. inline: it stands in the
    policy, not in the routes file.
    """

    to: Named
    match: int
    stack: int
    origin: int
    inline: bool


def route_text(to: Prefix | Named, match: Match) -> str:
    """What a route leads to, protocol and ports, in the order a policy names them."""
    words = [str(to)]
    if match.proto:
        words.append(PROTOCOL_NAMES[match.proto])
    if match.ports:
        words.append(ports_text(match.ports) if match.proto else f"port {ports_text(match.ports)}")
    return " ".join(words)


class Contradiction(NamedTuple):
    """Two routes of equal precedence, with a port in common, that name different stacks;
    indexes into the table.
    """

    first: int
    second: int
    proto: int
    first_port: int
    last_port: int


class RouteTable:
    """The routes of one table in policy order: those written in the policy, then those of its file,
    then the elements of the sets that sets names.

    A route's number is its index, but all elements that are there by one route to a set have the
    number of that, behind those of the other routes: what is called by it stays the same while the
    set changes.

    lengths holds the prefix length, addrs_hi and addrs_lo the address (addrs_lo alone for IPv4),
    matches and stack_names the distinct values that match and stack index. origin holds for a route
    of the policy its position among the table's routes, from 0 ("default" makes two routes with one
    origin), for a route of the file its line, from 1.
    """

    __slots__ = (
        "_match_index", "_stack_index", "addrs_hi", "addrs_lo", "families", "file", "inline_count",
        "lengths", "links", "match", "matches", "name", "origin", "sets", "stack", "stack_names",
        "via",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.file = ""  # the routes file, as errors show it
        self.inline_count = 0  # routes before this index come from the policy
        self.families = bytearray()
        self.lengths = bytearray()
        self.addrs_hi = array("Q")
        self.addrs_lo = array("Q")
        self.match = array("I")
        self.stack = array("B")
        self.origin = array("I")
        self.matches: list[Match] = []
        self.stack_names: list[str] = []
        self.sets: list[SetRoute] = []
        self.via = array("I")  # of each element, the index of its route in sets
        # Of each route the next one of its prefix (bulk.py); None: there are none such
        self.links: array[int] | None = None
        self._match_index: dict[Match, int] = {}
        self._stack_index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Route]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Route:
        return Route(
            self.prefix(index),
            self.matches[self.match[index]],
            self.stack_names[self.stack[index]],
            self.where(index),
            self.set_of(index),
        )

    def prefix(self, index: int) -> Prefix:
        """The prefix of a route."""
        return Prefix(
            self.families[index],
            self.addrs_hi[index] << 64 | self.addrs_lo[index],
            self.lengths[index],
        )

    is_live = False  # see livetable.py
    precedence = 2  # among routes of several tables that are equal in all else: the most counts

    @property
    def is_action(self) -> bool:
        """Whether it is an action's (action_table()), and so written nowhere."""
        return not (self.file or self.inline_count or self.sets) and len(self) > 0

    @property
    def written(self) -> int:
        """How many prefixes are written; what comes behind them are elements of sets."""
        return len(self) - len(self.via)

    @property
    def n_numbers(self) -> int:
        """How many numbers its routes have."""
        return self.written + len(self.sets)

    def text_of(self, number: int) -> str:
        """The route of a number, from 0, as Route.text() has it."""
        written = self.written
        if number < written:
            return route_text(self.prefix(number), self.matches[self.match[number]])
        one = self.sets[number - written]
        return route_text(one.to, self.matches[one.match])

    def set_of(self, index: int) -> Named | None:
        """The set of which a route is an element."""
        return self.sets[self.via[index - self.written]].to if index >= self.written else None

    def pairs(self) -> set[tuple[int, int]]:
        """Stack and match of each route, as indexes; also of those to sets, whatever these have."""
        found = set(zip(self.stack, self.match, strict=True))
        return found | {(one.stack, one.match) for one in self.sets}

    def where(self, index: int) -> str:
        """The place a route was written, for errors."""
        if index < self.inline_count:
            return f"route {self.origin[index] + 1} of table {self.name}"
        if index >= self.written:
            place = self.where_set(self.via[index - self.written])
            return f"{place}, element {self.prefix(index)}"
        return f"{self.file}:{self.origin[index]}" if self.file else f"action {self.name}"

    def where_set(self, index: int) -> str:
        """The same of one of sets."""
        one = self.sets[index]
        inline = f"route {one.origin + 1} of table {self.name}"
        return inline if one.inline else f"{self.file}:{one.origin}"

    def intern_match(self, match: Match) -> int:
        """The index that add() takes for match."""
        index = self._match_index.setdefault(match, len(self.matches))
        if index == len(self.matches):
            self.matches.append(match)
        return index

    def intern_stack(self, stack: str) -> int:
        """The index that add() takes for a stack's name."""
        index = self._stack_index.setdefault(stack, len(self.stack_names))
        if index == len(self.stack_names):
            self.stack_names.append(stack)
        return index

    def add(self, prefix: Prefix, match: int, stack: int, origin: int) -> None:
        """Append a route; match and stack come from intern_match() and intern_stack()."""
        family, addr, length = prefix
        self.families.append(family)
        self.lengths.append(length)
        self.addrs_hi.append(addr >> 64)
        self.addrs_lo.append(addr & 0xFFFFFFFFFFFFFFFF)
        self.match.append(match)
        self.stack.append(stack)
        self.origin.append(origin)

    def add_set(self, to: Named, match: int, stack: int, origin: int, *, inline: bool) -> None:
        """Append a route to a set; else as add()."""
        self.sets.append(SetRoute(to, match, stack, origin, inline))

    def with_elements(self, contents: Contents) -> RouteTable:
        """This table, with what its sets have now; itself, where it names none."""
        if not self.sets:
            return self
        made = copy.copy(self)
        for name in _COLUMNS:
            setattr(made, name, getattr(self, name)[: self.written])
        made.via = array("I")
        made.add_elements(contents)
        return made

    def add_elements(self, contents: Contents) -> None:
        """Append what its sets have; there are none yet."""
        for number, one in enumerate(self.sets):
            for prefix in contents.get(one.to, ()):
                self.add(prefix, one.match, one.stack, one.origin)
                self.via.append(number)
        self.index_duplicates()

    def index_duplicates(self) -> None:
        """Fill in links; called once, when all routes are there."""
        self.links = bulk.Prefixes(self).links()

    def groups(self) -> Iterator[list[int]]:
        """The routes of each prefix that has several; needs index_duplicates()."""
        return iter(()) if self.links is None else bulk.groups(self.links)

    def contradiction(self) -> Contradiction | None:
        """The first contradiction in policy order of its second route, or
        None; needs index_duplicates().
        """
        found: list[Contradiction] = []
        fine: set[tuple[tuple[int, int], ...]] = set()  # in a big table most groups are alike
        for group in self.groups():
            alike = tuple((self.match[index], self.stack[index]) for index in group)
            if alike in fine:
                continue
            contradiction = self._contradiction_in(group)
            if contradiction is not None:
                found.append(contradiction)
            elif len(fine) < _MAX_FINE:
                fine.add(alike)
        return min(found, key=lambda c: (c.second, c.first)) if found else None

    def set_contradiction(self) -> Contradiction | None:
        """The same of routes to one set; indexes into sets."""
        trial = RouteTable(self.name)
        trial.matches, trial.stack_names = self.matches, self.stack_names
        names = {one.to: number for number, one in enumerate(self.sets)}
        for one in self.sets:
            trial.add(Prefix(4, names[one.to], 32), one.match, one.stack, one.origin)
        trial.index_duplicates()
        return trial.contradiction()

    def _contradiction_in(self, group: list[int]) -> Contradiction | None:
        spans: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for index in group:
            match = self.matches[self.match[index]]
            for first, last in match.ports or ((0, PORT_MAX),):
                spans.setdefault((match.proto, port_rank(match.ports, first, last)), []).append(
                    (first, last, index)
                )
        for (proto, _), items in spans.items():
            items.sort()
            # Stack → (last port, route) of its span that reaches furthest
            reach: dict[int, tuple[int, int]] = {}
            for first, last, index in items:
                stack = self.stack[index]
                for other, (other_last, other_index) in reach.items():
                    if other != stack and first <= other_last:
                        low, high = sorted((index, other_index))
                        return Contradiction(low, high, proto, first, min(last, other_last))
                if last > reach.get(stack, (-1, 0))[0]:
                    reach[stack] = (last, index)
        return None


def action_table(action: str) -> RouteTable:
    """The table of a rule's action: every flow to the stack of that name. It stands nowhere in the
    policy.
    """
    table = RouteTable(action)
    match, stack = table.intern_match(Match(0, ())), table.intern_stack(action)
    for prefix in parse_prefix("default"):
        table.add(prefix, match, stack, 0)
    return table


def port_rank(ports: Ports, first: int, last: int) -> int:
    """How specific one port range of a route is: exact before range before any."""
    if not ports:
        return RANK_ANY
    return RANK_EXACT if first == last else RANK_RANGE
