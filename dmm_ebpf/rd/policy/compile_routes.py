# SPDX-License-Identifier: Apache-2.0
"""From the routes of a policy to the entries of the maps routes and ports.

The kernel decides with one search for the address and at most one for the port (abi.h, struct
dmm_route_value). A prefix whose routes take every protocol and port carries its route inline. Any
other prefix gets a port set: its own routes painted over those of the next shorter prefix of the
table, so that "longest prefix that has a route for this port" is already worked out.
What the ports of a prefix are depends on the matches of its own routes and on the shorter prefix
around it alone: that is worked out once for all prefixes that are alike in both.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Mapping

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy import bulk
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.portsets import MISS, Layer, PortSet, paint, trie_entries
from dmm_ebpf.rd.policy.routes import Match, RouteTable, port_rank
from dmm_ebpf.rd.policy.values import PORT_MAX, TCP, UDP

_PORT_BITS_BEFORE = 48  # bits of struct dmm_port_key between prefixlen and port_be
# In a port set, a route stands in the lower bits, above them its specific()
_SPECIFIC_SHIFT = 32
_NAMED = 0xFFFFFFFF
_INHERITED = (1, 0, 0)  # precedence of a shorter prefix's routes: after all own ones

_PortTemplate = tuple[tuple[int, int, int], ...]


def specific(match: Match, first: int, last: int) -> int:
    """What enum dmm_route_rank has of the protocol and one range of the ports of a route."""
    rank = port_rank(match.ports, first, last)
    proto = int(bool(match.proto))
    return rank << int(C.DMM_RANK_PORTS_SHIFT) | proto << int(C.DMM_RANK_PROTO_SHIFT)


class Entries:
    """Keys and values of one map. They are packed when they are asked for, from the columns of the
    tables: of a million routes they would take as much memory again.
    """

    def __init__(self, chunks: Callable[[], Iterator[bulk.Chunk]]) -> None:
        """chunks: packs them, from the first on."""
        self._chunks = chunks
        self.count = sum(made for _, _, made in chunks())

    def chunks(self) -> Iterator[bulk.Chunk]:
        """Keys end to end, values, and how many, ready for batch updates; they hold until the next
        are asked for.
        """
        return self._chunks()

    @property
    def keys(self) -> bytes:
        """Of all entries."""
        return b"".join(bytes(keys) for keys, _, _ in self.chunks())

    @property
    def values(self) -> bytes:
        """Of all entries."""
        return b"".join(bytes(values) for _, values, _ in self.chunks())


class RouteCompiler:
    """Gathers the entries of routes and ports over all tables."""

    def __init__(self, ids: IdSpace, autos: Collection[str] = ()) -> None:
        """autos: what adaptive routes name."""
        self.ids = ids
        self.autos = autos
        self.tables: list[bulk.Emission] = []
        self.n_port_sets = 0

    def add_table(self, table: RouteTable, base: int) -> None:
        """Add every prefix of table; base is the policy-wide number of its first route."""
        stacks = array(
            "I",
            (
                self.ids.stack(name) | C.DMM_STACK_ADAPTIVE * (name in self.autos)
                for name in table.stack_names
            ),
        )
        templates, plan = bulk.Templates(), None
        if table.links is not None or not all(match.takes_all for match in table.matches):
            plan = _plan(table, templates)
        made = bulk.Emission(
            table,
            table.links,
            plan,
            templates,
            stacks,
            table.via,
            base=base,
            number=self.ids.table(table.name),
            first_set=self.n_port_sets,
        )
        self.n_port_sets += made.sets
        self.tables.append(made)

    def routes(self) -> Entries:
        """The nodes of routes[]."""
        return Entries(lambda: bulk.node_chunks(self.tables))

    def ports(self) -> Entries:
        """The entries of ports[]."""
        return Entries(lambda: bulk.port_chunks(self.tables))


def _plan(table: RouteTable, templates: bulk.Templates) -> array[int]:
    """For each route of a table the template of its prefix, as bulk.Prefixes.plan() has it.

    In a big table most prefixes are alike: the same matches, and one shorter prefix around them
    all.
    """
    tree = _PrefixTree(table)
    takes_all = bytes(match.takes_all for match in table.matches)
    plan, known = array("I", bytes(4 * len(table))), bulk.Learnt()
    at = 0
    while (at := tree.prefixes.plan(takes_all, known, plan, at)) < len(table):
        port_set = tree.own_ports(at)
        whole = _whole(port_set)
        if whole is None:
            plan[at] = templates.add(_port_template(port_set), bulk.NAMED_MISS)
        else:
            plan[at] = templates.add((), whole)
        known.put(tree.prefixes.key(takes_all, at), plan[at])
        at += 1
    return plan


def _port_template(port_set: PortSet) -> _PortTemplate:
    """The entries of a port set as bulk.Templates.add() takes them."""
    return tuple(
        _port_words(bits, proto << 24 | first, route)
        for proto, segments in ((TCP, port_set.tcp), (UDP, port_set.udp))
        for first, bits, route in trie_entries(segments)
    )


def _port_words(bits: int, proto_port: int, shown: int) -> tuple[int, int, int]:
    length = _PORT_BITS_BEFORE + bits
    if shown == MISS:
        return length, proto_port, bulk.NAMED_MISS
    return length | shown >> _SPECIFIC_SHIFT << 8, proto_port, shown & _NAMED


def _whole(port_set: PortSet) -> int | None:
    """The route that takes every port of both protocols, if there is one."""
    if len(port_set.tcp) != 1 or port_set.tcp != port_set.udp:
        return None
    first, last, route = port_set.tcp[0]
    return route & _NAMED if (first, last) == (0, PORT_MAX) else None


class _PrefixTree:
    """The prefixes of one table, and what each says of every port; routes are indexes into the
    table, and a prefix is named by its first route.
    """

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self.prefixes = bulk.Prefixes(table)
        # Port sets of prefixes that have longer ones below them
        self.inherited: dict[int, PortSet] = {}

    def own_ports(self, first: int) -> PortSet:
        """port_set(), in which the prefix's own routes are NAMED_OWN and their place among them."""
        group = self._group(first)
        return self._painted(first, {bulk.NAMED_OWN + n: index for n, index in enumerate(group)})

    def port_set(self, first: int) -> PortSet:
        """The routes of a prefix, and below them those of the shorter prefixes around it."""
        return self._painted(first, {index: index for index in self._group(first)})

    def _group(self, first: int) -> list[int]:
        links = self.table.links
        return [first] if links is None else bulk.chain(links, first)

    def _painted(self, first: int, own: Mapping[int, int]) -> PortSet:
        """own: the routes of the prefix by what they are called in the answer."""
        table = self.table
        matches = {name: table.matches[table.match[index]] for name, index in own.items()}
        layers: dict[int, list[Layer]] = {TCP: [], UDP: []}
        if not any(match.takes_all for match in matches.values()):
            below = self._around(first, table.match[first] if len(own) == 1 else bulk.NO_ROUTE)
            layers[TCP] += [Layer(_INHERITED, *segment) for segment in below.tcp]
            layers[UDP] += [Layer(_INHERITED, *segment) for segment in below.udp]
        for name, match in matches.items():
            for low, high in match.ports or ((0, PORT_MAX),):
                precedence = (-port_rank(match.ports, low, high), 0 if match.proto else 1, name)
                shown = specific(match, low, high) << _SPECIFIC_SHIFT | name
                for proto in (match.proto,) if match.proto else (TCP, UDP):
                    layers[proto].append(Layer(precedence, low, high, shown))
        return PortSet(paint(layers[TCP]), paint(layers[UDP]))

    def _around(self, first: int, hidden: int) -> PortSet:
        """What the shorter prefixes around one say. Those whose one route has the match hidden are
        passed over: a route with that match hides them.
        """
        parent = self.prefixes.parent(first, hidden)
        if parent == bulk.NO_ROUTE:
            return PortSet((), ())
        found = self.inherited.get(parent)
        if found is None:
            found = self.inherited[parent] = self.port_set(parent)
        return found
