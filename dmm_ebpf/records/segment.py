# SPDX-License-Identifier: Apache-2.0
"""A segment of a user stack, and a file of such: `dmm-ebpf trace` and `capture`. docs/json.md tells
of each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from dmm_ebpf.records.record import Record


@dataclass(frozen=True, slots=True)
class Segment(Record):
    """What a frame holds. src, dst: addresses, or MAC addresses of what is no IP. flags: as
    SYN,ACK. window as it stands in the header, before it is scaled. length_bytes: of payload. why:
    of what is no TCP segment, or not whole; the rest is empty or 0 then.
    """

    src: str = ""
    dst: str = ""
    sport: int = 0
    dport: int = 0
    flags: str = ""
    seq: int = 0
    ack: int = 0
    window: int = 0
    length_bytes: int = 0
    options: list[str] = field(default_factory=list)
    why: str = ""


@dataclass(frozen=True, slots=True)
class SegmentRow(Record):
    """In its map the segment's fields stand among the others. time_ns: since 1970; direction:
    "in" is to the stack, "?" not told; frame_bytes: with the Ethernet header.
    """

    time_ns: int
    stack: str
    leg: str
    direction: str
    segment: Segment
    frame_bytes: int

    def to_map(self) -> dict[str, Any]:
        """See Record."""
        own = Record.to_map(self)
        segment, frame_bytes = own.pop("segment"), own.pop("frame_bytes")
        return {**own, **segment.to_map(), "frame_bytes": frame_bytes}

    @classmethod
    def from_map(cls, said: Mapping[str, Any]) -> Self:
        """See Record."""
        segment = Segment.from_map(said)
        return super(SegmentRow, cls).from_map({**said, "segment": segment})


@dataclass(frozen=True, slots=True)
class Captured(Record):
    """frames: how many went into file."""

    instance: str
    file: str
    frames: int
