# SPDX-License-Identifier: Apache-2.0
"""What a policy is expected to say of flows, one a line, and whether it does.

Owns the text beside a policy that `dmm-ebpf policy test` reads: its grammar, its errors, and the
comparison with evaluate.py. Pure.

    203.0.113.7:443 from /shop.slice -> wan
    203.0.113.7:53 udp               -> kernel
    198.51.100.9:80 listen uid 33    -> wan      # a client's address, and our port
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dmm_ebpf.errors import DmmError, PolicyError
from dmm_ebpf.rd.policy.evaluate import Query, answer
from dmm_ebpf.rd.policy.model import AUTO, Policy
from dmm_ebpf.rd.policy.rule import DIRECTIONS
from dmm_ebpf.rd.policy.values import PROTOCOL_NAMES, shown
from dmm_ebpf.records.policy import Held

MAX_LINES = 100_000
MAX_ERRORS = 20
_ARROW = re.compile(r"->|→")
_COMMENT = re.compile(r"(?:^|\s)#.*")
# The words that a value follows, and what they are of a query
_WITH_VALUE = {
    "from": "cgroup",
    "uid": "uid",
    "gid": "gid",
    "comm": "comm",
    "executable": "executable",
    "mark": "mark",
    "dscp": "dscp",
    "chosen": "choice",
    "netns": "netns",
    "local-port": "local_port",
    "interface": "interface",
    "source": "source",
    "in": "in_interface",
}
_NUMBERS = ("uid", "gid", "mark", "dscp", "local-port")
_FORM = "write ADDR[:PORT] [tcp|udp] [connect|listen|forward] [from CGROUP] [uid N] ... -> STACK"

# From "203.0.113.7:443" and a protocol to (address, port or None); DmmError
Endpoint = Callable[[str, str], tuple[Any, int | None]]


@dataclass(frozen=True)
class Expectation:
    """A line: the flow that it describes, and the stack that is to serve it."""

    line: int  # from 1
    text: str
    query: Query
    stack: str


class _LineRefusedError(Exception):
    """Why a line says nothing that can be asked, and what to do."""

    def __init__(self, why: str, hint: str = _FORM) -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


def read(text: str, policy: Policy, source: str, endpoint: Endpoint) -> list[Expectation]:
    """The expectations in text, of which source is the file's name. PolicyError: all lines that are
    wrong, or there is none that expects something.
    """
    found: list[Expectation] = []
    wrong: list[PolicyError] = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = _COMMENT.sub("", line).strip()
        if not bare:
            continue
        if len(wrong) == MAX_ERRORS:
            break
        if len(found) == MAX_LINES:
            raise PolicyError(
                f"accept {source}:{number}",
                why=f"more than {MAX_LINES} lines expect something",
                hint="divide it among several files",
            )
        try:
            found.append(_line(number, bare, policy, endpoint))
        except _LineRefusedError as refused:
            wrong.append(
                PolicyError(f"accept {source}:{number}", why=refused.why, hint=refused.hint)
            )
    if wrong:
        first, *others = wrong
        first.others, first.enough = tuple(others), len(wrong) == MAX_ERRORS
        raise first
    if not found:
        raise PolicyError(f"test by {source}", why="no line expects anything", hint=_FORM)
    return found


def _line(number: int, text: str, policy: Policy, endpoint: Endpoint) -> Expectation:
    parts = _ARROW.split(text)
    if len(parts) != 2 or not parts[0].strip():
        raise _LineRefusedError(f"{shown(text)} has not one arrow between a flow and a stack")
    stack = parts[1].strip()
    if stack not in policy.stacks and not (stack == AUTO and policy.autos):
        known = ", ".join([*policy.stacks, *([AUTO] if policy.autos else [])])
        raise _LineRefusedError(f"the policy has no stack {shown(stack)}", f"known are {known}")
    return Expectation(number, text, _query(parts[0].split(), endpoint), stack)


def _query(words: list[str], endpoint: Endpoint) -> Query:
    peer, *rest = words
    params: dict[str, Any] = {"proto": "tcp", "direction": "connect"}
    given: set[str] = set()
    while rest:
        word = rest.pop(0)
        key = _key(word)
        if key in given:
            raise _LineRefusedError(f"{shown(word)} says once more what was said")
        given.add(key)
        params[key] = _value(word, rest) if word in _WITH_VALUE else word
    try:
        address, port = endpoint(peer, params["proto"])
        return Query.from_params(params | {"addr": str(address), "port": port})
    except DmmError as refused:
        raise _LineRefusedError(refused.why, refused.hint or _FORM) from None


def _key(word: str) -> str:
    """Which part of a query a word is of."""
    if word in _WITH_VALUE:
        return _WITH_VALUE[word]
    if word in DIRECTIONS:
        return "direction"
    if word in PROTOCOL_NAMES.values():
        return "proto"
    raise _LineRefusedError(f"{shown(word)} is no word of an expectation")


def _value(word: str, rest: list[str]) -> str | int:
    if not rest:
        raise _LineRefusedError(f"nothing stands behind {shown(word)}")
    text = rest.pop(0)
    if word not in _NUMBERS:
        return text
    try:
        return int(text, 0)
    except ValueError:
        raise _LineRefusedError(f"{shown(text)} behind {shown(word)} is no number") from None


def held(policy: Policy, expected: list[Expectation]) -> Iterator[Held]:
    """What the policy says of each, in their order. It holds if the stack that serves, while that
    is up, is the expected one.
    """
    for one in expected:
        said = answer(policy, one.query)
        # "auto": that the director chooses.
        ok = one.stack in {said.stack, said.stack.split(":")[0]}
        yield Held(one.line, one.text, one.stack, ok, said)
