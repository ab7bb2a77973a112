# SPDX-License-Identifier: Apache-2.0
"""A flow, and what happens to one: `dmm-ebpf flows` and `flows --follow`. docs/json.md tells of
each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from dmm_ebpf.records.record import ABSENT, Maybe, Record

FlowKind = Literal["socket", "container", "forwarded"]
Direction = Literal["connect", "listen", "forward"]
# Why another stack serves than the route names; empty: none does, or nothing is known.
Why = Literal[
    "",
    "down",
    "full",
    "device",
    "socket",
    "peer",
    "option",
    "attach",
    "filter",
    "tunnel",
    "datagram",
    "nested",
]
Choice = Literal["taken", "refused", "void"]
FlowEventType = Literal["connect", "established", "close", "listen", "unlisten"]
FLOW_EVENTS = frozenset(get_args(FlowEventType))


@dataclass(frozen=True, slots=True)
class Flow(Record):
    """Made in the order of its fields: there may be a hundred thousand."""

    instance: str
    kind: FlowKind
    proto: str
    src: str
    sport: int
    dst: str
    dport: int
    direction: Direction | None
    in_interface: Maybe[str | None]
    stack: str
    wanted: str
    why: Why
    table: str | None
    rule: str | None
    route: str | None
    generation: int
    state: str
    pid: int
    comm: str
    uid: int
    cgroup: str | None
    bytes_sent: int
    bytes_received: int
    srtt_us: int
    retransmits: int
    cookie: int
    age_s: float
    carrier: Maybe[str] = ABSENT
    copies: Maybe[int] = ABSENT
    copies_needed: Maybe[int] = ABSENT
    parity: Maybe[int] = ABSENT
    peer_repaired: Maybe[int] = ABSENT
    repaired: Maybe[int] = ABSENT
    cwnd_bytes: Maybe[int] = ABSENT
    pacing_Bps: Maybe[int] = ABSENT  # noqa: N815 - the unit's own case
    outer_state: Maybe[str] = ABSENT
    congestion: Maybe[str] = ABSENT
    transport: Maybe[str] = ABSENT
    agreed: Maybe[str] = ABSENT
    agreement: Maybe[str] = ABSENT
    chosen: Maybe[str] = ABSENT
    choice: Maybe[Choice] = ABSENT
    mptcp: Maybe[bool] = ABSENT  # of an MPTCP socket: whether its peer speaks it, too


@dataclass(frozen=True, slots=True)
class FlowEvent(Record):
    """In its map the flow's fields stand beside the others. reason: of "close"."""

    type: FlowEventType
    time: float
    flow: Flow
    reason: Maybe[str] = ABSENT
    events_lost: Maybe[int] = ABSENT

    @property
    def instance(self) -> str:
        """Whose it is."""
        return self.flow.instance

    def to_map(self) -> dict[str, Any]:
        """See Record."""
        own = Record.to_map(self)
        flow: Flow = own.pop("flow")
        return {"type": own.pop("type"), "time": own.pop("time"), **flow.to_map(), **own}

    @classmethod
    def from_map(cls, said: Mapping[str, Any]) -> Self:
        """See Record."""
        return cls(
            said["type"],
            said.get("time", 0.0),
            Flow.from_map(said),
            said.get("reason", ABSENT),
            said.get("events_lost", ABSENT),
        )


@dataclass(frozen=True, slots=True)
class Listener(Record):
    """An address at which peers may begin: `dmm-ebpf listeners`."""

    instance: str
    proto: str
    addr: str
    port: int
    rule: str | None
    table: str | None
    pid: int
    comm: str
    uid: int
    cgroup: str | None
    sockets: int
    chosen: Maybe[str] = ABSENT
