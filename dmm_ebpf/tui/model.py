# SPDX-License-Identifier: Apache-2.0
"""What `dmm-ebpf top` shows, without a screen: rates, totals per stack, order and choice of flows.

Pure: snapshots and times go in. A flow is told from another by its instance and socket cookie,
which the kernel never gives twice, so a port used again cannot inherit figures; one without a
socket by its 5-tuple. Rates are in bytes a second.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dmm_ebpf.records.flow import Flow
from dmm_ebpf.records.stack import StackRow
from dmm_ebpf.show import units
from dmm_ebpf.show.flowfilter import FlowFilter
from dmm_ebpf.show.who import who

Key = tuple[str, int, str, int, str, int]


@dataclass(frozen=True)
class Snapshot:
    """What the Resource Directors said at one time (monotonic seconds)."""

    time_s: float
    flows: list[Flow]
    stacks: list[StackRow]
    instances: list[str]
    notes: list[str] = field(default_factory=list)  # what could not be asked, and why


@dataclass(frozen=True)
class FlowRow:
    """A flow and how fast it is; None until two looks have seen it."""

    flow: Flow
    out_Bps: float | None  # noqa: N815 - the unit's own case
    in_Bps: float | None  # noqa: N815

    @property
    def key(self) -> Key:
        """Which flow this is, in every snapshot."""
        return flow_key(self.flow)


@dataclass(frozen=True)
class StackTotal:
    """A stack of an instance and what its flows do together."""

    instance: str
    name: str
    state: str
    flows: int
    out_Bps: float  # noqa: N815
    in_Bps: float  # noqa: N815


def flow_key(flow: Flow) -> Key:
    """Instance and socket cookie; what is only forwarded has none, and its 5-tuple instead."""
    if flow.cookie:
        return flow.instance, flow.cookie, "", 0, "", 0
    return flow.instance, 0, flow.src, flow.sport, flow.dst, flow.dport


class RateMeter:
    """Turns counters into rates, by the look before."""

    def __init__(self) -> None:
        self._before: dict[Key, tuple[int, int]] = {}
        self._time_s: float | None = None

    def measure(self, snapshot: Snapshot) -> list[FlowRow]:
        """The flows of snapshot with their rates since the one before."""
        elapsed_s = None if self._time_s is None else snapshot.time_s - self._time_s
        rows = [self._row(flow, elapsed_s) for flow in snapshot.flows]
        self._before = {flow_key(flow): _counters(flow) for flow in snapshot.flows}
        self._time_s = snapshot.time_s
        return rows

    def _row(self, flow: Flow, elapsed_s: float | None) -> FlowRow:
        if elapsed_s is None or elapsed_s <= 0:
            return FlowRow(flow, None, None)
        before = self._before.get(flow_key(flow))
        if before is None:
            if flow.age_s > elapsed_s:
                return FlowRow(flow, None, None)
            # It was opened since the look before, when its counters were zero.
            before = (0, 0)
        sent, received = _counters(flow)
        return FlowRow(
            flow, max(sent - before[0], 0) / elapsed_s, max(received - before[1], 0) / elapsed_s
        )


def _counters(flow: Flow) -> tuple[int, int]:
    return flow.bytes_sent, flow.bytes_received


def stack_totals(snapshot: Snapshot, rows: Iterable[FlowRow]) -> list[StackTotal]:
    """Every stack that is defined or has flows: the busiest first, then by name."""
    known = {(s.instance, s.name): s.state for s in snapshot.stacks}
    sums: dict[tuple[str, str], list[float]] = {key: [0, 0.0, 0.0] for key in known}
    for row in rows:
        total = sums.setdefault((row.flow.instance, row.flow.stack), [0, 0.0, 0.0])
        total[0] += 1
        total[1] += row.out_Bps or 0
        total[2] += row.in_Bps or 0
    totals = [
        StackTotal(instance, name, known.get((instance, name), units.NONE), int(count), out, in_)
        for (instance, name), (count, out, in_) in sums.items()
    ]
    return sorted(totals, key=lambda t: (-(t.out_Bps + t.in_Bps), -t.flows, t.name, t.instance))


def _address_order(row: FlowRow) -> tuple[int, int, int]:
    try:
        ip = ipaddress.ip_address(row.flow.dst)
    except ValueError:
        return (0, 0, 0)
    return (ip.version, int(ip), row.flow.dport)


@dataclass(frozen=True)
class Order:
    """A way to sort: the column it belongs to, what is compared, and whether the
    greatest comes first.
    """

    column: str
    value: Callable[[FlowRow], Any]
    descending: bool


ORDERS: dict[str, Order] = {
    order.column: order
    for order in (
        Order(
            "PROCESS",
            lambda r: (who(r.flow).lower(), r.flow.pid),
            descending=False,
        ),
        Order("PEER", _address_order, descending=False),
        Order("STACK", lambda r: r.flow.stack, descending=False),
        Order("ROUTE", lambda r: r.flow.route or "", descending=False),
        Order("OUT", lambda r: r.out_Bps or 0, descending=True),
        Order("IN", lambda r: r.in_Bps or 0, descending=True),
        Order("SRTT", lambda r: r.flow.srtt_us, descending=True),
        Order("RETR", lambda r: r.flow.retransmits, descending=True),
        Order("STATE", lambda r: units.state(r.flow.state), descending=False),
    )
}
DEFAULT_ORDER = "OUT"


def arrange(
    rows: Iterable[FlowRow], flow_filter: FlowFilter, column: str, *, reverse: bool
) -> list[FlowRow]:
    """The rows that pass, in the order of a column; equal ones by cookie, so that
    they keep still.
    """
    order = ORDERS[column]
    kept = sorted((row for row in rows if flow_filter.matches(row.flow)), key=lambda row: row.key)
    return sorted(kept, key=order.value, reverse=order.descending != reverse)
