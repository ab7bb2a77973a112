# SPDX-License-Identifier: Apache-2.0
"""From the routes of a policy to the entries of the maps routes4, routes6 and ports.

The kernel decides with one look-up of the address and at most one of the port (abi.h, struct
dmm_route_value). A prefix whose routes take every protocol and port carries its route inline. Any
other prefix gets a port set: its own routes painted over those of the next shorter prefix of the
table, so that "longest prefix that has a route for this port" is already worked out. Equal port
sets are stored once.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection
from dataclasses import dataclass

from dmm_ebpf.abi import C
from dmm_ebpf.rd.policy.ids import IdSpace
from dmm_ebpf.rd.policy.portsets import MISS, Layer, PortSet, paint, trie_entries
from dmm_ebpf.rd.policy.routes import Match, RouteTable, port_rank, prefix_key
from dmm_ebpf.rd.policy.values import PORT_MAX, TCP, UDP

_PORT_BITS_BEFORE = 48  # bits of struct dmm_port_key between prefixlen and port_be
_OWN = -2  # a prefix's only route, in a template
_MAX_TEMPLATES = 65536
_INHERITED = (1, 0, 0)  # precedence of a shorter prefix's routes: after all own ones

_PortTemplate = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Entries:
    """Keys and values of one map, packed end to end, ready for a batch update."""

    keys: bytes
    values: bytes
    count: int


class _Words:
    """Growing columns of 32-bit words, joined into packed records at the end."""

    def __init__(self, host_order: int, network_order: int) -> None:
        self.columns = [array("I") for _ in range(host_order + network_order)]
        self.host_order = host_order

    def packed(self) -> bytes:
        if sys.byteorder == "little":
            for column in self.columns[self.host_order :]:
                column.byteswap()
        width = len(self.columns)
        out = array("I", bytes(4 * width * len(self.columns[0])))
        for offset, column in enumerate(self.columns):
            out[offset::width] = column
        return out.tobytes()


class RouteCompiler:
    """Gathers the entries of routes4, routes6 and ports over all tables."""

    def __init__(self, ids: IdSpace, autos: Collection[str] = ()) -> None:
        """autos: what adaptive routes name."""
        self.ids = ids
        self.autos = autos
        self.keys = {4: _Words(2, 1), 6: _Words(2, 4)}
        self.values = {4: _Words(3, 0), 6: _Words(3, 0)}
        self.n_port_sets = 0
        self.port_keys = _Words(2, 1)
        self.port_values = _Words(2, 0)

    def add_table(self, table: RouteTable, base: int) -> None:
        """Add every prefix of table; base is the policy-wide index of its first route."""
        number = self.ids.table(table.name)
        stacks = [
            self.ids.stack(name) | C.DMM_STACK_ADAPTIVE * (name in self.autos)
            for name in table.stack_names
        ]
        inline = [match.takes_all for match in table.matches]
        if all(inline) and not table.duplicates:
            for index, stack in enumerate(table.stack):
                self._add_prefix(table, index, number, (base + index, stacks[stack], 0))
            return
        tree = _PrefixTree(table)
        numbers: dict[PortSet, int] = {}  # port sets of this table; no two tables share a route
        for key, index in tree.first.items():
            group = table.duplicates.get(key)
            if group is None:
                match = table.match[index]
                if inline[match]:
                    value = (base + index, stacks[table.stack[index]], 0)
                else:
                    value = (
                        C.DMM_ROUTE_NONE,
                        0,
                        self._add_ports(table, base, stacks, tree.single(index, match), index),
                    )
                self._add_prefix(table, index, number, value)
                continue
            port_set = tree.port_set(key)
            whole = _whole(port_set)
            if whole is not None:
                value = (base + whole, stacks[table.stack[whole]], 0)
            else:
                if port_set not in numbers:
                    numbers[port_set] = self._add_ports(
                        table, base, stacks, _port_template(port_set)
                    )
                value = (C.DMM_ROUTE_NONE, 0, numbers[port_set])
            self._add_prefix(table, index, number, value)

    def _add_prefix(
        self, table: RouteTable, index: int, number: int, value: tuple[int, int, int]
    ) -> None:
        family = table.families[index]
        columns = self.keys[family].columns
        lo = table.addrs_lo[index]
        columns[0].append(32 + table.lengths[index])
        columns[1].append(number)
        if family == 4:
            columns[2].append(lo)
        else:
            hi = table.addrs_hi[index]
            columns[2].append(hi >> 32)
            columns[3].append(hi & 0xFFFFFFFF)
            columns[4].append(lo >> 32)
            columns[5].append(lo & 0xFFFFFFFF)
        route, stack, port_set = self.values[family].columns
        route.append(value[0])
        stack.append(value[1])
        port_set.append(value[2])

    def _add_ports(
        self, table: RouteTable, base: int, stacks: list[int], template: _PortTemplate, own: int = 0
    ) -> int:
        """Add a port set's entries; returns its number. Routes are indexes into table, _OWN
        stands for own.
        """
        self.n_port_sets += 1
        prefixlen, set_column, proto_port = self.port_keys.columns
        route_column, stack_column = self.port_values.columns
        for length, word, named in template:
            prefixlen.append(length)
            set_column.append(self.n_port_sets)
            proto_port.append(word)
            if named == MISS:
                route_column.append(C.DMM_ROUTE_NONE)
                stack_column.append(0)
            else:
                route = own if named == _OWN else named
                route_column.append(base + route)
                stack_column.append(stacks[table.stack[route]])
        return self.n_port_sets

    def entries(self, family: int) -> Entries:
        """The entries of routes4 or routes6; takes the columns, so call it once."""
        count = len(self.values[family].columns[0])
        return Entries(self.keys.pop(family).packed(), self.values.pop(family).packed(), count)

    def port_entries(self) -> Entries:
        """The entries of ports."""
        count = len(self.port_values.columns[0])
        return Entries(self.port_keys.packed(), self.port_values.packed(), count)


def _port_template(port_set: PortSet) -> _PortTemplate:
    """The entries of a port set but for its number: prefixlen, the word of proto, pad and
    port_be, the route.
    """
    return tuple(
        (_PORT_BITS_BEFORE + bits, proto << 24 | first, route)
        for proto, segments in ((TCP, port_set.tcp), (UDP, port_set.udp))
        for first, bits, route in trie_entries(segments)
    )


def _whole(port_set: PortSet) -> int | None:
    """The route that takes every port of both protocols, if there is one."""
    if len(port_set.tcp) != 1 or port_set.tcp != port_set.udp:
        return None
    first, last, route = port_set.tcp[0]
    return route if (first, last) == (0, PORT_MAX) else None


class _PrefixTree:
    """The prefixes of one table, and what each says of every port; routes are indexes
    into the table.
    """

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self.first = table.first_by_prefix()
        # Port sets of prefixes that have longer ones below them
        self.inherited: dict[int, PortSet] = {}
        self.templates: dict[tuple[int, int | None], _PortTemplate] = {}
        lengths = set(zip(table.families, table.lengths, strict=True))
        self.lengths = {
            family: sorted((length for own, length in lengths if own == family), reverse=True)
            for family in (4, 6)
        }

    def single(self, index: int, match: int) -> _PortTemplate:
        """The port entries of a prefix with the one route index, as _OWN, and not every port.

        In a big table most prefixes are alike: one match, and one shorter prefix around them all.
        """
        key = (match, self._parent(index, match))
        found = self.templates.get(key)
        if found is None:
            if len(self.templates) >= _MAX_TEMPLATES:
                self.templates.clear()
            found = _port_template(self._painted([(_OWN, self.table.matches[match])], key[1]))
            self.templates[key] = found
        return found

    def port_set(self, key: int) -> PortSet:
        """The routes of a prefix, and below them those of the shorter prefixes around it."""
        table = self.table
        index = self.first[key]
        group = table.duplicates.get(key) or [index]
        own = [(i, table.matches[table.match[i]]) for i in group]
        takes_all = any(match.takes_all for _, match in own)
        return self._painted(own, None if takes_all else self._parent(index))

    def _painted(self, own: list[tuple[int, Match]], parent: int | None) -> PortSet:
        layers: dict[int, list[Layer]] = {TCP: [], UDP: []}
        if parent is not None:
            below = self._inherited(parent)
            layers[TCP] += [Layer(_INHERITED, *segment) for segment in below.tcp]
            layers[UDP] += [Layer(_INHERITED, *segment) for segment in below.udp]
        for index, match in own:
            for first, last in match.ports or ((0, PORT_MAX),):
                precedence = (-port_rank(match.ports, first, last), 0 if match.proto else 1, index)
                for proto in (match.proto,) if match.proto else (TCP, UDP):
                    layers[proto].append(Layer(precedence, first, last, index))
        return PortSet(paint(layers[TCP]), paint(layers[UDP]))

    def _inherited(self, key: int) -> PortSet:
        found = self.inherited.get(key)
        if found is None:
            found = self.inherited[key] = self.port_set(key)
        return found

    def _parent(self, index: int, hidden: int = -1) -> int | None:
        """The key of the next shorter prefix of the table that contains route index's prefix.

        Prefixes whose one route has the match hidden are passed over: a route with that
        match hides them.
        """
        table = self.table
        family, length = table.families[index], table.lengths[index]
        addr = (
            table.addrs_lo[index]
            if family == 4
            else table.addrs_hi[index] << 64 | table.addrs_lo[index]
        )
        bits = 32 if family == 4 else 128
        first = self.first
        for shorter in self.lengths[family]:
            if shorter < length:
                key = prefix_key(family, addr >> (bits - shorter) << (bits - shorter), shorter)
                found = first.get(key)
                if found is not None and (table.match[found] != hidden or key in table.duplicates):
                    return key
        return None
