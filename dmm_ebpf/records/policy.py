# SPDX-License-Identifier: Apache-2.0
"""What is asked of a policy: `dmm-ebpf policy check`, `test`, `apply`, `show`, `diff`, `explain`
and `import`, and `route get`. docs/json.md tells of each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from dmm_ebpf.records.failed import Failed
from dmm_ebpf.records.path import Path
from dmm_ebpf.records.record import ABSENT, Maybe, Parts, Record
from dmm_ebpf.records.status import NamedSet, Pending

# Why another stack would serve than the route names.
WhyNot = Literal[
    "down",
    "full",
    "udp",
    "loopback",
    "forwarded",
    "link-local",
    "group",
    "listener",
    "device",
    "filter",
    "outside",
]
# Why new flows do not reach a user stack; empty: they do.
TurnsAway = Literal["", "down", "full"]
Sign = Literal["+", "-"]


@dataclass(frozen=True, slots=True)
class Warned(Record):
    """place: as in "policy.toml:12". text: what is there, and what becomes of it."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Applied(Record):
    """A policy that has come in force. warnings, and more_warnings, as Checked has them: whoever
    had it applied looks for them.
    """

    instance: str
    generation: int
    rules: int
    routes: int
    stacks: int
    pending: list[Pending]
    sets: Maybe[list[NamedSet]] = ABSENT
    warnings: Maybe[list[Warned]] = ABSENT
    more_warnings: Maybe[int] = ABSENT

    PARTS: ClassVar[Parts] = {"pending": Pending, "sets": NamedSet, "warnings": Warned}


@dataclass(frozen=True, slots=True)
class Checked(Record):
    """What a policy file holds, or all that is wrong with it, line by line; error: the first of
    that. enough: no more was looked for.
    """

    ok: bool
    rules: Maybe[int]
    routes: Maybe[int]
    stacks: Maybe[int]
    errors: list[Failed]
    enough: Maybe[bool]
    warnings: list[Warned]
    more_warnings: Maybe[int] = ABSENT
    error: Maybe[Failed] = ABSENT

    PARTS: ClassVar[Parts] = {"errors": Failed, "warnings": Warned, "error": Failed}


@dataclass(frozen=True, slots=True)
class Imported(Record):
    """The policy that another project's files mean; left: what of them is not in it."""

    policy: str
    left: list[str]


@dataclass(frozen=True, slots=True)
class Change(Record):
    """One thing that only the new policy says ("+"), or only the old one ("-")."""

    change: Sign
    what: Literal["stack", "rule", "route"]
    text: str

    def __str__(self) -> str:
        return f"{self.change} {self.what} {self.text}"


@dataclass(frozen=True, slots=True)
class Compared(Record):
    """In what a file differs from the policy in force; more: changes that are not listed;
    changed_files: routes files that are not as they were when the policy in force was read;
    live_routes: how many stand beside both.
    """

    instance: str
    equal: bool
    changes: list[Change]
    more: int
    changed_files: list[str]
    live_routes: Maybe[int] = ABSENT

    PARTS: ClassVar[Parts] = {"changes": Change}


@dataclass(frozen=True, slots=True)
class Tried(Record):
    """The same, and all else that can be told of a policy before it is applied."""

    instance: str
    equal: bool
    changes: list[Change]
    more: int
    rules: int
    routes: int
    stacks: int
    pending: list[Pending]
    warnings: list[Warned]
    more_warnings: int
    not_checked: list[str]
    sets: Maybe[list[NamedSet]] = ABSENT
    live_routes: Maybe[int] = ABSENT

    PARTS: ClassVar[Parts] = {
        "changes": Change,
        "pending": Pending,
        "warnings": Warned,
        "sets": NamedSet,
    }


@dataclass(frozen=True, slots=True)
class Unasked(Record):
    """A rule that may match, by what it asks for and the question does not say."""

    rule: str
    needs: list[str]


# What becomes of a rule that is looked at.
RuleOutcome = Literal["decides", "no match", "no route", "no table", "no choice", "no labels"]
# What becomes of a route whose prefix contains the peer's address.
RouteOutcome = Literal[
    "decides", "protocol", "ports", "shorter prefix", "wider ports", "any protocol", "same"
]


