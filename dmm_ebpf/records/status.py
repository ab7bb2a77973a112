# SPDX-License-Identifier: Apache-2.0
"""An instance as a whole: `dmm-ebpf status`. docs/json.md tells of each field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dmm_ebpf.records.central import Central
from dmm_ebpf.records.failed import Failed
from dmm_ebpf.records.record import ABSENT, Maybe, Parts, Record
from dmm_ebpf.records.stack import StackRow


@dataclass(frozen=True, slots=True)
class Pending(Record):
    """A rule whose cgroup, or whose executable's file, is not there; number: from 1."""

    rule: str
    number: int
    cgroup: str | None
    executable: str | None


SetState = Literal["followed", "missing", "refused", "unread"]


@dataclass(frozen=True, slots=True)
class NamedSet(Record):
    """An nft set or a hostname that routes name, and how many prefixes it stands for. missing: it
    does not exist, or no address of it is known. refused: it is no set of addresses. unread: it
    cannot be read now, and what it had holds. why: of these two, and of a name that is missing.
    elements: of a hostname, the prefixes.
    """

    set: str
    state: SetState
    prefixes: int
    why: str = ""
    elements: Maybe[list[str]] = ABSENT


@dataclass(frozen=True, slots=True)
class Missing(Record):
    """What should stand on the host and does not; since: Unix time."""

    what: str
    why: str
    since: float


@dataclass(frozen=True, slots=True)
class Refused(Record):
    """Why the policy file is not what is in force; since: Unix time."""

    path: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Nested(Record):
    """Another instance that decides about the same sockets. cgroup: its directory; above: whether
    that is this one's, or around it.
    """

    instance: str
    cgroup: str
    above: bool


@dataclass(frozen=True, slots=True)
class NicRow(Record):
    """A NIC of a user stack. mode: of XDP, or "tc" where no frame comes so."""

    ifname: str
    ifindex: int
    mode: str
    stack: str


@dataclass(frozen=True, slots=True)
class Detached(Record):
    """What went with an instance: `dmm-ebpf detach`. unknown: what may be left. error: why it was
    not detached, of one of several.
    """

    instance: str
    removed: list[str]
    unknown: list[str]
    error: Maybe[Failed] = ABSENT

    PARTS: ClassVar[Parts] = {"error": Failed}


@dataclass(frozen=True, slots=True)
class Status(Record):
    """rd is added by who asks, and nested of a dead director: nobody else could. central: of a
    fleet's policy. group: whose members may ask, besides root.
    """

    instance: str
    pid: int | None
    netns: str | None
    cgroup: str
    policy: str | None
    policy_refused: Refused | None
    generation: int
    uptime_s: float | None
    flows: int | None
    listeners: int | None
    rules: int | None
    routes: int | None
    counters: dict[str, int]
    nics: list[NicRow]
    problem: str | None
    missing: list[Missing]
    pending: list[Pending]
    earlier: str | None
    stacks: list[StackRow]
    rd: Maybe[Literal["up", "dead", "silent"]] = ABSENT
    nested: Maybe[list[Nested]] = ABSENT
    central: Maybe[Central] = ABSENT
    sets: Maybe[list[NamedSet]] = ABSENT
    live_routes: Maybe[int] = ABSENT
    group: Maybe[str] = ABSENT

    PARTS: ClassVar[Parts] = {
        "sets": NamedSet,
        "policy_refused": Refused,
        "central": Central,
        "nics": NicRow,
        "missing": Missing,
        "pending": Pending,
        "stacks": StackRow,
        "nested": Nested,
    }
