# SPDX-License-Identifier: Apache-2.0
"""A network device: `dmm-ebpf hal`. docs/json.md tells of each field.

Where nobody could tell a value there is an Untold instead, with the reason; None is what the device
does not have; True and False are yes and no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from dmm_ebpf.records.record import Parts, Record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Untold(Record):
    """could_not_tell: why."""

    could_not_tell: str


Told: TypeAlias = T | Untold


class Asked(Record):
    """A record any of whose fields may be an Untold."""

    __slots__ = ()

    @classmethod
    def from_map(cls, said: Mapping[str, Any]) -> Self:
        """See Record."""
        return super().from_map({key: _read(value) for key, value in said.items()})


def _read(value: Any) -> Any:
    if isinstance(value, dict) and list(value) == ["could_not_tell"]:
        return Untold.from_map(value)
    return value


@dataclass(frozen=True, slots=True)
class Queues(Record):
    """To receive, to send, and how many there may be."""

    rx: int
    tx: int
    rx_max: int
    tx_max: int


@dataclass(frozen=True, slots=True)
class Rss(Record):
    """Receive-side scaling; queues: different ones among the entries."""

    entries: int
    queues: int
    hash: str
    key_bytes: int


@dataclass(frozen=True, slots=True)
class Offload(Record):
    """By ethtool's name."""

    name: str
    on: bool
    changeable: bool


@dataclass(frozen=True, slots=True)
class XdpAttached(Record):
    """A program that is there; id: of the program."""

    mode: str | None
    id: int


@dataclass(frozen=True, slots=True)
class Xdp(Asked):
    """What the driver has of XDP, and the program that is attached."""

    native: Told[bool]
    transmit: Told[bool]
    frags: Told[bool]
    frags_transmit: Told[bool]
    hardware: Told[bool]
    attached: XdpAttached | None

    PARTS: ClassVar[Parts] = {"attached": XdpAttached}


@dataclass(frozen=True, slots=True)
class AfXdp(Asked):
    """mode: how frames reach a socket, in words; segments: of a packet that goes without a copy;
    sums: a stack leaves checksums to the device.
    """

    mode: Told[str]
    zero_copy: Told[bool]
    segments: Told[int]
    metadata: Told[bool]
    sums: Told[bool]


@dataclass(frozen=True, slots=True)
class Metadata(Asked):
    """What frames of AF_XDP can carry besides."""

    rx: Told[list[str]]
    tx: Told[list[str]]


@dataclass(frozen=True, slots=True)
class RdmaPort(Asked):
    """A port of an RDMA device that is on the same hardware."""

    device: str
    port: int
    state: str
    link_layer: str
    rate: str
    protocols: list[str]
    transports: Told[list[str]]
    netdevs: list[str]


@dataclass(frozen=True, slots=True)
class InTheWay(Asked):
    """What others have there."""

    xdp: Told[str | None]
    qdisc: Told[str | None]
    tc_filters: Told[list[str]]
    nft_hooks: Told[list[str]]


@dataclass(frozen=True, slots=True)
class FitFor(Record):
    """port: of user stacks; by_default: also where a policy names no devices."""

    port: str
    why: list[str]
    by_default: bool


@dataclass(frozen=True, slots=True)
class Answer(Record):
    """Yes, or no and why."""

    yes: bool
    why: str


@dataclass(frozen=True, slots=True)
class HostRow(Asked):
    """What a host has, whatever its devices: `dmm-ebpf hal --host`."""

    PARTS: ClassVar[Parts] = {"mptcp": Answer, "cgroups": Answer}

    mptcp: Told[Answer]
    cgroups: Told[Answer]


@dataclass(frozen=True, slots=True)
class DeviceRow(Asked):
    """A device, and what carries a user stack by it."""

    name: str
    altnames: list[str]
    ifindex: int
    kind: str
    driver: str | None
    bus: str | None
    up: bool
    mtu: int
    speed_mbps: Told[int | None]
    numa_node: Told[int | None]
    queues: Told[Queues]
    rss: Told[Rss | None]
    offloads: Told[list[Offload] | None]
    xdp: Xdp
    af_xdp: AfXdp
    metadata: Metadata
    rdma: Told[list[RdmaPort]]
    in_the_way: InTheWay
    fit_for: FitFor

    PARTS: ClassVar[Parts] = {
        "queues": Queues,
        "rss": Rss,
        "offloads": Offload,
        "xdp": Xdp,
        "af_xdp": AfXdp,
        "metadata": Metadata,
        "rdma": RdmaPort,
        "in_the_way": InTheWay,
        "fit_for": FitFor,
    }