@dataclass(frozen=True, slots=True)
class Mismatch(Record):
    """A condition of a rule that does not hold; given None: the question does not say it."""

    what: str
    wanted: str
    given: str | None


@dataclass(frozen=True, slots=True)
class RouteSeen(Record):
    """A route that was looked at; where: its place in the policy or its file."""

    route: str
    stack: str
    where: str
    outcome: RouteOutcome


@dataclass(frozen=True, slots=True)
class RuleSeen(Record):
    """A rule that was looked at; more: how many routes there are beyond those told of."""

    rule: str
    number: int
    outcome: RuleOutcome
    mismatches: list[Mismatch]
    table: str | None
    routes: list[RouteSeen]
    more: int

    PARTS: ClassVar[Parts] = {"mismatches": Mismatch, "routes": RouteSeen}


@dataclass(frozen=True, slots=True)
class RouteAnswer(Record):
    """What a new flow would get. element: of the route's nft set or hostname, the prefix that
    decides. live: the route is none of the policy's, but was put beside it.
    """

    instance: Maybe[str]
    attached: Maybe[str]
    assumed: Maybe[dict[str, str]]
    stack: str
    wanted: str
    table: str | None
    rule: str | None
    rule_number: int
    route: str | None
    why: WhyNot | None
    unasked: list[Unasked]
    device: Maybe[str] = ABSENT
    choice: Maybe[Literal["taken", "refused"]] = ABSENT
    transport: Maybe[str] = ABSENT
    path: Maybe[Path] = ABSENT
    element: Maybe[str] = ABSENT
    paths: Maybe[list[Path]] = ABSENT
    live: Maybe[bool] = ABSENT

    PARTS: ClassVar[Parts] = {"unasked": Unasked, "path": Path, "paths": Path}


@dataclass(frozen=True, slots=True)
class RouteRow(Record):
    """A route of an instance. proto, ports None: all. live: put beside the policy, and none of its
    own. where: its place in the policy, its file or etcd. fleet: it stands in etcd by itself.
    """

    instance: str
    to: str
    proto: str | None
    ports: str | None
    stack: str
    table: str
    live: bool = True
    where: Maybe[str] = ABSENT
    fleet: Maybe[bool] = ABSENT


@dataclass(frozen=True, slots=True)
class PolicyText(Record):
    """The policy in force; text None: there is none. live: the routes that stand beside it."""

    instance: str
    path: str | None
    text: str | None
    generation: int
    live: Maybe[list[RouteRow]] = ABSENT

    PARTS: ClassVar[Parts] = {"live": RouteRow}


@dataclass(frozen=True, slots=True)
class RoutesChanged(Record):
    """What came of a change of live routes. took_ms: what the director needed until it was in
    force, in milliseconds. live: how many there are now.
    """

    instance: str
    generation: int
    added: list[RouteRow]
    removed: list[RouteRow]
    live: int
    took_ms: float

    PARTS: ClassVar[Parts] = {"added": RouteRow, "removed": RouteRow}


@dataclass(frozen=True, slots=True)
class Explained(Record):
    """How an answer comes about: the rules that were looked at, in order, and how many were not,
    since it was decided.
    """

    answer: RouteAnswer
    rules: list[RuleSeen]
    left: int

    PARTS: ClassVar[Parts] = {"answer": RouteAnswer, "rules": RuleSeen}


@dataclass(frozen=True, slots=True)
class Held(Record):
    """A line of expectations, which names a stack, and what the policy says of its flow. In its map
    the answer's fields stand beside the others.
    """

    line: int
    text: str
    expected: str
    ok: bool
    answer: RouteAnswer

    def to_map(self) -> dict[str, Any]:
        """See Record."""
        own = Record.to_map(self)
        answer: RouteAnswer = own.pop("answer")
        return {**own, **answer.to_map()}

    @classmethod
    def from_map(cls, said: Mapping[str, Any]) -> Self:
        """See Record."""
        return cls(
            said["line"],
            said["text"],
            said["expected"],
            said["ok"],
            RouteAnswer.from_map(said),
        )


@dataclass(frozen=True, slots=True)
class AsExpected(Record):
    """A policy held against what is expected of it. ok: all of that holds."""

    ok: bool
    expectations: list[Held]

    PARTS: ClassVar[Parts] = {"expectations": Held}
