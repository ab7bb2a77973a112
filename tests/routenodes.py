# SPDX-License-Identifier: Apache-2.0
"""A reader of routes[] in Python, by what bpf/abi.h says of its nodes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from dmm_ebpf import abi
from dmm_ebpf.abi import C

_MAX = (1 << 63) - 1


class Nodes:
    """The nodes, which are searched as bpf/routes.h does."""

    def __init__(self, packed: Mapping[bytes, bytes]) -> None:
        """packed: what the map has."""
        by_place = {struct.unpack("=I", key)[0]: data for key, data in packed.items()}
        assert sorted(by_place) == list(range(len(packed))), "each place once"
        self.nodes = [abi.unpack("dmm_route_node", by_place[i]) for i in range(len(packed))]

    def lookup(self, table: int, family: int, addr: int) -> Any:
        """What the longest prefix says; None: no route."""
        digits = [table << 3 | 4, 0xFFFF << 32 | addr]
        if family == 6:
            digits = [table << 3 | addr >> 126, addr >> 63 & _MAX, addr & _MAX]
        at = 0
        for digit in digits:
            value = self._leaf(at, digit)
            if not value.stack & C.DMM_NODE_DEEPER:
                break
            at = value.route
        assert not value.stack & C.DMM_NODE_DEEPER, "there is no further digit"
        return None if value.route == C.DMM_ROUTE_NONE else value

    def said(self) -> set[tuple[int, int]]:
        """Whatever is said of prefixes: routes, with their stacks or sets of ports."""
        leaves = (node for node in self.nodes if not node.children)
        return {(value.route, value.stack) for node in leaves for value in _values(node)}

    def _leaf(self, at: int, digit: int) -> Any:
        while True:
            node = self.nodes[at]
            lasts = [last for last in node.lasts if last != _MAX]
            assert lasts == sorted(set(lasts)), "parts in order"
            part = sum(last < digit for last in lasts)
            if not node.children:
                return node.values[part]
            assert node.children > 0
            at = node.children + part


def _values(leaf: Any) -> Iterator[Any]:
    parts = 1 + sum(last != _MAX for last in leaf.lasts)
    for value in list(leaf.values)[:parts]:
        if value.route != C.DMM_ROUTE_NONE and not value.stack & C.DMM_NODE_DEEPER:
            yield value
