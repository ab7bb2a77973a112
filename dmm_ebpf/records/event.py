# SPDX-License-Identifier: Apache-2.0
"""What `dmm-ebpf flows --follow` tells of besides flows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from dmm_ebpf.errors import DmmError
from dmm_ebpf.records.record import ABSENT, Maybe, Parts, Record
from dmm_ebpf.records.status import Pending

if TYPE_CHECKING:
    from dmm_ebpf.records.flow import FlowEvent


@dataclass(frozen=True, slots=True)
class PolicyEvent(Record):
    """Another policy is in force."""

    type: Literal["policy"]
    path: str | None
    generation: int
    rules: int
    routes: int
    stacks: int
    pending: list[Pending]
    time: float
    instance: str
    events_lost: Maybe[int] = ABSENT

    PARTS: ClassVar[Parts] = {"pending": Pending}


@dataclass(frozen=True, slots=True)
class PolicyRefusedEvent(Record):
    """The policy file has changed, and is not in force."""

    type: Literal["policy_refused"]
    path: str
    reason: str
    time: float
    instance: str
    events_lost: Maybe[int] = ABSENT


@dataclass(frozen=True, slots=True)
class StackEvent(Record):
    """A stack process has come up, gone down, or hangs."""

    type: Literal["stack"]
    stack: str
    process: int
    state: str
    pid: Maybe[int]
    reason: Maybe[str]
    time: float
    instance: str
    events_lost: Maybe[int] = ABSENT


@dataclass(frozen=True, slots=True)
class OtherEvent(Record):
    """What a director of another version tells of; said: all of it."""

    said: dict[str, Any]

    @property
    def type(self) -> str:
        """Which event it is."""
        return str(self.said["type"])

    @property
    def time(self) -> float:
        """When it was (Unix time)."""
        return float(self.said["time"])

    @property
    def instance(self) -> str:
        """Whose it is."""
        return str(self.said["instance"])

    def to_map(self) -> dict[str, Any]:
        """See Record."""
        return dict(self.said)

    @classmethod
    def from_map(cls, said: Mapping[str, Any]) -> Self:
        """See Record."""
        return cls({"time": 0.0, "instance": "", "type": ""} | dict(said))


if TYPE_CHECKING:
    Event: TypeAlias = PolicyEvent | PolicyRefusedEvent | StackEvent | FlowEvent
    AnyEvent: TypeAlias = Event | OtherEvent

_KINDS: dict[str, type[Record]] = {
    "policy": PolicyEvent,
    "policy_refused": PolicyRefusedEvent,
    "stack": StackEvent,
}


def event_of(said: Mapping[str, Any]) -> AnyEvent:
    """Of its map. What a director of another version tells of otherwise is an OtherEvent."""
    from dmm_ebpf.records.flow import FLOW_EVENTS, FlowEvent

    kind = FlowEvent if said.get("type") in FLOW_EVENTS else _KINDS.get(str(said.get("type")))
    try:
        event: Any = (kind or OtherEvent).from_map(said)
    except DmmError:
        event = OtherEvent.from_map(said)
    told: AnyEvent = event
    return told


def now() -> float:
    """The time of an event that is made now: Unix time."""
    return round(time.time(), 6)
